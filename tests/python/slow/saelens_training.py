"""Runs in SAELens's environment: trains its own training classes on given batches, from given weights.

    python saelens_training.py FOLDER

FOLDER holds jobs.json ({name: {"architecture", "config", "trainer"}}), batches.safetensors ("x" [steps, rows, d_in])
and start.safetensors ("<name>.<weight>", in SAELens's layout). It writes runs.safetensors: "<name>.loss" and
"<name>.lr" of each step, and "<name>.<weight>" after the last.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file


def run(job: dict, start: dict[str, torch.Tensor], batches: torch.Tensor) -> dict[str, torch.Tensor]:
    kind, config = get_sae_training_class(job["architecture"])
    d_in, d_sae = start["W_dec"].shape[1], start["W_dec"].shape[0]
    sae = kind(config(d_in=d_in, d_sae=d_sae, dtype="float64", device="cpu", **job["config"]))
    with torch.no_grad():
        for name, weight in start.items():
            getattr(sae, name).copy_(weight)
    steps, rows, _ = batches.shape
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=steps * rows, train_batch_size_samples=rows, **job["trainer"]),
        sae,
        data_provider=iter(()),
    )
    losses, rates = [], []
    for x in batches:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        losses.append(trainer.step(x).loss.item())
        trainer.n_training_steps += 1
    out = {name: getattr(sae, name).detach().double().contiguous() for name in start}
    if hasattr(sae, "topk_threshold"):
        out["topk_threshold"] = sae.topk_threshold.reshape(1)
    return {**out, "loss": torch.tensor(losses, dtype=torch.float64), "lr": torch.tensor(rates, dtype=torch.float64)}


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    start, batches = load_file(folder / "start.safetensors"), load_file(folder / "batches.safetensors")["x"]
    out = {}
    for name, job in jobs.items():
        weights = {key.removeprefix(f"{name}."): t for key, t in start.items() if key.startswith(f"{name}.")}
        out |= {f"{name}.{key}": t for key, t in run(job, weights, batches).items()}
    save_file(out, folder / "runs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
