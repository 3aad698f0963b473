"""The worker of the benchmark of activations: SAELens's ActivationsStore, in its environment."""

import time

import torch
from process import serve
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM


class Commands:
    def start(self, folder: str, hook: str, tokens: list[list[int]], threads: int) -> None:
        from datasets import Dataset

        torch.set_num_threads(threads)
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = HookedTransformer.from_pretrained_no_processing(
            "meta-llama/Llama-3.2-1B", hf_model=hf_model, hf_config=hf_model.config, tokenizer=None, device="cpu"
        )
        context = len(tokens[0])
        self.store = ActivationsStore(
            model=model, dataset=Dataset.from_dict({"tokens": tokens}), streaming=False, hook_name=hook,
            hook_head_index=None, context_size=context, d_in=hf_model.config.hidden_size, n_batches_in_buffer=64,
            total_training_tokens=10**9, store_batch_size_prompts=32, train_batch_size_tokens=2048, prepend_bos=False,
            normalize_activations="none", device=torch.device("cpu"), dtype="float32",
        )  # fmt: skip

    def batch(self) -> float:
        """Milliseconds for 2,048 rows, the buffer's refills included."""
        start = time.perf_counter()
        self.store.next_batch()
        return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    serve(Commands())
