"""This side of repeng_worker.py: repeng 0.4.0 on transformers in a process of its own."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peers.environment import REPENG
from peers.process import Worker

Pairs = list[tuple[str, str]]


class Trained(NamedTuple):
    directions: dict[int, torch.Tensor]  # float32 [d_model]
    seconds: float
    peak_bytes: int  # by how much its memory rose at most


class Repeng(Worker):
    """A worker process with the model of a GGUF file, as a context."""

    def __init__(self, gguf: Path, threads: int = 2) -> None:
        super().__init__(REPENG, "repeng_worker.py", threads)
        self._call("load", gguf=str(gguf))

    def train(self, model, pairs: Pairs, method: str = "pca_center", batch_size: int = 32) -> Trained:
        """repeng's vector for pairs of texts, on the tokens that `model` (an introspect.Model) makes of them."""
        ids = {text: model.to_tokens(text)[0].tolist() for pair in pairs for text in pair}
        with tempfile.TemporaryDirectory() as folder:
            request, out = Path(folder) / "request.json", Path(folder) / "directions.npz"
            request.write_text(json.dumps({"pairs": pairs, "ids": ids}))
            figures = self._call("train", request=str(request), out=str(out), method=method, batch_size=batch_size)
            return Trained(_directions(out), figures["seconds"], figures["peak_bytes"])

    def article(self, cells: list[dict], vectors: dict[str, Path], yes: int, no: int, end: int) -> list[dict]:
        """The article's program on each cell, see repeng_worker.Commands.article."""
        paths = {concept: str(path) for concept, path in vectors.items()}
        return self._call("article", cells=cells, vectors=paths, yes=yes, no=no, end=end)

    def read(self, gguf: Path) -> tuple[str, dict[int, torch.Tensor]]:
        """Model type and directions that repeng reads from a file."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "directions.npz"
            return self._call("read", gguf=str(gguf), out=str(out)), _directions(out)


def _directions(path: Path) -> dict[int, torch.Tensor]:
    with np.load(path) as arrays:
        return {int(layer): torch.from_numpy(arrays[layer].copy()) for layer in arrays}
