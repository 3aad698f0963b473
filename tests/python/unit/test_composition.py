"""Composition scores against dense algebra (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits)."""

import pytest
import torch
from tiny import write_tiny_transformers

import introspect
from introspect import _C


@pytest.fixture(scope="module", params=["qwen2", "llama", "mistral no window", "gpt2"])
def engine(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", request.param)
    return introspect.load_model(folder, dtype=torch.float64).native


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_scores_are_the_ratio_of_norms_of_dense_products(engine, mode):
    W_Q, W_K, W_V, W_O = (engine.stacked_weight(f"attn.W_{name}") for name in "QKVO")
    writes = W_V @ W_O
    reads = {"Q": W_Q @ W_K.mT, "K": W_K @ W_Q.mT, "V": writes}[mode]
    norm = torch.linalg.matrix_norm
    product = norm(writes[:, :, None, None] @ reads)
    expected = product / norm(writes)[:, :, None, None] / norm(reads)
    layers = torch.arange(engine.cfg.n_layers)
    expected *= (layers[:, None] < layers)[:, None, :, None]
    scores = _C.composition_scores(engine, mode)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-13)
    assert scores[0].amax() > 0.05


def test_another_mode_is_an_error(engine):
    with pytest.raises(ValueError, match="mode must be Q, K or V"):
        _C.composition_scores(engine, "O")
