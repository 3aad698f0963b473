"""This side of peers/worker.py: a HookedTransformer of TransformerLens 3 in a process of its own."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peers.environment import TRANSFORMER_LENS
from peers.process import Worker


class Peer(Worker):
    """A worker process, as a context; ``peer.load(folder)``, then the others as often as wanted."""

    def __init__(self, threads: int = 2) -> None:
        super().__init__(TRANSFORMER_LENS, "worker.py", threads)

    def load(self, folder: Path, **processing: bool) -> None:
        """Take the model of a Hugging Face folder, whose path must not name a family ("llama", "gemma").

        processing: fold_ln, center_writing_weights, center_unembed and fold_value_biases, all off unless given.
        """
        self._call("load", folder=str(folder), **processing)

    def run(self, path: Path, function: str, **arguments) -> dict[str, Any]:
        """The dict that ``function(model, **arguments)`` of a Python file returns there."""
        return self._saved("run", path=str(path), function=function, arguments=arguments)

    def notebook(self, path: Path, folder: Path, replace: dict[str, str]) -> dict[str, Any]:
        """What the cells of a Python file leave in ``results``, with some lines replaced, on the model of a folder."""
        return self._saved("notebook", path=str(path), replace=replace, folder=str(folder))

    def _saved(self, command: str, **arguments) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "results.pt"
            self._call(command, out=str(out), **arguments)
            return torch.load(out, weights_only=True)

    def milliseconds(self, method: str, tokens: torch.Tensor, repeats: int = 1) -> list[float]:
        """Wall times of ``model.method(tokens)`` there: "forward" or "run_with_cache"."""
        return self._call("milliseconds", method=method, tokens=tokens.tolist(), repeats=repeats)
