"""A study written down before it is run, and what was done otherwise."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._json import parse_json
from ..output_files import write_text
from .claims import MARKS
from .rungs import STEPS

if TYPE_CHECKING:
    from .study import Study

SCHEMA = 1


@dataclass(frozen=True)
class Registration:
    """What a study will do and what it expects.

    The hash finds a file that was changed by mistake. Who could have changed both keeps the hash elsewhere as well (a
    commit, a mail, a registry) and gives it to ``load``.
    """

    hypotheses: dict[str, str]
    """rung of the ladder -> the verdict that is expected"""
    model: str
    protocol: dict[str, str]
    """name and hash"""
    arms: list[str]
    concepts: list[str]
    strengths: list[float | str]
    layers: list[tuple[int, int]]
    seeds: list[int]
    stopping: str
    """when no more is run, in words"""
    level: float
    smallest: float
    remarks: str = ""
    model_hash: str = ""
    paraphrases: list[str] = field(default_factory=list)
    written: str = ""
    """date and time, UTC"""
    version: str = ""
    """of introspect"""

    @property
    def sha256(self) -> str:
        """Of everything that is registered."""
        return hashlib.sha256(_canonical(asdict(self)).encode("utf-8")).hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Write the file once.

        Raises:
            FileExistsError: it is there; a new plan is a new file.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"Registration: {path} must not be there yet: a registration is written once")
        data = {"schema": SCHEMA, **asdict(self), "sha256": self.sha256}
        write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike, *, sha256: str | None = None) -> Registration:
        """Read a file that is as it was written.

        Args:
            sha256: the hash as it was noted elsewhere.

        Raises:
            IoError: the file was changed after it was written, is another than that of the hash, or no registration.
        """
        from .._C import IoError

        data = parse_json(Path(path).read_text(encoding="utf-8"), f"{path}")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise IoError(f"Registration: {path} must be a registration of schema {SCHEMA}")
        data = {key: value for key, value in data.items() if key != "schema"}
        noted = data.pop("sha256", None)
        try:
            found = cls(**{**data, "layers": [(first, last) for first, last in data["layers"]]})
            own = found.sha256
        except (KeyError, TypeError, ValueError) as error:
            raise IoError(
                f"Registration: {path} must hold every part of a registration and nothing else: {error}"
            ) from None
        if noted != own:
            raise IoError(
                f"Registration: {path} was changed after it was written: its hash is {own[:16]}…, and the one that was "
                f"written into it {str(noted)[:16]}…"
            )
        if sha256 is not None and sha256 != own:
            raise IoError(
                f"Registration: {path} must have the hash {sha256[:16]}…, got {own[:16]}…: it is another plan"
            )
        return found

    def check(self, study: Study) -> list[str]:
        """The deviations, noted in ``study.registration`` with the hash and what became of each hypothesis."""
        found = self.deviations(study)
        outcomes = [dict(zip(("rung", "expected", "found"), one, strict=True)) for one in self.outcomes(study)]
        noted = {"written": self.written, "sha256": self.sha256, "deviations": found, "outcomes": outcomes}
        study.registration = noted
        return found

    def deviations(self, study: Study) -> list[str]:
        """What was done otherwise than registered, a sentence each; empty where nothing was."""
        return list(_deviations(self, study))

    def outcomes(self, study: Study) -> list[tuple[str, str, str]]:
        """(rung, expected and found verdict) of every hypothesis, by the level and smallest effect registered."""
        from .from_results import claims

        found = claims(study, level=self.level, smallest=self.smallest)
        return [(name, expected, found[name].verdict) for name, expected in self.hypotheses.items()]


def register(
    path: str | os.PathLike,
    *,
    hypotheses: Mapping[str, str],
    model: str,
    protocol: str | Any,
    arms: Iterable[str],
    concepts: Iterable[str],
    strengths: Sequence[float | str],
    layers: Iterable[tuple[int, int]],
    seeds: Iterable[int],
    stopping: str,
    level: float = 0.05,
    smallest: float = 0.2,
    paraphrases: Iterable[str] = (),
    model_hash: str = "",
    remarks: str = "",
) -> Registration:
    """Write a study file before the study is run.

    Args:
        path: of the file, which must not be there yet.
        hypotheses: rung of the ladder -> expected verdict ("holds", "fails", "not shown").
        model: its name.
        protocol: a name that load_protocol knows, a path, or a Protocol.
        arms, concepts, strengths, layers, seeds, paraphrases: what will be run.
        stopping: when no more is run, in words.
        level, smallest: of the ladder.
        model_hash: as results name it, if it is known.
        remarks: anything else.

    Raises:
        FileExistsError: the file is there.
        ValueError: an expected verdict or a rung that does not exist, or nothing to be run.
    """
    from .. import __version__
    from ..experiments.run import load_protocol

    rungs = ["live", *(step.name for step in STEPS)]
    for name, verdict in hypotheses.items():
        if name not in rungs:
            raise ValueError(f"register: hypotheses are about the rungs {', '.join(rungs)}, got {name!r}")
        if verdict not in MARKS:
            raise ValueError(f"register: the verdict of {name!r} must be one of {', '.join(MARKS)}, got {verdict!r}")
    lists: dict[str, Any] = {
        "arms": list(arms),
        "concepts": list(concepts),
        "strengths": list(strengths),
        "seeds": list(seeds),
    }
    for name, entries in lists.items():
        if not entries:
            raise ValueError(f"register: {name} must name what will be run, got none")
    if not stopping.strip():
        raise ValueError("register: stopping must say when no more is run, got nothing")
    loaded = load_protocol(protocol) if isinstance(protocol, str | os.PathLike) else protocol
    made = Registration(
        hypotheses=dict(hypotheses),
        model=model,
        protocol={"name": loaded.name, "hash": loaded.hash},
        layers=[(int(first), int(last)) for first, last in layers],
        stopping=stopping,
        level=level,
        smallest=smallest,
        remarks=remarks,
        model_hash=model_hash,
        paraphrases=list(paraphrases),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        **lists,
    )
    made.save(path)
    return made


def _canonical(data: Any) -> str:
    """JSON in which equal content is equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _deviations(plan: Registration, study: Study) -> Iterable[str]:
    results = study.results
    first = next(iter(results.values()))
    if first.model["name"] != plan.model:
        yield f"The model is {first.model['name']}, registered was {plan.model}."
    if plan.model_hash and first.model["hash"] != plan.model_hash:
        hashes = first.model["hash"][:12], plan.model_hash[:12]
        yield f"The model's weights are others: hash {hashes[0]}…, registered was {hashes[1]}…."
    own = results.get("injected", first)
    if own.protocol["hash"] != plan.protocol["hash"]:
        names = [f"{one['name']} ({one['hash'][:12]}…)" for one in (own.protocol, plan.protocol)]
        yield f"The protocol is {names[0]}, registered was {names[1]}."
    yield from _sets("arm", plan.arms, results)
    yield from _sets("concept", plan.concepts, own.concepts)
    if all(isinstance(strength, int | float) for strength in plan.strengths):
        yield from _sets("strength", plan.strengths, {setting.strength for setting in own.groups})
    yield from _sets("range of layers", plan.layers, {(one.first_layer, one.last_layer) for one in own.groups})
    yield from _sets("seed", plan.seeds, {own.settings["seed"]})
    if plan.paraphrases:
        asked = {row.get("paraphrase", "") for row in own.rows if row["kind"] == "introspection"}
        yield from _sets("wording", plan.paraphrases, asked)
    for name, result in results.items():
        if left := result.unfinished:
            yield f"Arm “{name}” is not finished: {left[0]:,} of {left[1]:,} readings are there."
    if (version := own.settings["versions"]["introspect"]) != plan.version:
        yield f"introspect is version {version}, registered was {plan.version}."
    started = study.settings.get("started", "")
    if started and plan.written and started < plan.written:
        yield f"The study was begun ({started}) before it was registered ({plan.written})."


def _sets(what: str, planned: Iterable[Any], done: Iterable[Any]) -> Iterable[str]:
    planned, done = list(planned), list(done)
    for one in planned:
        if one not in done:
            yield f"The {what} {_named(one)} was registered and not run."
    for one in sorted(one for one in done if one not in planned):
        yield f"The {what} {_named(one)} was run and not registered."


def _named(one: Any) -> str:
    return f"“{one}”" if isinstance(one, str) else f"{one[0]}–{one[1]}" if isinstance(one, tuple) else f"{one:g}"
