"""Cross-layer transcoders against their equation in plain torch."""

import copy
import pickle

import pytest
import torch
from dictionaries import normal

import introspect
from introspect import ConfigError, CrossLayerTranscoder, ShapeError

L, D_IN, D_OUT, F = 3, 6, 5, 20
EXACT = {"rtol": 0, "atol": 1e-12}


def parts(dtype=torch.float64):
    return {
        "W_enc": [normal(D_IN, F, seed=10 + i, dtype=dtype) for i in range(L)],
        "W_dec": [normal(F, L - i, D_OUT, seed=20 + i, dtype=dtype) for i in range(L)],
        "b_enc": [normal(F, seed=30 + i, dtype=dtype) for i in range(L)],
        "b_dec": normal(L, D_OUT, seed=40, dtype=dtype),
    }


def outputs(w, f, x=None, W_skip=None):
    """y_t = sum over l <= t of f_l W_dec[l -> t] + b_t, in loops."""
    y = []
    for t in range(L):
        total = w["b_dec"][t].clone()
        for layer in range(t + 1):
            total = total + f[layer] @ w["W_dec"][layer][:, t - layer]
        y.append(total if W_skip is None else total + x[t] @ W_skip[t].T)
    return torch.stack(y)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_features_write_their_own_layer_and_those_above(architecture):
    w, x = parts(), normal(L, 4, D_IN)
    threshold = normal(L, F, seed=50).abs()
    options = (
        {"threshold": list(threshold)} if architecture == "jumprelu" else {"k": 3 if architecture == "topk" else 0}
    )
    clt = CrossLayerTranscoder(**w, architecture=architecture, **options)
    p = torch.stack([x[i] @ w["W_enc"][i] + w["b_enc"][i] for i in range(L)])
    f = {
        "standard": torch.relu(p),
        "jumprelu": p * (p > threshold[:, None]),
        "topk": torch.relu(p) * (p >= p.topk(3).values[..., -1:]),
    }[architecture]
    torch.testing.assert_close(clt.encode(x), f, **EXACT)
    torch.testing.assert_close(clt.decode(f), outputs(w, f), **EXACT)
    torch.testing.assert_close(clt(x), outputs(w, f), **EXACT)
    sparse = clt.encode_sparse(x)
    torch.testing.assert_close(torch.stack([one.dense() for one in sparse]), f, **EXACT)
    torch.testing.assert_close(clt.decode(sparse), outputs(w, f), **EXACT)
    torch.testing.assert_close(clt(x.reshape(L, 2, 2, D_IN)), outputs(w, f).reshape(L, 2, 2, D_OUT), **EXACT)


def test_gradients_are_those_of_the_equation():
    w = {name: [t.requires_grad_() for t in value] for name, value in parts().items()}
    x = normal(L, 4, D_IN).requires_grad_()
    inputs = [x, *(t for value in w.values() for t in value)]
    f = torch.stack([torch.relu(x[i] @ w["W_enc"][i] + w["b_enc"][i]) for i in range(L)])
    theirs = torch.autograd.grad(outputs(w, f).square().sum(), inputs)
    ours = torch.autograd.grad(CrossLayerTranscoder(**w)(x).square().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_skip_is_of_each_layer_s_own_input():
    w, x, W_skip = parts(), normal(L, 4, D_IN), normal(L, D_OUT, D_IN, seed=60)
    clt = CrossLayerTranscoder(**w, W_skip=list(W_skip))
    f = clt.encode(x)
    torch.testing.assert_close(clt(x), outputs(w, f, x, W_skip), **EXACT)
    torch.testing.assert_close(clt.decode(clt.encode_sparse(x), x), outputs(w, f, x, W_skip), **EXACT)
    with pytest.raises(ValueError, match="needs the input x"):
        clt.decode(f)


def test_all_that_a_feature_writes_folds_to_length_one():
    w, x = parts(), normal(L, 4, D_IN)
    clt = CrossLayerTranscoder(**w)
    folded = clt.fold_W_dec_norm()
    torch.testing.assert_close(folded(x), clt(x), rtol=0, atol=1e-11)
    for layer in range(L):
        norms = folded.W_dec(layer).flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(F, dtype=torch.float64), **EXACT)


def test_narrow_weights_are_summed_in_float32():
    narrow = CrossLayerTranscoder(**parts()).to("bfloat16")
    wide, x = narrow.to(torch.float32), normal(L, 4, D_IN, dtype=torch.float32)
    assert narrow(x).dtype == torch.bfloat16
    f = wide.encode(x)
    torch.testing.assert_close(narrow.decode(f).float(), wide.decode(f), rtol=2**-8, atol=1e-5)


def test_layers_are_dictionaries_at_their_sites():
    names, outs = [f"blocks.{i}.hook_mlp_in" for i in range(L)], [f"blocks.{i}.hook_mlp_out" for i in range(L)]
    clt = CrossLayerTranscoder(**parts(), hook_names=names, hook_names_out=outs, model_name="gpt2")
    one = clt.layer(1)
    assert isinstance(one, introspect.Crosscoder) and one.cfg.metadata.hook_name == names[1]
    assert [site.hook_name for site in one.origin.outputs] == outs[1:]
    assert one.W_dec.shape == (F, 2 * D_OUT) and torch.equal(one.W_dec, clt.W_dec(1).flatten(1))
    assert repr(clt) == "CrossLayerTranscoder('standard', 3 layers, d_in=6, d_out=5, d_sae=20, float64, gpt2)"
    with pytest.raises(IndexError, match="0 to 2"):
        clt.W_dec(3)


def test_values_are_equal_by_what_they_compute():
    one = CrossLayerTranscoder(**parts())
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert twin == one and hash(twin) == hash(one) and type(twin) is CrossLayerTranscoder
    other = parts()
    other["b_dec"][0, 0] += 1
    assert CrossLayerTranscoder(**other) != one


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"W_dec": parts()["W_dec"][:2]}, ShapeError, "3 layers, got 2"),
        ({"W_dec": [normal(F, n, D_OUT) for n in (3, 3, 1)]}, ShapeError, "layer 1 must have .* 2 layers"),
        ({"b_dec": normal(L, D_OUT + 1)}, ShapeError, "b_dec must be"),
        ({"hook_names": ["a", "b"]}, ConfigError, "each of the 3 layers"),
        ({"W_skip": torch.full((L, D_OUT, D_IN), float("nan")).double()}, ValueError, "W_skip must be finite"),
    ],
)
def test_what_does_not_fit_is_named(change, error, says):
    with pytest.raises(error, match=says):
        CrossLayerTranscoder(**{**parts(), **change})
    with pytest.raises(ShapeError, match="inputs must be"):
        CrossLayerTranscoder(**parts())(normal(2, 4, D_IN))
