"""Training adapters: what is learned, what stays, what is refused. parity/test_lora.py has the numbers."""

import pytest
import torch
from tiny_chat import write_tiny_chat

import introspect
from introspect import _C, FinetuneExample, train_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


def examples_of(rng, n=6):
    return [FinetuneExample("ab" * (i + 1), " yes" if i % 2 else " no", {1: torch.randn(32, generator=rng)}, (0, 1))
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_learns_an_injections_answer_and_the_model_stays(folder, dtype, rng):
    model = introspect.load_model(folder, dtype=dtype)
    direction = 8 * torch.nn.functional.normalize(torch.randn(32, generator=rng), dim=0)
    examples = [
        FinetuneExample("Noticed it?", " yes", {1: direction}, (0, 4)),
        FinetuneExample("Noticed it?", " no"),
    ]
    tokens = model.to_tokens("Noticed it?")
    before = model(tokens)
    losses = []
    adapter = train_lora(model, examples, steps=40, lr=1e-2, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.3 < losses[0]  # log 2 = 0.69 without telling the two apart
    assert len(losses) == 40
    vector = introspect.ControlVector("qwen2", {1: direction})
    with model.adapted(adapter):
        assert model.generate("Noticed it?", max_new_tokens=1) == " no"
        with model.steer(vector, layers=(1, 1), positions=(0, 4)):
            assert model.generate("Noticed it?", max_new_tokens=1) == " yes"
    assert torch.equal(model(tokens), before)
    assert not any(weight.requires_grad for _, weight in model.native.named_weights())
    assert adapter.base_hash == model.hash


def test_equal_arguments_give_the_same_adapter(model, rng):
    examples = examples_of(rng)
    hashes = [train_lora(model, examples, steps=5, batch_size=2, seed=seed).hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_that_was_interrupted_gives_the_same_adapter(model, rng, tmp_path):
    examples = examples_of(rng)
    options = {"steps": 9, "batch_size": 4, "lr": 1e-2, "layers": [1, 2]}
    whole = train_lora(model, examples, **options)

    def stop_at(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    file = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_lora(model, examples, **options, checkpoint=file, on_step=stop_at)
    seen = []
    resumed = train_lora(model, examples, **options, checkpoint=file, on_step=lambda step, loss: seen.append(step))
    assert seen == [5, 6, 7, 8]
    assert resumed.hash == whole.hash
    for other in ({"lr": 2e-2}, {"seed": 1}, {"layers": [0, 1, 2]}):
        with pytest.raises(introspect.ConfigError, match="of a training with"):
            train_lora(model, examples, **{**options, **other}, checkpoint=file)
    with pytest.raises(introspect.ConfigError, match="another examples"):
        train_lora(model, examples[:3], **options, checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(introspect.IoError):
        train_lora(model, examples, **options, checkpoint=file)


def test_a_batch_in_pieces_has_the_same_gradient(model, rng):
    """Float32, summed in another order."""
    encoded = [_C.LoraExample(model.native.tokenizer.encode("ab" * (i + 1)), [7, 8]) for i in range(6)]
    start = _C.Adapter.create(model.native, rank=2)
    whole, pieces = (
        _C.LoraTrainer(model.native, start, encoded, steps=1, memory_budget=budget).gradients(range(6))
        for budget in (1 << 30, 1)
    )
    assert whole[0] == pytest.approx(pieces[0], abs=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(pieces[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_equal_beginnings_run_once_and_injections_part_them(model, rng):
    v = torch.randn(32, generator=rng)

    def nodes(*rows):
        start = _C.Adapter.create(model.native)
        return _C.LoraTrainer(model.native, start, [_C.LoraExample(*row[:2], **row[2]) for row in rows], steps=1).cost

    plain = ([5, 6, 7, 8], [9], {})
    assert nodes(plain, plain, ([5, 6, 7, 8], [10], {})).nodes == 4  # the last token's output is read by nobody
    assert nodes(plain, plain).tokens == 8
    injected = ([5, 6, 7, 8], [9], {"added": {1: v}, "first": 2, "last": 3})
    assert nodes(plain, injected).nodes == 6
    assert nodes(injected, ([5, 6, 7, 8], [9], {"added": {1: v.clone()}, "first": 2, "last": 3})).nodes == 4
    assert nodes(injected, ([5, 6, 7, 8], [9], {"added": {1: 2 * v}, "first": 2, "last": 3})).nodes == 6


def test_training_goes_on_from_an_adapter(model, rng):
    examples = examples_of(rng)
    first = train_lora(model, examples, steps=3, rank=2, targets=["q_proj", "down_proj"])
    second = train_lora(model, examples, steps=3, start=first)
    assert second.modules == first.modules
    assert second.hash != first.hash
    with pytest.raises(ValueError, match="leave out rank"):
        train_lora(model, examples, steps=3, start=first, rank=2)


def test_an_adapter_runs_on_its_own_model_unless_told_otherwise(model, rng, tmp_path):
    adapter = train_lora(model, examples_of(rng), steps=2, rank=2)
    adapter.save(tmp_path / "adapter")
    other = introspect.load_model(write_tiny_chat(tmp_path / "other", seed=1))
    for one in (adapter, introspect.Adapter.load(tmp_path / "adapter")):
        with pytest.raises(introspect.ConfigError, match=f"hash {model.hash}.*this one's is {other.hash}"):
            other.with_adapter(one)
        with pytest.raises(introspect.ConfigError, match="was trained on the model"):
            train_lora(other, examples_of(rng), steps=1, start=one)
    other.with_adapter(introspect.Adapter.load(tmp_path / "adapter", any_base=True))
    larger = introspect.load_model(write_tiny_chat(tmp_path / "larger", hidden_size=64))
    with pytest.raises(introspect.ShapeError, match="q_proj"):
        larger.with_adapter(introspect.Adapter.load(tmp_path / "adapter", any_base=True))
    deeper = introspect.load_model(write_tiny_chat(tmp_path / "deeper", num_hidden_layers=4))
    with pytest.raises(introspect.ConfigError, match="trained on another model"):
        deeper.with_adapter(introspect.Adapter.load(tmp_path / "adapter", any_base=True))


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_step(model, rng, tmp_path):
    file = tmp_path / "training.safetensors"
    huge = [FinetuneExample("ab", " yes", {1: torch.full((32,), 1e38)}, (0, 2)), FinetuneExample("ab", " no")]
    steps = []
    with pytest.raises(introspect.Error, match=r"train_lora: step \d has a loss of .*lower lr"):
        train_lora(model, huge, steps=5, batch_size=1, checkpoint=file, on_step=lambda step, loss: steps.append(loss))
    assert all(loss == loss for loss in steps)
    assert file.exists() == bool(steps)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (introspect.ConfigError, "called 'q_porj'; nearest: .*q_proj", {"targets": ["v_proj", "q_porj"]}),
        (ValueError, "targets must hold one", {"targets": []}),
        (ValueError, "rank must be 1 or more, got 0", {"rank": 0}),
        (ValueError, "alpha must be", {"alpha": 0.0}),
        (ValueError, "alpha must be", {"alpha": float("nan")}),
        (IndexError, "layers must be 0 to 2, got 3", {"layers": [1, 3]}),
        (ValueError, "layers must hold one", {"layers": []}),
        (ValueError, "steps must be above 0, got 0", {"steps": 0}),
        (ValueError, "batch_size must be above 0, got 0", {"batch_size": 0}),
        (ValueError, "lr must be above 0, got -1", {"lr": -1.0}),
        (ValueError, "lr must be above 0, got nan", {"lr": float("nan")}),
        (ValueError, "lr_end must be 0 or more", {"lr_end": -1.0}),
        (ValueError, "clip must be 0 or more", {"clip": -1.0}),
        (ValueError, "checkpoint_every must be 1 or more", {"checkpoint_every": 0}),
        (ValueError, "at least one example", {"examples": []}),
        (ValueError, r"examples\[0\] has no token", {"examples": [FinetuneExample("ab", "")]}),
        (ValueError, r"examples\[0\] has no token", {"examples": [FinetuneExample("", "a")]}),
        (
            ValueError,
            r"must lie in its prompt of 2 tokens, got \(1, 3\)",
            {"examples": [FinetuneExample("ab", "c", {1: torch.ones(32)}, (1, 3))]},
        ),
        (
            ValueError,
            "direction of block 1 is not finite",
            {"examples": [FinetuneExample("ab", "c", {1: torch.full((32,), float("nan"))})]},
        ),
        (
            introspect.ShapeError,
            r"must be \[32\], got \[8\]",
            {"examples": [FinetuneExample("ab", "c", {1: torch.ones(8)})]},
        ),
        (introspect.ShapeError, "8192 positions, got 9001", {"examples": [FinetuneExample("a" * 9000, "c")]}),
        (IndexError, "blocks are 0 to 2, got 9", {"examples": [FinetuneExample("ab", "c", {9: torch.ones(32)})]}),
        (IndexError, "token ids must be 0 to", {"examples": [FinetuneExample([5], [100_000])]}),
        (TypeError, "must be a FinetuneExample, got str", {"examples": ["ab"]}),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(model, error, match, options):
    arguments = {"examples": [FinetuneExample("ab", " yes")], "steps": 1, **options}
    with pytest.raises(error, match=match):
        train_lora(model, **arguments, on_step=lambda *_: pytest.fail("a step"))


def test_weights_that_were_processed_are_refused(model):
    processed = introspect.Model(model.native.processed(fold_ln=True))
    with pytest.raises(introspect.ConfigError, match="processed"):
        train_lora(processed, [FinetuneExample("ab", " yes")], steps=1)


def test_blocks_that_stay_in_their_files_are_refused(folder):
    model = introspect.load_model(folder, keep_blocks=False)
    with pytest.raises(introspect.ConfigError, match="keep_blocks"):
        train_lora(model, [FinetuneExample("ab", " yes")], steps=1)
