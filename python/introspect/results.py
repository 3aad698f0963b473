"""What an experiment saw: one row a reading, tables of them, and the statistics that reports show."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._json import parse_json
from .merging import merged
from .output_files import write_text
from .readings import (
    Localisation,
    attention_maps,
    changes_table,
    continuations_table,
    lens_table,
    localise,
    projections_table,
    token_lens_table,
)
from .result_fields import check_fields
from .tables import check_format, write_table

if TYPE_CHECKING:
    import numpy
    import pandas

    from .statistics import Estimate, NullBand

SCHEMA = 1


class Setting(NamedTuple):
    """What was injected: a concept's vector, how strongly, and into which blocks (both ends included)."""

    concept: str
    strength: float
    first_layer: int
    last_layer: int


@dataclass(frozen=True)
class Compared:
    """A quantity of one concept beside the same quantity of each random rotation of its vector."""

    value: float
    nulls: tuple[float, ...]

    @cached_property
    def band(self) -> NullBand | None:
        """Where the value lies among the nulls; None without nulls, or with a number that is not finite."""
        from .statistics import null_band  # here, because it loads torch

        return null_band(self.value, self.nulls) if self.nulls and _finite(self.value, *self.nulls) else None

    @property
    def null_mean(self) -> float:
        return self.band.mean if self.band else math.nan

    @property
    def null_std(self) -> float:
        """Sample standard deviation; NaN for fewer than two nulls."""
        return self.band.standard_deviation if self.band else math.nan

    @property
    def z(self) -> float:
        """Distance from the nulls' mean in their standard deviations."""
        return self.band.z if self.band else math.nan

    @property
    def rank(self) -> int:
        """1 when the concept's value is the highest; ties count against the concept."""
        return self.band.rank if self.band else 1

    @property
    def inside(self) -> bool:
        """Whether the value lies between the lowest and the highest null."""
        return bool(self.nulls) and min(self.nulls) <= self.value <= max(self.nulls)

    def as_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "nulls": list(self.nulls),
            "null_mean": self.null_mean,
            "null_std": self.null_std,
            "z": self.z,
            "rank": self.rank,
            "of": len(self.nulls) + 1,
            "inside_null_range": self.inside,
        }


@dataclass(frozen=True)
class Detection:
    """Shifts of log-odds (nats) of one setting: the introspection question, the controls, and their difference."""

    setting: Setting
    base: float
    injected: float
    p_yes_base: float
    p_yes: float
    shift: Compared
    control_mean: Compared | None  # None where no control question was asked
    control_std: float
    corrected: Compared | None  # shift - control_mean
    effect: Estimate | None  # the same with its bootstrap interval over questions; None for fewer than two controls
    n_controls: int

    @property
    def headline(self) -> Compared:
        """What the verdict is about: the shift less the mean of the controls where there are any."""
        return self.corrected or self.shift


@dataclass(frozen=True)
class Identification:
    """The injected concept's own token among all tokens, base and injected."""

    setting: Setting
    token: str
    rank_base: int
    rank: int
    null_ranks: tuple[int, ...]
    gain: Compared  # log-probability injected - base, nats
    spaced_token: str
    spaced_rank_base: int
    spaced_rank: int
    spaced_gain: Compared
    others_gain: float  # mean gain of the other concepts' tokens under the same vector; NaN if there are none


class Result:
    """The outcome of one protocol on one model.

    ``model``, ``protocol`` and ``settings`` are dictionaries that say what was run; ``rows`` holds one dictionary a
    reading, with the base and the injected side.
    """

    def __init__(self, data: dict[str, Any]):
        check_schema(data)
        self.model: dict[str, Any] = data["model"]
        self.protocol: dict[str, Any] = data["protocol"]
        self.settings: dict[str, Any] = data["settings"]
        self.rows: list[dict[str, Any]] = [_with_nan(row) for row in data["rows"]]

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Raises ValueError for anything but a result of this schema, with the place of the mistake."""
        data = parse_json(text, "Result", ValueError)
        check_schema(data)
        check_fields(data)
        return cls(data)

    def to_json(self) -> str:
        """JSON in which NaN and infinities are null."""
        data = {"schema": SCHEMA, "model": self.model, "protocol": self.protocol, "settings": self.settings}
        return json.dumps(finite({**data, "rows": self.rows}), ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write the result as JSON; the file is complete or not there."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Result:
        """Raises ValueError with the path, and the place in it, for a file that is not a result."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    def merged(self, other: Result) -> Result:
        """The rows of both, where both have a setting and question those of ``other``: a wider sweep, more nulls.

        Rows of rotations of another seed get a ``seed`` of their own.

        Raises:
            ValueError: another model, dtype, protocol or unit of strength; it names the difference.
        """
        return Result(merged(*(json.loads(one.to_json()) for one in (self, other))))

    def __repr__(self) -> str:
        return f"<Result of {self.protocol['name']} on {self.model['name']}: {len(self.rows)} rows>"

    @cached_property
    def concepts(self) -> list[str]:
        return list(dict.fromkeys(row["concept"] for row in self.rows))

    @property
    def groups(self) -> list[Setting]:
        """Every setting that was run, in the order of the rows."""
        return list(self._by_setting)

    @cached_property
    def _by_setting(self) -> dict[Setting, list[dict]]:
        found: dict[Setting, list[dict]] = {}
        for row in self.rows:
            found.setdefault(setting_of(row), []).append(row)
        return found

    def label(self, setting: Setting) -> str:
        """How a setting is named in tables and plots."""
        unit = " × residual norm" if self.settings.get("strength_unit") == "residual" else ""
        first, last = setting.first_layer, setting.last_layer
        blocks = f"block {first}" if first == last else f"blocks {first}–{last}"
        return f"{setting.concept}, {setting.strength:g}{unit}, {blocks}"

    def select(self, setting: Setting, *, kind: str | None = None, question_kind: str | None = None) -> list[dict]:
        return [
            row
            for row in self._by_setting.get(setting, ())
            if kind in (None, row["kind"]) and question_kind in (None, row["question_kind"])
        ]

    def own_tokens(self, row: dict, side: str) -> tuple[dict, dict] | None:
        """The unspaced and the spaced token of the row's concept, on the side "base" or "injected"."""
        tokens = row[side].get("tokens")
        if not tokens:
            return None
        index = 2 * self.concepts.index(row["concept"])
        return tokens[index], tokens[index + 1]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a reading; the columns of tokens and of sampled text are there where they were read."""
        import pandas

        return pandas.DataFrame([self._flat(row) for row in self.rows])

    def _flat(self, row: dict) -> dict[str, Any]:
        keys = ("concept", "strength", "first_layer", "last_layer", "question", "kind", "question_kind", "null_index")
        flat = {key: row[key] for key in keys}
        for name in ("log_odds", "p_yes", "p_no"):
            flat[f"{name}_base"], flat[name] = row["base"][name], row["injected"][name]
        base, injected = self.own_tokens(row, "base"), self.own_tokens(row, "injected")
        if base and injected:
            for i, prefix in enumerate(("", "spaced_")):
                flat[f"{prefix}token"] = injected[i]["token"]
                for name in ("rank", "log_prob"):
                    flat[f"{prefix}{name}_base"], flat[f"{prefix}{name}"] = base[i][name], injected[i][name]
        if row["injected"].get("text") is not None:
            flat["text_base"], flat["text"] = row["base"].get("text"), row["injected"]["text"]
        for key in ("paraphrase", "place", "part_first", "part_last"):
            if key in row:
                flat[key] = row[key]
        for name in ("set_log_odds", "entropy"):
            if name in row["injected"]:
                flat[f"{name}_base"], flat[name] = row["base"].get(name), row["injected"][name]
        if "kl" in row["injected"]:
            flat["kl"] = row["injected"]["kl"]
        return flat

    def export(self, path: str | os.PathLike) -> None:
        """Write to_pandas() as .csv or, with the extra introspect[parquet], .parquet.

        Raises:
            ValueError: another suffix.
            ImportError: Parquet without pyarrow.
        """
        write_table(self.to_pandas(), check_format(path))

    def tokens_to_pandas(self) -> pandas.DataFrame:
        """One row for each token read in each reading: every concept's, not only the injected one's."""
        import pandas

        def table() -> Iterator[dict[str, Any]]:
            for row in self.rows:
                keys = (*Setting._fields, "question", "kind", "question_kind", "null_index")
                for i, (base, injected) in enumerate(_token_pairs(row)):
                    yield {
                        **{key: row[key] for key in keys},
                        "token_concept": self.concepts[i // 2],
                        "spaced": i % 2 == 1,
                        "token": injected["token"],
                        "id": injected["id"],
                        "rank_base": base["rank"],
                        "rank": injected["rank"],
                        "log_prob_base": base["log_prob"],
                        "log_prob": injected["log_prob"],
                    }

        return pandas.DataFrame(list(table()))

    def lens_to_pandas(self) -> pandas.DataFrame:
        """One row for each reading and layer: log_odds, p_yes and p_no (summed over the spellings), base and injected.

        Raises:
            ValueError: run_experiment was not asked for a lens; so the other tables for what they hold.
        """
        return lens_table(self)

    def token_lens_to_pandas(self) -> pandas.DataFrame:
        """One row for each reading, layer and report token: its log-probability, base and injected."""
        return token_lens_table(self)

    def changes_to_pandas(self) -> pandas.DataFrame:
        """One row for each of the most raised and lowered tokens of each reading."""
        return changes_table(self)

    def projections_to_pandas(self) -> pandas.DataFrame:
        """One row for each reading, direction and layer: the residual on the unit direction, base and injected."""
        return projections_table(self)

    def continuations_to_pandas(self) -> pandas.DataFrame:
        """One row for each reading and continuation: its log-probability, base and injected."""
        return continuations_table(self)

    def attention(self, side: str = "injected") -> numpy.ndarray:
        """Attention of every head from the read position to the injected tokens: [rows, n_layers, n_heads].

        Args:
            side: "injected" or "base"; rows are those of to_pandas().
        """
        return attention_maps(self, side)

    def localisation(self, *, concept: str | None = None, kind: str = "introspection") -> Localisation:
        """Which passage was named against which was injected: confusion matrices with their level of chance.

        Args:
            concept: None: all.
            kind: of the rows: "introspection" or "null".
        """
        return localise(self, concept=concept, kind=kind)

    def detections(self) -> list[Detection]:
        """The statistics of the yes-or-no reading, one for each setting."""
        return list(self._detections)

    @cached_property
    def _detections(self) -> list[Detection]:
        return [self._detection(setting) for setting in self.groups]

    def _detection(self, setting: Setting) -> Detection:
        own = self.select(setting, kind="introspection")
        asked = self.select(setting, kind="control")
        controls = [_shift(row) for row in asked]
        nulls = self._nulls(setting)
        null_shifts = [_mean(_shift(r) for r in rows if r["question_kind"] == "introspection") for rows in nulls]
        shift = Compared(_mean(map(_shift, own)), tuple(null_shifts))
        control_mean = corrected = None
        if controls:
            null_controls = [_mean(_shift(r) for r in rows if r["question_kind"] == "control") for rows in nulls]
            control_mean = Compared(statistics.fmean(controls), tuple(null_controls))
            differences = (a - b for a, b in zip(null_shifts, null_controls, strict=True))
            corrected = Compared(shift.value - control_mean.value, tuple(differences))
        return Detection(
            setting=setting,
            base=_mean(row["base"]["log_odds"] for row in own),
            injected=_mean(row["injected"]["log_odds"] for row in own),
            p_yes_base=_mean(row["base"]["p_yes"] for row in own),
            p_yes=_mean(row["injected"]["p_yes"] for row in own),
            shift=shift,
            control_mean=control_mean,
            control_std=statistics.stdev(controls) if len(controls) > 1 and _finite(*controls) else math.nan,
            corrected=corrected,
            effect=_effect(own, asked),
            n_controls=len(controls),
        )

    def identifications(self) -> list[Identification]:
        """The statistics of the content report, one for each setting; empty where no tokens were read."""
        return list(self._identifications)

    @cached_property
    def _identifications(self) -> list[Identification]:
        found = (self._identification(setting) for setting in self.groups)
        return [one for one in found if one is not None]

    def _identification(self, setting: Setting) -> Identification | None:
        own = next((r for r in self.select(setting, kind="introspection") if r["injected"].get("tokens")), None)
        if own is None:
            return None
        index = 2 * self.concepts.index(setting.concept)
        null_rows = [r for rows in self._nulls(setting) for r in rows if r["question"] == own["question"]]
        pairs = _token_pairs(own)
        (base, injected), (spaced_base, spaced) = pairs[index], pairs[index + 1]

        def gain(position: int) -> Compared:
            return Compared(_gain(pairs[position]), tuple(_gain(_token_pairs(row)[position]) for row in null_rows))

        return Identification(
            setting=setting,
            token=injected["token"],
            rank_base=base["rank"],
            rank=injected["rank"],
            null_ranks=tuple(row["injected"]["tokens"][index]["rank"] for row in null_rows),
            gain=gain(index),
            spaced_token=spaced["token"],
            spaced_rank_base=spaced_base["rank"],
            spaced_rank=spaced["rank"],
            spaced_gain=gain(index + 1),
            others_gain=_mean(_gain(pair) for i, pair in enumerate(pairs) if i % 2 == 0 and i != index),
        )

    def _nulls(self, setting: Setting) -> list[list[dict]]:
        """Rows of each random rotation."""
        found: dict[tuple[int, int], list[dict]] = {}
        seed = self.settings.get("seed", 0)
        for row in self.select(setting, kind="null"):
            found.setdefault((row.get("seed", seed), row["null_index"]), []).append(row)
        return [found[i] for i in sorted(found)]


def check_schema(data: Any) -> None:
    """Raises ValueError for anything but an object of this schema with all of its parts."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"Result: schema must be {SCHEMA}, got {schema!r}")
    if missing := {"model", "protocol", "settings", "rows"} - data.keys():
        raise ValueError(f"Result: it must hold model, protocol, settings and rows, missing {sorted(missing)}")


def finite(value: Any) -> Any:
    """The same value with None in place of NaN and infinities, as JSON needs it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _with_nan(row: dict) -> dict:
    """A row with NaN for the numbers that JSON holds as null."""
    row = dict(row)
    for side in ("base", "injected"):
        numbers = {k: math.nan if row[side].get(k) is None else row[side][k] for k in ("log_odds", "p_yes", "p_no")}
        row[side] = {**row[side], **numbers}
        if row[side].get("tokens"):
            row[side]["tokens"] = [
                {**t, "log_prob": math.nan if t["log_prob"] is None else t["log_prob"]} for t in row[side]["tokens"]
            ]
    return row


def setting_of(row: dict) -> Setting:
    """What was injected in a row."""
    return Setting(row["concept"], row["strength"], row["first_layer"], row["last_layer"])


def _shift(row: dict) -> float:
    return row["injected"]["log_odds"] - row["base"]["log_odds"]


def _finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def _effect(introspection: list[dict], controls: list[dict]) -> Estimate | None:
    """The mean shift less that of the controls, BCa over questions."""
    from .statistics import shift_table

    rows = introspection + controls
    own, asked = ({row["question"] for row in part} for part in (introspection, controls))
    if not own or len(asked) < 2 or own & asked or not _finite(*map(_shift, rows)):
        return None
    return shift_table(
        [row["base"]["log_odds"] for row in rows],
        [row["injected"]["log_odds"] for row in rows],
        [row["question"] for row in rows],
        [False] * len(introspection) + [True] * len(controls),
        resamples=2000,
    ).effect


def _token_pairs(row: dict) -> list[tuple[dict, dict]]:
    return list(zip(row["base"].get("tokens") or [], row["injected"].get("tokens") or [], strict=True))


def _gain(pair: tuple[dict, dict]) -> float:
    base, injected = pair
    return injected["log_prob"] - base["log_prob"]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan
