"""The gap between what the injected state holds and what the answer says: decodable, moving, reported, by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..analysis.probes import fit_probe
from ..experiments.arguments import Arguments
from ..experiments.results import Result
from ..experiments.rotations import rotations
from ..experiments.run import run_experiment
from ..graph import Graph
from ..steering.training import ControlVector
from .added import added, adds_to_one_span, spanned

if TYPE_CHECKING:
    import pandas

    from ..model import Model
    from ..plots.style import Figure

TEMPLATES = (
    "Yesterday we talked about {} for an hour.",
    "The whole page was about {}.",
    "He wrote a short letter about {}.",
    "What do you know about {}?",
    "There is a picture of {} on the wall.",
    "Her favourite subject is {}.",
    "The children asked the teacher about {}.",
    "I keep thinking of {}.",
    "The next chapter deals with {}.",
    "Nobody had mentioned {} before.",
    "They read everything on {} that they could find.",
    "It all began with {}.",
)
"""Natural texts about a concept, in words of this project."""


@dataclass(frozen=True)
class Gap:
    """Three curves over the blocks, and what the answer says.

    Attributes:
        concepts, chance: how many there are, and one in their number.
        first_layer, last_layer, strength: of the injection whose states are read.
        decodable: of each block the share of concepts that a probe of natural texts names from the injected tokens.
        decodable_nulls: [null][block], the same under rotations of the vectors.
        at_answer, at_answer_nulls: the same at the position where the answer is read.
        moved: of each block the gain (nats) of the concept's own word in the answer, injected into that block alone;
            the mean over concepts. NaN for blocks that a vector has no direction for.
        moved_nulls: [null][block].
        reported: of each block the share of concepts whose own word gains most, injected into that block alone.
        said: the share whose own word gains most under the whole injection; said_nulls under rotations.
        held_out: of each block the probe's share of texts right whose template it has not seen.
    """

    model: str
    concepts: tuple[str, ...]
    strength: float
    first_layer: int
    last_layer: int
    decodable: tuple[float, ...]
    decodable_nulls: tuple[tuple[float, ...], ...]
    at_answer: tuple[float, ...]
    at_answer_nulls: tuple[tuple[float, ...], ...]
    moved: tuple[float, ...]
    moved_nulls: tuple[tuple[float, ...], ...]
    reported: tuple[float, ...]
    said: float
    said_nulls: tuple[float, ...]
    held_out: tuple[float, ...]

    @property
    def chance(self) -> float:
        return 1 / len(self.concepts)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a block."""
        import pandas

        def highest(nulls: tuple[tuple[float, ...], ...]) -> list[float]:
            return [max(column) for column in zip(*nulls, strict=True)] if nulls else [math.nan] * len(self.moved)

        return pandas.DataFrame(
            {
                "layer": range(len(self.moved)),
                "decodable": self.decodable,
                "decodable_highest_null": highest(self.decodable_nulls),
                "at_answer": self.at_answer,
                "at_answer_highest_null": highest(self.at_answer_nulls),
                "moved": self.moved,
                "moved_highest_null": highest(self.moved_nulls),
                "reported": self.reported,
                "held_out": self.held_out,
            }
        )

    def plot(self) -> Figure:
        """All of it in one figure; see ``introspect.plots.gap``."""
        from ..plots.gap import gap

        return gap(self)


def probe_report_gap(
    model: Model,
    vectors: Mapping[str, ControlVector],
    protocol: Any = "content_report",
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    strength: float | None = None,
    strength_unit: str | None = None,
    layers: Any = _C.default_layers,
    nulls: int = 5,
    seed: int = 0,
    store: Any = None,
    progress: Any = None,
) -> Gap:
    """What a probe reads of the injected state at every block, what moves the answer, and what is reported.

    The probe is fitted on natural texts, the mean over each text's tokens, and knows nothing of vectors. Texts and
    states are both taken as differences: texts from the mean over concepts, injected states from the unsteered run's.

    Args:
        vectors: {concept: vector}, two or more; names are the words that the report is searched for.
        protocol: one that reads content, with whole messages injected.
        texts: {concept: natural texts}, as many of each; text i of every concept should differ in the concept only.
            None: a dozen sentences of the library with the concept's name in them.
        strength, strength_unit, layers: one injection, as ``run_experiment`` has it.
        nulls: rotations of every vector.

    Raises:
        ValueError: fewer than two concepts or texts, or other numbers of texts.
        ConfigError: a protocol that does not read content or injects otherwise.
    """
    given = Arguments("probe_report_gap")
    asked = given.protocol(protocol)
    named = dict(given.vectors(vectors))
    concepts = tuple(named)
    nulls = given.whole("nulls", nulls, least=0)
    if asked.read != "content" or not adds_to_one_span(asked):
        raise _C.ConfigError(
            f"probe_report_gap: protocol '{asked.name}' must read content, and add vectors to whole messages that "
            "follow one another"
        )
    natural = {concept: [one.format(concept) for one in TEMPLATES] for concept in concepts} if texts is None else texts
    counts = {concept: len(natural.get(concept, ())) for concept in concepts}
    if len(concepts) < 2 or len(set(counts.values())) != 1 or min(counts.values()) < 2:
        raise ValueError(f"probe_report_gap: two concepts and as many texts of each, two or more, got {counts}")
    common: dict[str, Any] = {"vectors": named, "questions": [], "seed": seed, "store": store, "progress": progress}
    common |= {"strengths": strength, "strength_unit": strength_unit, "nulls": nulls, "dose": False}
    whole_run = run_experiment(model, asked, layers=layers, **common)
    has = [b for b in range(model.cfg.n_layers) if all(b in vector.directions for vector in named.values())]
    alone = run_experiment(model, asked, layers=[(b, b) for b in has], **common)
    row = whole_run.rows[0]
    probes, held_out = _probes(model, [natural[concept] for concept in concepts])
    rotated = rotations(named, nulls, seed)
    versions = [named, *({concept: rotated[concept][null] for concept in named} for null in range(nulls))]
    unit = whole_run.settings["strength_unit"]
    span, answer = zip(*(_named(model, asked, probes, one, row, unit) for one in versions), strict=True)
    nothing = dict.fromkeys(range(-1, nulls), (math.nan, math.nan))
    of_block = [_reports(alone, concepts, b, b) or nothing for b in range(model.cfg.n_layers)]
    said = _reports(whole_run, concepts, row["first_layer"], row["last_layer"])
    return Gap(
        model.name,
        concepts,
        row["strength"],
        row["first_layer"],
        row["last_layer"],
        span[0],
        tuple(span[1:]),
        answer[0],
        tuple(answer[1:]),
        tuple(one[-1][0] for one in of_block),
        tuple(tuple(one[null][0] for one in of_block) for null in range(nulls)),
        tuple(one[-1][1] for one in of_block),
        said[-1][1],
        tuple(said[null][1] for null in range(nulls)),
        held_out,
    )


def _probes(model: Model, texts: Sequence[Sequence[str]]) -> tuple[list[Any], tuple[float, ...]]:
    """A probe a block of the texts' means, less the mean over concepts; and its share right on texts left out."""
    listed = [one for of_concept in texts for one in of_concept]
    read = _C.collect_positions(model.native, listed, [(0, None)], layers=list(range(model.cfg.n_layers)))[0]
    values = read.values.double().unflatten(0, (len(texts), len(texts[0])))  # [concept, text, block, d_model]
    values = values - values.mean(0)
    labels = torch.arange(len(texts)).repeat_interleave(len(texts[0]))
    probes, right = [], []
    tested = torch.arange(len(listed)) % len(texts[0]) >= len(texts[0]) - max(1, len(texts[0]) // 4)
    for block in range(model.cfg.n_layers):
        x = values[:, :, block].flatten(0, 1)
        half = fit_probe(x[~tested], labels[~tested].tolist())
        right.append(float((_class(half, x[tested]) == labels[tested]).double().mean()))
        probes.append(fit_probe(x, labels.tolist()))
    return probes, tuple(right)


def _class(probe: Any, x: torch.Tensor) -> torch.Tensor:
    """The number of the class of each row [n, d_model]."""
    scores = torch.stack([probe.scores(one) for one in x])
    chosen = (scores > 0).long() if scores.dim() == 1 else scores.argmax(-1)
    return torch.tensor([int(probe.classes[one]) for one in chosen])


@torch.no_grad()
def _named(
    model: Model, protocol: Any, probes: Sequence[Any], vectors: Mapping[str, ControlVector], row: dict, unit: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each block the share of concepts that probes name: at the injected tokens, and where the answer is read."""
    tokens, (first, last) = spanned(model, protocol)
    graph = Graph()
    start = graph.segment(model, tokens[:first]) if first else None

    def states(changes: Mapping[int, torch.Tensor]) -> tuple[int, int]:
        added_to = [_C.Intervention({block: change for block, change in changes.items()})] if changes else []
        node = graph.segment(model, tokens[first:last], start, added_to)
        span = graph.read(node, positions=range(last - first))
        return span, graph.read(graph.segment(model, tokens[last:], node))

    blocks = range(row["first_layer"], row["last_layer"] + 1)
    plain = states({})
    steered = [
        states(added(model, vector, row["strength"], unit, blocks, tokens, (first, last)))
        for vector in vectors.values()
    ]
    found: list[Any] = graph.run()
    means = [found[span].double().mean(0) for span, _ in (plain, *steered)]
    ends = [found[end].double()[0] for _, end in (plain, *steered)]
    truth = torch.arange(len(vectors))

    def share(values: list[torch.Tensor]) -> tuple[float, ...]:
        change = torch.stack(values[1:]) - values[0]  # [concept, block, d_model]
        return tuple(float((_class(p, change[:, b]) == truth).double().mean()) for b, p in enumerate(probes))

    return share(means), share(ends)


def _reports(result: Result, concepts: Sequence[str], first: int, last: int) -> dict[int, tuple[float, float]]:
    """{null (-1: the vectors): (mean gain of the own word in nats, share of concepts whose own word gains most)}."""
    gains: dict[int, list[tuple[float, bool]]] = {}
    for row in result.rows:
        if (row["first_layer"], row["last_layer"]) != (first, last):
            continue
        pairs = zip(row["base"]["tokens"][::2], row["injected"]["tokens"][::2], strict=True)
        of_words = [after["log_prob"] - before["log_prob"] for before, after in pairs]
        own = of_words[concepts.index(row["concept"])]
        others = [one for i, one in enumerate(of_words) if i != concepts.index(row["concept"])]
        gains.setdefault(row["null_index"], []).append((own, own > max(others)))
    return {
        null: (sum(own for own, _ in rows) / len(rows), sum(most for _, most in rows) / len(rows))
        for null, rows in gains.items()
    }
