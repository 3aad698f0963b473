"""Inputs of mean 0 and covariance 1: measured, trained on, folded into the weights, read from SAELens's checkpoints."""

import json

import pytest
import torch
from dictionaries import K, dictionary, normal, weights
from safetensors.torch import load_file, save_file

from introspect import _C, SAE, ConfigError, ShapeError
from introspect.sae.trainer import Trainer

D, F, N = 7, 24, 300
EPS = 1e-3


def rows(n: int = N, seed: int = 0) -> torch.Tensor:
    """Rows of very different variances, about a mean."""
    mix = normal(D, D, seed=5) * torch.logspace(-1, 1.5, D, dtype=torch.float64)
    return normal(n, D, seed=seed) @ mix + 3 * normal(D, seed=6)


def whitening(x: torch.Tensor, eps: float = EPS):
    """By numpy's covariance, and the eigenvalues' roots."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    return x.mean(0), vectors / (values + eps).sqrt(), (values + eps).sqrt()[:, None] * vectors.T


def test_whitened_rows_have_mean_0_and_covariance_1():
    x = rows()
    mean, matrix, inverse = _C.whitening(x)
    z = (x - mean) @ matrix
    torch.testing.assert_close(z.mean(0), torch.zeros(D).double(), rtol=0, atol=1e-9)
    v = torch.linalg.eigvalsh(torch.cov(x.T))
    torch.testing.assert_close(torch.cov(z.T), torch.diag(v / (v + EPS)), rtol=0, atol=1e-9)
    torch.testing.assert_close(z @ inverse + mean, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix.abs(), whitening(x)[1].abs(), rtol=1e-7, atol=1e-9)  # up to signs of directions


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "abstopk", "jumprelu"])
def test_folded_it_has_the_features_and_outputs_of_the_whitened_one(architecture, on_input, ranked):
    if ranked and architecture == "gated":
        pytest.skip("gated has no choice by norm")
    options = {"apply_b_dec_to_input": on_input, "rescale_acts_by_decoder_norm": ranked}
    inside = dictionary(architecture, options=options)
    x = rows()
    mean, matrix, inverse = whitening(x)
    z = (x - mean) @ matrix
    folded = inside.fold_activation_whitening(mean, matrix, inverse)
    torch.testing.assert_close(folded(x), inside(z) @ inverse + mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(folded.encode(x), inside.encode(z), rtol=0, atol=1e-8)
    assert folded.cfg.normalize_activations == "none"


@pytest.mark.parametrize("objective", ["standard", "topk", "batchtopk", "jumprelu"])
def test_training_sees_whitened_rows_and_gives_a_dictionary_of_the_rows_themselves(objective):
    """The same trainer, given rows that plain torch whitened, has the same numbers."""
    options = {"objective": objective, "d_sae": F, "float64": True, "k": 4, "lr": 1e-2, "seed": 3, "aux": "none"}
    ours, plain = Trainer(D, input_norm="covariance_whitening", **options), Trainer(D, **options)
    first = rows(500, seed=9)
    ours.measure(first[:200])
    ours.measure(first[200:])
    mean, matrix, inverse = _C.whitening(first)
    for seed in range(5):
        x = rows(seed=seed)
        a, b = ours.step(x), plain.step((x - mean) @ matrix)
        assert a.loss == pytest.approx(b.loss, rel=1e-9) and a.l0 == b.l0
    x = rows(seed=20)
    expected = plain.dictionary()((x - mean) @ matrix) @ inverse + mean
    torch.testing.assert_close(ours.dictionary()(x), expected, rtol=0, atol=1e-7)
    assert ours.dictionary().cfg.normalize_activations == "none"


def test_unmeasured_it_is_the_first_batch_s_and_a_checkpoint_keeps_it(tmp_path):
    options = {"objective": "topk", "d_sae": F, "float64": True, "k": 4, "lr": 1e-2, "seed": 3}
    whole, part = (Trainer(D, input_norm="covariance_whitening", **options) for _ in range(2))
    part.measure(rows(seed=1))
    part.save(tmp_path / "before")  # what was measured before the first step is kept too
    part = Trainer.load(tmp_path / "before")
    whole.step(rows(seed=1))
    part.step(rows(seed=1))
    part.save(tmp_path / "after")
    part = Trainer.load(tmp_path / "after")
    assert whole.step(rows(seed=2)).to_dict() == part.step(rows(seed=2)).to_dict()
    assert whole.dictionary() == part.dictionary()


def test_saelens_checkpoints_of_whitened_training_are_of_the_rows_themselves(tmp_path):
    """SAELens folds the map in at the end; before that it stands in activation_whitening.safetensors."""
    inside = SAE(**weights("standard"), hook_name="blocks.0.hook_resid_post")
    inside.save(tmp_path)
    x = rows()
    mean, matrix, inverse = whitening(x)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": "covariance_whitening"}))
    with pytest.raises(ConfigError, match=r"no activation_whitening\.safetensors"):
        SAE.load(tmp_path)
    tensors = {"mean": mean, "matrix": matrix, "inverse_matrix": inverse}
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "activation_whitening.safetensors")
    read = SAE.load(tmp_path)
    torch.testing.assert_close(read(x), inside((x - mean) @ matrix) @ inverse + mean, rtol=0, atol=1e-8)
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == {"W_enc", "W_dec", "b_enc", "b_dec"}


def test_what_cannot_be_whitened_is_refused():
    x = rows()
    mean, matrix, inverse = whitening(x)
    with pytest.raises(ConfigError, match="matching pursuit"):
        dictionary("matching_pursuit").fold_activation_whitening(mean, matrix, inverse)
    with pytest.raises(ConfigError, match="no other input norm"):
        dictionary("standard", options={"normalize_activations": "layer_norm"}).fold_activation_whitening(
            mean, matrix, inverse
        )
    with pytest.raises(ConfigError, match="transcoder"):
        SAE(**weights("standard", d_out=5)).fold_activation_whitening(mean, matrix, inverse)
    with pytest.raises(ShapeError, match="matrix must be"):
        dictionary("standard").fold_activation_whitening(mean, matrix[:3], inverse)
    with pytest.raises(ConfigError, match="folds into the weights"):
        SAE(**weights("standard"), normalize_activations="covariance_whitening", k=K.get("standard", 0))
    with pytest.raises(ConfigError, match="covariance_whitening"):
        Trainer(D, objective="matching_pursuit", d_sae=F, k=2, input_norm="covariance_whitening")
    with pytest.raises(ConfigError, match="input norm"):
        Trainer(D, transcodes=True, subtract_b_dec=False, d_sae=F, k=2, input_norm="covariance_whitening")
    with pytest.raises(ValueError, match="more rows than their width, 7, are needed to measure, got 7"):
        _C.whitening(x[:7])
    with pytest.raises(ValueError, match="more rows"):
        Trainer(D, d_sae=F, k=2, input_norm="covariance_whitening").step(x[:5].float())
