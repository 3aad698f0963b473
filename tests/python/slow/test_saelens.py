"""Every dictionary beside SAELens's own class of that architecture: features, reconstructions and folded norms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from dictionaries import normal, weights
from safetensors.torch import load_file, save_file

from introspect import SAE

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import SAE_LENS

SCRIPT = Path(__file__).with_name("saelens_dictionaries.py")
D, F = 7, 24
UNTIED = {"apply_b_dec_to_input": False}
NORMS = ("constant_norm_rescale", "layer_norm")

# SAELens's config, and our arguments for the same; weights are those of tests/python/dictionaries.py.
JOBS = {
    "standard": ({"architecture": "standard"}, {}),
    "standard_b_dec": ({"architecture": "standard", "apply_b_dec_to_input": False}, {"apply_b_dec_to_input": False}),
    "gated": ({"architecture": "gated"}, {}),
    "topk": ({"architecture": "topk", "k": 4}, {"k": 4}),
    "topk_by_norm": ({"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
                     {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ({"architecture": "abstopk", "k": 4}, {"k": 4}),
    "abstopk_by_norm": ({"architecture": "abstopk", "k": 4, "rescale_acts_by_decoder_norm": True},
                        {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "batchtopk": ({"architecture": "batchtopk", "k": 2.5, "rescale_acts_by_decoder_norm": False, "training": True},
                  {"k": 2.5}),
    "jumprelu": ({"architecture": "jumprelu"}, {}),
    "matching_pursuit": ({"architecture": "matching_pursuit", "max_iterations": 12}, {"k": 12}),
    "matching_pursuit_short": ({"architecture": "matching_pursuit", "max_iterations": 12, "residual_threshold": 1.0},
                               {"k": 12, "residual_threshold": 1.0}),
    "transcoder": ({"architecture": "transcoder", "d_out": 5, **UNTIED}, {}),
    "skip_transcoder": ({"architecture": "skip_transcoder", "d_out": 5, **UNTIED}, {}),
    "jumprelu_transcoder": ({"architecture": "jumprelu_transcoder", "d_out": 5, **UNTIED}, {}),
    "jumprelu_skip_transcoder": ({"architecture": "jumprelu_skip_transcoder", "d_out": 5, **UNTIED}, {}),
    **{f"topk_{norm}": ({"architecture": "topk", "k": 4, "normalize_activations": norm},
                        {"k": 4, "normalize_activations": norm}) for norm in NORMS},
}  # fmt: skip


def architecture_of(config: dict) -> str:
    name = config["architecture"]
    return "jumprelu" if name.startswith("jumprelu") else "standard" if "transcoder" in name else name


def given(name: str) -> dict[str, torch.Tensor]:
    config = JOBS[name][0]
    out = weights(architecture_of(config), d_in=D, d_sae=F, d_out=config.get("d_out"), seed=len(name))
    out = {key: t for key, t in out.items() if t is not None}
    if "skip" in name:
        out["W_skip"] = normal(config["d_out"], D, seed=9)
    return out


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of SAELens: python tests/benchmarks/peers/environment.py sae_lens makes it")
    folder = tmp_path_factory.mktemp("saelens")
    tensors = {f"{name}.{key}": t.contiguous() for name in JOBS for key, t in given(name).items()}
    tensors |= {f"{name}.x": normal(20, D, seed=len(name) + 1) for name in JOBS}
    save_file(tensors, folder / "weights.safetensors")
    jobs = {name: {"d_in": D, "d_sae": F, **config} for name, (config, _) in JOBS.items()}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, SCRIPT, folder], check=True, env=environment)
    return load_file(folder / "answers.safetensors")


@pytest.mark.parametrize("name", JOBS)
def test_dictionaries_are_saelens_s(name, answers):
    config, options = JOBS[name]
    tensors = {"W_enc": None, **given(name)}
    sae = SAE(**tensors, architecture=architecture_of(config), **options)
    x = normal(20, D, seed=len(name) + 1)
    exact = {"rtol": 0, "atol": 1e-10}
    assert answers[f"{name}.f"].any()
    torch.testing.assert_close(sae.encode(x), answers[f"{name}.f"], **exact)
    torch.testing.assert_close(sae.encode_sparse(x).dense(), answers[f"{name}.f"], **exact)
    torch.testing.assert_close(sae(x), answers[f"{name}.y"], **exact)
    torch.testing.assert_close(sae(x.clone().requires_grad_()).detach(), answers[f"{name}.y"], **exact)
    if f"{name}.folded_f" in answers:
        folded = sae.fold_W_dec_norm()
        torch.testing.assert_close(folded.encode(x), answers[f"{name}.folded_f"], **exact)
        torch.testing.assert_close(folded(x), answers[f"{name}.folded_y"], **exact)
