"""Helpers under TransformerLens's names: their documented forms, and their results against torch or counting."""

import numpy as np
import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import utils
from introspect.utils import Slice, get_act_name, sample_logits


@pytest.mark.parametrize(
    ("shorthand", "full"),
    [
        (("embed",), "hook_embed"),
        (("pos_embed",), "hook_pos_embed"),
        (("hook_embed",), "hook_embed"),
        (("blocks.3.attn.hook_z",), "blocks.3.attn.hook_z"),
        (("resid_pre", 0), "blocks.0.hook_resid_pre"),
        (("resid_post", 5), "blocks.5.hook_resid_post"),
        (("resid_post5",), "blocks.5.hook_resid_post"),
        (("attn_out", 2), "blocks.2.hook_attn_out"),
        (("mlp_out", 2, "block"), "blocks.2.hook_mlp_out"),
        (("mlp_in", 2), "blocks.2.hook_mlp_in"),
        (("q_input", 2), "blocks.2.hook_q_input"),
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("k", 6, "attn"), "blocks.6.attn.hook_k"),
        (("k6",), "blocks.6.attn.hook_k"),
        (("k6a",), "blocks.6.attn.hook_k"),
        (("rot_q", 1), "blocks.1.attn.hook_rot_q"),
        (("key", 6), "blocks.6.attn.hook_k"),
        (("query", 6), "blocks.6.attn.hook_q"),
        (("value", 6), "blocks.6.attn.hook_v"),
        (("attn", 0), "blocks.0.attn.hook_pattern"),
        (("attn_logits", 0), "blocks.0.attn.hook_attn_scores"),
        (("result", 4), "blocks.4.attn.hook_result"),
        (("pre", 2), "blocks.2.mlp.hook_pre"),
        (("pre5",), "blocks.5.mlp.hook_pre"),
        (("mlp_pre", 2), "blocks.2.mlp.hook_pre"),
        (("pre_linear", 2), "blocks.2.mlp.hook_pre_linear"),
        (("mlp_post", 2, "m"), "blocks.2.mlp.hook_post"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        (("scale", 4, "ln1"), "blocks.4.ln1.hook_scale"),
        (("scale4ln1",), "blocks.4.ln1.hook_scale"),
        (("scale4ln2_post",), "blocks.4.ln2_post.hook_scale"),
        (("scale",), "ln_final.hook_scale"),
        (("normalized",), "ln_final.hook_normalized"),
    ],
)
def test_a_shorthand_gives_the_full_name(shorthand, full):
    assert get_act_name(*shorthand) == full


def test_every_hook_name_of_a_block_has_a_shorthand(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path / "tiny"))
    names = [name for name in model.hook_names if name.startswith("blocks.1.")]
    assert len(names) > 15
    for name in names:
        *inner, last = name.removeprefix("blocks.1.").split(".")
        assert get_act_name(last.removeprefix("hook_"), 1, ".".join(inner)) == name


@pytest.mark.parametrize(
    ("given", "python_index"),
    [
        (None, slice(None)),
        (3, 3),
        (-1, -1),
        (np.int64(2), 2),
        (torch.tensor(2), 2),
        ((4,), slice(4)),
        ((1, 5), slice(1, 5)),
        ((1, None, 2), slice(1, None, 2)),
        (slice(2, 4), slice(2, 4)),
        ([1, 4, -1], [1, 4, -1]),
        (np.array([0, 2]), [0, 2]),
        (torch.tensor([0, 2]), [0, 2]),
        (torch.tensor([True, False, True, False, False, True]), [0, 2, 5]),
        ([], []),
    ],
)
def test_a_slice_indexes_as_python_does(given, python_index):
    x = torch.arange(24).view(2, 6, 2)
    expected = torch.from_numpy(x.numpy()[:, python_index])
    assert torch.equal(Slice(given).apply(x, dim=-2), expected)
    assert torch.equal(Slice(Slice(given)).apply(x, dim=1), expected)
    if not isinstance(python_index, int):
        assert Slice(given).indices(6).tolist() == np.arange(6)[python_index].tolist()


def test_an_int_keeps_its_dimension_when_it_is_unwrapped():
    x = torch.arange(6)
    assert Slice.unwrap(2).apply(x).tolist() == [2]
    assert Slice.unwrap((2,)).apply(x).tolist() == [0, 1]
    assert Slice(2).indices().tolist() == [2]


@pytest.mark.parametrize("bad", ["1", 1.5, (), (1, 2, 3, 4), True, [[1, 2]], [0.5], torch.tensor([0.5])])
def test_anything_else_is_no_slice(bad):
    with pytest.raises(ValueError, match="Slice"):
        Slice(bad)


def test_an_index_out_of_range_and_a_missing_size_are_errors():
    with pytest.raises(IndexError):
        Slice(6).apply(torch.arange(6))
    with pytest.raises(ValueError, match="max_ctx"):
        Slice([0]).indices()


# Losses and arrays


def test_loss_is_torchs_cross_entropy_of_the_next_token(rng):
    logits, tokens = torch.randn(3, 7, 11, generator=rng), torch.randint(0, 11, (3, 7), generator=rng)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, tokens), expected.mean())
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, tokens, per_token=True), expected.reshape(3, 6))
    ones = torch.ones_like(tokens)
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, tokens, ones), expected.mean(), rtol=0, atol=1e-6)


def test_masked_positions_are_left_out_of_the_loss(rng):
    logits, tokens = torch.randn(2, 6, 11, generator=rng), torch.randint(0, 11, (2, 6), generator=rng)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    rows = [utils.lm_cross_entropy_loss(logits[r : r + 1, s], tokens[r : r + 1, s], per_token=True)
            for r, s in ((0, slice(2, 6)), (1, slice(0, 5)))]  # fmt: skip
    masked = utils.lm_cross_entropy_loss(logits, tokens, mask)
    torch.testing.assert_close(masked, torch.cat([row.flatten() for row in rows]).mean())
    per_token = utils.lm_cross_entropy_loss(logits, tokens, mask, per_token=True)
    assert per_token[0, :2].tolist() == [0, 0]
    assert per_token[1, -1] == 0
    with pytest.raises(introspect.ShapeError):
        utils.lm_cross_entropy_loss(logits, tokens, mask[:, 1:])


def test_accuracy_counts_the_argmax(rng):
    tokens = torch.randint(0, 5, (1, 4), generator=rng)
    logits = torch.nn.functional.one_hot(tokens.roll(-1, 1), 5).float()
    logits[0, 0] = -logits[0, 0]  # one of three wrong
    assert utils.lm_accuracy(logits, tokens) == pytest.approx(2 / 3)
    assert utils.lm_accuracy(logits, tokens, per_token=True).tolist() == [[False, True, True]]


def test_to_numpy_and_corners():
    x = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    assert np.array_equal(utils.to_numpy(x), np.arange(24.0).reshape(2, 3, 4))
    assert utils.to_numpy(torch.tensor([1.5], dtype=torch.bfloat16)).tolist() == [1.5]
    assert utils.to_numpy([1, 2]).tolist() == [1, 2]
    assert utils.to_numpy(2.5) == 2.5
    with pytest.raises(TypeError):
        utils.to_numpy("text")  # type: ignore[arg-type]
    assert torch.equal(utils.get_corner(x, 2), x[:2, :2, :2])
    assert utils.remove_batch_dim(x[:1]).shape == (3, 4)
    assert utils.remove_batch_dim(x).shape == (2, 3, 4)
    assert utils.is_lower_triangular(torch.ones(3, 3).tril())
    assert not utils.is_lower_triangular(torch.ones(3, 3))


# Sampling

ROW = torch.tensor([[0.0, 2.0, 1.0, -1.0, 3.0]])


def shares(n=20000, **options):
    torch.manual_seed(0)
    tokens = options.pop("tokens", None)
    rows = None if tokens is None else tokens.expand(n, -1)
    return torch.bincount(sample_logits(ROW.expand(n, -1), tokens=rows, **options), minlength=5) / n


@pytest.mark.parametrize(
    ("options", "logits"),
    [
        ({}, ROW),
        ({"temperature": 2.0}, ROW / 2),
        ({"top_k": 2}, torch.tensor([[-torch.inf, 2.0, -torch.inf, -torch.inf, 3.0]])),
        ({"top_k": 99}, ROW),
        ({"top_p": 0.7}, torch.tensor([[-torch.inf, 2.0, -torch.inf, -torch.inf, 3.0]])),  # 0.64, then 0.88
        ({"top_p": 0.6}, torch.tensor([[-torch.inf] * 4 + [3.0]])),
        ({"top_k": 2, "top_p": 0.6}, torch.tensor([[-torch.inf, 2.0, -torch.inf, -torch.inf, 3.0]])),
        ({"freq_penalty": 0.5, "tokens": torch.tensor([[4, 4, 0]])}, torch.tensor([[-0.5, 2.0, 1.0, -1.0, 2.0]])),
        ({"repetition_penalty": 2.0, "tokens": torch.tensor([[4, 4, 3]])}, torch.tensor([[0.0, 2.0, 1.0, -2.0, 1.5]])),
    ],
)
def test_sampling_follows_the_distribution(options, logits):
    expected = logits[0].softmax(-1)
    # five standard deviations of a binomial share
    assert ((shares(**options) - expected).abs() <= 5 * (expected / 20000).sqrt()).all()


def test_greedy_sampling_and_options_out_of_range():
    assert sample_logits(ROW, temperature=0.0).tolist() == [4]
    for bad in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"freq_penalty": 1.0}):
        with pytest.raises(ValueError, match="sample_logits"):
            sample_logits(ROW, **bad)
