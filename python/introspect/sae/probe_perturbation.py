"""Whether ablating few features takes one concept away and leaves the others: SAEBench's TPP and SCR."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..analysis.probes import Probe, fit_probe
from .contexts import contexts_of
from .diffing import Texts
from .probing import mean_activations
from .steering import directions

if TYPE_CHECKING:
    import pandas

NS = (2, 5, 10, 20, 50, 100, 500)  # SAEBench's
FEWEST = 5  # texts of a class, or of a pair of them, in either part


@dataclass(frozen=True, eq=False)
class ProbePerturbation:
    """Targeted probe perturbation.

    Attributes:
        accuracy: {class: of its probe on test texts}; classes against the others, as many of these.
        ablated: {n: {class whose n features are ablated: {class: accuracy then}}}.
        features: {class: its features, those of the largest effect first}.
        intended: {n: mean fall of the accuracy of the class that is ablated}.
        unintended: {n: mean fall of the others'}.
    """

    accuracy: dict[Hashable, float]
    ablated: dict[int, dict[Hashable, dict[Hashable, float]]]
    features: dict[Hashable, tuple[int, ...]]
    intended: dict[int, float]
    unintended: dict[int, float]

    @property
    def scores(self) -> dict[int, float]:
        """{n: TPP}: intended less unintended; 0 where no feature is of one class alone."""
        return {n: self.intended[n] - self.unintended[n] for n in self.intended}

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each n: n, tpp, intended, unintended."""
        import pandas

        rows = [[n, one, self.intended[n], self.unintended[n]] for n, one in self.scores.items()]
        return pandas.DataFrame(rows, columns=["n", "tpp", "intended", "unintended"])


@dataclass(frozen=True, eq=False)
class CorrelationRemoval:
    """Spurious correlation removal.

    A probe is trained where two attributes always come together; then the features of one are ablated, and the probe is
    asked for the other.

    Attributes:
        biased: accuracies of that probe on balanced test texts: of the wanted attribute, and of the spurious one.
        clean: of probes of each, trained on balanced texts.
        ablated: {n: of the biased probe on the wanted attribute without the spurious one's n features, and on the
            spurious one without the wanted one's}.
        features: of the wanted and of the spurious attribute, those of the largest effect first.
    """

    biased: tuple[float, float]
    clean: tuple[float, float]
    ablated: dict[int, tuple[float, float]]
    features: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def directions(self) -> dict[int, tuple[float, float]]:
        """{n: SCR for either attribute}: the share of the accuracy that was lost and comes back; NaN if none was."""
        out = {}
        for n, found in self.ablated.items():
            room = [clean - biased for clean, biased in zip(self.clean, self.biased, strict=True)]
            gain = [one - biased for one, biased in zip(found, self.biased, strict=True)]
            both = [g / r if r > 0 else float("nan") for g, r in zip(gain, room, strict=True)]
            out[n] = (both[0], both[1])
        return out

    @property
    def scores(self) -> dict[int, float]:
        """{n: SCR} of the attribute that the biased probe tells less well, as SAEBench takes it."""
        which = 0 if self.biased[0] <= self.biased[1] else 1
        return {n: both[which] for n, both in self.directions.items()}

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each n: n, scr, wanted, spurious."""
        import pandas

        both = self.directions
        rows = [[n, one, *both[n]] for n, one in self.scores.items()]
        return pandas.DataFrame(rows, columns=["n", "scr", "wanted", "spurious"])


def targeted_probe_perturbation(
    model: Any,
    sae: _C.Dictionary,
    texts: Texts,
    labels: Sequence[Hashable],
    *,
    ns: Sequence[int] = NS,
    test_share: float = 0.5,
    seed: int = 0,
) -> ProbePerturbation:
    """TPP: how much ablating a class's n features lowers its own probe's accuracy, and the other classes'.

    Probes see the mean activation of a text. A feature's effect on one is the rise of its mean from the other texts to
    the class's, where it rises, times what a unit of it adds to the probe's score. Ablated are its activations alone:
    what the dictionary leaves out of an activation stays.

    Args:
        labels: of each text, of two classes or more.
        ns: how many features; those without an effect are not ablated.
        test_share: of the texts, drawn at random, that probes and effects do not see.

    Raises:
        ValueError: one class alone, classes with fewer than 5 texts in either part, another number of labels than
            texts, or an n below 1.
        ConfigError: a dictionary that writes elsewhere than it reads, or with an input norm of each row.

    Source: Karvonen et al. 2024, 2411.18895; SAEBench (tpp).
    """
    who = "targeted_probe_perturbation"
    x, f, y, classes = _read(who, model, sae, texts, labels, ns)
    test = _test_part(len(y), test_share, seed)
    rng = torch.Generator().manual_seed(seed)
    probes, data, effects = {}, {}, {}
    for number, name in enumerate(classes):
        parts = []
        for part in (~test, test):
            own, others = (part & (y == number)).nonzero()[:, 0], (part & (y != number)).nonzero()[:, 0]
            if len(own) < FEWEST or len(others) < FEWEST:
                raise ValueError(
                    f"{who}: a class needs {FEWEST} texts in either part, got {len(own)} of {name!r} and "
                    f"{len(others)} others"
                )
            n = min(len(own), len(others))
            drawn = [ids[torch.randperm(len(ids), generator=rng)[:n]] for ids in (own, others)]
            parts.append((torch.cat(drawn), torch.arange(2 * n) < n))
        (train, is_own), data[name] = parts
        probes[name] = fit_probe(x[train], is_own.tolist())
        effects[name] = _effects(sae, probes[name], f[train], is_own).clamp_min(0)
    accuracy = {name: _accuracy(probes[name], x, *data[name]) for name in classes}
    written = directions(sae).double()
    features = {name: _strongest(effect, max(ns)) for name, effect in effects.items()}
    ablated: dict[int, dict[Hashable, dict[Hashable, float]]] = {}
    for n in ns:
        ablated[n] = {}
        for name in classes:
            without = _without(x, f, written, features[name][:n])
            ablated[n][name] = {other: _accuracy(probes[other], without, *data[other]) for other in classes}
    falls = {n: {(a, b): accuracy[b] - ablated[n][a][b] for a in classes for b in classes} for n in ns}
    return ProbePerturbation(
        accuracy,
        ablated,
        features,
        {n: _mean([fall for (a, b), fall in falls[n].items() if a == b]) for n in ns},
        {n: _mean([fall for (a, b), fall in falls[n].items() if a != b]) for n in ns},
    )


def spurious_correlation_removal(
    model: Any,
    sae: _C.Dictionary,
    texts: Texts,
    wanted: Sequence[Hashable],
    spurious: Sequence[Hashable],
    *,
    ns: Sequence[int] = NS,
    test_share: float = 0.5,
    seed: int = 0,
) -> CorrelationRemoval:
    """SCR: whether ablating a spurious attribute's features makes a probe go by the wanted one.

    The biased probe is trained on texts whose attributes come together: the first of either's sorted values, or the
    last. All tests are on as many texts of each of the four pairs. Effects are as in TPP, of either sign.

    Args:
        wanted, spurious: two attributes of each text, of two values.
        ns, test_share: as ``targeted_probe_perturbation``.

    Raises:
        ValueError: attributes that are not of two values, pairs with fewer than 5 texts in either part, other numbers
            of labels than texts, or an n below 1.
        ConfigError: as ``targeted_probe_perturbation``.

    Source: Marks et al. 2024, 2403.19647 (SHIFT); Karvonen et al. 2024, 2411.18895; SAEBench (scr).
    """
    who = "spurious_correlation_removal"
    x, f, a, values = _read(who, model, sae, texts, wanted, ns)
    others = sorted(set(spurious), key=str)
    if len(values) != 2 or len(others) != 2 or len(spurious) != len(a):
        raise ValueError(
            f"{who}: every text must have two attributes of two values, got {len(values)} and {len(others)} values and "
            f"{len(spurious)} labels for {len(a)} texts"
        )
    b = torch.tensor([others.index(one) for one in spurious])
    test = _test_part(len(a), test_share, seed)
    rng = torch.Generator().manual_seed(seed)
    balanced = []
    for part in (~test, test):
        pairs = [(part & (a == i) & (b == j)).nonzero()[:, 0] for i in (0, 1) for j in (0, 1)]
        n = min(len(pair) for pair in pairs)
        if n < FEWEST:
            raise ValueError(f"{who}: each pair of values needs {FEWEST} texts in either part, got {n}")
        balanced.append(torch.cat([pair[torch.randperm(len(pair), generator=rng)[:n]] for pair in pairs]))
    train, tested = balanced
    together = (~test & (a == b)).nonzero()[:, 0]
    biased = fit_probe(x[together], a[together].tolist())
    attributes = (a == 1, b == 1)
    probes = [fit_probe(x[train], one[train].tolist()) for one in attributes]
    features = [
        _strongest(_effects(sae, probe, f[train], one[train]).abs(), max(ns))
        for probe, one in zip(probes, attributes, strict=True)
    ]
    written = directions(sae).double()
    ablated = {}
    for n in ns:
        rows = [_without(x, f, written, features[other][:n]) for other in (1, 0)]
        ablated[n] = (
            _accuracy(biased, rows[0], tested, attributes[0][tested]),
            _accuracy(biased, rows[1], tested, attributes[1][tested]),
        )
    before = [_accuracy(biased, x, tested, one[tested]) for one in attributes]
    clean = [_accuracy(probe, x, tested, one[tested]) for probe, one in zip(probes, attributes, strict=True)]
    return CorrelationRemoval((before[0], before[1]), (clean[0], clean[1]), ablated, (features[0], features[1]))


def _read(
    who: str, model: Any, sae: _C.Dictionary, texts: Texts, labels: Sequence[Hashable], ns: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Hashable]]:
    """Mean activations and features of texts, their classes' numbers, and the classes."""
    if sae.d_in != sae.d_out or sae.origin.outputs != sae.origin.inputs or sae.input_norm not in _LINEAR:
        raise _C.ConfigError(
            f"{who}: what a feature adds must be the same in every token, at the point that is read: no transcoder and "
            f"no input norm of each row, got {sae.input_norm}"
        )
    contexts = contexts_of(model, texts, sae, who=who)
    classes = sorted(set(labels), key=str)
    if len(classes) < 2 or len(labels) != contexts.n_texts or not ns or min(ns) < 1:
        raise ValueError(
            f"{who}: every text must have a label, of two classes or more, and n be 1 or more, got {len(classes)} "
            f"classes, {len(labels)} labels for {contexts.n_texts} texts and n {list(ns)}"
        )
    x, f = mean_activations(model, sae, contexts)
    return x, f, torch.tensor([classes.index(one) for one in labels]), classes


_LINEAR = ("none", "expected_average_only_in")


def _test_part(n: int, share: float, seed: int) -> torch.Tensor:
    test = torch.zeros(n, dtype=torch.bool)
    test[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(int(n * share), 1)]] = True
    return test


def _effects(sae: _C.Dictionary, probe: Probe, f: torch.Tensor, is_own: torch.Tensor) -> torch.Tensor:
    """(mean f of the class - mean f of the others) times what a unit of the feature adds to the score, [F]."""
    weights = (probe.weights / probe.scale).flatten()
    return (f[is_own].mean(0) - f[~is_own].mean(0)) * (directions(sae).double() @ weights)


def _strongest(effect: torch.Tensor, n: int) -> tuple[int, ...]:
    """The n features of the largest effect above 0."""
    top = effect.topk(min(n, len(effect)))
    return tuple(top.indices[top.values > 0].tolist())


def _without(x: torch.Tensor, f: torch.Tensor, written: torch.Tensor, features: Sequence[int]) -> torch.Tensor:
    ids = list(features)
    return x - f[:, ids] @ written[ids]


def _accuracy(probe: Probe, x: torch.Tensor, rows: torch.Tensor, is_own: torch.Tensor) -> float:
    return ((probe.scores(x[rows]) > 0) == is_own).double().mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
