"""Runs in repeng's environment: its training, and the article's program, behind a pipe of one JSON request a line.

Started by repeng_client.Repeng.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from repeng import ControlModel, ControlVector, DatasetEntry, extract
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

    def train_twice(self, request: str, out: str, methods: list[str], batch_size: int) -> float:
        """Train twice with each method and save "method/0/layer" and "method/1/layer"; seconds of the forward passes.

        The hidden states are read once for all, without the unembedding, which takes no part in them: what differs from
        one training to the next is the principal component.
        """
        asked = json.loads(Path(request).read_text())
        pairs = [DatasetEntry(*pair) for pair in asked["pairs"]]
        read, seconds = {}, []

        def read_once(*arguments):
            if not read:
                start = time.perf_counter()
                read.update(theirs(*arguments))
                seconds.append(time.perf_counter() - start)
            return {layer: hiddens.copy() for layer, hiddens in read.items()}  # pca_center writes into them

        theirs, arrays = extract.batched_get_hiddens, {}
        self.model.lm_head, head = torch.nn.Identity(), self.model.lm_head
        with mock.patch.object(extract, "batched_get_hiddens", read_once):
            for method in methods:
                for time_ in range(2):
                    vector = ControlVector.train(
                        self.model, Tokens(asked["ids"]), pairs, method=method, batch_size=batch_size
                    )
                    arrays |= {f"{method}/{time_}/{layer}": d for layer, d in vector.directions.items()}
        self.model.lm_head = head
        np.savez(out, **arrays)
        return seconds[0]

    def generate(
        self, gguf: str, layer_ids: list[int], tokens: list[int], runs: list[dict], **options
    ) -> list[list[int]]:
        """Greedy continuations of one prompt under a vector; a run is coeff, normalize and repetition_penalty."""
        vector = ControlVector.import_gguf(gguf)
        controlled = ControlModel(self.model, layer_ids)
        inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
        continuations = []
        try:
            for run in runs:
                penalty = run.pop("repetition_penalty")
                controlled.set_control(vector, **run)
                out = controlled.generate(**inputs, do_sample=False, repetition_penalty=penalty, **options)
                continuations.append(out[0, len(tokens) :].tolist())
        finally:
            controlled.unwrap()
        return continuations

    def time_generation(self, gguf: str, layer_ids: list[int], tokens: list[int], n: int) -> tuple[list[int], float]:
        """Exactly n greedy tokens of one prompt under a vector at strength 1, and the seconds of generate alone."""
        controlled = ControlModel(self.model, layer_ids)
        inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
        try:
            controlled.set_control(ControlVector.import_gguf(gguf))
            start = time.perf_counter()
            out = controlled.generate(**inputs, do_sample=False, min_new_tokens=n, max_new_tokens=n, pad_token_id=0)
            return out[0, len(tokens) :].tolist(), time.perf_counter() - start
        finally:
            controlled.unwrap()

    def write(self, gguf: str, source: str, model_type: str) -> None:
        """The file that repeng writes of directions saved by layer."""
        with np.load(source) as arrays:
            ControlVector(model_type, {int(layer): arrays[layer] for layer in arrays}).export_gguf(gguf)

    def read(self, gguf: str, out: str) -> str:
        """What repeng reads from a GGUF file of a control vector; its model type."""
        vector = ControlVector.import_gguf(gguf)
        np.savez(out, **{str(layer): direction for layer, direction in vector.directions.items()})
        return vector.model_type


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    serve(Commands())
