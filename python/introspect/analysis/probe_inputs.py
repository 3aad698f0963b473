"""What probes are made of: labels and groups as numbers, folds, activations, and features of the texts' surface."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from .. import _C
from ..arguments import listed

KINDS = ("logistic", "mass_mean", "mass_mean_covariance", "ridge")
MOST_WORDS = 2000  # of the bag of words: the most frequent ones

Position = int | tuple[int, int | None]
Labels = Sequence[Hashable] | torch.Tensor


def as_list(labels: Any) -> list[Any]:
    return labels.tolist() if hasattr(labels, "tolist") else list(labels)


def classes_of(labels: Labels, *, who: str = "probe_layers") -> tuple[list[int], tuple[str, ...]]:
    """Labels as numbers from 0, and the classes' names in sorted order."""
    given = as_list(labels)
    found = _sorted(given, who, "label")
    if len(found) < 2:
        said = repr(found[0]) if found else "no labels"
        raise ValueError(f"{who}: the labels must be of two classes or more, got {said} for all {len(given)} texts")
    number = {label: i for i, label in enumerate(found)}
    return [number[label] for label in given], tuple(str(label) for label in found)


def _sorted(given: Sequence[Any], who: str, what: str) -> list[Any]:
    """What there is, each once. ValueError or TypeError for what is missing, as NaN, or not of one kind."""
    for text, one in enumerate(given):
        if one is None or one != one:
            raise ValueError(f"{who}: every text must have a {what}, and that of text {text} is missing: {one!r}")
    try:
        return sorted(set(given))
    except TypeError:
        kinds = sorted({type(one).__name__ for one in given})
        raise TypeError(f"{who}: {what}s must be single values of one kind, got {', '.join(kinds)}") from None


def numbered(groups: Sequence[Hashable]) -> tuple[list[int], int]:
    """Groups as numbers in their sorted order, and how many they are."""
    given = as_list(groups)
    number = {group: i for i, group in enumerate(_sorted(given, "probes", "group"))}
    return [number[group] for group in given], len(number)


def folds_of(folds: int | Sequence[int], labels: list[int], groups: list[int]) -> list[int]:
    if not isinstance(folds, int):
        each = [int(fold) for fold in as_list(folds)]
    elif groups:
        each = _C.stratified_group_folds(labels, groups, folds)
    else:
        each = _C.stratified_folds(labels, folds)
    _C.check_folds(each, labels)
    return each


def check_lengths(who: str, texts: Sequence[str], labels: Sequence[Any], groups: Sequence[Any] | None) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{who}: texts must be a list of texts, got one text")
    for what, given in (("label", labels), ("group", groups)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"{who}: every text must have one {what}, got {len(given)} for {len(texts)} texts")


def check_options(kind: str, C: Sequence[float], nulls: int, *, who: str = "probe_layers") -> None:
    if kind not in KINDS:
        raise ValueError(f"{who}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not C or not all(math.isfinite(one) and one > 0 for one in C):
        raise ValueError(f"{who}: C must be above 0 and finite, got {list(C)}")
    if nulls < 0:
        raise ValueError(f"{who}: nulls must not be negative, got {nulls}")


def collect(
    native: _C.Model,
    texts: Sequence[str],
    layers: list[int],
    positions: list[Any],
    point: str,
    last_layer_after_norm: bool,
    memory_budget: int,
    progress: Any,
) -> list[_C.Activations]:
    """Activations at each position. ValueError for some that are not finite."""
    read = _C.collect_positions(
        native,
        list(texts),
        positions,
        layers=layers,
        point=point,
        last_layer_after_norm=last_layer_after_norm,
        memory_budget=memory_budget,
        progress=progress,
    )
    for one in read:
        bad = (~one.values.isfinite().all(-1)).nonzero()
        if len(bad):
            text, layer = bad[0].tolist()
            raise ValueError(
                f"probes: the activations must be finite, and those of text {text} at layer {layers[layer]} are not: "
                f"{texts[text][:60]!r}"
            )
    return read


def types_of(native: _C.Model, texts: Sequence[str], position: Position, control: Any) -> list[int]:
    """Types of the control task: what was given, or the token that is read; none for spans."""
    if control is False or (control is True and not isinstance(position, int)):
        return []
    types = [int(native.to_tokens(text)[0, position]) for text in texts] if control is True else list(control)
    if len(types) != len(texts):
        raise ValueError(f"probe_layers: every text must have one type, got {len(types)} for {len(texts)} texts")
    return numbered(types)[0]


def lengths_of(texts: Sequence[str]) -> torch.Tensor:
    """Characters and words, [n, 2]."""
    return torch.tensor([[float(len(text)), float(len(text.split()))] for text in texts])


def words_of(texts: Sequence[str]) -> torch.Tensor:
    """How often each of the most frequent words stands in each text, [n, words]."""
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    in_texts = Counter(word for words in split for word in set(words))
    place = {word: i for i, (word, _) in enumerate(in_texts.most_common(MOST_WORDS))}
    out = torch.zeros(len(texts), max(1, len(place)))
    for row, words in enumerate(split):
        for word in words:
            if word in place:
                out[row, place[word]] += 1
    return out


SURFACE = {"length": lengths_of, "words": words_of}
RANDOM_MODEL = "random_model"


def baseline_names(given: bool | Sequence[str]) -> list[str]:
    """The baselines that are meant: those of the surface for True.

    Raises:
        ValueError: an unknown one.
    """
    names = list(SURFACE) if given is True else listed(given or [], "baselines", "probe_layers")
    known = (*SURFACE, RANDOM_MODEL)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"probe_layers: baselines are {', '.join(known)}, got {unknown[0]!r}")
    return names


def randomised(native: _C.Model, seed: int) -> _C.Model:
    """The model with every matrix drawn from a normal distribution of the matrix's own mean square.

    Norms and biases stay, so that activations keep their scale; the tokenizer stays too.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, weight in native.named_weights():
        if weight.dim() >= 2:
            random = torch.randn(weight.shape, generator=generator) * weight.float().square().mean().sqrt().cpu()
            drawn[name] = random.to(weight.device, weight.dtype)
    return native.with_weights(drawn)
