"""The vector between a real model and itself with a low-rank change merged in, on the StrongREJECT prompts."""

import csv

import pytest
import torch
from conftest import slow

import introspect

LAYER = 9
RANK = 4


@pytest.fixture(scope="module")
def prompts(shared_data):
    with (shared_data / "strongreject" / "strongreject.csv").open(newline="", encoding="utf-8") as file:
        return [row["forbidden_prompt"] for row in csv.DictReader(file)]


@slow
def test_a_planted_direction_is_recovered(qwen05, prompts):
    """What one block's MLP writes is changed by a matrix of rank 4, each term of which reads random neurons.

    The first writes the planted direction, the others, a quarter as large, random ones.
    """
    assert len(prompts) == 313
    model = introspect.load_model(qwen05)
    rng = torch.Generator().manual_seed(0)
    d_model, d_mlp = model.cfg.d_model, model.cfg.d_mlp
    writes = torch.randn(RANK, d_model, generator=rng)
    writes /= writes.norm(dim=1, keepdim=True)
    reads = torch.randn(RANK, d_mlp, generator=rng) * torch.tensor([1.0, 0.25, 0.25, 0.25])[:, None]
    name = f"blocks.{LAYER}.mlp.W_out"
    W_out = dict(model.native.named_weights())[name]
    changed = introspect.Model(model.native.with_weights({name: W_out + writes.T @ reads}))
    vectors = {}
    both = [introspect.collect_activations(m, prompts, layers=[LAYER]) for m in (changed, model)]
    neurons = introspect.collect_activations(model, prompts, layers=[LAYER], point="mlp.hook_post").values[:, 0]
    written = neurons.float() @ reads.T @ writes  # what the change adds to the residual, [prompts, d_model]
    for method in ("pca_center", "pca_diff"):
        vectors[method] = introspect.contrast(*both, method=method)
        found = vectors[method].directions[LAYER]
        assert abs(float(found @ writes[0])) > 0.95, method  # a component may point either way
        along = ((written @ found).square().sum() / written.square().sum()).item()
        # float32 activations hundreds of times their differences
        assert vectors[method].diagnostics[LAYER].explained_variance == pytest.approx(along, rel=1e-3)
    assert vectors["pca_center"].model_hash == model.hash != both[0].model_hash
