"""Folders of activations and trainings go on with what they were begun with: else it is said, and nothing is lost."""

import contextlib
import json

import fenced
import numpy as np
import pytest
import torch
from quantised import write_quantised_chat
from tiny import write_tiny

import introspect
from introspect import _C, FinetuneExample, ops, train_lora
from introspect.sae import streams
from introspect.sae.cross_layer_trainer import train_cross_layer
from introspect.sae.streams import ActivationFile, TokenStream
from introspect.sae.training import train_many

HOOK = "blocks.1.hook_resid_post"
TOKENS = torch.randint(3, 101, (40, 10), generator=torch.Generator().manual_seed(0))


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that are alike but for one thing; all read tokens below 101."""
    at = tmp_path_factory.mktemp("models")
    folder, blocks = write_tiny(at / "m"), write_quantised_chat(at / "t.gguf", ("Q4_1", "Q8_0"))
    wide = introspect.load_model(folder)
    changed = {name: x + 0.1 for name, x in wide.native.named_weights() if "mlp" in name}
    out = {str(dtype)[6:]: introspect.load_model(folder, dtype=dtype) for dtype in (torch.bfloat16, torch.float64)}
    out |= {"float32": wide, "changed": introspect.Model(wide.native.with_weights(changed), name=wide.name)}
    for how in ("dense", "as stored"):
        out[how] = introspect.load_model(blocks, dtype=torch.bfloat16, weights=how)
        out[f"wide {how}"] = introspect.load_model(blocks, dtype=torch.float32, weights=how)
    return out


def packed(tokens=TOKENS):
    return TokenStream.of_tokens(tokens.tolist(), context=10, packed=True)


def read_by(function):
    """Texts that have no identity."""
    return TokenStream.of_function(lambda first: iter(function().tolist()[first:]), "", context=10, packed=True,
                                   bos=None, separator=None, concatenate=False)  # fmt: skip


def write(model, path, *, tokens=None, stop=None, hook=HOOK, **options):
    def progress(what, done, total):
        if stop is not None and done >= stop:
            raise Stopped

    return _C.write_activations([model.native], packed() if tokens is None else tokens, [(hook, 0)], path,
                                progress=progress, commit_rows=30, memory_budget=1 << 17, **options)  # fmt: skip


def files_of(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_refused(again, folder, error, match):
    """Whatever is there stays as it is."""
    before = files_of(folder)
    with pytest.raises(error, match=match):
        again()
    assert files_of(folder) == before and before


@pytest.mark.parametrize("stop", [100, None], ids=["partial", "complete"])
@pytest.mark.parametrize(
    ("begun", "continued", "options", "match"),
    [
        ("float32", "bfloat16", {}, "the precision 'float32', and 'bfloat16' came"),
        ("dense", "as stored", {}, "the precision 'bfloat16', and 'bfloat16, weights as stored' came"),
        ("float32", "changed", {}, "the model '[0-9a-f]{64}', and '[0-9a-f]{64}' came"),
        ("float32", "float32", {"hook": "blocks.0.hook_resid_post"}, "other sites or another dtype"),
        ("float32", "float32", {"dtype": torch.bfloat16}, "other sites or another dtype"),
        ("float32", "float32", {"tokens": packed(TOKENS + 1)}, "the documents 'tokens "),
        ("float32", "float32", {"first_position": 1, "end_position": 3}, "'0 to 9 by 1', and '1 to 2 by 1' came"),
        ("float32", "float32", {"exclude_tokens": [7, 5, 6]}, r"exclude_tokens '\[\]', and '\[5,6,7\]' came"),
        ("float32", "float32", {"max_norm_multiple": 10.0}, r"max_norm_multiple 0\.0, and 10\.0 came"),
        ("float32", "float32", {"rows": 50}, r"holds \d+ rows, more than the 50 asked for"),
    ],
)
def test_a_folder_of_activations_takes_only_rows_of_its_kind(models, tmp_path, begun, continued, options, match, stop):
    def first():
        return write(models[begun], tmp_path / "a", stop=stop)

    if stop is None:
        first()
    else:
        with pytest.raises(Stopped):
            first()
    is_refused(lambda: write(models[continued], tmp_path / "a", resume=True, **options), tmp_path / "a",
               introspect.IoError, match)  # fmt: skip
    assert write(models[begun], tmp_path / "a", resume=True).is_complete
    whole = write(models[begun], tmp_path / "whole")
    assert (tmp_path / "a/rows.bin").read_bytes() == (tmp_path / "whole/rows.bin").read_bytes()
    assert whole.rows == 400


def test_ways_that_give_the_same_rows_go_on(models, tmp_path):
    """In float32 blocks are multiplied as the dense values are; the order of excluded ids says nothing."""
    with pytest.raises(Stopped):
        write(models["wide dense"], tmp_path / "a", stop=100, exclude_tokens=[5, 6])
    there = write(models["wide as stored"], tmp_path / "a", resume=True, exclude_tokens=[6, 5, 6])
    assert there.is_complete
    whole = write(models["wide dense"], tmp_path / "whole", exclude_tokens=[5, 6])
    torch.testing.assert_close(there.read(0, 0, there.rows), whole.read(0, 0, whole.rows), rtol=0, atol=2e-4)


def test_texts_without_an_identity_are_told_by_the_document_that_was_read_last(models, tmp_path):
    with pytest.raises(Stopped):
        write(models["float32"], tmp_path / "a", stop=100, tokens=read_by(lambda: TOKENS))
    is_refused(
        lambda: write(models["float32"], tmp_path / "a", resume=True, tokens=read_by(lambda: TOKENS.flip(0))),
        tmp_path / "a", introspect.IoError, "is not of these texts or this tokenizer: document 9 must have",
    )  # fmt: skip
    assert write(models["float32"], tmp_path / "a", resume=True, tokens=read_by(lambda: TOKENS)).rows == 400


def test_a_folder_that_holds_what_was_asked_for_is_not_continued_within_a_pass(models, tmp_path):
    """What came after the last row in its pass is not kept."""
    assert write(models["float32"], tmp_path / "a", rows=105).rows == 105
    for rows, said in ((200, "200"), (0, "all")):
        is_refused(lambda rows=rows: write(models["float32"], tmp_path / "a", resume=True, rows=rows), tmp_path / "a",
                   introspect.IoError, f"holds the 105 rows that it was begun with, and {said} are asked")  # fmt: skip
    assert write(models["float32"], tmp_path / "a", resume=True, rows=105).rows == 105
    with pytest.raises(Stopped):
        write(models["float32"], tmp_path / "b", rows=300, stop=100)
    assert write(models["float32"], tmp_path / "b", rows=350, resume=True).rows == 350  # not there yet: it may be more


def change_head(folder, change_state, without=()):
    path = folder / "activations.json"
    head = json.loads(path.read_text())
    state = json.loads(head["source_state"])
    change_state(state)
    kept = {name: value for name, value in head.items() if name not in without}
    path.write_text(json.dumps(kept | {"source_state": json.dumps(state)}))


def write_as_an_earlier_version(model, folder, **options):
    with contextlib.suppress(Stopped):
        write(model, folder, **options)
    change_head(folder, lambda state: state.pop("of"), without=("asked",))


@pytest.mark.parametrize("stop", [100, None])
def test_folders_of_earlier_versions_are_read_and_not_gone_on_with(models, tmp_path, stop):
    """A complete one needs notes that tell the model."""
    notes = {} if stop is None else {"notes": notes_of(models["float32"])}
    write_as_an_earlier_version(models["float32"], tmp_path / "a", stop=stop, **notes)
    assert ActivationFile.open(tmp_path / "a").rows >= 100
    is_refused(lambda: write(models["float32"], tmp_path / "a", resume=True, **notes), tmp_path / "a",
               introspect.IoError, "does not say of which model")  # fmt: skip


def notes_of(model):
    return streams.origin_notes(model.native, packed())


def test_complete_folders_of_earlier_versions_are_opened_if_what_they_tell_is_the_same(models, tmp_path):
    folder, notes = tmp_path / "a", notes_of(models["float32"])
    write_as_an_earlier_version(models["float32"], folder, notes=notes)
    before = files_of(folder)
    for rows in (0, 400):
        assert write(models["float32"], folder, resume=True, notes=notes, rows=rows).rows == 400
    assert files_of(folder) == before
    changed = notes_of(models["changed"])
    for options, match in (
        ({"notes": changed}, "the model_hash '"),
        ({"notes": notes, "rows": 300}, "holds 400 rows, not the 300 asked for"),
        ({"notes": notes, "rows": 500}, "holds 400 rows, not the 500 asked for"),
        ({"notes": notes, "hook": "blocks.0.hook_resid_post"}, "other sites or another dtype"),
        ({"notes": notes, "dtype": torch.bfloat16}, "other sites or another dtype"),
        ({}, "does not say of which model"),
    ):
        is_refused(lambda options=options: write(models["float32"], folder, resume=True, **options), folder,
                   introspect.IoError, match)  # fmt: skip


@pytest.mark.parametrize("contexts", [0, -3, 2**63, "8", None])
@pytest.mark.parametrize("ray", [False, True])
def test_a_folder_that_was_read_by_no_contexts_a_pass_is_refused(models, tmp_path, contexts, ray):
    """0 contexts would be the end of the texts: a folder with fewer rows would be marked as complete."""
    with pytest.raises(Stopped):
        write(models["float32"], tmp_path / "a", stop=100, max_norm_multiple=10.0, dtype=torch.bfloat16)
    change_head(tmp_path / "a", lambda state: state.update(contexts_per_pass=contexts))
    workers = {"ray": "local"} if ray else {}
    with pytest.raises(introspect.IoError, match="contexts_per_pass"):
        streams.write_activations(models["float32"], packed(), tmp_path / "a", hooks=HOOK, resume=True,
                                  exclude_special_tokens=False, **workers)  # fmt: skip
    assert not ActivationFile.open(tmp_path / "a").is_complete


@contextlib.contextmanager
def products(way):
    before = ops.use_bfloat16_products(way)
    try:
        yield
    finally:
        ops.use_bfloat16_products(before)


needs_two_ways = pytest.mark.skipif(len(ops.bfloat16_products_here()) < 2, reason="one way of products here")


@needs_two_ways
@pytest.mark.parametrize("of", ["bfloat16", "float32"])
def test_bfloat16_goes_on_with_the_products_that_it_was_begun_with(models, tmp_path, of):
    quick, *_, plain = ops.bfloat16_products_here()
    (tmp_path / "run").mkdir()
    with products(quick), pytest.raises(Stopped):
        write(models[of], tmp_path / "a", stop=100)
    with products(quick), pytest.raises(Stopped):
        lora(models[of], tmp_path / "run/lora.safetensors", 3)
    with products(plain):
        if of == "bfloat16":
            is_refused(lambda: write(models[of], tmp_path / "a", resume=True), tmp_path / "a", introspect.IoError,
                       f"the products '{quick}', and '{plain}' came")  # fmt: skip
            is_refused(lambda: lora(models[of], tmp_path / "run/lora.safetensors"), tmp_path / "run",
                       introspect.ConfigError, f"with the products '{quick}', not '{plain}'")  # fmt: skip
    with products(plain if of == "float32" else quick):
        assert write(models[of], tmp_path / "a", resume=True).is_complete
        lora(models[of], tmp_path / "run/lora.safetensors")


def test_blocks_on_another_device_than_the_embedding_count(models, tmp_path):
    fenced.load()
    write_tiny(tmp_path / "m")
    plain = introspect.load_model(tmp_path / "m")
    spread = introspect.load_model(tmp_path / "m", device_map={2: "fenced"})
    for model, kind in ((plain, "cpu"), (spread, "cpu+fenced")):
        write(model, tmp_path / kind)
        head = json.loads((tmp_path / kind / "activations.json").read_text())
        assert json.loads(head["source_state"])["of"]["device"] == kind
    is_refused(lambda: write(spread, tmp_path / "cpu", resume=True), tmp_path / "cpu", introspect.IoError,
               r"the device 'cpu', and 'cpu\+fenced' came")  # fmt: skip


def test_another_version_of_the_numbers_is_refused(models, tmp_path):
    write(models["float32"], tmp_path / "a")
    change_head(tmp_path / "a", lambda state: state["of"].update(numerics="0.0.9"))
    is_refused(lambda: write(models["float32"], tmp_path / "a", resume=True), tmp_path / "a", introspect.IoError,
               "the numerics '0.0.9', and '")  # fmt: skip


def test_each_of_several_models_counts(models, tmp_path):
    def run(second, resume):
        pair = [models["float32"].native, models[second].native]
        return _C.write_activations(pair, packed(), [(HOOK, 0), (HOOK, 1)], tmp_path / "a", resume=resume)

    run("bfloat16", False)
    is_refused(
        lambda: run("float32", True), tmp_path / "a", introspect.IoError, "the precision of model 1 'bfloat16', and"
    )
    is_refused(
        lambda: write(models["float32"], tmp_path / "a", resume=True), tmp_path / "a", introspect.IoError, "other sites"
    )
    assert run("bfloat16", True).rows == 400


def test_workers_are_not_started_for_a_folder_of_other_rows(models, tmp_path):
    options = {"hooks": HOOK, **PACKING}
    begun = streams.write_activations(models["float32"], TOKENS.tolist(), tmp_path / "a", **options)
    is_refused(
        lambda: streams.write_activations(
            models["bfloat16"], TOKENS.tolist(), tmp_path / "a", resume=True, ray="local", **options
        ),
        tmp_path / "a",
        introspect.IoError,
        "the precision 'float32', and 'bfloat16' came",
    )
    again = streams.write_activations(
        models["float32"], TOKENS.tolist(), tmp_path / "a", resume=True, ray="local", **options
    )
    assert again.rows == begun.rows  # it is complete: no worker is needed either


@pytest.mark.parametrize("state", ["", "{}", "[]", '{"of": []}', '{"of": {}}', '{"of": {"x": 1}}', '{"of": 3', "null"])
def test_a_folder_with_a_damaged_state_is_refused(models, tmp_path, state):
    write(models["float32"], tmp_path / "a")
    path = tmp_path / "a/activations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_state": state}))
    is_refused(lambda: write(models["float32"], tmp_path / "a", resume=True), tmp_path / "a", introspect.IoError,
               "tmp")  # fmt: skip


PACKING = {"context_size": 10, "is_dataset_tokenized": True, "prepend_bos": False}
SIZES = {"training_tokens": 640, "train_batch_size_tokens": 64, "held_out_tokens": 64}


def train_sae(texts, model, folder, stop=None, **options):
    def on_record(record):
        if record.step == stop:
            raise Stopped

    packing = {} if isinstance(texts, ActivationFile) else PACKING
    given = {**SIZES, **packing, **options}
    trained = train_many(model, texts, [{"hook": HOOK, "d_sae": 48, "k": 4}], checkpoint_path=folder,
                         on_record=on_record, record_every=1, progress=False, **given)  # fmt: skip
    return trained.dictionaries[0]


def train_clt(texts, model, folder, stop=None, **options):
    def on_step(metrics):
        if metrics.step == stop:
            raise Stopped

    streaming = {} if isinstance(texts, ActivationFile) else {"streaming": PACKING}
    given = {**SIZES, **streaming, **options}
    return train_cross_layer(model, texts, d_sae=24, k=4, architecture="topk", checkpoint_path=folder,
                             checkpoint_every=2, on_step=on_step, **given)  # fmt: skip


@pytest.mark.parametrize("train", [train_sae, train_clt])
@pytest.mark.parametrize(
    ("continued", "options", "match"),
    [
        ("bfloat16", {}, "the precision 'float32', and 'bfloat16' came"),
        ("changed", {}, "the model '"),
        ("float32", {"exclude_special_tokens": [5, 6]}, "the exclude_tokens '"),
        ("float32", {"held_out_tokens": 128}, "must be the 13 contexts that are held out now, got 7"),
    ],
)
def test_a_training_of_dictionaries_goes_on_with_rows_of_the_same_kind(
    models, tmp_path, train, continued, options, match
):
    texts, folder = TOKENS.tolist(), tmp_path / "run"
    with pytest.raises(Stopped):
        train(texts, models["float32"], folder, 5)
    if train is train_clt and "held_out_tokens" not in options and options:
        options = {"streaming": {**PACKING, **options}}
    is_refused(lambda: train(texts, models[continued], folder, resume=True, **options), folder, introspect.IoError,
               match)  # fmt: skip
    assert train(texts, models["float32"], folder, resume=True).d_sae > 0


def test_a_refusal_comes_before_the_model_reads_what_is_held_out(models, tmp_path):
    said = []
    with pytest.raises(Stopped):
        train_sae(TOKENS.tolist(), models["float32"], tmp_path / "run", 5)
    with pytest.raises(introspect.IoError, match="the precision"):
        train_many(
            models["bfloat16"],
            TOKENS.tolist(),
            [{"hook": HOOK, "d_sae": 48, "k": 4}],
            checkpoint_path=tmp_path / "run",
            resume=True,
            progress=lambda *args: said.append(args),
            **SIZES,
            **PACKING,
        )
    assert said == []


def test_a_training_on_a_file_goes_on_with_the_same_rows(models, tmp_path):
    """Whichever folder they are in: it may be written anew."""
    files = [
        streams.write_activations(models[of], TOKENS.tolist(), tmp_path / name, hooks=HOOK, **PACKING)
        for name, of in (("a", "float32"), ("again", "float32"), ("b", "bfloat16"))
    ]
    with pytest.raises(Stopped):
        train_sae(files[0], None, tmp_path / "run", 5)
    for others in (
        lambda: train_sae(files[2], None, tmp_path / "run", resume=True),
        lambda: train_sae(files[1], None, tmp_path / "run", resume=True, held_out_tokens=32),
    ):
        is_refused(others, tmp_path / "run", introspect.IoError, "the content '|must be the 32 rows that are now")
    train_sae(files[1], None, tmp_path / "run", resume=True)


@pytest.mark.parametrize("mib", [1, 5])
def test_rows_that_differ_in_the_middle_only_are_other_rows(tmp_path, mib):
    """1 MiB is its own two ends; of 5 all between the ends is sampled."""
    rows = np.random.default_rng(0).standard_normal((mib << 14, 16), dtype=np.float32)
    files = []
    for name, row in (("a", None), ("b", len(rows) // 2)):
        if row is not None:
            rows[row] += 1
        writer = _C.ActivationWriter(tmp_path / name, [(HOOK, 0)], [16], torch.float32, "{}")
        writer.write([torch.from_numpy(rows.copy())], "{}")
        files.append(writer.finish())
    with pytest.raises(Stopped):
        train_sae(files[0], None, tmp_path / "run", 5)
    is_refused(lambda: train_sae(files[1], None, tmp_path / "run", resume=True), tmp_path / "run", introspect.IoError,
               "the content '")  # fmt: skip


def test_a_cross_layer_transcoder_goes_on_to_write_where_it_wrote(models, tmp_path):
    points = ("hook_mlp_in", "hook_mlp_out", "hook_resid_post")
    hooks = [f"blocks.{i}.{point}" for i in range(models["float32"].cfg.n_layers) for point in points]
    file = streams.write_activations(models["float32"], TOKENS.tolist(), tmp_path / "a", hooks=hooks, **PACKING)
    with pytest.raises(Stopped):
        train_clt(file, models["float32"], tmp_path / "run", 5)
    is_refused(lambda: train_clt(file, models["float32"], tmp_path / "run", resume=True, hook_out="hook_resid_post"),
               tmp_path / "run", introspect.ConfigError, "must have the options and sites")  # fmt: skip


def lora(model, file, stop=None, **options):
    def on_step(step, loss):
        if step == stop:
            raise Stopped

    examples = [FinetuneExample([5, i], [7, 8]) for i in range(6)]
    return train_lora(model, examples, steps=6, batch_size=2, rank=2, checkpoint=file, on_step=on_step,
                      progress=False, **options)  # fmt: skip


@pytest.mark.parametrize(
    ("begun", "continued", "match"),
    [
        ("float32", "bfloat16", "with the precision 'float32', not 'bfloat16'"),
        ("bfloat16", "float32", "with the precision 'bfloat16', not 'float32'"),
        ("as stored", "dense", "with the precision 'bfloat16, weights as stored', not 'bfloat16'"),
        ("float32", "float64", "with the precision 'float32', not 'float64'"),
        ("float32", "changed", "with another model"),
    ],
)
def test_a_lora_goes_on_with_the_model_as_it_was(models, tmp_path, begun, continued, match):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(Stopped):
        lora(models[begun], folder / "lora.safetensors", 3)
    is_refused(lambda: lora(models[continued], folder / "lora.safetensors"), folder, introspect.ConfigError, match)
    assert lora(models[begun], folder / "lora.safetensors").hash == lora(models[begun], None).hash


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("precision", None, "does not tell the model's precision, as it is of an earlier version"),
        ("device", None, "does not tell the model's device"),
        ("device", "cuda", "is of a training with the device 'cuda', not 'cpu'"),
        ("numerics", None, "does not tell the model's numerics"),
        ("numerics", "0.0.9", "is of a training with the numerics '0.0.9', not '"),
    ],
)
def test_a_lora_of_an_earlier_version_or_another_device_is_refused(models, tmp_path, field, value, match):
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "lora.safetensors"
    with pytest.raises(Stopped):
        lora(models["float32"], path, 3)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    training = json.loads(metadata["training"])
    training[field] = value
    if value is None:
        del training[field]
    save_file(tensors, path, metadata | {"training": json.dumps(training)})
    is_refused(lambda: lora(models["float32"], path), folder, introspect.ConfigError, match)
