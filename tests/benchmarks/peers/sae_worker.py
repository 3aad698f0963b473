"""SAELens's dictionaries in SAELens's environment. Reads one JSON request from each line and answers with one line.

Started by sae_client.SAELens. The data of a request is a .safetensors file.
"""

import time

import torch
from process import serve  # of this folder: the script that runs is here
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file


class Commands:
    """What a request may ask for; each returns something JSON can hold."""

    def load(self, config: dict, weights: str) -> None:
        """A dictionary of a config and a file of weights, both in SAELens's form."""
        kind, config_kind = get_sae_class(config.pop("architecture"))
        self.sae = kind(config_kind(dtype="float32", device="cpu", **config))
        for name, weight in load_file(weights).items():
            getattr(self.sae, name).data = weight

    def encode(self, x: str, out: str) -> None:
        """Its features of the rows "x" of a file, as "f" in another."""
        with torch.no_grad():
            save_file({"f": self.sae.encode(load_file(x)["x"]).contiguous()}, out)

    def time(self, method: str, x: str) -> float:
        """Milliseconds of ``sae.method(x)`` without gradients, the result dropped outside of them."""
        rows = load_file(x)["x"]
        with torch.no_grad():
            start = time.perf_counter()
            result = getattr(self.sae, method)(rows)
            elapsed = 1e3 * (time.perf_counter() - start)
        del result
        return elapsed


if __name__ == "__main__":
    serve(Commands())
