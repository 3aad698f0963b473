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
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "directions.npz"
            request = _request(Path(folder), model, pairs)
            figures = self._call("train", request=request, out=str(out), method=method, batch_size=batch_size)
            return Trained(_directions(out), figures["seconds"], figures["peak_bytes"])

    def train_twice(self, model, pairs: Pairs, methods: list[str]) -> dict[str, list[dict[int, torch.Tensor]]]:
        """Each method's directions of two trainings, whose hidden states are computed once for all."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "directions.npz"
            request = _request(Path(folder), model, pairs)
            seconds = self._call("train_twice", request=request, out=str(out), methods=methods, batch_size=32)
            print(f"repeng's forward passes over {len(pairs)} pairs: {seconds:.0f} s")
            trained: dict[str, list[dict[int, torch.Tensor]]] = {method: [{}, {}] for method in methods}
            with np.load(out) as arrays:
                for name in arrays:
                    method, time, layer = name.split("/")
                    trained[method][int(time)][int(layer)] = torch.from_numpy(arrays[name].copy())
            return trained

    def generate(
        self, gguf: Path, layer_ids: list[int], tokens: list[int], runs: list[dict], **options
    ) -> list[list[int]]:
        """The tokens its ControlModel continues a prompt with, greedily, in each run.

        runs: coeff, normalize and repetition_penalty of each. options: those of transformers' generate.
        """
        return self._call("generate", gguf=str(gguf), layer_ids=layer_ids, tokens=tokens, runs=runs, **options)

    def time_generation(self, gguf: Path, layer_ids: list[int], tokens: list[int], n: int) -> tuple[list[int], float]:
        """Exactly n greedy tokens by its ControlModel.generate, and the seconds that took."""
        ids, seconds = self._call("time_generation", gguf=str(gguf), layer_ids=layer_ids, tokens=tokens, n=n)
        return ids, seconds

    def write(self, gguf: Path, model_type: str, directions: dict[int, torch.Tensor]) -> None:
        """Have it write a file of a control vector."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "directions.npz"
            np.savez(source, **{str(layer): direction.numpy() for layer, direction in directions.items()})
            self._call("write", gguf=str(gguf), source=str(source), model_type=model_type)

    def article(self, cells: list[dict], vectors: dict[str, Path], yes: int, no: int, end: int) -> list[dict]:
        """The article's program on each cell, see repeng_worker.Commands.article."""
        paths = {concept: str(path) for concept, path in vectors.items()}
        return self._call("article", cells=cells, vectors=paths, yes=yes, no=no, end=end)

    def read(self, gguf: Path) -> tuple[str, dict[int, torch.Tensor]]:
        """Model type and directions that repeng reads from a file."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "directions.npz"
            return self._call("read", gguf=str(gguf), out=str(out)), _directions(out)


def _request(folder: Path, model, pairs: Pairs) -> str:
    """A file with the pairs and the tokens that `model` makes of their texts."""
    ids = {text: model.to_tokens(text)[0].tolist() for pair in pairs for text in pair}
    path = folder / "request.json"
    path.write_text(json.dumps({"pairs": pairs, "ids": ids}))
    return str(path)


def _directions(path: Path) -> dict[int, torch.Tensor]:
    with np.load(path) as arrays:
        return {int(layer): torch.from_numpy(arrays[layer].copy()) for layer in arrays}
