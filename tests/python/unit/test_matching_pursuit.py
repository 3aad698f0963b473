"""Matching pursuit: trainer, dictionary and files end a row alike."""

import json

import pytest
import torch
from dictionaries import encode, normal
from safetensors.torch import load_file

from introspect import SAE
from introspect.sae.trainer import Trainer


def pursuing(d=6, n=14, **given) -> SAE:
    W_dec = torch.nn.functional.normalize(normal(n, d, seed=3), dim=1)
    return SAE(None, W_dec=W_dec, b_dec=0.3 * normal(d, seed=4), architecture="matching_pursuit", **{"k": 6} | given)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, 14])
def test_trainer_and_dictionary_find_the_same_features(k):
    """With a feature that comes again, which counts and is the last."""
    t = Trainer(6, objective="matching_pursuit", d_sae=14, k=k, float64=True, b_dec_start="mean", seed=1)
    x = 2 * normal(60, 6)
    t.step(x)
    sae = t.dictionary()
    found, _ = t.gradients(x)
    f = encode(sae, x)
    repeats = ((f != 0).sum(1) < k).sum()
    assert k < 3 or repeats >= 5
    torch.testing.assert_close(sae.encode(x), f, rtol=1e-9, atol=1e-9)
    assert found.l0 == pytest.approx((f != 0).sum(1).double().mean().item())
    assert found.mse == pytest.approx((f @ sae.W_dec + sae.b_dec - x).square().sum(1).mean().item(), rel=1e-9)


def test_more_steps_than_features_as_saelens_has_it_by_default(tmp_path):
    sae = pursuing(d=8, n=5, k=8)
    x = normal(20, 8)
    torch.testing.assert_close(sae.encode(x), encode(sae, x))
    with pytest.raises(ValueError, match="larger of d_in and d_sae, 8, got 9"):
        pursuing(d=8, n=5, k=9)


def test_a_bias_that_is_not_taken_off_the_input_is_dropped_as_saelens_drops_it_and_ours_is_kept(tmp_path):
    x = normal(10, 6)
    pursuing().save(tmp_path / "theirs")
    cfg = json.loads((tmp_path / "theirs/cfg.json").read_text())
    (tmp_path / "theirs/cfg.json").write_text(json.dumps(cfg | {"apply_b_dec_to_input": False}))
    sae = SAE.load(tmp_path / "theirs")
    W = load_file(tmp_path / "theirs/sae_weights.safetensors")["W_dec"]
    torch.testing.assert_close(sae(x), sae.encode(x) @ W)

    ours = pursuing(apply_b_dec_to_input=False)
    ours.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/cfg.json").read_text())["architecture"] == "matching_pursuit_transcoder"
    torch.testing.assert_close(SAE.load(tmp_path / "ours")(x), ours(x), rtol=0, atol=0)


def test_rows_with_which_a_pursuit_would_diverge_are_refused():
    with pytest.raises(ValueError, match="must be of length 1, got one of 2"):
        SAE(None, W_dec=2 * torch.eye(3), architecture="matching_pursuit", k=2)
