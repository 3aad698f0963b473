"""From texts to trained dictionaries: on one stream, from files, killed and resumed, by SAELens's names, by command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_tiny
from typer.testing import CliRunner

import introspect
from introspect.sae import saelens_names as saelens
from introspect.sae import streams
from introspect.sae.training import default_options, train, train_many

HOOKS = ("blocks.1.hook_resid_post", "blocks.0.hook_mlp_out")
SHARED = {
    "training_tokens": 64 * 24, "train_batch_size_tokens": 64, "context_size": 12, "prepend_bos": False,
    "sequence_separator_token": None, "exclude_special_tokens": False, "held_out_tokens": 100, "buffer_tokens": 256,
    "record_every": 4, "progress": False,
}  # fmt: skip
PACKING = {"context_size": 12, "prepend_bos": False, "sequence_separator_token": None, "exclude_special_tokens": False,
           "progress": False}  # fmt: skip
ONE = {"hook": HOOKS[0], "d_sae": 48, "k": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


@pytest.fixture(scope="module")
def texts():
    return torch.randint(3, 101, (40, 30), generator=torch.Generator().manual_seed(0)).tolist()


def weights(dictionary):
    return {name: tensor for name, tensor in dictionary.weights.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_several_dictionaries_on_one_stream_are_each_alone_bit_for_bit(model, texts):
    wanted = [
        ONE,
        {**ONE, "d_sae": 64, "architecture": "jumprelu"},
        {**ONE, "hook_out": HOOKS[1]},
        {**ONE, "hook": HOOKS, "architecture": "batchtopk"},
        {**ONE, "hook": HOOKS[1], "architecture": "standard"},
    ]
    together = train_many(model, texts, wanted, **SHARED)
    kinds = [type(dictionary).__name__ for dictionary in together.dictionaries]
    assert kinds == ["SAE", "SAE", "Transcoder", "Crosscoder", "SAE"]
    for asked, dictionary in zip(wanted, together.dictionaries, strict=True):
        assert same(weights(train_many(model, texts, [asked], **SHARED).dictionaries[0]), weights(dictionary))
    first = together.dictionaries[0]
    assert [site.hook_name for site in first.origin.inputs] == [HOOKS[0]]
    assert first.origin.model_hash == model.hash
    assert (first.origin.context_size, first.origin.prepend_bos) == (12, False)


def test_figures_are_of_rows_that_were_held_out(model, texts):
    """The last evaluation by hand: the first contexts, which no batch had, through the dictionary that came out."""
    run = train_many(model, texts, [ONE], **SHARED)
    rows = torch.tensor([t for text in texts for t in text])[: 108 // 12 * 12].view(-1, 12)
    _, cache = model.run_with_cache(rows)
    x = cache[HOOKS[0]].flatten(0, 1).double()
    sae = run.dictionaries[0]
    x_hat = sae(x.float()).double()
    last = run.records[-1].held_out[0]
    variance = 1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert last["explained_variance"] == pytest.approx(variance.item(), rel=1e-4)
    assert last["mse"] == pytest.approx((x - x_hat).square().sum(1).mean().item(), rel=1e-4)
    assert last["l0"] == pytest.approx((sae.encode(x.float()) != 0).sum(1).double().mean().item())
    assert last["explained_variance"] > run.records[0].held_out[0]["explained_variance"] + 0.1
    table = run.to_pandas()
    assert table["steps"].iloc[-1] == 24
    assert table["held_out_l0"].iloc[0] >= 0
    assert run.plot().axes[0].get_ylabel() == "explained variance on held-out tokens"


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "standard", "gated", "matryoshka_batchtopk"])
def test_defaults_fit_every_architecture(model, texts, architecture):
    sae = train(model, texts, hook=HOOKS[0], architecture=architecture, d_sae=64, k=4, **SHARED)
    assert sae.d_sae == 64
    assert default_options(architecture, 32, 64, 24, 4)["objective"] == architecture


def test_more_figures_and_records_come_from_the_caller(model, texts):
    seen = []
    run = train_many(model, texts, [ONE], evaluate=lambda sae: {"norm": sae.W_dec.norm().item()}, on_record=seen.append,
                     evaluate_every=12, **SHARED)  # fmt: skip
    assert [record.step for record in seen] == [record.step for record in run.records] == [0, 4, 8, 12, 16, 20, 24]
    assert [record.step for record in seen if record.held_out] == [0, 12, 24]
    assert run.records[-1].held_out[0]["norm"] == pytest.approx(run.dictionaries[0].W_dec.norm().item())


def test_a_file_of_activations_trains_as_its_stream_does(model, texts, tmp_path):
    file = streams.write_activations(
        model, texts, tmp_path / "a", hooks=HOOKS, dtype=torch.float32, **PACKING
    )  # fmt: skip
    options = SHARED | {"training_tokens": 64 * 8, "activations_mixing_fraction": 0.0, "held_out_tokens": 60}
    from_file = train_many(None, file, [ONE], **options).dictionaries[0]
    assert same(weights(train_many(model, texts, [ONE], **options).dictionaries[0]), weights(from_file))
    assert from_file.origin.model_hash == model.hash


KILLED = """
import json, sys, time, torch
import introspect
from introspect.sae.training import train_many
folder, checkpoint, shared, wanted, texts = json.loads(sys.stdin.readline())
torch.set_num_threads(1)
def slowly(record):
    print(record.step, flush=True)
    time.sleep(0.05)
train_many(introspect.load_model(folder), texts, wanted, checkpoint_path=checkpoint, checkpoint_every=3,
           on_record=slowly, **{**shared, "record_every": 1})
"""


def test_a_killed_training_goes_on_to_the_same_numbers(folder, texts, tmp_path):
    """kill -9 in the middle, then resume: weights and records of the run that was not killed, bit for bit."""
    wanted = [ONE, {**ONE, "architecture": "jumprelu", "hook": HOOKS[1]}]
    checkpoint = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    child.stdin.write(json.dumps([str(folder), str(checkpoint), SHARED, wanted, texts]) + "\n")
    child.stdin.flush()
    for line in child.stdout:
        if int(line) == 11:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    (left,) = [path.name for path in checkpoint.iterdir() if not path.name.endswith(".partial")]
    assert left in ("step-9", "step-6")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = introspect.load_model(folder)
        options = SHARED | {"record_every": 1}
        whole = train_many(model, texts, wanted, **options)
        seen = []
        resumed = train_many(
            model, texts, wanted, checkpoint_path=checkpoint, resume=True, on_record=seen.append, **options
        )
    finally:
        torch.set_num_threads(threads)
    assert seen[0].step == int(left.removeprefix("step-")) + 1
    for a, b in zip(whole.dictionaries, resumed.dictionaries, strict=True):
        assert same(weights(a), weights(b))
    for a, b in zip(whole.records, resumed.records, strict=True):
        assert (a.step, a.rows, a.held_out) == (b.step, b.rows, b.held_out)
        assert [m.to_dict() for m in a.trained] == [m.to_dict() for m in b.trained]
    assert [path.name for path in checkpoint.iterdir()] == ["step-24"]


def test_a_checkpoint_of_another_training_is_refused(model, texts, tmp_path):
    train_many(model, texts, [ONE], checkpoint_path=tmp_path, **SHARED)
    with pytest.raises(introspect.IoError, match="holds a checkpoint; resume goes on from it"):
        train_many(model, texts, [ONE], checkpoint_path=tmp_path, **SHARED)
    with pytest.raises(introspect.ConfigError, match="must have the options and sites that it was trained with"):
        train_many(model, texts, [{**ONE, "k": 5}], checkpoint_path=tmp_path, resume=True, **SHARED)
    with pytest.raises(introspect.ConfigError, match="must be of 2 dictionaries, is of 1"):
        train_many(model, texts, [ONE, ONE], checkpoint_path=tmp_path, resume=True, **SHARED)
    with pytest.raises(introspect.IoError, match="of other rows, with the documents 'tokens "):
        train_many(model, texts[1:], [ONE], checkpoint_path=tmp_path, resume=True, **SHARED)
    (tmp_path / "step-24/run.json").write_text("{")
    with pytest.raises(introspect.IoError, match=r"run\.json"):
        train_many(model, texts, [ONE], checkpoint_path=tmp_path, resume=True, **SHARED)


def test_what_goes_wrong_in_training_names_the_last_good_checkpoint(model, texts, tmp_path):
    class Stopped(Exception):
        pass

    def stop(record):
        if record.step == 8:
            raise Stopped

    with pytest.raises(Stopped):  # an interruption keeps what was trained
        train_many(model, texts, [ONE], checkpoint_path=tmp_path / "a", on_record=stop, **SHARED)
    assert (tmp_path / "a/step-8/run.json").exists()
    wild = {**ONE, "lr": 1e38, "clip": 0.0, "warm_up_steps": 0}
    with pytest.raises(introspect.Error, match=r"step 1: Dictionary: W_enc must be finite; no checkpoint was kept"):
        train_many(model, texts, [wild], checkpoint_path=tmp_path / "b", checkpoint_every=1, **SHARED)

    streams.write_activations(model, texts, tmp_path / "f", hooks=HOOKS[0], dtype=torch.float32, **PACKING)
    with (tmp_path / "f/rows.bin").open("r+b") as rows:  # row 400 of 32 floats is not a number
        rows.seek(400 * 32 * 4)
        rows.write(torch.full((32,), float("nan")).numpy().tobytes())
    broken = streams.ActivationFile.open(tmp_path / "f", verify=False)
    in_order = SHARED | {"activations_mixing_fraction": 0.0, "held_out_tokens": 64}
    with pytest.raises(introspect.Error, match=r"step 5: .*the loss is nan.*the last good checkpoint is .*step-4"):
        train_many(None, broken, [ONE], checkpoint_path=tmp_path / "c", checkpoint_every=2, **in_order)


def test_what_does_not_fit_is_said_before_training(model, texts):
    cases = [
        (introspect.HookError, {"hook": "blocks.9.hook_resid_post"}, {}),
        (ValueError, {"k": 49}, {}),
        (introspect.ConfigError, {"learning_rate": 1}, {}),
        (introspect.ShapeError, {}, {"context_size": 65}),
        (ValueError, {}, {"training_tokens": 63}),
        (ValueError, {}, {"held_out_tokens": 10_000}),
        (TypeError, {"hook": None}, {}),
    ]
    for error, one, shared in cases:
        with pytest.raises(error):
            train_many(model, texts, [ONE | one], **SHARED | shared)
    with pytest.raises(TypeError, match="there is no option context_length"):
        train_many(model, texts, [ONE], context_length=8, **SHARED)
    with pytest.raises(ValueError, match=r"fill at least one context|held out"):
        train_many(model, [[3, 4, 5]], [ONE], **SHARED)


def test_saelens_runner_trains_as_train_does(model, texts, tmp_path):
    cfg = saelens.LanguageModelSAERunnerConfig(
        sae=saelens.TopKTrainingSAEConfig(d_in=32, d_sae=48, k=4),
        hook_name=HOOKS[0], training_tokens=64 * 10, train_batch_size_tokens=64, context_size=12,
        n_batches_in_buffer=30, prepend_bos=False, sequence_separator_token=None, lr=1e-3, lr_warm_up_steps=3,
        output_path=str(tmp_path / "out"), checkpoint_path=None, verbose=False,
    )  # fmt: skip
    rows = [{"input_ids": row[:12]} for row in texts] * 3
    runner = saelens.LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    sae = runner.run()
    mine = train(
        model, [row["input_ids"] for row in rows], hook=HOOKS[0], d_sae=48, k=4, input_norm="none", b_dec_start="zero",
        lr=1e-3, warm_up_steps=3, decay_steps=0, dead_window=1000, total_steps=10, decoder_norm=0.1, unit_decoder=False,
        rank_by_decoder_norm=True, aux="residual", aux_coefficient=1.0, training_tokens=640, train_batch_size_tokens=64,
        context_size=12, is_dataset_tokenized=True, exclude_special_tokens=False, max_norm_multiple=None,
        buffer_tokens=360, seed=42, progress=False, prepend_bos=False, sequence_separator_token=None,
    )  # fmt: skip
    assert same(weights(sae), weights(mine))
    assert introspect.SAE.load(tmp_path / "out").cfg.architecture == "topk"
    assert len(runner.training.records) > 0
    assert saelens.SAETrainingRunner is saelens.LanguageModelSAETrainingRunner


def test_saelens_fields_are_known_or_named():
    sae = saelens.StandardTrainingSAEConfig(d_in=8, d_sae=16)
    with pytest.raises(introspect.ConfigError, match=r"no field 'training_token'; the nearest are training_tokens"):
        saelens.LanguageModelSAERunnerConfig(sae=sae, training_token=3)
    with pytest.raises(introspect.ConfigError, match=r"no field 'l1_coeff'; the nearest are l1_coefficient"):
        saelens.StandardTrainingSAEConfig(d_in=8, d_sae=16, l1_coeff=3)
    with pytest.raises(introspect.ConfigError, match="compile_llm has no meaning here: nothing is compiled"):
        saelens.LanguageModelSAERunnerConfig(sae=sae, compile_llm=True)
    with pytest.raises(introspect.ConfigError, match="hook_head_index has no meaning here"):
        saelens.LanguageModelSAERunnerConfig(sae=sae, hook_head_index=1)
    with pytest.raises(introspect.ConfigError, match="lr_scheduler_name must be constant or cosineannealing"):
        saelens.LanguageModelSAERunnerConfig(sae=sae, lr_scheduler_name="linear")
    with pytest.raises(introspect.ConfigError, match=r"dataset_path must be a \.txt or \.jsonl file"):
        saelens.LanguageModelSAETrainingRunner(saelens.LanguageModelSAERunnerConfig(sae=sae, dataset_path="a/b"))


def test_the_command_trains_and_resumes(folder, texts, tmp_path):
    from introspect.cli.app import app

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in texts))
    file = streams.write_activations(
        introspect.load_model(folder), Path(corpus), tmp_path / "acts", hooks=HOOKS[0], **PACKING
    )
    assert file.rows == 1200
    command = ["sae", "train", str(folder), str(tmp_path / "acts"), "--hook", HOOKS[0], "--width", "48", "--k", "4",
               "--k", "8", "--tokens", "1024", "--batch", "64", "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [fact["d_sae"] for fact in facts] == [48, 48]
    assert introspect.SAE.load(facts[1]["path"]).cfg.k == 8
    assert (tmp_path / "out/training.csv").read_text().startswith("dictionary,steps,tokens")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "resume goes on from it" in again.output
    resumed = CliRunner().invoke(app, [*command, "--resume", "--json"])
    assert json.loads(resumed.stdout) == facts
    bad = CliRunner().invoke(app, ["sae", "train", str(folder), str(corpus), "--hook", "blocks.1.hook_resid_pots",
                                   "--out", str(tmp_path / "other")])  # fmt: skip
    assert bad.exit_code == 1
