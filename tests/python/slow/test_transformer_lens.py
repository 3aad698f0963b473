"""Agreement with TransformerLens's own HookedTransformer, asked the same questions about the same tiny random models.

The questions are functions of transformer_lens_probes.py, which run here on introspect.HookedTransformer and in an
environment of TransformerLens 3 (tests/benchmarks/peers/environment.py) on theirs.
"""

import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformer_lens_probes as probes
from conftest import ROOT
from reference import transformers_model
from tiny import write_tiny_transformers
from transformers import AutoTokenizer

import introspect

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.client import Peer
from peers.environment import TRANSFORMER_LENS

# Multi-head attention, grouped queries with biases, and layer norms with learned positions.
FAMILIES = {
    "Llama": ("llama llama3 rope", {"num_key_value_heads": 6}),
    "Qwen2": ("qwen2", {}),
    "GPT-2": ("gpt2", {"n_ctx": 64}),  # which the real checkpoint writes too
}
# TransformerLens 3 no longer imports utils by itself, and has renamed one class of 2.
IMPORTS = {
    "import introspect as transformer_lens": "import transformer_lens.utils",
    "transformer_lens.HookedTransformerKeyValueCache": "transformer_lens.TransformerLensKeyValueCache",
}
NOTEBOOK = ROOT / "tests/data/transformer_lens_demo/demo.py"
TOKENS = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0)).tolist()
PROCESSING = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}
MASK = [[1] * 9, [0] * 2 + [1] * 7]
# float32 on both sides, with sums in another order; gradients of these models reach hundreds.
FLOOR = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def peer():
    if TRANSFORMER_LENS.python() is None:
        pytest.skip("no environment of the peers: python tests/benchmarks/peers/environment.py makes it")
    with Peer() as worker:
        yield worker


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    name, overrides = FAMILIES[request.param]
    return write_tiny_transformers(tmp_path_factory.mktemp("model") / "tiny", name, **overrides)


@pytest.fixture(scope="module")
def pair(folder, peer):
    """Our model, and the worker that holds theirs."""
    peer.load(folder)
    return introspect.HookedTransformer.from_pretrained_no_processing(str(folder)), peer


@pytest.fixture
def processed(folder, peer, pair):
    """Both with folded and centred weights, for one test; `pair` holds afterwards what it held before."""
    peer.load(folder, **PROCESSING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what centring leaves out where norms see the mean
        yield introspect.HookedTransformer.from_pretrained(str(folder), **PROCESSING), peer
    peer.load(folder)


def differences(ours: dict, theirs: dict, floor: dict[str, float]) -> list[str]:
    """One line for each entry that is missing, has another shape or other values; equal infinities are equal."""
    lines = [f"{name}: only ours" for name in ours if name not in theirs]
    for name, expected in theirs.items():
        if name not in ours:
            lines.append(f"{name}: only theirs")
            continue
        got = ours[name]
        if isinstance(expected, float):
            got, expected = torch.tensor(got), torch.tensor(expected)
        if not isinstance(expected, torch.Tensor):
            lines += [] if got == expected else [f"{name}: {got!r} is not {expected!r}"]
        elif got.shape != expected.shape:
            lines.append(f"{name}: shape {tuple(got.shape)} is not {tuple(expected.shape)}")
        elif not torch.allclose(got.detach(), expected, **floor):
            worst = (got.detach() - expected)[expected.isfinite()].abs().max()
            lines.append(f"{name}: differs by up to {worst:.2e}, where values reach {expected.abs().max():.2e}")
    return lines


def ask(pair, probe, **arguments) -> tuple[dict, dict]:
    """The answers of both sides to one question."""
    model, peer = pair
    theirs = peer.run(Path(probes.__file__), probe.__name__, tokens=TOKENS, **arguments)
    assert len(theirs) > 1
    return probe(model, TOKENS, **arguments), theirs


def assert_equal(ours: dict, theirs: dict, **floor: float) -> None:
    assert not (lines := differences(ours, theirs, floor or FLOOR)), "\n".join(lines)


def test_every_hook_point_has_their_name_shape_and_value(pair):
    assert_equal(*ask(pair, probes.every_point))


@pytest.mark.parametrize("flag", probes.FLAGS)
def test_the_points_of_flags_have_their_shape_and_value(pair, flag):
    if flag == "use_attn_in" and pair[0].cfg.n_key_value_heads not in (None, pair[0].cfg.n_heads):
        pytest.skip("TransformerLens refuses use_attn_in where keys and values have fewer heads")
    ours, theirs = ask(pair, probes.every_point, flags=[flag])
    for name, x in theirs.items():  # their norm sees one copy of its input for each head; ours one for all
        if ".ln1." in name and x.dim() == 4:
            assert torch.equal(x, x[:, :, :1].expand_as(x))
            theirs[name] = x[:, :, 0]
    assert_equal(ours, theirs)


def test_the_gradient_at_every_point_is_theirs(pair):
    """But for ln1: they run it for queries, keys and values in turn, and keep the gradient of one of the three."""
    ours, theirs = ask(pair, probes.gradients)
    weights = pair[1].run(Path(probes.__file__), "first_norms", tokens=TOKENS)
    for layer in range(pair[0].cfg.n_layers):
        block = f"blocks.{layer}."
        parts = [(theirs[f"{block}attn.hook_{x}_grad"], weights[f"{layer} {x}"]) for x in "qkv"]
        into = sum(torch.einsum("bphk,hdk->bpd", gradient, W) for gradient, W in parts) * weights[f"{layer} w"]
        scale, normalized = theirs[f"{block}ln1.hook_scale"], theirs[f"{block}ln1.hook_normalized"]
        theirs[f"{block}ln1.hook_normalized_grad"] = into
        theirs[f"{block}ln1.hook_scale_grad"] = -(into * normalized).sum(-1, keepdim=True) / scale
    assert_equal(ours, theirs)


def test_forward_takes_their_arguments(pair):
    assert_equal(*ask(pair, probes.forward_arguments, mask=MASK))


def test_the_methods_of_a_cache_return_what_theirs_do(pair):
    assert_equal(*ask(pair, probes.cache_methods, norms=False))


def test_the_methods_that_apply_norms_return_what_theirs_do(processed):
    """With weights folded in: otherwise they leave the norm's weight out, and parts do not sum to the logits."""
    assert_equal(*ask(processed, probes.cache_methods))


def test_a_cache_has_their_keys_and_slices(pair):
    assert_equal(*ask(pair, probes.cache_keys))


def test_hooks_change_what_theirs_change(pair):
    assert_equal(*ask(pair, probes.hooks))


def test_greedy_generation_is_theirs(pair):
    model, peer = pair
    ours = probes.generation(model, TOKENS)
    assert_equal(ours, probes.generation(model, TOKENS, cached=False))
    # With its cache TransformerLens 3.9 counts learned positions twice: its own two ways differ.
    theirs = peer.run(
        Path(probes.__file__), "generation", tokens=TOKENS, cached=model.cfg.positional_embedding_type == "rotary"
    )
    assert_equal(ours, theirs)


def test_weights_and_what_is_made_of_them_are_theirs(pair):
    assert_equal(*ask(pair, probes.weights))


def test_processed_weights_give_their_activations(processed):
    assert_equal(*ask(processed, probes.every_point))


def test_patching_grids_are_theirs(pair):
    """Where theirs fails (grouped queries, whose grids are of two widths) ours are compared with hooks elsewhere."""
    ours, theirs = ask(pair, probes.patching)
    failed = {name for name, grid in theirs.items() if isinstance(grid, str)}
    assert failed <= {"get_act_patch_attn_head_all_pos_every", "get_act_patch_attn_head_by_pos_every"}
    assert_equal(*({name: grid for name, grid in side.items() if name not in failed} for side in (ours, theirs)))


def test_a_notebook_for_transformer_lens_computes_the_same_there(smollm2, peer, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    transformers_model(smollm2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).save_pretrained(folder)
    theirs = peer.notebook(NOTEBOOK, folder, IMPORTS)
    monkeypatch.setenv("DEMO_MODEL", str(smollm2))
    ours = runpy.run_path(str(NOTEBOOK))["results"]
    assert_equal(ours, theirs, rtol=1e-3, atol=1e-3)
