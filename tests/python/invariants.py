"""What must be true of a forward pass (DESIGN 5): tests for any float64 `model`, a fixture of who imports them all.

Bit equality where the same kernels run on the same shapes, or memory is shared; elsewhere sums run in another order.
"""

from functools import partial

import pytest
import torch

import introspect

B, T = 3, 14  # rows, and tokens: two windows of the architectures that have one
FLOOR = {"rtol": 0, "atol": 1e-9}


@pytest.fixture
def tokens(model, rng):
    return torch.randint(3, model.cfg.d_vocab, (B, T), generator=rng)


def direction(model, rng, *shape):
    return torch.randn(*shape, model.cfg.d_model, generator=rng, dtype=torch.float64)


def steered(model, tokens, intervention, **options):
    hooks = model.native.make_hooks()
    hooks.add_intervention(intervention)
    return model.native.forward(tokens, hooks=hooks, **options)


def keys_and_values(cache, layers):
    return [x.clone() for layer in layers for x in (cache.keys(layer), cache.values(layer))]


def all_equal(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_strength_zero_is_the_unsteered_run_bit_for_bit(model, tokens, rng):
    zero = introspect.Intervention({1: direction(model, rng)}, strength=0.0)
    assert torch.equal(steered(model, tokens, zero), model(tokens))


def test_kv_before_the_first_changed_layer_and_position_equals_the_baseline_bit_for_bit(model, tokens, rng):
    base, changed = model.native.make_cache(B), model.native.make_cache(B)
    model(tokens, cache=base)
    span = introspect.Intervention({1: direction(model, rng)}, strength=5.0, first_position=4, last_position=8)
    steered(model, tokens, span, cache=changed)
    # The output of block 1 is what changes: keys of block 2 are the first to differ.
    assert all_equal(keys_and_values(changed, (0, 1)), keys_and_values(base, (0, 1)))
    assert torch.equal(changed.keys(2)[:, :, :4], base.keys(2)[:, :, :4])
    assert torch.equal(changed.values(2)[:, :, :4], base.values(2)[:, :, :4])
    assert not torch.equal(changed.keys(2)[:, :, 4:8], base.keys(2)[:, :, 4:8])


@pytest.mark.parametrize("chunks", [[T], [5, 9], [1] * T, [T - 1, 1]], ids=["whole", "chunks", "one by one", "prefix"])
def test_prefill_in_chunks_equals_the_whole(model, tokens, chunks):
    cache = model.native.make_cache(B)
    parts = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
    assert len(cache) == T
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **FLOOR)


def test_a_span_counts_from_the_start_of_the_cache(model, tokens, rng):
    span = introspect.Intervention({0: direction(model, rng)}, strength=5.0, first_position=6, last_position=9)
    cache = model.native.make_cache(B)
    parts = [steered(model, part, span, cache=cache) for part in tokens.split([5, 2, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), steered(model, tokens, span), **FLOOR)


def test_a_batch_equals_its_rows(model, tokens):
    singles = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), singles, **FLOOR)


def test_rows_of_different_interventions_equal_single_runs(model, tokens, rng):
    directions = direction(model, rng, B)
    together = steered(model, tokens, introspect.Intervention({0: directions, 2: -directions}, strength=3.0))
    for row in range(B):
        alone = introspect.Intervention({0: directions[row], 2: -directions[row]}, strength=3.0)
        torch.testing.assert_close(together[row : row + 1], steered(model, tokens[row : row + 1], alone), **FLOOR)


def test_a_fork_leaves_its_parent_unchanged(model, tokens):
    cache, layers = model.native.make_cache(B), range(model.cfg.n_layers)
    model(tokens[:, :6], cache=cache)
    before = keys_and_values(cache, layers)
    fork = cache.fork()
    model(tokens[:, 6:], cache=fork)
    fork.truncate(2)
    model(tokens[:, :3], cache=fork)
    assert (len(cache), len(fork)) == (6, 5)
    assert all_equal(keys_and_values(cache, layers), before)
    torch.testing.assert_close(model(tokens[:, 6:], cache=cache), model(tokens)[:, 6:], **FLOOR)


def test_splicing_a_models_own_keys_and_values_into_itself_changes_nothing_bit_for_bit(model, tokens):
    whole, again, layers = model.native.make_cache(B), model.native.make_cache(B), range(model.cfg.n_layers)
    model(tokens, cache=whole)
    model(tokens, cache=again)  # the same in memory of its own
    more = tokens[:, :3]
    expected = model(more, cache=whole.fork())
    for first, last in ((0, T), (4, 9), (0, 5), (5, T), (7, 7)):
        for other in (whole, again):
            spliced = whole.splice(first, last, other)
            assert all_equal(keys_and_values(spliced, layers), keys_and_values(whole, layers))
            assert torch.equal(model(more, cache=spliced), expected)
    grown = whole.slice(0, 5).splice(5, T, again)
    assert torch.equal(model(more, cache=grown), expected)


def test_a_spliced_span_is_what_patching_keys_and_values_there_does(model, tokens):
    """Keys and values of another text at [first, last), read by later tokens: caches against hooks in one pass."""
    first, last, more = 5, 11, tokens[:, :2]
    own, other = model.native.make_cache(B), model.native.make_cache(B)
    model(tokens, cache=own)
    model(tokens.flip(1), cache=other)
    key = "hook_rot_k" if any(name.endswith("hook_rot_k") for name in model.hook_names) else "hook_k"

    def patch(x, hook, theirs):
        x[:, first:last] = theirs.transpose(1, 2)[:, first:last]
        return x

    hooks = [
        (f"blocks.{layer}.attn.{name}", partial(patch, theirs=theirs))
        for layer in range(model.cfg.n_layers)
        for name, theirs in ((key, other.keys(layer)), ("hook_v", other.values(layer)))
    ]
    patched = model.run_with_hooks(torch.cat([tokens, more], dim=1), hooks)
    # What stands after the span has read it too, in the hooked pass: it is computed again on the spliced cache.
    spliced = own.slice(0, first).splice(first, last, other)
    rest = torch.cat([tokens[:, last:], more], dim=1)
    torch.testing.assert_close(model(rest, cache=spliced), patched[:, last:], **FLOOR)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model, tokens, rng, side):
    n_pad = [0, 3, 8]
    padded, mask = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.bool)
    for row, n in enumerate(n_pad):
        real = slice(n, None) if side == "left" else slice(None, T - n)
        padded[row, real], mask[row, real] = tokens[row, : T - n], True
    more = torch.randint(3, model.cfg.d_vocab, (B, 2), generator=rng)
    cache = model.native.make_cache(B)
    logits = model(padded, attention_mask=mask, cache=cache)
    continued = model(more, cache=cache)  # one cache, one mask: later calls need not repeat it
    last = model(padded, attention_mask=mask, logits_at="last")
    for row, n in enumerate(n_pad):
        alone = model(torch.cat([tokens[row, : T - n], more[row]])[None])
        torch.testing.assert_close(logits[row, mask[row]], alone[0, : T - n], **FLOOR)
        torch.testing.assert_close(continued[row], alone[0, T - n :], **FLOOR)
        torch.testing.assert_close(last[row, 0], alone[0, T - n - 1], **FLOOR)


def test_resuming_at_a_layer_equals_the_whole(model, tokens):
    _, cache = model.run_with_cache(tokens, ["blocks.1.hook_resid_pre"])
    resumed = model.native.forward(cache["blocks.1.hook_resid_pre"], start_at_layer=1)
    torch.testing.assert_close(resumed, model(tokens), **FLOOR)
