"""Runs in repeng's environment: its training, and the article's program, behind a pipe of one JSON request a line.

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
from article import experiment, top_of_mind  # of this folder, as process: the script that runs is here
from measure import peak_bytes
from process import serve
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

    def article(self, cells: list[dict], vectors: dict[str, str], yes: int, no: int, end: int) -> list[dict]:
        """The article's experiment for each cell: log-odds of the tokens yes and no, and the seconds it took.

        A cell has steps, concept, strength and layers; a true "lens" asks for the log-odds after every layer, and
        "new_tokens" for that many tokens of greedy text instead, which `end` stops. vectors: {concept: GGUF file}.
        """
        read = {concept: ControlVector.import_gguf(path) for concept, path in vectors.items()}
        self.model.generation_config.eos_token_id = end
        self.model.generation_config.pad_token_id = end
        return [self._article(cell, read[cell["concept"]], yes, no) for cell in cells]

    def _article(self, cell: dict, vector: ControlVector, yes: int, no: int) -> dict:
        strength, layers = cell["strength"], cell["layers"]
        start = time.perf_counter()
        if "new_tokens" in cell:
            ids = [i for step, _ in cell["steps"] for i in step]
            texts = top_of_mind(self.model, ids, vector, strength, layers, cell["new_tokens"])
            return {**texts, "seconds": time.perf_counter() - start}
        logits = experiment(self.model, cell["steps"], vector, strength, layers, cell["lens"])
        odds = {side: (x[..., yes] - x[..., no]).tolist() for side, x in logits.items()}
        return {**odds, "seconds": time.perf_counter() - start}

    def read(self, gguf: str, out: str) -> str:
        """What repeng reads from a GGUF file of a control vector; its model type."""
        vector = ControlVector.import_gguf(gguf)
        np.savez(out, **{str(layer): direction for layer, direction in vector.directions.items()})
        return vector.model_type


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    serve(Commands())
