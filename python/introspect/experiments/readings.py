"""Tables of what an experiment read beside the log-odds: lens, attention, changed tokens, answers of a localisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .fields import SETTING

if TYPE_CHECKING:
    import pandas

    from .results import Result


def _table(
    result: Result, lines: Callable[[dict], Iterator[dict[str, Any]]], what: str, option: str
) -> pandas.DataFrame:
    """The lines of every row after its keys. ValueError where nothing of the kind was read."""
    import pandas

    table = [{**{key: row[key] for key in SETTING if key in row}, **line} for row in result.rows for line in lines(row)]
    if not table:
        raise ValueError(f"Result: no {what} was read; run_experiment reads it with {option}")
    return pandas.DataFrame(table)


def lens_table(result: Result) -> pandas.DataFrame:
    """One row for each reading and layer: log_odds, p_yes and p_no (summed over the spellings), base and injected."""

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        base, injected = row["base"].get("lens"), row["injected"].get("lens")
        if injected is None:
            return
        for layer in range(len(injected["log_odds"])):
            yield {"layer": layer} | {
                name + side: reading[name][layer]
                for name in ("log_odds", "p_yes", "p_no")
                for side, reading in (("_base", base), ("", injected))
            }

    return _table(result, lines, "lens", "lens=True")


def token_lens_table(result: Result) -> pandas.DataFrame:
    """One row for each reading, layer and report token: its log-probability, base and injected."""

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        base, injected = row["base"].get("lens"), row["injected"].get("lens")
        if injected is None:
            return
        for i, token in enumerate(row["injected"].get("tokens") or []):
            for layer, value in enumerate(injected["log_probs"][i]):
                yield {
                    "token_concept": result.concepts[i // 2],
                    "spaced": i % 2 == 1,
                    "token": token["token"],
                    "layer": layer,
                    "log_prob_base": base["log_probs"][i][layer],
                    "log_prob": value,
                }

    return _table(result, lines, "lens of report tokens", "lens=True and a protocol that reads content")


def changes_table(result: Result) -> pandas.DataFrame:
    """One row for each of the most raised and lowered tokens: change in nats, place 1 the most changed."""

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        for direction in ("raised", "lowered"):
            for place, one in enumerate(row["injected"].get(direction, ()), start=1):
                yield {"direction": direction, "rank": place, **one}

    return _table(result, lines, "changed token", "top_k")


def projections_table(result: Result) -> pandas.DataFrame:
    """One row for each reading, direction and layer: the residual at the read position on the unit direction."""

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        for name, values in row["injected"].get("projections", {}).items():
            for layer, value in values.items():
                base = row["base"]["projections"][name][layer]
                yield {"direction": name, "layer": int(layer), "projection_base": base, "projection": value}

    return _table(result, lines, "projection", "directions")


def continuations_table(result: Result) -> pandas.DataFrame:
    """One row for each reading and text that was given: its log-probability after the read position, in nats."""

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        texts = result.settings.get("continuations", ())
        values = zip(
            texts, row["base"].get("continuations", ()), row["injected"].get("continuations", ()), strict=False
        )
        for text, base, injected in values:
            yield {"continuation": text, "log_prob_base": base, "log_prob": injected}

    return _table(result, lines, "continuation", "continuations")


def readout_table(result: Result, name: str) -> pandas.DataFrame:
    """One row for each reading and element of a readout's list, or of the lists in its dictionary."""
    n_layers = result.model["n_layers"]

    def lists(reading: dict) -> dict[str, list]:
        value = reading.get(name)
        named = {name: value} if isinstance(value, list) else value if isinstance(value, dict) else {}
        return {key: one for key, one in named.items() if isinstance(one, list)}

    def lines(row: dict) -> Iterator[dict[str, Any]]:
        base, injected = lists(row["base"]), lists(row["injected"])
        for i in range(max(map(len, injected.values()), default=0)):
            line: dict[str, Any] = {"layer" if len(next(iter(injected.values()))) == n_layers else "index": i}
            for key, values in injected.items():
                for column, of in ((f"{key}_base", base.get(key, ())), (key, values)):
                    if i < len(of):
                        line[column] = of[i]
            yield line

    return _table(result, lines, f"list of {name!r}", f"readouts={{{name!r}: True}}")


def attention_maps(result: Result, side: str) -> np.ndarray:
    """[rows, n_layers, n_heads] as in to_pandas(): attention from the read position to the injected tokens."""
    maps = [row[side].get("attention") for row in result.rows]
    if not maps or any(values is None for values in maps):
        raise ValueError("Result: no attention was read; run_experiment reads it with attention=True")
    return np.array(maps, dtype=float)  # what is not finite is NaN


@dataclass(frozen=True)
class Localisation:
    """Which passage the model named against which was injected, one for each injection and wording of the question.

    Attributes:
        counts: [injected passage, named passage]: the answer whose log-probability is highest.
        corrected: the same for the answer whose log-probability rose most over the unsteered run, which a liking for
            one of the answers leaves alone.
        chance: accuracy of answers that know nothing, one in the number of passages.
        n_failed: readings without finite numbers, which are counted in neither.
    """

    counts: np.ndarray
    corrected: np.ndarray
    chance: float
    n_failed: int = 0

    @property
    def accuracy(self) -> float:
        """Share of the counts that are right; NaN without any."""
        return _share(self.counts)

    @property
    def corrected_accuracy(self) -> float:
        return _share(self.corrected)


def _share(counts: np.ndarray) -> float:
    total = counts.sum()
    return float(np.trace(counts) / total) if total else float("nan")


def localise(result: Result, *, concept: str | None = None, kind: str = "introspection") -> Localisation:
    """Raises ValueError where the protocol injects no passages alone, or no row is of that concept and kind."""
    k = len(result.protocol.get("answers", ()))
    n_failed = 0
    seen: dict[str, Counter] = {"log_prob": Counter(), "gain": Counter()}
    for row in result.rows:
        if row["kind"] != kind or concept not in (None, row["concept"]) or "place" not in row:
            continue
        values, base = (
            np.array([token["log_prob"] for token in row[side]["answers"]], dtype=float)
            for side in ("injected", "base")
        )
        gains = values - base
        if not np.isfinite(gains).all():
            n_failed += 1
            continue
        seen["log_prob"][row["place"], int(values.argmax())] += 1
        seen["gain"][row["place"], int(gains.argmax())] += 1
    if not seen["gain"] and not n_failed:
        raise ValueError("Result: no passage was injected alone in such a row; see the protocol 'localisation'")

    def table(counter: Counter) -> np.ndarray:
        return np.array([[counter[i, j] for j in range(k)] for i in range(k)])

    return Localisation(table(seen["log_prob"]), table(seen["gain"]), 1 / k, n_failed)
