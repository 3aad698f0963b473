"""Whether features of a concept leave out what more special features took over: absorption."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..analysis.probes import fit_probe
from ..arguments import native_model
from .contexts import Contexts, check_dictionary
from .features import read_inputs
from .steering import directions

if TYPE_CHECKING:
    import pandas

# SAEBench's thresholds.
SPLIT_GAIN = 0.03  # of F1, by which another feature is one that the concept was split into
FULL_COSINE, FULL_SHARE = 0.025, 0.4
PART_COSINE, PART_SHARE, MOST_ABSORBERS = 0.1, 0.4, 3
MOST_SPLITS = 10
FEWEST = 5  # rows with a concept in either part

EXAMPLES = "apple has the first letter: A\nriver has the first letter: R\nstone has the first letter: S\n"


@dataclass(frozen=True, eq=False)
class ConceptAbsorption:
    """One concept's.

    Attributes:
        main: its features, those of the k-sparse probe.
        f1: of that probe, on test rows.
        rows: test rows with the concept that the dense probe sees.
        full: share of them where no main feature is active and one other gives most of the probe's direction.
        fraction: mean share of the direction that others than the main features give.
        absorbers: {feature: how many rows}, of those that are fully absorbed.
    """

    main: tuple[int, ...]
    f1: float
    rows: int
    full: float
    fraction: float
    absorbers: dict[int, int]


@dataclass(frozen=True, eq=False)
class Absorption:
    """Absorption of several concepts.

    Attributes:
        concepts: {concept: its own}; those with too few rows are left out.
    """

    concepts: dict[Hashable, ConceptAbsorption]

    @property
    def full(self) -> float:
        """Mean over concepts: SAEBench's mean_full_absorption_score."""
        return sum(one.full for one in self.concepts.values()) / len(self.concepts)

    @property
    def fraction(self) -> float:
        """Mean over concepts: SAEBench's mean_absorption_fraction_score."""
        return sum(one.fraction for one in self.concepts.values()) / len(self.concepts)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a concept: concept, main, f1, rows, full, fraction, absorbers."""
        import pandas

        columns = ["main", "f1", "rows", "full", "fraction", "absorbers"]
        rows = [[name, *(getattr(one, column) for column in columns)] for name, one in self.concepts.items()]
        return pandas.DataFrame(rows, columns=["concept", *columns])


def concept_absorption(
    sae: _C.Dictionary, x: torch.Tensor, labels: Sequence[Hashable], *, test_share: float = 0.3, seed: int = 0
) -> Absorption:
    """Absorption of the concepts that rows of activations are labelled with.

    For each concept a logistic probe finds its direction, and a k-sparse probe its main features: one more as long as
    F1 rises by more than 0.03. On test rows that the probe sees, f_i |W_dec_i| cos(W_dec_i, direction) is what feature
    i gives of it.

    Args:
        x: what the dictionary reads, [rows, d_in].
        labels: of each row.
        test_share: of the rows, drawn at random, that probes and choices do not see.

    Raises:
        ValueError: another number of labels than rows, or no concept with enough rows: 5 for either part.

    Source: Chanin et al. 2024, 2409.14507; SAEBench (absorption), whose main features are those of an L1 probe; ours
    are those whose means differ most.
    """
    if x.ndim != 2 or len(labels) != len(x):
        raise ValueError(
            f"concept_absorption: rows must be [rows, d_in] with a label each, got {list(x.shape)} "
            f"and {len(labels)} labels"
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test = torch.zeros(len(x), dtype=torch.bool)
    test[order[: int(len(x) * test_share)]] = True
    wide, f = x.double(), sae.encode(x).double()
    decoder = directions(sae).double()
    concepts: dict[Hashable, ConceptAbsorption] = {}
    for name in sorted(set(labels), key=str):
        y = torch.tensor([label == name for label in labels])
        if min(int((y & test).sum()), int((y & ~test).sum()), int((~y & test).sum()), int((~y & ~test).sum())) < FEWEST:
            continue
        concepts[name] = _concept(wide, f, decoder, y, test)
    if not concepts:
        raise ValueError(f"concept_absorption: a concept needs {FEWEST} rows with and without it in either part")
    return Absorption(concepts)


def first_letter_absorption(
    model: Any,
    sae: _C.Dictionary,
    words: Sequence[str] | None = None,
    *,
    before: str = EXAMPLES,
    per_letter: int = 60,
    test_share: float = 0.3,
    seed: int = 0,
) -> Absorption:
    """Absorption of the concepts "begins with A" to "begins with Z", at the token of a word.

    Args:
        words: those that are one token after ``before`` and a space are taken. None: those of the vocabulary.
        before: text in front of each word.
        per_letter: the most words of a letter, drawn at random.

    Raises:
        ConfigError: a model without a tokenizer.
        ValueError: no letter with enough words of one token.

    Source: as ``concept_absorption``.
    """
    check_dictionary("first_letter_absorption", model, sae)
    native = native_model(model, "first_letter_absorption")
    tokenizer = native.tokenizer
    found: dict[str, list[tuple[str, int]]] = {}
    prefix = tokenizer.encode(before)
    for word, token in _single_tokens(native, words, before, prefix):
        found.setdefault(word[0], []).append((word, token))
    rng = torch.Generator().manual_seed(seed)
    chosen = [
        listed[i]
        for _, listed in sorted(found.items())
        for i in torch.randperm(len(listed), generator=rng)[:per_letter].tolist()
    ]
    if not chosen:
        raise ValueError("first_letter_absorption: none of the words is one token")
    tokens = torch.tensor([[*prefix, token] for _, token in chosen])
    contexts = Contexts(tokens, torch.full((len(tokens),), tokens.shape[1]), (), torch.arange(len(tokens)))
    x = read_inputs(model, sae, contexts)[:, -1]
    return concept_absorption(sae, x, [word[0] for word, _ in chosen], test_share=test_share, seed=seed)


def _single_tokens(
    native: _C.Model, words: Sequence[str] | None, before: str, prefix: list[int]
) -> list[tuple[str, int]]:
    """Words of ASCII letters that are one token where they stand after a text and a space."""
    tokenizer = native.tokenizer
    out = []
    if words is not None:
        for word in words:
            ids = tokenizer.encode(f"{before} {word}")
            if word.isascii() and word.isalpha() and ids[:-1] == prefix:
                out.append((word.lower(), ids[-1]))
        return out
    for token in range(native.cfg.d_vocab):
        text = tokenizer.id_to_token(token) or ""
        word = text[1:]
        if text[:1] in ("Ġ", "▁", " ") and len(word) > 2 and word.isascii() and word.isalpha() and word.islower():
            out.append((word, token))
    return out


def _concept(
    x: torch.Tensor, f: torch.Tensor, decoder: torch.Tensor, y: torch.Tensor, test: torch.Tensor
) -> ConceptAbsorption:
    probe = fit_probe(x[~test], y[~test].tolist())
    main, f1 = _main_features(f, y, test)
    direction = torch.nn.functional.normalize((probe.weights / probe.scale).flatten(), dim=0)
    seen = test & y & (probe.scores(x) > 0)
    if not seen.any():
        return ConceptAbsorption(main, f1, 0, 0.0, 0.0, {})
    total = x[seen] @ direction
    norms = decoder.norm(dim=1)
    cosines = (decoder @ direction) / norms.clamp_min(1e-30)
    given = f[seen] * norms * cosines  # of the direction, [rows, features]
    mine = given[:, list(main)].sum(1)

    best, which = given.max(1)
    full = (
        (f[seen][:, list(main)] == 0).all(1)
        & (cosines[which] >= FULL_COSINE)
        & (total > 0)
        & (best >= FULL_SHARE * total)
    )
    others = given * (cosines >= PART_COSINE)
    others[:, list(main)] = 0
    taken = others.clamp_min(0).topk(min(MOST_ABSORBERS, others.shape[1])).values.sum(1)
    part = torch.minimum(taken, total - mine)
    fraction = torch.where(mine <= 0, torch.ones_like(part), part / (part + mine.clamp_min(1e-30)))
    fraction = fraction.clamp(0, 1) * ((total > 0) & (mine < total) & (taken >= PART_SHARE * total))
    ids, counts = which[full].unique(return_counts=True)
    return ConceptAbsorption(
        main,
        f1,
        int(seen.sum()),
        full.double().mean().item(),
        fraction.mean().item(),
        dict(zip(ids.tolist(), counts.tolist(), strict=True)),
    )


def _main_features(f: torch.Tensor, y: torch.Tensor, test: torch.Tensor) -> tuple[tuple[int, ...], float]:
    """Features of the k-sparse probe, k as large as F1 goes on to rise, and its F1 on test rows."""
    difference = f[~test & y].mean(0) - f[~test & ~y].mean(0)
    ranked = difference.abs().argsort(descending=True).tolist()
    chosen, best = ranked[:1], -1.0
    for k in range(1, min(MOST_SPLITS, f.shape[1]) + 1):
        probe = fit_probe(f[~test][:, ranked[:k]], y[~test].tolist())
        said, true = probe.scores(f[test][:, ranked[:k]]) > 0, y[test]
        f1 = 2 * int((said & true).sum()) / max(int(said.sum()) + int(true.sum()), 1)
        if k > 1 and f1 <= best + SPLIT_GAIN:
            break
        chosen, best = ranked[:k], f1
    return tuple(chosen), best
