"""The worker of the benchmark of activations: SAELens's ActivationsStore, in its environment."""

import time

import torch
from process import serve
from sae_lens.training.activations_store import ActivationsStore
from worker import load_hooked


class Commands:
    def start(self, folder: str, hook: str, tokens: list[list[int]], rows: int, threads: int) -> None:
        from datasets import Dataset

        torch.set_num_threads(threads)
        model = load_hooked(folder)
        self.store = ActivationsStore(
            model=model, dataset=Dataset.from_dict({"tokens": tokens}), streaming=False, hook_name=hook,
            hook_head_index=None, context_size=len(tokens[0]), d_in=model.cfg.d_model,
            n_batches_in_buffer=rows // len(tokens[0]), total_training_tokens=10**9, store_batch_size_prompts=16,
            train_batch_size_tokens=rows, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
            dtype="float32", activations_mixing_fraction=0.0,
        )  # fmt: skip

    def batch(self) -> float:
        """Milliseconds."""
        start = time.perf_counter()
        self.store.next_batch()
        return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    serve(Commands())
