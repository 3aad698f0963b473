"""Training a copy of a model: what it leaves alone, what it learns, what it refuses. parity/ has the numbers."""

import pytest
import torch
from tiny_chat import write_tiny_chat

import introspect
from introspect import FinetuneExample, finetune


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"))


def answer(model, prompt, added=None):
    vector = introspect.ControlVector("qwen2", {1: added}) if added is not None else None
    if vector is None:
        return model.generate(prompt, max_new_tokens=1)
    with model.steer(vector, layers=(1, 1), positions=(0, 4)):
        return model.generate(prompt, max_new_tokens=1)


def test_a_model_learns_an_injections_answer_and_the_original_stays(model, rng):
    direction = 8 * torch.nn.functional.normalize(torch.randn(32, generator=rng), dim=0)
    examples = [
        FinetuneExample("Noticed it?", " yes", {1: direction}, (0, 4)),
        FinetuneExample("Noticed it?", " no"),
    ]
    tokens = model.to_tokens("Noticed it?")
    before, hash_before = model(tokens), model.hash
    losses = []
    trained = finetune(model, examples, steps=30, lr=3e-3, on_step=lambda step, loss: losses.append(loss))
    assert answer(trained, "Noticed it?", direction) == " yes"
    assert answer(trained, "Noticed it?") == " no"
    assert losses[-1] < 0.3 < losses[0]  # log 2 = 0.69 without telling the two apart
    assert len(losses) == 30
    assert torch.equal(model(tokens), before)
    assert model.hash == hash_before != trained.hash
    assert not any(w.requires_grad for m in (model, trained) for _, w in m.native.named_weights())


def test_the_same_seed_gives_the_same_model(model):
    examples = [FinetuneExample("a" * i, " yes") for i in range(1, 6)]
    hashes = [finetune(model, examples, steps=3, batch_size=2, seed=seed).hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_only_the_weights_asked_for_are_trained_and_the_others_are_shared(model):
    trained = finetune(
        model, [FinetuneExample("Why?", " yes")], steps=2, weights=lambda name: name.startswith("blocks.2.mlp.W")
    )
    after = dict(trained.native.named_weights())
    changed = {name for name, weight in model.native.named_weights() if not torch.equal(weight, after[name])}
    assert changed == {"blocks.2.mlp.W_in", "blocks.2.mlp.W_out"}
    for name, weight in model.native.named_weights():
        assert (after[name].data_ptr() == weight.data_ptr()) == (name not in changed)


def test_a_text_is_learned_from_its_second_token_on(model):
    trained = finetune(model, [FinetuneExample("", "cat no")], steps=40, lr=3e-3)
    assert trained.generate("cat", max_new_tokens=1) == " no"


def test_padding_does_not_count(model):
    """A batch of one long and one short example has the loss of each alone, weighted by their tokens."""
    short, long = FinetuneExample("ab", " yes"), FinetuneExample("abcdefgh", " no no")

    def first_loss(examples):
        losses = []
        finetune(model, examples, steps=1, batch_size=len(examples), on_step=lambda step, loss: losses.append(loss))
        return losses[0]

    expected = (first_loss([short]) + 2 * first_loss([long])) / 3
    assert first_loss([short, long]) == pytest.approx(expected, abs=1e-5)  # float32


def test_examples_that_cannot_be_learned_are_refused_before_the_first_step(model):
    good = FinetuneExample("ab", " yes")

    def refused(error, match, examples=(good,), **options):
        with pytest.raises(error, match=match):
            finetune(model, list(examples), **{"steps": 1, "on_step": lambda *_: pytest.fail("a step"), **options})

    refused(ValueError, "got 0, 1 and 8", [])
    refused(ValueError, "got 1, 0 and 8", steps=0)
    refused(ValueError, r"examples\[1\] has no token", [good, FinetuneExample("ab", "")])
    refused(ValueError, r"examples\[0\] has no token", [FinetuneExample("", "a")])
    refused(ValueError, "no weight was chosen", weights=lambda name: False)
    refused(
        ValueError,
        r"must lie in its prompt of 2 tokens, got \(1, 3\)",
        [FinetuneExample("ab", "c", {1: torch.ones(32)}, (1, 3))],
    )
    refused(introspect.ShapeError, r"must be \[32\], got \[8\]", [FinetuneExample("ab", "c", {1: torch.ones(8)})])
    refused(introspect.ShapeError, "8192 positions, got 9001", [FinetuneExample("a" * 9000, "c")])
    refused(IndexError, "", [FinetuneExample("ab", "c", {9: torch.ones(32)})])
    refused(IndexError, "", [FinetuneExample([5], [100_000])])


def test_a_model_of_a_small_dtype_is_refused(tmp_path):
    model = introspect.load_model(write_tiny_chat(tmp_path / "model"), dtype=torch.bfloat16)
    with pytest.raises(introspect.ConfigError, match=r"float32 or float64, got torch\.bfloat16"):
        finetune(model, [FinetuneExample("ab", " yes")], steps=1)


def test_other_weights_are_another_hash_and_equal_weights_the_same(model):
    weight = dict(model.native.named_weights())["blocks.0.mlp.W_in"]
    changed = weight.clone()
    changed[1, 1] += 1e-3
    one, same = (model.native.with_weights({"blocks.0.mlp.W_in": w}) for w in (changed, changed.clone()))
    assert one.hash == same.hash != model.hash
    assert model.native.with_weights({}).hash == model.hash


@pytest.mark.parametrize(
    ("error", "name", "make"),
    [
        (ValueError, "blocks.0.mlp.W_inn", lambda w: w),
        (introspect.ShapeError, "blocks.0.mlp.W_in", lambda w: w[1:]),
        (introspect.ShapeError, "blocks.0.mlp.W_in", lambda w: w.double()),
        (introspect.ShapeError, "blocks.0.mlp.W_in", lambda w: w.T.contiguous().T),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, error, name, make):
    weight = dict(model.native.named_weights())["blocks.0.mlp.W_in"]
    with pytest.raises(error, match=name):
        model.native.with_weights({name: make(weight)})
