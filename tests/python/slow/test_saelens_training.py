"""Whole training runs beside SAELens's own SAETrainer and training classes: the same losses, rates and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from introspect.sae.trainer import Trainer

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import SAE_LENS

SCRIPT = Path(__file__).with_name("saelens_training.py")
D, F, N, STEPS, WINDOW = 12, 48, 96, 24, 4

# SAELens's architecture and config, and our options for the same. Adam, clipping and dead features stand in all.
JOBS = {
    "standard": ("standard", {"l1_coefficient": 0.3, "l1_warm_up_steps": 6},
                 {"l1_coefficient": 0.3, "sparsity_warm_up_steps": 6}),
    "lp": ("standard", {"l1_coefficient": 0.3, "lp_norm": 2.0}, {"l1_coefficient": 0.3, "lp": 2.0}),
    "gated": ("gated", {"l1_coefficient": 0.3}, {"l1_coefficient": 0.3}),
    "topk": ("topk", {"k": 3}, {"k": 3}),
    "topk_plain": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": 0.5},
                   {"k": 5, "rank_by_decoder_norm": False, "aux_coefficient": 0.5}),
    "abstopk": ("abstopk", {"k": 3}, {"k": 3}),
    "batchtopk": ("batchtopk", {"k": 2.5}, {"k": 2.5}),
    "matryoshka": ("matryoshka_batchtopk", {"k": 3, "matryoshka_widths": [10, 24, F]},
                   {"objective": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": [10, 24, F]}),
    "matryoshka_aux": ("matryoshka_batchtopk",
                       {"k": 3, "matryoshka_widths": [10, F], "use_matryoshka_aux_loss": True},
                       {"objective": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": [10, F],
                        "matryoshka_aux": True}),
    "jumprelu": ("jumprelu", {"l0_coefficient": 0.1, "l0_warm_up_steps": 5}, {"l0_coefficient": 0.1,
                                                                                   "sparsity_warm_up_steps": 5}),
    "jumprelu_anthropic": (
        "jumprelu",
        {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_bandwidth": 0.5, "jumprelu_init_threshold": 0.1,
         "pre_act_loss_coefficient": 0.01, "jumprelu_ste_to_input": True, "l0_coefficient": 0.2},
        {"sparsity_loss": "tanh", "bandwidth": 0.5, "init_threshold": 0.1, "pre_act_coefficient": 0.01,
         "ste_to_input": True, "l0_coefficient": 0.2},
    ),
    "jumprelu_gemma_scope_2": (
        "jumprelu",
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4.0, "l0_coefficient": 0.05},
        {"sparsity_loss": "quadratic", "target_l0": 4.0, "l0_coefficient": 0.05},
    ),
    "matching_pursuit": ("matching_pursuit", {"max_iterations": 4},
                         {"k": 4, "project_gradient": False}),
}  # fmt: skip
SCHEDULES = {
    "constant": ({}, {}),
    "decayed": ({"lr_warm_up_steps": 5, "lr_decay_steps": 6}, {"warm_up_steps": 5, "decay_steps": 6}),
    "cosine": (
        {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 3, "lr_decay_steps": 5, "lr_end": 1e-3},
        {"schedule": "cosineannealing", "warm_up_steps": 3, "decay_steps": 5, "lr_end": 1e-3},
    ),
}


def trainer(name: str) -> Trainer:
    _, _, options = JOBS[name.split("@")[0]]
    schedule = SCHEDULES[name.partition("@")[2] or "constant"][1]
    common = {"objective": JOBS[name.split("@")[0]][0], "d_sae": F, "float64": True, "lr": 1e-2, "dead_window": WINDOW}
    return Trainer(D, **{**common, "total_steps": STEPS, **options, **schedule})


NAMES = [*JOBS, "topk@decayed", "topk@cosine"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of the peers: python tests/benchmarks/peers/environment.py makes it")
    folder = tmp_path_factory.mktemp("saelens")
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(30, D, generator=g, dtype=torch.float64)
    x = torch.relu(torch.randn(STEPS, N, 30, generator=g, dtype=torch.float64) - 1.2) @ mixing
    jobs, start = {}, {}
    for name in NAMES:
        architecture, config, _ = JOBS[name.split("@")[0]]
        jobs[name] = {
            "architecture": architecture,
            "config": config,
            "trainer": {"lr": 1e-2, "lr_end": 1e-3, "dead_feature_window": WINDOW}
            | SCHEDULES[name.partition("@")[2] or "constant"][0],
        }
        for weight, t in trainer(name).weights().items():
            start[f"{name}.{weight}"] = t.T.contiguous() if weight == "W_enc" else t
    (folder / "jobs.json").write_text(json.dumps(jobs))
    save_file({"x": x}, folder / "batches.safetensors")
    save_file(start, folder / "start.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run([python, SCRIPT, folder], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return x, load_file(folder / "runs.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_saelens_and_ours_are_one(runs, name):
    x, theirs = runs
    ours = trainer(name)
    metrics = []
    for batch in x:
        metrics.append(ours.step(batch))
        if name == "matching_pursuit":
            break  # theirs lets rows of W_dec leave length 1; the first step is the same
    n = len(metrics)
    assert [m.lr for m in metrics] == pytest.approx(theirs[f"{name}.lr"][:n].tolist(), rel=1e-12, abs=1e-15)
    # Their thresholds of JumpReLU are float32.
    rel = 1e-5 if name.startswith("jumprelu") else 1e-9
    assert [m.loss for m in metrics] == pytest.approx(theirs[f"{name}.loss"][:n].tolist(), rel=rel)
    if n < STEPS:
        return
    for weight, ours_now in ours.weights().items():
        expected = theirs[f"{name}.{weight}"]
        expected = expected.T if weight == "W_enc" else expected
        torch.testing.assert_close(ours_now, expected, rtol=10 * rel, atol=10 * rel)
    if name in ("batchtopk", "matryoshka"):
        assert ours.gradients(x[0])[0].threshold == pytest.approx(theirs[f"{name}.topk_threshold"].item(), rel=1e-9)
    if name.startswith(("topk", "matryoshka")):
        assert any(m.aux_loss > 0 for m in metrics)  # some features were dead
