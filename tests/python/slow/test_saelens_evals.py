"""Figures of a dictionary beside those of SAELens's evals, on the same activations."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from dictionaries import dictionary_at
from safetensors.torch import save_file

from introspect import _C

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import SAE_LENS

OURS = {
    "mse": "mse",
    "explained_variance": "explained_variance",
    "explained_variance_legacy": "explained_variance_legacy",
    "cossim": "cosine",
    "l2_norm_in": "l2_norm_in",
    "l2_norm_out": "l2_norm_out",
    "l2_ratio": "l2_ratio",
    "relative_reconstruction_bias": "relative_reconstruction_bias",
    "l0": "l0",
    "l1": "l1",
}


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_figures_are_saelens_own(tmp_path, rng, architecture):
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of SAELens: python tests/benchmarks/peers/environment.py makes it")
    made = dictionary_at("blocks.1.hook_resid_post", 16, architecture, dtype=torch.float32)
    made.save(tmp_path / "sae")
    tokens = torch.randint(0, 20, (6, 30), generator=rng)
    x = torch.randn(6, 30, 16, generator=rng) + 2
    save_file({"x": x, "tokens": tokens}, tmp_path / "rows.safetensors")
    script = Path(__file__).with_name("saelens_evals.py")
    command = [python, script, tmp_path / "sae", tmp_path / "rows.safetensors", tmp_path / "out.json"]
    subprocess.run([str(one) for one in command], check=True, capture_output=True)
    theirs = json.loads((tmp_path / "out.json").read_text())
    statistics = _C.ReconstructionStatistics(made.d_sae, made.d_out)
    statistics.add(made, x[tokens != 5])
    found = statistics.figures()
    for name, mine in OURS.items():
        assert getattr(found, mine) == pytest.approx(theirs[name], rel=2e-5), name
    torch.testing.assert_close(found.density.float(), torch.tensor(theirs["feature_density"]), rtol=1e-5, atol=1e-6)
