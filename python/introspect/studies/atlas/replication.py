"""What a replication came to: figures beside the published ones, and the ladder's rungs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._json import parse_json
from ...experiments.results import Result, finite
from ...output_files import write_text
from ..claims import Claims
from .entry import Entry, Published
from .entry import entry as find_entry
from .expand import Cell, cells
from .measures import Figure, Reading
from .table import text_table
from .verdict import claims_of, verdict

if TYPE_CHECKING:
    import pandas

SCHEMA = 1


@dataclass
class Replication:
    """An entry as it came out on a model.

    Attributes:
        entry: what was run.
        model: ``Result.model``.
        settings: concepts, strengths, strength_unit, layers, seed.
        figures: ours.
        claims: the ladder of what its readings show; its rungs are of ``introspect.studies``, and the study's own.
        differs: what is not as it was published.
        results: {protocol's name, and " (other concepts)" where others' vectors are injected: Result}.
    """

    entry: Entry
    model: dict[str, Any]
    settings: dict[str, Any]
    figures: list[Figure]
    claims: Claims
    differs: list[str]
    results: dict[str, Result] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name; KeyError lists them."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"Replication: there are {', '.join(one.name for one in self.figures)}, got {name!r}")

    def published(self, figure: Figure) -> list[Published]:
        """The published figures that stand beside one of ours."""
        return [
            one
            for one in self.entry.published
            if one.beside and (figure.name == one.beside or figure.name.startswith(f"{one.beside}/"))
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a figure of ours, with the published ones in a text; then published ones that stand beside none."""
        import pandas

        return pandas.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """``to_pandas`` as a list of dictionaries."""
        out = []
        for figure in self.figures:
            one = figure.estimate
            out.append(
                {
                    "figure": figure.name,
                    "value": one.value,
                    "low": one.low,
                    "high": one.high,
                    "unit": figure.unit,
                    "chance": figure.chance,
                    "n": one.n,
                    "n_readings": figure.n_readings,
                    "n_failed": figure.n_failed,
                    "n_left": figure.n_left,
                    "published": "; ".join(map(_stated, self.published(figure))),
                }
            )
        return out

    @property
    def verdict(self) -> str:
        """What stands in a line, and the names of the rungs by what became of them."""
        return verdict(self.claims)

    def __str__(self) -> str:
        return text_table(self)

    def summary(self) -> dict[str, Any]:
        """Verdict, rungs and figures, without the results."""
        return {
            "entry": self.entry.name,
            "model": self.model,
            "verdict": self.verdict,
            "claims": self.claims.to_dict(),
            "figures": self.rows(),
            "differs": self.differs,
        }

    def to_json(self) -> str:
        """JSON of schema 1: verdict, rungs, figures, what was published, and every result; NaN is null."""
        data = {
            "schema": SCHEMA,
            **self.summary(),
            "title": self.entry.title,
            "source": self.entry.source,
            "settings": self.settings,
            "published": [asdict(one) for one in self.entry.published],
            "results": {name: json.loads(result.to_json()) for name, result in self.results.items()},
        }
        return json.dumps(finite(data), ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``to_json``; the file is complete or not there."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike, entry: str | os.PathLike | Entry | None = None) -> Replication:
        """What ``save`` wrote; figures and rungs are made of its results anew.

        Args:
            entry: that was run; None: the library's of that name.

        Raises:
            ValueError: no such file, or of another form of the entry, with the path.
        """
        try:
            data = parse_json(Path(path).read_text(encoding="utf-8"), "Replication", ValueError)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA or "differs" not in data:
                raise ValueError("a replication as save writes it is required, got another file")
            found = find_entry(data["entry"] if entry is None else entry)
            said = data["settings"]
            unread: dict[str, Any] = dict.fromkeys(said["concepts"])  # vectors: nothing is run
            listed = cells(found, unread, {**said, "nulls": 0}, said["seed"])
            results = {name: Result.from_json(json.dumps(one)) for name, one in data["results"].items()}
            if lacking := [name for name in map(_name, listed) if name not in results]:
                raise ValueError(
                    f"it was run with another form of '{found.name}': there is no result of {lacking[0]!r}"
                )
            return replication_of(found, listed, [results[_name(one)] for one in listed], data["model"], said)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a replication as save writes it is required, got another ({error!r})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _stated(one: Published) -> str:
    value = f"{one.value:g}" if isinstance(one.value, int | float) else one.value
    unit = f" {one.unit}" if one.unit and one.unit != "%" else one.unit
    return f"{one.name}: {value}{unit}" + (f" ({one.note})" if one.note else "")


def replication_of(
    entry: Entry, listed: Sequence[Cell], results: Sequence[Result], facts: dict[str, Any], said: dict[str, Any]
) -> Replication:
    """What the results of an entry's experiments come to."""
    readings = {part.name: [] for part in entry.parts}  # type: dict[str, list[Reading]]
    for cell, result in zip(listed, results, strict=True):
        readings[cell.part.name] += _readings(cell, result)
    figures = [
        figure
        for part in entry.parts
        for measure in part.measures
        for figure in measure.figures(part.name, readings[part.name])
    ]
    claims = claims_of(entry, listed, results, figures, facts["name"])
    named = dict(zip(map(_name, listed), results, strict=True))
    return Replication(entry, facts, said, figures, claims, _differs(entry, facts, said), named)


def _readings(cell: Cell, result: Result) -> list[Reading]:
    out = []
    for row in result.rows:
        kind = row["kind"]
        if kind == "random" and row["question_kind"] == "control":
            kind = "random_control"
        tags = {**cell.tags, "kind": kind, "group": row.get("group", ""), "strength": row["strength"]}
        tags["place"] = row.get("place", -1)
        about = cell.about or row["concept"]
        out.append(Reading(row, about, row["concept"], tags, cell.sign, result.leaves_format(row)))
    return out


def _name(cell: Cell) -> str:
    others = " (other concepts)" if cell.tags["vector"] == "other" else ""
    return cell.experiment.protocol.name + others  # type: ignore[union-attr]


def _differs(entry: Entry, model: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    strengths = settings["strengths"]
    unit = "times the residual norm" if settings["strength_unit"] == "residual" else settings["strength_unit"] or ""
    shown = ", ".join(map(str, strengths if isinstance(strengths, list | tuple) else [strengths]))
    return [
        f"model: {model['name']} ({model['n_layers']} blocks) in {model['dtype']}; "
        f"published on {', '.join(entry.models)}",
        f"{len(settings['concepts'])} concepts; strengths {shown} {unit}".rstrip()
        + " unless a part has its own; blocks "
        + (f"{settings['layers'][0]:g} to {settings['layers'][1]:g}" if _is_range(settings["layers"]) else "as given"),
        "judge: none; exact probabilities of answers in the place of graded samples",
        "wording: " + ("theirs" if entry.wording == "theirs" else "our own, after the study's description"),
        *entry.differs,
    ]


def _is_range(layers: Any) -> bool:
    return isinstance(layers, list | tuple) and len(layers) == 2 and all(isinstance(one, int | float) for one in layers)
