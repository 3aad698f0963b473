"""ActivationCache: its keys, its slices, and decompositions of the residual stream that must sum to it."""

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect.activation_cache import ActivationCache

N_LAYERS = 3


@pytest.fixture(scope="module", params=["Qwen2ForCausalLM", "LlamaForCausalLM"])
def model(request, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "m", request.param)
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.cfg.d_vocab, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(model, tokens):
    return ActivationCache(dict(model.run_with_cache(tokens)[1]), model)


# Keys


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        (("resid_post", 1), "blocks.1.hook_resid_post"),
        (("k", 2, "attn"), "blocks.2.attn.hook_k"),
        (("k", 2), "blocks.2.attn.hook_k"),
        (("pattern", -1), "blocks.2.attn.hook_pattern"),
        (("attn", -3), "blocks.0.attn.hook_pattern"),
        ("scale1ln1", "blocks.1.ln1.hook_scale"),
        (("normalized", 0, "ln2"), "blocks.0.ln2.hook_normalized"),
        ("embed", "hook_embed"),
        (("embed",), "hook_embed"),
        ("scale", "ln_final.hook_scale"),
    ],
)
def test_every_form_of_a_key_finds_the_activation(cache, key, name):
    assert cache[key] is cache.cache_dict[name]
    assert key in cache


def test_a_cache_is_a_mapping_over_full_names(cache):
    assert list(cache) == list(cache.keys()) == list(cache.cache_dict)
    assert len(cache) == len(cache.values()) == len(cache.items())
    assert cache.get("nonsense") is None
    assert dict(cache) == cache.cache_dict


@pytest.mark.parametrize("key", ["blocks.1.hook_resid_pots", ("resid_pots", 1)])
def test_a_misspelt_key_is_a_hook_error_and_a_key_error_that_names_the_nearest(cache, key):
    with pytest.raises(introspect.HookError, match=r"no 'blocks.1.hook_resid_pots'.*blocks.1.hook_resid_post"):
        cache[key]
    with pytest.raises(KeyError):
        cache[key]


@pytest.mark.parametrize("key", [3, None, (), (3, "k"), ("k", 0, "attn", 1)])
def test_what_is_no_key_at_all_is_missing_too(cache, key):
    with pytest.raises(introspect.HookError, match="key is a name or"):
        cache[key]


def test_an_activation_that_was_filtered_out_is_told_from_one_that_does_not_exist(model, tokens):
    cache = ActivationCache(model.run_with_cache(tokens, ["hook_embed"])[1], model)
    with pytest.raises(KeyError, match=r"'blocks.0.attn.hook_k' was not cached"):
        cache["k", 0]
    with pytest.raises(KeyError, match=r"'blocks.0.attn.hook_result' was not cached"):
        cache["result", 0]
    with pytest.raises(KeyError, match=r"no 'blocks.3.attn.hook_k'"):
        cache["k", 3]


# The whole cache


def test_removing_the_batch_dimension(model, tokens):
    cache = ActivationCache(model.run_with_cache(tokens[:1])[1], model)
    before = dict(cache.cache_dict)
    assert cache.remove_batch_dim() is cache
    assert not cache.has_batch_dim
    assert all(torch.equal(cache[name], before[name][0]) for name in before)
    with pytest.warns(UserWarning, match="already removed"):
        cache.remove_batch_dim()


def test_a_batch_of_two_keeps_its_dimension(cache):
    shapes = {name: x.shape for name, x in cache.items()}
    with pytest.raises(introspect.ShapeError, match="batch must be 1, got 2"):
        cache.remove_batch_dim()
    assert {name: x.shape for name, x in cache.items()} == shapes


def test_rows_of_the_batch(cache):
    row = cache.apply_slice_to_batch_dim(1)
    assert not row.has_batch_dim
    assert torch.equal(row["k", 0], cache["k", 0][1])
    rows = cache.apply_slice_to_batch_dim([1, 0])
    assert rows.has_batch_dim
    assert torch.equal(rows["pattern", 2], cache["pattern", 2].flip(0))
    with pytest.raises(introspect.ShapeError, match="removed"):
        row.apply_slice_to_batch_dim(0)
    assert row.apply_slice_to_batch_dim(None)["k", 0] is row["k", 0]


def test_to_changes_dtype_and_device_of_the_cache_alone(cache, model):
    assert cache.to(torch.float32)["k", 0].dtype == torch.float32
    assert cache.to("cpu", dtype=torch.bfloat16)["k", 0].dtype == torch.bfloat16
    assert cache.to("meta")["k", 0].device.type == "meta"
    assert model.dtype == torch.float64
    with pytest.raises(introspect.ConfigError, match="move_model"):
        cache.to("cpu", move_model=True)


def test_toggling_autograd_is_global_and_says_so(cache):
    with torch.enable_grad():
        with pytest.warns(UserWarning, match="off"):
            cache.toggle_autodiff()
        assert not torch.is_grad_enabled()
        with pytest.warns(UserWarning, match="on"):
            cache.toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()


def test_stacked_activations(cache):
    assert torch.equal(cache.stack_activation("z"), torch.stack([cache["z", layer] for layer in range(N_LAYERS)]))
    assert cache.stack_activation("scale", 2, "ln2").shape == (2, 2, 7, 1)
