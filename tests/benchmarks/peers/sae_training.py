"""The worker of the training benchmark: SAELens's own SAETrainer on rows of random numbers, in its environment."""

import time

import torch
from process import serve
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer


class Commands:
    def start(self, architecture: str, d_in: int, d_sae: int, rows: int, threads: int, **config) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        kind, config_kind = get_sae_training_class(architecture)
        sae = kind(config_kind(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", **config))
        settings = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=rows, lr_end=3e-5)
        self.trainer = SAETrainer(settings, sae, data_provider=iter(()))
        self.x = torch.randn(rows, d_in)

    def step(self) -> dict[str, float]:
        start = time.perf_counter()
        loss = self.trainer.step(self.x).loss.item()
        self.trainer.n_training_steps += 1
        return {"ms": 1e3 * (time.perf_counter() - start), "loss": loss}


if __name__ == "__main__":
    serve(Commands())
