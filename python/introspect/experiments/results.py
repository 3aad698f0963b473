"""What an experiment saw: one row a reading, tables of them, and the statistics that reports show."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._json import finite, parse_json
from ..output_files import write_text
from ..tables import check_format, write_table
from .detections import (
    KEPT_MASS,
    LEAST_MASS,
    NOT_RECORDED,
    Compared,
    Detection,
    Identification,
    Setting,
    answer_mass,
    blocks,
    detect,
    failed,
    identify,
    mass,
    token_pairs,
)
from .fields import DOSE, KEYS, NOTHING, OPTIONAL
from .merging import merged
from .readings import (
    Localisation,
    attention_maps,
    changes_table,
    continuations_table,
    lens_table,
    localise,
    projections_table,
    readout_table,
    token_lens_table,
)
from .readouts import columns as readout_columns
from .result_fields import check_fields

if TYPE_CHECKING:
    import numpy
    import pandas

    from ..report.verdicts import Verdict
    from ..studies.claims import Claims

__all__ = ["SCHEMA", "Compared", "Detection", "Identification", "Result", "Setting"]
__all__ += ["check_schema", "finite", "setting_of", "write_text"]

SCHEMA = 1


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
        verdict = self.verdict()
        what = f"{self.protocol['name']} on {self.model['name']}, {len(self.rows)} rows"
        return f"<Result of {what}: {verdict.word}. {verdict.sentence}>"

    @cached_property
    def concepts(self) -> list[str]:
        return list(dict.fromkeys(row["concept"] for row in self.rows))

    @cached_property
    def _has_groups(self) -> bool:
        return any("group" in row for row in self.rows)

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

    def leaves_format(self, row: Mapping[str, Any]) -> bool:
        """Whether the injection took the probability away from the answers: see KEPT_MASS of experiments.detections."""
        if self.protocol["read"] != "yes_no":
            return False
        before, after = answer_mass(row["base"]), answer_mass(row["injected"])
        return after < KEPT_MASS * before or (after < LEAST_MASS and before >= LEAST_MASS)

    def failures(self) -> dict[Setting, tuple[int, int]]:
        """Of every setting with readings that are not finite: (how many, of how many), random rotations among them."""
        return {setting: (n, len(rows)) for setting, rows in self._by_setting.items() if (n := sum(map(failed, rows)))}

    def label(self, setting: Setting) -> str:
        """How a setting is named in tables and plots."""
        where = blocks(setting.first_layer, setting.last_layer)
        return f"{setting.concept}, {setting.strength:.4g}{self.unit}, {where}"

    def dose_kl(self, setting: Setting) -> float | None:
        """KL(injected || base) at a setting's injected tokens, in nats; None where it was not measured."""
        found = (row.get("dose_kl") for row in self._by_setting.get(setting, ()))
        return next((kl for kl in found if kl is not None and math.isfinite(kl)), None)

    def dose_target(self, setting: Setting) -> str:
        """The dose that a setting's strength was solved for ("kl=0.5"); empty where a strength was given."""
        return next((row["dose_target"] for row in self._by_setting.get(setting, ()) if "dose_target" in row), "")

    @property
    def unit(self) -> str:
        """What stands after a strength: nothing where it is the factor of the direction as it is."""
        return " × residual norm" if self.settings.get("strength_unit") == "residual" else ""

    @property
    def unfinished(self) -> tuple[int, int] | None:
        """(readings done, readings planned) of a run that was interrupted; None of a complete one."""
        counts = self.settings.get("incomplete")
        return (counts["done"], counts["of"]) if counts else None

    def select(self, setting: Setting, *, kind: str | None = None, question_kind: str | None = None) -> list[dict]:
        """Rows of a setting, of the kind "introspection", "control" or "random" (or all), and so for the questions."""
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
        """One row a reading; the columns of tokens and of sampled text are there where they were read.

        Beside the log-odds (nats) and probabilities: ``mass_base`` and ``mass``, p(yes) + p(no); ``leaves_format``,
        whether the injection took that mass away, so that the log-odds say nothing; ``failed``, whether a number is not
        finite; ``asked_in``, the conversation of the question: "own", or the name of another one; ``group``, where
        there are some, that of the question: "factual_yes", or "(none)". Numbers and texts of readouts are columns of
        their names.
        """
        import pandas

        return pandas.DataFrame([self._flat(row) for row in self.rows])

    def _flat(self, row: dict) -> dict[str, Any]:
        flat = {key: row[key] for key in KEYS}
        for name in ("log_odds", "p_yes", "p_no"):
            flat[f"{name}_base"], flat[name] = row["base"][name], row["injected"][name]
        flat["mass_base"], flat["mass"] = mass(row["base"]), mass(row["injected"])
        flat["leaves_format"], flat["failed"] = self.leaves_format(row), failed(row)
        flat["asked_in"] = row.get("asked_in", NOT_RECORDED)
        base, injected = self.own_tokens(row, "base"), self.own_tokens(row, "injected")
        if base and injected:
            for i, prefix in enumerate(("", "spaced_")):
                flat[f"{prefix}token"] = injected[i]["token"]
                for name in ("rank", "log_prob"):
                    flat[f"{prefix}{name}_base"], flat[f"{prefix}{name}"] = base[i][name], injected[i][name]
        if row["injected"].get("text") is not None:
            flat["text_base"], flat["text"] = row["base"].get("text"), row["injected"]["text"]
        if self._has_groups:
            flat["group"] = NOTHING
        flat |= {key: row[key] for key in (*OPTIONAL, *DOSE) if key in row}  # asked_in keeps its column
        return flat | readout_columns(row["base"], row["injected"])

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
                for i, (base, injected) in enumerate(token_pairs(row)):
                    yield {
                        **{key: row[key] for key in KEYS},
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

    def readout_to_pandas(self, name: str) -> pandas.DataFrame:
        """One row for each reading and element of what a readout has read as a list (or a dictionary of lists).

        Columns are ``layer`` (of a list with one element a layer) or ``index``, and the readout's name, or the
        dictionary's names, base and injected.

        Raises:
            ValueError: no reading holds such a list.
        """
        return readout_table(self, name)

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
            kind: of the rows: "introspection" or "random".
        """
        return localise(self, concept=concept, kind=kind)

    def detections(self) -> list[Detection]:
        """The statistics of the yes-or-no reading, one for each setting."""
        return list(self._detections)

    @cached_property
    def _detections(self) -> list[Detection]:
        return [detect(self, setting) for setting in self.groups]

    def identifications(self) -> list[Identification]:
        """The statistics of the content report, one for each setting; empty where no tokens were read."""
        return list(self._identifications)

    @cached_property
    def _identifications(self) -> list[Identification]:
        found = (identify(self, setting) for setting in self.groups)
        return [one for one in found if one is not None]

    def verdict(self) -> Verdict:
        """What came out, in one word ("yes", "unclear", "no" or "failed") and one sentence, with the reasons.

        ``introspect.report.verdicts`` has the rule, and how often chance alone gives a yes.
        """
        from ..report.verdicts import of_result

        return of_result(self)

    def claims(self, **options: Any) -> Claims:
        """What the result shows, as a ladder: rungs that it has no readings for say what would run them.

        Args:
            options: of ``introspect.studies.from_results.claims``.
        """
        from ..studies.from_results import claims

        return claims(self, **options)

    def summary(self) -> str:
        """A short table in plain text: what each concept did in each setting, and the word for it."""
        from ..report.verdicts import summary

        return summary(self)


def check_schema(data: Any) -> None:
    """Raises ValueError for anything but an object of this schema with all of its parts."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"Result: schema must be {SCHEMA}, got {schema!r}")
    if missing := {"model", "protocol", "settings", "rows"} - data.keys():
        raise ValueError(f"Result: it must hold model, protocol, settings and rows, missing {sorted(missing)}")


def _with_nan(row: dict) -> dict:
    """A row with NaN for the numbers that JSON holds as null, and with today's words for what had others once."""
    row = dict(row)
    if row["kind"] == "null":
        row["kind"] = "random"
    if isinstance(row.get("paraphrase"), int):
        row["paraphrase"] = row["question"]
    for side in ("base", "injected"):
        numbers = {k: math.nan if row[side].get(k) is None else row[side][k] for k in ("log_odds", "p_yes", "p_no")}
        row[side] = {**row[side], **numbers}
        if row[side].get("tokens"):
            row[side]["tokens"] = [
                {**one, "log_prob": math.nan, "rank": math.nan} if one["log_prob"] is None else one
                for one in row[side]["tokens"]
            ]
    return row


def setting_of(row: dict) -> Setting:
    """What was injected in a row."""
    return Setting(row["concept"], row["strength"], row["first_layer"], row["last_layer"])
