"""This side of sae_worker.py: SAELens in a process of its own."""

import tempfile
from pathlib import Path

import torch
from peers.environment import SAE_LENS
from peers.process import Worker
from safetensors.torch import load_file, save_file


class SAELens(Worker):
    """A worker process with one dictionary of SAELens, as a context.

    Args:
        config: SAELens's: architecture, d_in, d_sae, k and so on.
        weights: by name, in SAELens's layout.
    """

    def __init__(self, config: dict, weights: dict[str, torch.Tensor], threads: int = 2) -> None:
        super().__init__(SAE_LENS, "sae_worker.py", threads)
        self._folder = tempfile.TemporaryDirectory()
        self._x = Path(self._folder.name) / "x.safetensors"
        self._out = Path(self._folder.name) / "f.safetensors"
        path = Path(self._folder.name) / "weights.safetensors"
        save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
        self._call("load", config=config, weights=str(path))

    def rows(self, x: torch.Tensor) -> None:
        """The rows [N, d_in] that everything else is of."""
        save_file({"x": x.contiguous()}, self._x)

    def encode(self) -> torch.Tensor:
        """Features [N, d_sae] of the rows."""
        self._call("encode", x=str(self._x), out=str(self._out))
        return load_file(self._out)["f"]

    def milliseconds(self, method: str) -> float:
        """Wall time of ``sae.method(rows)`` there."""
        return self._call("time", method=method, x=str(self._x))
