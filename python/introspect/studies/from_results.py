"""The evidence in results: rows of experiments as the arrays that the ladder takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..experiments.detections import LEAST_MASS, all_finite, answer_mass, failed, shift_of, token_pairs
from ..experiments.results import Result
from .claims import Claims
from .evidence import SHIFTS, Evidence, Readings
from .ladder import ladder

if TYPE_CHECKING:
    from .study import Study

GROUPS = ("factual_yes", "factual_no", "contested", "third_person", "matched")
PLAIN_NO = ("", "control")
"""The group of control questions in protocols that have one group: their plain answer is no."""
ELSEWHERE = "They were asked in another conversation, so their shift is of that context."


class Columns:
    """Readings being collected."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = defaultdict(list)

    def add(self, row: Mapping[str, Any], value: float, **more: Any) -> None:
        own = {"concept": row["concept"], "value": value, "setting": setting_name(row), "question": row["question"]}
        own |= {"paraphrase": row.get("paraphrase", ""), **more}
        for name, entry in own.items():
            self.columns[name].append(entry)

    def __bool__(self) -> bool:
        return bool(self.columns)

    def readings(self) -> Readings:
        return Readings(**self.columns)


def evidence_of(found: Study | Result) -> Evidence:
    """What a study or a single result has found, by arm."""
    return _of_result(found) if isinstance(found, Result) else _of_study(found)


def setting_name(row: Mapping[str, Any]) -> str:
    """What is alike in readings of one strength and range of layers, as text."""
    more = "".join(f" {name} {row[name]}" for name in ("place", "part_first", "part_last") if name in row)
    return f"{row['strength']:g} × {row['first_layer']}–{row['last_layer']}{more}"


def _of_result(result: Result) -> Evidence:
    collected: dict[str, Columns] = defaultdict(Columns)
    missing: dict[str, str] = {}
    collect(result, collected, missing)
    return evidence_from([result], collected, missing)


def _of_study(study: Study) -> Evidence:
    collected: dict[str, Columns] = defaultdict(Columns)
    missing = {name: f"It cannot be had here: {why}." for name, why in getattr(study, "not_run", {}).items()}
    notes = []
    for name, result in study.results.items():
        if name in ("injected", "question_groups", "content"):
            collect(result, collected, missing)
        elif name == "sham":
            notes += _told(result)
        elif name in SHIFTS:
            collect_arm(result, name, collected)
        elif name in ("no_question", "observer"):
            _collect_content(result, usable(result, "introspection"), name, collected)
    for name in ("swap", "scaled", "input_edit", "other_span", "dropout", "no_question", "observer"):
        _forget_settings(collected, name, "content" if name in ("no_question", "observer") else "injected")
    return evidence_from(list(study.results.values()), collected, missing, notes)


def _told(sham: Result) -> list[str]:
    """How far the information alone moves the answer, where the protocol has a twin without it."""
    shifts = [shift_of(row) for row in usable(sham, "introspection")]
    if not sham.settings.get("untold") or not shifts:
        return []
    return [
        f"Being told of an injection, with none, moves the answer by {sum(shifts) / len(shifts):+.2f} nats by itself."
    ]


def _forget_settings(collected: Mapping[str, Columns], name: str, own: str) -> None:
    """An arm with strengths or layers of its own is compared over all of them, not setting by setting."""
    if name not in collected or own not in collected:
        return
    mine, others = (set(collected[one].columns["setting"]) for one in (own, name))
    if not mine & others:
        collected[name].columns["setting"] = []


def evidence_from(
    results: Sequence[Result], collected: Mapping[str, Columns], missing: Mapping[str, str], notes: Sequence[str] = ()
) -> Evidence:
    notes = list(notes)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for result in results:
        if left := result.unfinished:
            notes.append(f"The run is not finished: {left[0]:,} of {left[1]:,} readings are there.")
        for row in result.rows:
            counts[row["concept"]][1] += 1
            counts[row["concept"]][0] += failed(row)
    lost = sum(n for n, _ in counts.values())
    if lost:
        notes.append(
            f"{lost:,} of {sum(of for _, of in counts.values()):,} readings are no finite numbers and in no mean."
        )
    return Evidence(
        arms={name: columns.readings() for name, columns in collected.items() if columns},
        missing=dict(missing),
        failed={concept: (n, of) for concept, (n, of) in counts.items()},
        notes=notes,
    )


def usable(result: Result, kind: str, question_kind: str | None = None) -> list[dict]:
    """Usable rows of a kind."""
    rows = (row for row in result.rows if row["kind"] == kind and question_kind in (None, row["question_kind"]))
    return [row for row in rows if not failed(row)]


def collect(result: Result, collected: dict[str, Columns], missing: dict[str, str], **more: Any) -> None:
    """The arms that one experiment holds: its injections, rotations, control questions, tokens and passages.

    Args:
        more: columns of its yes-no readings in the place of the rows' own.
    """
    read = result.protocol["read"]
    if result.protocol.get("answers"):
        collect_places(result, collected)
        return
    own = usable(result, "introspection")
    if read == "content":
        _collect_content(result, own, "content", collected)
        _collect_content(result, usable(result, "random", "introspection"), "content_rotations", collected)
        _collect_other_vectors(result, own, collected)
    if read != "yes_no":
        return
    for row in own:
        collected["injected"].add(row, shift_of(row), base=row["base"]["log_odds"], **more)
        collected["format"].add(row, float(_answers(result, row)), **more)
        if (kl := row.get("dose_kl")) is not None and math.isfinite(kl):
            collected["dose"].add(row, kl, **more)
    for row in usable(result, "random", "introspection"):
        collected["rotations"].add(row, shift_of(row), **more)
    for row in usable(result, "control"):
        group = row.get("group", "")
        group = "factual_no" if group in PLAIN_NO else group
        if group not in GROUPS:
            continue
        if row.get("asked_in", "own") != "own":
            missing[group] = ELSEWHERE
            continue
        collected[group].add(row, shift_of(row), base=row["base"]["log_odds"], **more)


def _answers(result: Result, row: Mapping[str, Any]) -> bool:
    """Whether the model answers under the injection: a refuser says neither yes nor no, whatever their log-odds are."""
    return not result.leaves_format(row) and answer_mass(row["injected"]) >= LEAST_MASS


def collect_arm(result: Result, name: str, collected: dict[str, Columns], **more: Any) -> None:
    """An arm in the injection's place: its rows are random ones or, where another thing was injected, its own."""
    rows = usable(result, "random", "introspection") or usable(result, "introspection")
    for row in rows:
        collected[name].add(row, shift_of(row), **more)


def _collect_content(result: Result, rows: Iterable[dict], name: str, collected: dict[str, Columns]) -> None:
    """The gain of the concept's own word less the mean gain of the other concepts' words, with or without a space."""
    for row in rows:
        gains = _gains(result, row)
        if gains is None:
            continue
        others = [gain for concept, gain in gains.items() if concept != row["concept"]]
        if others:
            collected[name].add(row, gains[row["concept"]] - sum(others) / len(others))


def _collect_other_vectors(result: Result, rows: Iterable[dict], collected: dict[str, Columns]) -> None:
    """The same of a concept's word under the other concepts' directions: what it gains whatever is injected."""
    for row in rows:
        gains = _gains(result, row)
        if gains is None:
            continue
        for concept, gain in gains.items():
            others = [other for word, other in gains.items() if word != concept]
            if concept != row["concept"] and others:
                collected["content_other_vectors"].add({**row, "concept": concept}, gain - sum(others) / len(others))


def _gains(result: Result, row: Mapping[str, Any]) -> dict[str, float] | None:
    """Of every concept the gain of its word, of the likelier spelling with the injection; None without finite ones."""
    pairs = token_pairs(dict(row))
    if len(pairs) < 2 * len(result.concepts):
        return None
    gains = {}
    for i, concept in enumerate(result.concepts):
        spellings = pairs[2 * i : 2 * i + 2]
        base, injected = (_log_sum([pair[side]["log_prob"] for pair in spellings]) for side in (0, 1))
        gains[concept] = injected - base
    return gains if all_finite(*gains.values()) else None


def _log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if math.isfinite(top) else math.nan


def collect_places(result: Result, collected: dict[str, Columns], name: str = "") -> None:
    """Whether the passage with the largest gain is the one that was injected, less the level of chance.

    Args:
        name: of their arm; what the rows' kind says if it is empty.
    """
    chance = 1 / len(result.protocol["answers"])
    for row in result.rows:
        if row["kind"] not in ("introspection", "control") or "place" not in row:
            continue
        base, injected = ([one["log_prob"] for one in row[side]["answers"]] for side in ("base", "injected"))
        if None in base or None in injected or not all_finite(*base, *injected):
            continue
        gains = [after - before for before, after in zip(base, injected, strict=True)]
        right = float(gains.index(max(gains)) == row["place"]) - chance
        arm = name or ("localised" if row["kind"] == "introspection" else "localised_matched")
        # Wherever the injection was, the readings are of one setting.
        about = {key: entry for key, entry in row.items() if key != "place"}
        collected[arm].add(about, right)
        if arm == "localised":
            collected["moved"].add(about, max(map(abs, gains)))


def claims(found: Study | Result, *, level: float = 0.05, smallest: float = 0.2) -> Claims:
    """The ladder of a study, or of one result: rungs it has no readings for are "not run", with what would run them.

    Args:
        found: a Study or a Result.
        level: see ``introspect.studies.ladder``, which has the rules.
        smallest: the smallest shift that counts, in nats.
    """
    return ladder(evidence_of(found), level=level, smallest=smallest)
