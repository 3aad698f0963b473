"""What a result read besides the log-odds: lenses by layer, attention by head, answers of a localisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..experiments.detections import failed
from ..experiments.results import Result, Setting
from ..experiments.sweeps import is_random, is_sweep, random_direction, sweep_bests
from .confusion import confusion
from .heads import Map, head_maps
from .lens import LensCurve, lens_curves
from .style import Figure

MOST = 6  # settings of one figure
Reader = Callable[[dict], Sequence[float | None]]  # of a reading, by layer


def lens(result: Result) -> Figure | None:
    """The lens of each setting, or of the most striking one of each concept in a sweep; None where there is none."""
    curves = lenses(result)
    if not curves:
        return None
    title = f"{result.protocol['name']} · {result.model['name']} · logit lens at the read position"
    return lens_curves(curves, ylabel=lens_label(result), zero=result.protocol["read"] != "content", title=title)


def lens_label(result: Result) -> str:
    is_content = result.protocol["read"] == "content"
    return "log-probability of the concept's token (nats)" if is_content else "log-odds yes : no (nats)"


def by_layer(result: Result, field: str) -> Figure | None:
    """A readout's number of each layer, of the settings that ``lens`` shows; None where there is none."""
    curves = curves_by_layer(result, field)
    if not curves:
        return None
    title = f"{result.protocol['name']} · {result.model['name']} · {field} at the read position"
    return lens_curves(curves, ylabel=field, zero=False, title=title)


def curves_by_layer(result: Result, field: str) -> list[LensCurve]:
    return _curves(result, field, lambda setting: lambda reading: reading[field], with_controls=True)


def lenses(result: Result) -> list[LensCurve]:
    """Log-odds by layer, or in a content report the log-probability of the concept's unspaced token."""
    is_content = result.protocol["read"] == "content"
    return _curves(result, "lens", lambda setting: _reader(result, setting), with_controls=not is_content)


def _curves(result: Result, field: str, reader: Callable[[Setting], Reader], *, with_controls: bool) -> list[LensCurve]:
    found = []
    for setting in _settings(result):
        rows = [row for row in result.select(setting) if row["injected"].get(field) and not failed(row)]
        own = [row for row in rows if row["kind"] == "introspection"]
        if not own:
            continue
        read = reader(setting)
        controls = [row for row in rows if row["kind"] == "control" and not row.get("group") and with_controls]
        nulls: dict[tuple, list[dict]] = {}
        for row in rows:
            if is_random(row) and row["question_kind"] == "introspection":
                nulls.setdefault(random_direction(row), []).append(row)
        found.append(
            LensCurve(
                result.label(setting),
                base=_mean([read(row["base"]) for row in own]),
                injected=_mean([read(row["injected"]) for row in own]),
                nulls=[_mean([read(row["injected"]) for row in null]) for null in nulls.values()],
                control=_mean([read(row["injected"]) for row in controls]),
                steered=(setting.first_layer, setting.last_layer),
            )
        )
    return found


def attention(result: Result) -> Figure | None:
    """Attention to the injected span: what an injection changes, and the most that a random direction changes."""
    maps = attention_maps(result)
    if not maps:
        return None
    title = f"{result.protocol['name']} · {result.model['name']}"
    return head_maps(maps, label=ATTENTION, title=title)


ATTENTION = "attention to the injected span, less that without injection"


def attention_maps(result: Result) -> dict[str, Map]:
    """{panel: [layer][head]}, for each setting its own and, by head, the change of the rotation that changes most."""
    maps: dict[str, Map] = {}
    for setting in _settings(result)[: MOST // 2]:
        rows = [row for row in result.select(setting) if row["injected"].get("attention") and not failed(row)]
        own = [row for row in rows if row["kind"] == "introspection"]
        nulls = [row for row in rows if is_random(row) and row["question_kind"] == "introspection"]
        if own:
            maps[result.label(setting)] = _change(own).mean(axis=0).tolist()
        if own and nulls:
            n_nulls = len(set(map(random_direction, nulls)))
            maps[f"{result.label(setting)}: most of {n_nulls} random directions"] = _most(_change(nulls))
    return maps


def localised(result: Result) -> Figure | None:
    """Which passage's answer rose most, against which passage was injected; None where none was injected alone."""
    if (found := localisation_title(result)) is None:
        return None
    counts, title = found
    labels = [str(i + 1) for i in range(len(counts))]
    title = f"{result.protocol['name']} · {result.model['name']}\n{title.partition(': ')[0]}"
    return confusion(counts, labels, truth="injected passage", answer="answer", title=title, interval=_exact(counts))


def localisation_title(result: Result) -> tuple[list[list[int]], str] | None:
    """[injected passage][answer that rose most] and what it says; None where no passage was injected alone."""
    if not result.protocol.get("answers") or not any("place" in row for row in result.rows):
        return None
    counts = result.localisation().corrected.tolist()
    if not any(map(sum, counts)):
        return None  # every reading failed
    low, high = _exact(counts)
    right = sum(counts[i][i] for i in range(len(counts))) / sum(map(sum, counts))
    between = f"{100 * right:.0f}% ({100 * low:.0f} to {100 * high:.0f}%)"
    return counts, f"passage whose answer rose most: {between} right, chance {100 / len(counts):.0f}%"


def _exact(counts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """95% interval of the share of right answers (Clopper & Pearson 1934)."""
    from ..statistics import proportion  # here, because it loads torch

    interval = proportion(sum(counts[i][i] for i in range(len(counts))), sum(map(sum, counts))).interval
    return interval.low, interval.high


def _settings(result: Result) -> list[Setting]:
    if is_sweep(result):
        return [best.setting for best in sweep_bests(result).values()][:MOST]
    return result.groups[:MOST]


def _reader(result: Result, setting: Setting) -> Reader:
    if result.protocol["read"] == "content":
        token = 2 * result.concepts.index(setting.concept)
        return lambda reading: reading["lens"]["log_probs"][token]
    return lambda reading: reading["lens"]["log_odds"]


def _mean(curves: Sequence[Sequence[float | None]]) -> dict[int, float]:
    if not curves:
        return {}
    layers = zip(*curves, strict=True)
    return {
        layer: sum(values) / len(values) if None not in values else math.nan  # type: ignore[arg-type]
        for layer, values in enumerate(layers)
    }


def _change(rows: Sequence[dict]) -> np.ndarray:
    """[row, layer, head]; what is not finite is NaN."""

    def stacked(side: str) -> np.ndarray:
        return np.array([row[side]["attention"] for row in rows], dtype=float)

    return stacked("injected") - stacked("base")


def _most(changes: np.ndarray) -> list[list[float]]:
    """Of each head the change furthest from zero."""
    furthest = np.abs(np.nan_to_num(changes)).argmax(axis=0, keepdims=True)
    return np.take_along_axis(changes, furthest, axis=0)[0].tolist()
