"""Control vectors against repeng 0.4.0's own, on the same weights and tokens of a real model.

repeng runs in an environment of its own (tests/benchmarks/peers/environment.py). It reads its last layer's
direction after the final norm and we read ours from the residual stream, so that layer has a test of its own.
"""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import introspect

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import REPENG
from peers.repeng_client import Repeng

SMOLLM2 = Path.home() / ".cache/introspect/models/SmolLM2-135M-Instruct.Q4_1.gguf"
AGREEMENT = 0.9999  # repeng's PCA is a randomised one from an unseeded start


@pytest.fixture(scope="module")
def model():
    if not SMOLLM2.exists():
        pytest.skip(f"{SMOLLM2} is not there")
    return introspect.load_model(SMOLLM2)


@pytest.fixture(scope="module")
def repeng(model):
    if REPENG.python() is None:
        pytest.skip("no environment of repeng: python tests/benchmarks/peers/environment.py repeng makes it")
    with Repeng(SMOLLM2) as worker:
        yield worker


@pytest.fixture(scope="module")
def pairs(model):
    return introspect.concept_pairs(model, "cat", introspect.load_suffixes())


def cosine(a, b) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("method", ["pca_center", "pca_diff"])
def test_every_direction_is_repengs_with_its_sign(model, repeng, pairs, method):
    ours = introspect.ControlVector.train(model, pairs, method=method).directions
    first, second = (repeng.train(model, pairs, method).directions for _ in range(2))
    layers = range(1, model.cfg.n_layers - 1)
    repeated = [layer for layer in layers if cosine(first[layer], second[layer]) >= AGREEMENT]
    cosines = {layer: cosine(ours[layer], first[layer]) for layer in layers}
    print({layer: f"{value:.7f}" for layer, value in cosines.items()})
    assert len(repeated) >= len(layers) - 2  # nearly all, or the comparison says nothing
    assert {layer: cosines[layer] for layer in repeated if cosines[layer] < AGREEMENT} == {}


def after_the_final_norm(model, texts):
    """[texts, d_model]: at each text's last token, which batches of one length need no padding for."""
    rows = [model.to_tokens(text)[0] for text in texts]
    out = torch.empty(len(rows), model.cfg.d_model)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    for length in {len(row) for row in rows}:
        places = [i for i, row in enumerate(rows) if len(row) == length]
        tokens = torch.stack([rows[i] for i in places])
        _, cache = model.run_with_cache(tokens, last, pos_slice=-1, logits_at="none")
        out[places] = introspect.ops.rms_norm(cache[last][:, 0], model.engine.weight("ln_final.w"), eps=model.cfg.eps)
    return out


def test_the_last_layers_direction_after_the_final_norm_is_repengs(model, repeng, pairs):
    pairs = pairs[:100]
    positive, negative = (after_the_final_norm(model, side) for side in zip(*pairs, strict=True))
    first, second = (repeng.train(model, pairs).directions[model.cfg.n_layers - 1] for _ in range(2))
    assert cosine(first, second) >= AGREEMENT
    assert cosine(introspect.direction_of_pairs(positive, negative, method="pca_center"), first) >= AGREEMENT


def test_repeng_reads_our_file(model, repeng, tmp_path):
    directions = {layer: torch.randn(model.cfg.d_model) for layer in (1, 7, model.cfg.n_layers - 1)}
    introspect.ControlVector("llama", directions).export_gguf(tmp_path / "v.gguf")
    model_type, theirs = repeng.read(tmp_path / "v.gguf")
    assert model_type == "llama"
    assert theirs.keys() == directions.keys()
    assert all(torch.equal(theirs[layer], directions[layer]) for layer in directions)
