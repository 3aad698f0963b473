"""Dictionaries: every architecture's features, reconstruction and gradients against its equation in plain torch."""

import copy
import os
import pickle
import signal
import threading
import time

import pytest
import torch
from dictionaries import ARCHITECTURES, K, dictionary, features, normal, origin, reconstruction, weights

import introspect
from introspect import SAE, ConfigError, Crosscoder, ShapeError, Transcoder

EXACT = {"rtol": 0, "atol": 1e-12}
CHOOSE = ("topk", "abstopk", "batchtopk", "groupmax")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_and_reconstruction_are_those_of_the_equation(architecture):
    w, sae, x = weights(architecture), dictionary(architecture), normal(9, 7)
    f = features(architecture, w, x - w["b_dec"], sae.k)
    assert 0 < (f != 0).sum() < f.numel()
    torch.testing.assert_close(sae.encode(x), f, **EXACT)
    torch.testing.assert_close(sae(x), f @ w["W_dec"] + w["b_dec"], **EXACT)
    torch.testing.assert_close(sae.decode(f), f @ w["W_dec"] + w["b_dec"], **EXACT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_b_dec_on_the_input_features_are_of_x_itself(architecture):
    w, sae = weights(architecture), dictionary(architecture, options={"apply_b_dec_to_input": False})
    x = normal(5, 7)
    torch.testing.assert_close(sae.encode(x), features(architecture, w, x, sae.k), **EXACT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_equation(architecture):
    w = {name: t if t is None else t.requires_grad_() for name, t in weights(architecture).items()}
    sae = SAE(**w, architecture=architecture, k=K.get(architecture, 0))
    x = normal(6, 7).requires_grad_()
    target = normal(6, 7, seed=2)
    inputs = {"x": x, **{name: t for name, t in w.items() if t is not None}}
    ours = torch.autograd.grad(((sae(x) - target) ** 2).sum(), list(inputs.values()), allow_unused=True)
    theirs = torch.autograd.grad(
        ((reconstruction(sae, w, x) - target) ** 2).sum(), list(inputs.values()), allow_unused=True
    )
    for name, one, other in zip(inputs, ours, theirs, strict=True):
        if name in ("threshold", "b_gate"):  # steps have no gradient: training estimates one
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_within_rounding_of_float64(architecture):
    # 64 terms of size 1 and 2^-24 each; a choice that hangs on less than that may differ, and does not here
    wide, x = dictionary(architecture, d_in=64, d_sae=256), normal(33, 64)
    narrow = wide.to("float32")
    torch.testing.assert_close(narrow.encode(x).double(), wide.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(narrow(x).double(), wide(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_narrow_dictionaries_compute_in_float32_and_round_last(architecture, dtype):
    narrow = dictionary(architecture, d_in=32, d_sae=96).to(dtype)
    wide, x = narrow.to(torch.float32), normal(11, 32, dtype=torch.float32)
    assert narrow.encode(x).dtype == narrow(x).dtype == dtype
    # sums in another order round to the other of two neighbours now and then: 2^-8 and 2^-11 of the value
    one = 2**-8 if dtype == torch.bfloat16 else 2**-11
    torch.testing.assert_close(narrow.encode(x).float(), wide.encode(x), rtol=one, atol=1e-5)
    torch.testing.assert_close(narrow(x).float(), wide(x), rtol=one, atol=1e-2 * one)


@pytest.mark.parametrize("norm", ["expected_average_only_in", "constant_norm_rescale", "layer_norm"])
def test_input_norms_are_undone(norm):
    w, x = weights("jumprelu"), 3 * normal(5, 7) + 1
    sae = dictionary("jumprelu", options={"normalize_activations": norm, "input_scale": 0.4 if "exp" in norm else 1})
    if norm == "expected_average_only_in":
        scale, shift = torch.tensor(1 / 0.4), torch.tensor(0.0)
    elif norm == "constant_norm_rescale":
        scale, shift = x.norm(dim=-1, keepdim=True) / 7**0.5, torch.tensor(0.0)
    else:
        scale, shift = x.std(-1, keepdim=True), x.mean(-1, keepdim=True)
    eps = 1e-5 if norm == "layer_norm" else 0
    f = features("jumprelu", w, (x - shift) / (scale + eps) - w["b_dec"], 0)
    expected = (f @ w["W_dec"] + w["b_dec"]) * scale + shift
    torch.testing.assert_close(sae(x), expected.double(), **EXACT)
    torch.testing.assert_close(sae.decode(sae.encode(x), x), expected.double(), **EXACT)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x), x), expected.double(), **EXACT)
    if sae.needs_input:
        with pytest.raises(ValueError, match="needs the input x"):
            sae.decode(sae.encode(x))


def test_a_skip_transcoder_adds_the_raw_input():
    w, W_skip, x = weights("topk", d_out=5), normal(5, 7, seed=3), normal(6, 7)
    sae = SAE.of(SAE(**w, architecture="topk", k=4, W_skip=W_skip))
    assert isinstance(sae, Transcoder) and not sae.subtract_b_dec
    expected = features("topk", w, x, 4) @ w["W_dec"] + w["b_dec"] + x @ W_skip.T
    torch.testing.assert_close(sae(x), expected, **EXACT)
    with pytest.raises(ValueError, match="needs the input x"):
        sae.decode(sae.encode(x))


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "abstopk", "groupmax", "jumprelu"])
def test_ranking_by_decoder_norm_scales_features_and_divides_them_again(architecture):
    w, x = weights(architecture), normal(6, 7)
    sae = dictionary(architecture, options={"rescale_acts_by_decoder_norm": True})
    n = w["W_dec"].norm(dim=1)
    scaled = w | {"W_enc": w["W_enc"] * n, "b_enc": w["b_enc"] * n}
    f = features(architecture, scaled, x - w["b_dec"], sae.k)
    torch.testing.assert_close(sae.encode(x), f, **EXACT)
    torch.testing.assert_close(sae.encode_sparse(x).dense(), f, **EXACT)
    torch.testing.assert_close(sae(x), f / n @ w["W_dec"] + w["b_dec"], **EXACT)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "matching_pursuit"])
def test_folding_decoder_norms_keeps_the_function(architecture, ranked):
    # thresholds, gates and magnitudes scale too (SAELens #463, #735)
    sae, x = dictionary(architecture, options={"rescale_acts_by_decoder_norm": ranked}), normal(8, 7)
    if architecture in CHOOSE and not ranked:
        with pytest.raises(ConfigError, match="choice of features would be another"):
            sae.fold_W_dec_norm()
        return
    folded = sae.fold_W_dec_norm()
    torch.testing.assert_close(folded.decoder_norms, torch.ones(24, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(folded(x), sae(x), rtol=0, atol=1e-11)
    expected = sae.encode(x) * (1 if ranked else sae.decoder_norms)
    torch.testing.assert_close(folded.encode(x), expected, rtol=0, atol=1e-11)
    assert not folded.rank_by_decoder_norm


def test_a_decoder_row_of_zeros_folds_into_no_feature():
    w = weights("standard")
    w["W_dec"][3] = 0
    for ranked in (False, True):
        sae = SAE(**w, rescale_acts_by_decoder_norm=ranked)
        folded, x = sae.fold_W_dec_norm(), normal(8, 7)
        assert sae(x).isfinite().all()
        torch.testing.assert_close(folded(x), sae(x), rtol=0, atol=1e-11)
        assert not folded.encode(x)[:, 3].any()


@pytest.mark.parametrize("ranked", [False, True])
def test_folding_the_input_scale_keeps_the_function(ranked):
    options = {"normalize_activations": "expected_average_only_in", "input_scale": 0.37}
    sae = dictionary("jumprelu", options=options | {"rescale_acts_by_decoder_norm": ranked})
    folded, x = sae.fold_activation_norm_scaling_factor(), normal(8, 7)
    assert folded.cfg.normalize_activations == "none"
    torch.testing.assert_close(folded(x), sae(x), rtol=0, atol=1e-11)
    with pytest.raises(ConfigError, match="cannot be folded"):
        dictionary("topk", options={"normalize_activations": "layer_norm"}).fold_activation_norm_scaling_factor()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_one_by_one_are_those_of_all(architecture):
    sae, x, ids = dictionary(architecture), normal(4, 3, 7), [5, 0, 23, 5]
    torch.testing.assert_close(sae.encode(x, ids), sae.encode(x)[..., ids], **EXACT)
    torch.testing.assert_close(sae.encode(x.requires_grad_(), ids), sae.encode(x)[..., ids], **EXACT)
    assert sae.encode(x, []).shape == (4, 3, 0)
    for wrong in ([24], [-1]):
        with pytest.raises(IndexError, match="0 to 23"):
            sae.encode(x, wrong)


def test_topk_without_relu_keeps_negative_ones():
    w, x = weights("topk"), normal(9, 7)
    w["b_enc"] -= 5
    p = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    kept = p >= p.topk(4).values[:, -1:]
    signed = SAE(**w, architecture="topk", k=4, relu=False)
    assert (signed.encode(x) < 0).any()
    torch.testing.assert_close(signed.encode(x), p * kept, **EXACT)
    torch.testing.assert_close(SAE(**w, architecture="topk", k=4).encode(x), torch.relu(p * kept), **EXACT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_numbers_that_are_not_finite_show(architecture):
    sae, x = dictionary(architecture, d_in=16, d_sae=64).to("float32"), normal(9, 16, dtype=torch.float32)
    x[2, 3] = float("nan")
    for y in (sae(x), sae.decode(sae.encode(x)), sae(x.requires_grad_())):
        assert y[2].isnan().all()
        if architecture != "batchtopk":  # whose rows depend on one another
            assert y[[0, 1, 3, 8]].isfinite().all()


def test_heads_side_by_side():
    sae = dictionary("topk", d_in=8, options={"hook_name": "blocks.1.attn.hook_z"})
    z = normal(3, 5, 2, 4)
    assert sae.cfg.reshape_activations == "hook_z"
    torch.testing.assert_close(sae.encode(z), sae.encode(z.flatten(-2)), **EXACT)
    torch.testing.assert_close(sae(z), sae(z.flatten(-2)).reshape(z.shape), **EXACT)


def test_sites_of_a_crosscoder_stand_side_by_side():
    w = weights("standard", d_in=10)
    sae = SAE.of(SAE(**w, origin=origin("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", widths=[4, 6])))
    assert isinstance(sae, Crosscoder)
    a, b = normal(5, 4), normal(5, 6, seed=2)
    x = sae.join([a, b])
    p = (a - w["b_dec"][:4]) @ w["W_enc"][:4] + (b - w["b_dec"][4:]) @ w["W_enc"][4:] + w["b_enc"]
    torch.testing.assert_close(sae.encode(x), torch.relu(p), **EXACT)
    y_a, y_b = sae.split(sae(x))
    torch.testing.assert_close(y_a, torch.relu(p) @ w["W_dec"][:, :4] + w["b_dec"][:4], **EXACT)
    torch.testing.assert_close(y_b, torch.relu(p) @ w["W_dec"][:, 4:] + w["b_dec"][4:], **EXACT)
    torch.testing.assert_close(
        sae.site_norms, torch.stack([w["W_dec"][:, :4].norm(dim=1), w["W_dec"][:, 4:].norm(dim=1)]), **EXACT
    )
    with pytest.raises(ShapeError, match=r"widths \[4, 6\]"):
        sae.join([b, a])


def test_values_are_equal_by_what_they_compute():
    one, other = dictionary("jumprelu"), dictionary("jumprelu")
    assert one == other and hash(one) == hash(other) and one != dictionary("jumprelu", seed=1)
    assert one != one.to("float32") and one != dictionary("jumprelu", options={"apply_b_dec_to_input": False})
    assert one == one.with_origin(introspect.sae.DictionaryOrigin(model_name="x")) and one != "jumprelu"
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert twin == one and type(twin) is SAE and twin.cfg == one.cfg
    topk = pickle.loads(pickle.dumps(dictionary("topk", options={"relu": False, "hook_name": "ln_final.hook_scale"})))
    assert topk == dictionary("topk", options={"relu": False}) and topk.cfg.metadata.hook_name == "ln_final.hook_scale"


def test_names_are_saelens_s():
    sae = dictionary("topk", d_out=5, options={"hook_name": "blocks.3.ln2.hook_normalized", "model_name": "gpt2"})
    cfg = sae.cfg
    assert (cfg.architecture, cfg.d_in, cfg.d_out, cfg.d_sae, cfg.k, cfg.dtype) == ("topk", 7, 5, 24, 4, "float64")
    assert cfg.metadata.hook_name == "blocks.3.ln2.hook_normalized" and cfg.metadata.model_name == "gpt2"
    assert not cfg.apply_b_dec_to_input and cfg.to_dict()["metadata"]["prepend_bos"] is None
    assert sae.W_enc.shape == (7, 24) and sae.W_dec.shape == (24, 5) and sae.b_dec.shape == (5,)
    assert torch.equal(sae.W_enc, weights("topk", d_out=5)["W_enc"]) and sae.threshold is None
    assert repr(sae) == "SAE('topk', d_in=7, d_out=5, d_sae=24, k=4, float64, blocks.3.ln2.hook_normalized, gpt2)"
    bare = SAE(normal(7, 9), normal(9, 7))
    assert not bare.b_enc.any() and not bare.b_dec.any() and bare.b_enc.shape == (9,)


def test_sparse_features_by_row():
    f = torch.tensor([[0, 2.0, 0, 3], [0, 0, 0, 0], [-1, 0, 0, 0]])
    sparse = dictionary("standard").encode_sparse(normal(3, 7))
    assert sparse.row(1) == {i: v for i, v in enumerate(sparse.dense()[1].tolist()) if v}
    torch.testing.assert_close(sparse.to_torch().to_dense(), sparse.dense(), **EXACT)
    table = sparse.to_pandas()
    assert list(table.columns) == ["row", "feature", "value"] and len(table) == (sparse.dense() != 0).sum()
    found = introspect._C.SparseFeatures.of(f)
    assert found.offsets.tolist() == [0, 2, 2, 3] and found.indices.tolist() == [1, 3, 0]
    assert found.values.tolist() == [2, 3, -1] and torch.equal(found.dense(), f)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"W_dec": normal(24, 6)}, ShapeError, "W_dec|b_dec"),
        ({"W_enc": normal(24)}, ShapeError, "W_enc must be"),
        ({"b_enc": normal(23)}, ShapeError, r"b_enc must be \[24\]"),
        ({"b_enc": normal(24, dtype=torch.float32)}, ShapeError, "W_dec's floating dtype"),
        ({"W_enc": None}, ConfigError, "must have W_enc"),
        ({"threshold": None}, ConfigError, "must have threshold"),
        ({"threshold": -torch.ones(24).double()}, ValueError, "at least 0"),
        ({"threshold": torch.full((24,), float("nan")).double()}, ValueError, "threshold must be finite"),
        ({"b_dec": torch.full((7,), float("inf")).double()}, ValueError, "b_dec must be finite"),
        ({"b_gate": normal(24)}, ConfigError, "must not have b_gate"),
        ({"architecture": "relu6"}, ConfigError, "standard, gated, topk.*got relu6"),
        ({"architecture": "standard"}, ConfigError, "must not have threshold"),
        ({"normalize_activations": "batch"}, ConfigError, "constant_norm_rescale.*got batch"),
        ({"normalize_activations": "expected_average_only_in", "input_scale": 0.0}, ValueError, "scale"),
    ],
)
def test_what_does_not_fit_is_named(change, error, says):
    with pytest.raises(error, match=says):
        SAE(**{**weights("jumprelu"), "architecture": "jumprelu", **change})


@pytest.mark.parametrize("k", [0, -1, 25, 2.5, float("nan")])
def test_k_is_a_whole_number_up_to_d_sae(k):
    with pytest.raises(ValueError, match="k must be"):
        SAE(**weights("topk"), architecture="topk", k=k)


def test_inputs_of_another_width_or_kind_are_refused():
    sae = dictionary("topk")
    for call in (sae, sae.encode, sae.encode_sparse, lambda x: sae.encode(x, [0])):
        with pytest.raises(ShapeError, match="7"):
            call(normal(3, 8))
        with pytest.raises(ShapeError):
            call(torch.ones(3, 7, dtype=torch.int64))
    with pytest.raises(ShapeError, match="24"):
        sae.decode(normal(3, 23))
    with pytest.raises(ShapeError):
        sae(torch.ones(3, 7).to_sparse())


def test_a_process_forked_while_another_thread_hashes_a_dictionary_hashes_its_own():
    small, large = dictionary("standard"), dictionary("standard", d_in=512, d_sae=8192)
    hashing = threading.Thread(target=lambda: large.hash)
    hashing.start()
    time.sleep(0.01)
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that waits for that thread, which it lacks
        os._exit(0 if len(small.hash) == 64 else 1)
    assert os.waitpid(child, 0)[1] == 0
    hashing.join()
