"""Shorthand of hook names and slices: the forms that TransformerLens documents."""

import numpy as np
import pytest
import torch
from tiny import write_tiny

import introspect
from introspect.utils import Slice, get_act_name


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
