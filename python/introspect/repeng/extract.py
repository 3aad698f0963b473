"""repeng's ``extract``: pairs, control vectors and their training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from .. import _C
from ..hooked_model import HookedModel
from .wrapped import after_final_norm, as_model, config_of

Hiddens = dict[int, np.ndarray]  # layer -> [texts, d_model]
METHODS = ("pca_diff", "pca_center")


@dataclass
class DatasetEntry:
    """Two texts that differ in what the vector shall stand for."""

    positive: str
    negative: str


@dataclass(eq=False)
class ControlVector:
    """One direction per layer, added to the output of that block: ``directions`` is {layer: float32 [d_model]}.

    A value, whose strength is not part of it: ``20 * vector`` and ``a - 0.5 * b`` are other vectors, and layers that
    only one of two has keep that one's direction. ``introspect.ControlVector`` is the engine's own, with diagnostics
    and a file format that says where a vector came from; ``native`` and ``from_native`` lead there and back.
    """

    model_type: str
    directions: dict[int, np.ndarray]

    @classmethod
    def train(cls, model: Any, tokenizer: Any, dataset: Sequence[DatasetEntry], **kwargs: Any) -> ControlVector:
        """Trains a vector on pairs of texts.

        Args:
            model: an introspect.Model, a path, a name, a transformers model or a ControlModel. What is hooked into it,
                the control of a ControlModel among it, takes part; it then runs in batches instead of a trie.
            tokenizer: a transformers tokenizer, or None for the model's own.
            dataset: the pairs.
            kwargs: ``method``, ``hidden_layers``, ``batch_size`` (or ``max_batch_size``), ``transform_hiddens`` and
                ``compute_hiddens``, all as for ``read_representations``.

        Raises:
            ValueError: no pairs, an unknown method, or activations that are not finite.
            IndexError: a layer the model does not have.
            ShapeError: a text longer than the model's context.
            ConfigError: no tokenizer, or a model that is not supported.
        """
        directions = read_representations(model, tokenizer, dataset, **kwargs)
        return cls(config_of(model).model_type, directions)

    @classmethod
    def from_native(cls, vector: _C.ControlVector) -> ControlVector:
        """The directions of an introspect.ControlVector."""
        return cls(vector.model_type, {layer: d.numpy() for layer, d in vector.directions.items()})

    def native(self) -> _C.ControlVector:
        """The introspect.ControlVector of these directions, for ``Model.steer`` and experiments."""
        directions: dict[Any, torch.Tensor] = {layer: torch.tensor(d) for layer, d in self.directions.items()}
        return _C.ControlVector(self.model_type, directions)

    def export_gguf(self, path: os.PathLike[str] | str) -> None:
        """Writes the file that repeng and llama.cpp read; llama.cpp refuses one with a direction for layer 0.

        Raises:
            IoError: the file cannot be written; none is left behind.
        """
        writer = _C.GgufWriter("controlvector")
        writer.set("controlvector.model_hint", self.model_type)
        writer.set("controlvector.layer_count", len(self.directions))
        for layer, direction in self.directions.items():
            writer.add(f"direction.{layer}", torch.tensor(direction, dtype=torch.float32))
        writer.write(path)

    @classmethod
    def import_gguf(cls, path: os.PathLike[str] | str) -> ControlVector:
        """Reads such a file.

        Raises:
            IoError: it is not a control vector, or damaged.
        """
        return cls.from_native(_C.ControlVector.import_gguf(path))

    def _plus(self, other: object, factor: int, sign: str) -> ControlVector:
        if not isinstance(other, ControlVector):
            raise TypeError(f"unsupported operand types for {sign}: ControlVector and {type(other).__name__}")
        if self.model_type != other.model_type:
            warnings.warn(
                f"{sign} of control vectors of different models, {self.model_type!r} and {other.model_type!r}",
                stacklevel=3,
            )
        directions = dict(self.directions)
        for layer, direction in other.directions.items():
            directions[layer] = directions[layer] + factor * direction if layer in directions else factor * direction
        return ControlVector(self.model_type, directions)

    def __add__(self, other: ControlVector) -> ControlVector:
        return self._plus(other, 1, "+")

    def __sub__(self, other: ControlVector) -> ControlVector:
        return self._plus(other, -1, "-")

    def __neg__(self) -> ControlVector:
        return self * -1

    def __mul__(self, factor: float) -> ControlVector:
        return ControlVector(self.model_type, {layer: factor * d for layer, d in self.directions.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> ControlVector:
        return self * (1 / divisor)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ControlVector):
            return NotImplemented
        return (
            self.model_type == other.model_type
            and self.directions.keys() == other.directions.keys()
            and all(np.array_equal(d, other.directions[layer]) for layer, d in self.directions.items())
        )

    __hash__ = None  # type: ignore[assignment]


def read_representations(
    model: Any,
    tokenizer: Any,
    inputs: Sequence[DatasetEntry],
    hidden_layers: Iterable[int] | None = None,
    batch_size: int | None = None,
    method: str = "pca_diff",
    transform_hiddens: Callable[[Hiddens], Hiddens] | None = None,
    *,
    compute_hiddens: Callable[..., Hiddens] | None = None,
    max_batch_size: int | None = None,
) -> dict[int, np.ndarray]:
    """One direction per layer from pairs of texts, {layer: float32 [d_model]}.

    The first principal component, of length 1, with the sign under which most pairs project in order. Where pairs do
    not differ at all it is the first unit vector, which a decomposition of zeros begins with.

    Args:
        hidden_layers: blocks whose output is read, counted from the end if negative; None is n_layers - 1 down to 1.
            The last one's is read after the final norm, as transformers' hidden states have it.
        batch_size: texts at a time, 32 if None, where the model has hooks; it never changes results.
        method: "pca_diff" (differences less their mean) or "pca_center" (both sides less the middle of their pair).
        transform_hiddens: sees {layer: [2 pairs, d_model]}, rows positive, negative, positive, ..., and returns what
            the directions are found in, of any width.
        compute_hiddens: called with model, tokenizer, train_strs, hidden_layers and batch_size by name instead of
            reading the model; returns the same dict (repeng's main branch has this, its 0.4.0 has not).
        max_batch_size: another name of batch_size, which repeng's documentation uses.
    """
    if method not in METHODS:
        raise ValueError(f"ControlVector.train: method must be one of {', '.join(METHODS)}, got {method!r}")
    if not inputs:
        raise ValueError("ControlVector.train: at least one pair is needed, got none")
    n_layers = config_of(model).num_hidden_layers
    layers = list(hidden_layers or range(-1, -n_layers, -1))
    if outside := [layer for layer in layers if not -n_layers <= layer < n_layers]:
        raise IndexError(f"ControlVector.train: layers must be in [{-n_layers}, {n_layers}), got {outside}")
    layers = [layer % n_layers for layer in layers]
    texts = [text for entry in inputs for text in (entry.positive, entry.negative)]
    at_a_time = batch_size or max_batch_size or 32
    if compute_hiddens is None:
        hiddens = batched_get_hiddens(model, tokenizer, texts, layers, at_a_time)
    else:
        hiddens = compute_hiddens(
            model=model, tokenizer=tokenizer, train_strs=texts, hidden_layers=layers, batch_size=at_a_time
        )
    if transform_hiddens is not None:
        hiddens = transform_hiddens(hiddens)
    return {layer: _direction(np.asarray(hiddens[layer]), len(inputs), method, layer) for layer in layers}


def _direction(hiddens: np.ndarray, n_pairs: int, method: str, layer: int) -> np.ndarray:
    """[d_model] from rows positive, negative, positive, ..."""
    if len(hiddens) != 2 * n_pairs:
        raise _C.ShapeError(f"ControlVector.train: layer {layer} must have {2 * n_pairs} rows, got {len(hiddens)}")
    positive, negative = torch.tensor(hiddens[::2]), torch.tensor(hiddens[1::2])
    differences = positive - negative
    if method == "pca_diff":
        differences = differences - differences.mean(0)
    if not differences.any():
        return np.eye(1, hiddens.shape[1], dtype=np.float32)[0]
    try:
        return _C.direction_of_pairs(positive, negative, method=method).numpy()
    except ValueError as problem:
        raise ValueError(f"ControlVector.train: layer {layer}: {problem}") from None


def batched_get_hiddens(
    model: Any, tokenizer: Any, inputs: Sequence[str], hidden_layers: Sequence[int], batch_size: int
) -> Hiddens:
    """Hidden states of chosen layers at each text's last token, {layer: float32 [texts, d_model]}.

    Args as for ``read_representations``; texts without hooks in the model are run as a trie, whatever batch_size is.
    """
    ours = as_model(model)
    n_layers = ours.native.cfg.n_layers
    blocks = [layer % n_layers for layer in hidden_layers]
    rows = _token_rows(ours, tokenizer, inputs)
    if not ours.is_hooked:
        trie = _C.TokenTrie(rows)
        read = _C.run_trie(ours.native, trie, nodes=trie.ends, layers=blocks).float()
    else:
        read = _read_in_batches(ours, rows, blocks, batch_size)
    for place, block in enumerate(blocks):
        if block == n_layers - 1:
            read[:, place] = after_final_norm(ours, read[:, place])
    return {layer: read[:, place].numpy().copy() for place, layer in enumerate(hidden_layers)}


def _token_rows(model: HookedModel, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if tokenizer is None or isinstance(tokenizer, _C.Tokenizer):
        encode = model.native.to_tokens if tokenizer is None else tokenizer.encode
        return [torch.as_tensor(encode(text)).flatten().tolist() for text in texts]
    return [torch.as_tensor(row).tolist() for row in tokenizer(list(texts))["input_ids"]]


def _read_in_batches(model: HookedModel, rows: list[list[int]], blocks: list[int], batch_size: int) -> torch.Tensor:
    """[texts, blocks, d_model] at the last token, with what is hooked into the model, shortest texts first."""
    read = torch.empty(len(rows), len(blocks), model.native.cfg.d_model)
    names = [f"blocks.{block}.hook_resid_post" for block in blocks]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        tokens = torch.zeros(len(batch), len(rows[batch[-1]]), dtype=torch.long)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for place, i in enumerate(batch):  # padded on the left: every row's last token is in the last column
            tokens[place, -len(rows[i]) :], mask[place, -len(rows[i]) :] = torch.tensor(rows[i]), True
        run = partial(model._forward, tokens, attention_mask=mask, logits_at="none")
        _, cache = model._recorded(run, names, pos_slice=-1)
        for place, name in enumerate(names):
            read[batch, place] = cache[name][:, 0].float().cpu()
    return read
