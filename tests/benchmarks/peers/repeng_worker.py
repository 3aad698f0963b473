"""Runs in repeng's environment: its training behind a pipe, one JSON request a line, one JSON answer a line.

Started by repeng_client.Repeng.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from transformers import BatchEncoding
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import peak_bytes
from process import serve  # of this folder: the script that runs is here
from reference import transformers_model


class Tokens:
    """A tokenizer that knows the texts of one request: both sides must run the same tokens."""

    def __init__(self, ids: dict[str, list[int]]) -> None:
        self.ids = ids

    def __call__(self, texts: list[str], padding: bool, return_tensors: str) -> BatchEncoding:
        rows = [self.ids[text] for text in texts]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return BatchEncoding({"input_ids": tokens, "attention_mask": mask})


class Commands:
    """What a request may ask for; each returns something JSON can hold."""

    def load(self, gguf: str) -> None:
        self.model = transformers_model(Path(gguf))

    def train(self, request: str, out: str, method: str, batch_size: int) -> dict[str, float]:
        """Train on the pairs and token ids of a JSON file, save the directions; seconds and the rise of memory."""
        asked = json.loads(Path(request).read_text())
        pairs = [DatasetEntry(*pair) for pair in asked["pairs"]]

        def train() -> tuple[ControlVector, float]:
            start = time.perf_counter()
            vector = ControlVector.train(self.model, Tokens(asked["ids"]), pairs, method=method, batch_size=batch_size)
            return vector, time.perf_counter() - start

        peak, (vector, seconds) = peak_bytes(train)
        np.savez(out, **{str(layer): direction for layer, direction in vector.directions.items()})
        return {"seconds": seconds, "peak_bytes": peak}

    def read(self, gguf: str, out: str) -> str:
        """What repeng reads from a GGUF file of a control vector; its model type."""
        vector = ControlVector.import_gguf(gguf)
        np.savez(out, **{str(layer): direction for layer, direction in vector.directions.items()})
        return vector.model_type


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    serve(Commands())
