"""Models with other weights, and models trained on examples: against transformers in every architecture."""

import pytest
import torch
from reference import exact_softmax
from tiny import ARCHITECTURES, tiny_transformers, write_tiny_transformers

import introspect

STEPS, LR = 4, 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_weights_of_another_model_make_that_model(name, tmp_path, rng):
    one, other = (
        introspect.load_model(write_tiny_transformers(tmp_path / str(seed), name, seed=seed)) for seed in (0, 1)
    )
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    before = one(tokens)
    swapped = introspect.Model(one.native.with_weights(dict(other.native.named_weights())))
    torch.testing.assert_close(swapped(tokens), other(tokens), rtol=0, atol=0)
    torch.testing.assert_close(one(tokens), before, rtol=0, atol=0)
    assert not torch.allclose(before, other(tokens))
    assert [n for n, _ in swapped.native.named_weights()] == [n for n, _ in one.native.named_weights()]
    assert len({one.hash, other.hash, swapped.hash}) == 3


def trained_with_transformers(examples, weights):
    """The same steps by torch's Adam on a transformers model, every example in every batch, one by one."""
    theirs = tiny_transformers("gpt_neox")
    parameters = [p for n, p in theirs.named_parameters() if weights(n)]
    for p in theirs.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=LR)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        optimizer.zero_grad()
        losses = []
        for example in examples:

            def add(module, inputs, output, example=example):
                first, last = example.span
                shifted = (output[0] if isinstance(output, tuple) else output).clone()
                shifted[:, first:last] += example.added[1].double()
                return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

            handle = theirs.gpt_neox.layers[1].register_forward_hook(add) if example.added else None
            ids = torch.tensor([[*example.prompt, *example.target]])
            with exact_softmax():
                log_probs = theirs(ids).logits[0, :-1].log_softmax(-1)
            if handle:
                handle.remove()
            n = len(example.target)
            losses += [-log_probs[-n + i, token] for i, token in enumerate(example.target)]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return theirs


@pytest.mark.parametrize("part", ["", "mlp"])
def test_training_is_that_of_torch_on_transformers(part, tmp_path, rng):
    """With prompts of different lengths, injections and a part of the weights; LayerNorms are float64 on both sides."""
    direction = torch.randn(48, generator=rng)
    examples = [
        introspect.FinetuneExample([5, 6, 7, 8, 9], [10, 11]),
        introspect.FinetuneExample([12, 13], [14], {1: direction}, (0, 1)),
        introspect.FinetuneExample([15, 16, 17, 18], [19, 20, 21], {1: 2 * direction}, (1, 3)),
    ]
    model = introspect.load_model(write_tiny_transformers(tmp_path, "gpt_neox"), dtype=torch.float64)
    ours = introspect.finetune(
        model, examples, steps=STEPS, lr=LR, batch_size=len(examples), weights=lambda name: part in name
    )
    theirs = trained_with_transformers(examples, lambda name: part in name)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    with exact_softmax():
        expected = theirs(tokens).logits
    # Adam divides a gradient by its own size: the rounding of the smallest ones, 1e-16, is held against eps = 1e-8.
    torch.testing.assert_close(ours(tokens).double(), expected, rtol=0, atol=1e-6)
    assert (ours(tokens) - model(tokens)).abs().max() > 0.1
