"""The methods paragraph of a study, from what ran."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..experiments.results import Result
from .claims import Claims, listed

if TYPE_CHECKING:
    from .study import Study

STATISTICS = (
    "Concepts are the sample: every concept gives one number a comparison, the mean over its settings, wordings and "
    "questions. A claim holds where this mean is above zero by Student's t over the concepts, by flips of their signs "
    "and by a bootstrap-t over concepts, whichever p is the largest, against every control of the rung "
    "(intersection-union)."
)


def methods(found: Study | Result, claims: Claims | None = None) -> str:
    """What was done, as sentences for a paper's methods section, with the numbers that ran.

    Args:
        claims: of the study, with the level that was chosen; made with the usual one if not given.
    """
    claims = claims or found.claims()
    results = {"injected": found} if isinstance(found, Result) else dict(found.results)
    own = results.get("injected") or next(iter(results.values()))
    return " ".join([*_what_ran(own), *_arms(results), *_statistics(claims), *_versions(own)])


def _what_ran(own: Result) -> Iterable[str]:
    model, protocol = own.model, own.protocol
    strengths = sorted({setting.strength for setting in own.groups})
    ranges = sorted({(setting.first_layer, setting.last_layer) for setting in own.groups})
    asked = {row["question"] for row in own.rows if row["kind"] == "introspection"}
    wordings = {row.get("paraphrase", "") for row in own.rows if row["kind"] == "introspection"} - {""}
    yield (
        f"{model['name']} ({model['architecture']}, {model['n_layers']} blocks, {model['dtype']} on {model['device']}; "
        f"weights {model['hash'][:12]}) was run with the protocol {protocol['name']} ({protocol['hash'][:12]})."
    )
    unit = "times the median residual norm" if own.settings["strength_unit"] == "residual" else "times the vector"
    yield (
        f"Directions of {_counted(len(own.concepts), 'concept')} ({_short(own.concepts)}) were injected at "
        f"{_counted(len(strengths), 'strength')} ({_short([f'{s:g}' for s in strengths])}, {unit}) into "
        f"{_counted(len(ranges), 'range')} of blocks ({_short([f'{a}–{b}' for a, b in ranges])})."
    )
    yes, no = protocol["yes_token"].strip(), protocol["no_token"].strip()
    read = {
        "yes_no": f"the log-odds of “{yes}” against “{no}” as the next token",
        "content": "the log-probability of every concept's word as the next token",
        "sample": "sampled text",
    }[protocol["read"]]
    if protocol.get("answers"):
        read = "which passage is named, by the gain in log-probability of its letter"
    words = f", in {_counted(len(wordings), 'wording')}," if len(wordings) > 1 else ""
    yield f"{_counted(len(asked), 'question').capitalize()} about the model's own state{words} gave {read}, in float32."


def _arms(results: dict[str, Result]) -> Iterable[str]:
    counts = {name: len(result.rows) for name, result in results.items()}
    if len(results) > 1:
        yield f"Arms and their readings: {listed([f'{_plain(name)} ({n:,})' for name, n in counts.items()])}."
    else:
        yield f"There are {sum(counts.values()):,} readings."
    nulls = max((result.settings.get("nulls", 0) for result in results.values()), default=0)
    if nulls:
        yield f"Each vector had {_counted(nulls, 'random rotation')} of the same length."
    seeds = sorted({result.settings["seed"] for result in results.values()})
    yield f"{'Seed' if len(seeds) == 1 else 'Seeds'}: {', '.join(map(str, seeds))}."


def _statistics(claims: Claims) -> Iterable[str]:
    if not claims.branches:
        yield "No claim could be tested."
        return
    yield STATISTICS
    yield (
        f"Claims were tested in a fixed order, each at a one-sided level of {claims.level / 2:g} while those before it "
        f"hold, with p multiplied by {claims.branches} for {_counted(claims.branches, 'kind')} of claim; the intervals "
        f"are of {100 * claims.confidence:.4g}%. A claim fails where the effect is shown to be below "
        f"{claims.smallest:g} nats ({100 * claims.smallest_share:g} points for shares), by the same tests."
    )
    yield from claims.notes


def _versions(own: Result) -> Iterable[str]:
    versions = own.settings["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"Software: {named}; {_counted(own.settings['threads'], 'thread')}."


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _short(items: list[Any], most: int = 8) -> str:
    return ", ".join(items) if len(items) <= most else f"{', '.join(items[:most])}, …"
