"""This side of repeng_worker.py: repeng 0.4.0 on transformers in a process of its own."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peers.repeng_environment import repeng_folder, repeng_python

Pairs = list[tuple[str, str]]


class Trained(NamedTuple):
    directions: dict[int, torch.Tensor]  # float32 [d_model]
    seconds: float
    peak_bytes: int  # by how much its memory rose at most


class Repeng:
    """A worker process with the model of a GGUF file, as a context."""

    def __init__(self, gguf: Path, threads: int = 2) -> None:
        python = repeng_python()
        if python is None:
            raise FileNotFoundError(
                f"no environment in {repeng_folder()}: run tests/benchmarks/peers/repeng_environment.py"
            )
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("repeng_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._call("load", gguf=str(gguf))

    def __enter__(self) -> "Repeng":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _call(self, command: str, **arguments) -> Any:
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"repeng's worker ended with status {self._process.wait()}: see its messages above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"in repeng's worker:\n{answer['error']}")
        return answer["result"]

    def train(self, model, pairs: Pairs, method: str = "pca_center", batch_size: int = 32) -> Trained:
        """repeng's vector for pairs of texts, on the tokens that `model` (an introspect.Model) makes of them."""
        ids = {text: model.to_tokens(text)[0].tolist() for pair in pairs for text in pair}
        with tempfile.TemporaryDirectory() as folder:
            request, out = Path(folder) / "request.json", Path(folder) / "directions.npz"
            request.write_text(json.dumps({"pairs": pairs, "ids": ids}))
            figures = self._call("train", request=str(request), out=str(out), method=method, batch_size=batch_size)
            return Trained(_directions(out), figures["seconds"], figures["peak_bytes"])

    def read(self, gguf: Path) -> tuple[str, dict[int, torch.Tensor]]:
        """Model type and directions that repeng reads from a file."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "directions.npz"
            return self._call("read", gguf=str(gguf), out=str(out)), _directions(out)


def _directions(path: Path) -> dict[int, torch.Tensor]:
    with np.load(path) as arrays:
        return {int(layer): torch.from_numpy(arrays[layer].copy()) for layer in arrays}
