"""Activation patching: grids of what one run's activations do in another, planned as one graph."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from .. import _C
from ..arguments import all_or_some, listed, native_model
from ..hooks.names import get_act_name
from ..statistics import bootstrap_mean
from .metrics import Metric, MetricLike, Probability
from .prompts import Prompts, check_aligned, tokens_of

if TYPE_CHECKING:
    import pandas as pd

    from ..plots.style import Figure

HEADS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_z")
PATTERNS = ("attn.hook_pattern", "attn.hook_attn_scores")
MAX_CELLS = 200_000
Span = tuple[int, int] | Sequence[int]  # (first, last), last not included, as a tuple; or a list of positions


def point_name(point: str) -> str:
    """The name within a block of a shorthand or a full name: "z" and "blocks.3.attn.hook_z" are "attn.hook_z"."""
    name = get_act_name(point, 0) if "hook_" not in point else point
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


@dataclass(frozen=True)
class PatchGrid:
    """The metric of every cell of one point's grid, for every pair of prompts.

    ``values`` is [pairs, one dimension for each of ``axes``], ``labels`` say what stands along an axis; ``clean`` and
    ``corrupted`` are the metrics [pairs] of both runs as they are.
    """

    point: str
    values: torch.Tensor
    axes: tuple[str, ...]
    labels: dict[str, list] = field(repr=False)
    clean: torch.Tensor
    corrupted: torch.Tensor
    token_layers_asked: int = 0
    token_layers_to_run: int = 0
    _column: ClassVar[str] = "value"  # of what the table calls the values

    def mean(self) -> torch.Tensor:
        """The mean over pairs."""
        return self.values.mean(0)

    def normalised(self) -> torch.Tensor:
        """Of each pair: 0 is the corrupted run's metric, 1 the clean one's. A pair that does not differ is NaN."""
        shape = (-1, *[1] * len(self.axes))
        corrupted, clean = self.corrupted.view(shape), self.clean.view(shape)
        gap = clean - corrupted
        return torch.where(gap == 0, torch.nan, (self.values - corrupted) / gap)

    def to_pandas(self, *, intervals: bool = False, confidence: float = 0.95) -> pd.DataFrame:
        """One row a cell: its labels, the mean over pairs, and the mean of what is normalised.

        Args:
            intervals: adds ``low`` and ``high``, the bootstrap interval of the mean over pairs.
        """
        import pandas as pd

        places = list(np.ndindex(*self.values.shape[1:]))
        flat = self.values.flatten(1)
        table: dict[str, Any] = {
            axis: [self.labels[axis][place[i]] for place in places] for i, axis in enumerate(self.axes)
        }
        table[self._column] = flat.mean(0).tolist()
        table["normalised"] = self.normalised().flatten(1).nanmean(0).tolist()
        if intervals:
            found = [bootstrap_mean(cell, confidence=confidence).interval for cell in flat.T.tolist()]
            table["low"], table["high"] = [one.low for one in found], [one.high for one in found]
        return pd.DataFrame(table)

    def plot(self, *, normalised: bool | None = None, title: str = "") -> Figure:
        """A map with layers upwards; of a grid with positions and heads, one map a position is too many: the mean over
        heads is drawn.

        Args:
            normalised: None: where the metric of the two runs differs. Without a corrupted prompt there is one run.
        """
        from ..plots.patching import patch_map

        if normalised is None:
            normalised = bool((self.clean != self.corrupted).any())
        values = self.normalised().nanmean(0) if normalised else self.mean()
        while values.dim() > 2:
            values = values.mean(-1)
        if values.dim() == 1:
            values = values.unsqueeze(-1)
        along = self.axes[1] if len(self.axes) > 1 else ""
        return patch_map(
            values.tolist(),
            layers=self.labels["layer"],
            columns=[str(label) for label in self.labels[along]] if along else [self.point],
            along=along,
            label="0 corrupted, 1 clean" if normalised else "metric",
            title=title or self.point,
            signed=not normalised,
        )


@dataclass(frozen=True)
class PatchGrids:
    """Grids by point, ``grids["z"]``; where there is one, its values, axes and methods are found here too."""

    grids: dict[str, PatchGrid]

    def __getitem__(self, point: str) -> PatchGrid:
        return self.grids[point] if point in self.grids else self.grids[point_name(point)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "grids":
            raise AttributeError(name)
        if len(self.grids) != 1:
            raise AttributeError(f"{name} is of one grid; choose it by its point: {', '.join(self.grids)}")
        return getattr(next(iter(self.grids.values())), name)

    def to_pandas(self, **options: Any) -> pd.DataFrame:
        """The tables of all points, below one another, with a column ``point``."""
        import pandas as pd

        tables = [grid.to_pandas(**options).assign(point=point) for point, grid in self.grids.items()]
        table = pd.concat(tables, ignore_index=True)
        return table[["point", *table.columns.drop("point")]]


def patch_grid(
    model: Any,
    clean: Prompts,
    corrupted: Prompts | None = None,
    points: Sequence[str] = ("resid_pre",),
    *,
    metric: MetricLike,
    patch: Literal["run", "zero", "mean"] | Mapping[str, torch.Tensor] = "run",
    direction: Literal["denoising", "noising"] = "denoising",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Literal["all"] | None = None,
    heads: Sequence[int] | Literal["all"] | None = None,
    by_key: bool = False,
    spans: Mapping[str, Any] | None = None,
    window: int = 1,
    max_cells: int | None = MAX_CELLS,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> PatchGrids:
    """The metric of a run for every place at which something is put into it.

    Denoising runs the corrupted prompt and puts in activations of the clean one (which places suffice?), noising the
    other way (which places are needed?). Without a corrupted prompt the clean one is run and parts of it are ablated.
    All cells of a pair are one graph, so that only what a cell can change is run.
    Source: Meng et al. 2022 (arXiv:2202.05262), Zhang & Nanda 2024 (arXiv:2309.16042).

    Args:
        clean, corrupted: a text, token ids, or a list of them, one a pair; the prompts of a pair are equally long.
        points: shorthands ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern") or hook names.
        metric: LogitDifference and its neighbours, or a callable on logits [1, pos, d_vocab], all of which it costs.
        patch: what is put in: the other run's activations, zeros, their mean over positions, or means over a data set,
            {point: [n_layers, ...]}.
        layers: None is all.
        positions: those that are an axis; None is every one, "all" patches all of them at once.
        heads: of points with heads, in the same way.
        by_key: of patterns, an axis of keys: one attention weight at a time.
        spans: instead of positions, {name: (clean span, corrupted span)} for prompts of different lengths, each a
            (first, last) or a list of positions, as many in both; with several pairs a list of those.
        window: layers that are patched at once, around each.
        max_cells: more are an error that says how many and how long; None is any number.
        memory_budget: bytes of one pass, weights aside.

    Returns:
        {point: PatchGrid}; of a single point, with that grid's own attributes.

    Raises:
        ValueError: prompts of different lengths (both are named, and the first token that differs), an answer that is
            not one token, arguments that contradict one another, or too many cells.
        IndexError: layers, heads or positions that are not there.
        HookError: a point that the model does not have.
        ConfigError: a model that is hooked or steered.
    """
    who = "patch_grid"
    native = native_model(model, who)
    layers = all_or_some(layers, "layers", who)
    if heads is not None and not isinstance(heads, str):
        heads = all_or_some(heads, "heads", who)
    elif heads not in (None, "all"):
        raise ValueError(f"{who}: heads must be numbers or 'all', got {heads!r}")
    if not callable(metric):  # metrics that are data are callable too
        raise TypeError(f"{who}: metric must be LogitDifference or the like, or a function of logits, got {metric!r}")
    if not points:
        raise ValueError(f"{who}: at least one point is needed, got none")
    cleans = tokens_of(model, clean, who, "clean")
    if corrupted is None and patch == "run":
        raise ValueError(f"{who}: without a corrupted prompt, say what is put in: patch='zero' or 'mean'")
    others = cleans if corrupted is None else tokens_of(model, corrupted, who, "corrupted")
    if len(cleans) != len(others):
        raise ValueError(f"{who}: as many clean as corrupted prompts are needed, got {len(cleans)} and {len(others)}")
    if direction not in ("denoising", "noising"):
        raise ValueError(f"{who}: direction must be denoising or noising, got {direction!r}")
    if spans is None:
        check_aligned(model, list(zip(cleans, others, strict=True)), who)
    noising = direction == "noising" or corrupted is None
    runs = list(zip(cleans, others, strict=True) if noising else zip(others, cleans, strict=True))
    places, names = _places(who, runs, positions, spans, noising)

    grids = {}
    wanted = [point_name(point) for point in ([points] if isinstance(points, str) else points)]
    axes_of = {point: _axes(point, layers, positions, heads, by_key, window) for point in wanted}
    shapes = {point: _shape(native, point, layers, names, positions, heads, by_key) for point in wanted}
    _check_size(who, model, runs, {point: math.prod(shape.values()) for point, shape in shapes.items()}, max_cells)
    for point, axes in axes_of.items():
        if isinstance(metric, Metric):
            pairs = [
                _C.PatchPair(to, from_, one, places=place)
                for (to, from_), one, place in zip(runs, metric.resolve(model, len(runs)), places, strict=True)
            ]
            found = _C.patch_grid(
                native,
                pairs,
                axes,
                with_=patch if isinstance(patch, str) else "mean",
                mean=None if isinstance(patch, str) else _mean_of(patch, point),
                reference_is_to=noising,
                memory_budget=memory_budget,
                progress=progress,
            )
            values, to, from_ = found.values, found.to, found.from_
            cost = (found.token_layers_asked, found.token_layers_to_run)
        else:
            if spans is not None or patch != "run":
                raise ValueError(f"{who}: a callable metric goes with patch='run' and no spans")
            values, to, from_ = _by_callable(native, runs, point, axes, metric, memory_budget, progress)
            cost = (0, 0)
        if patch != "run" and corrupted is None:
            from_ = to
        labels = _labels(shapes[point], layers, names, heads)
        if len(runs) == 1 and spans is None and "position" in labels:
            shown = token_labels(model, runs[0][0])
            labels["position"] = [shown[p] for p in names]
        ends = (to, from_) if noising else (from_, to)
        values = values.view(len(runs), *shapes[point].values())
        grids[point] = PatchGrid(point, values, tuple(shapes[point]), labels, *ends, *cost)
    return PatchGrids(grids)


def causal_trace(
    model: Any,
    prompt: Prompts,
    subject: str | tuple[int, int],
    *,
    metric: Metric | None = None,
    points: Sequence[str] = ("resid_post", "mlp_out", "attn_out"),
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 1,
    window: int = 10,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> PatchGrids:
    """Causal tracing: the subject's embeddings are noised, and each place is restored to what it was.

    Args:
        prompt: one prompt.
        subject: text of the prompt, where it stands first, or positions (first, last), last not included.
        metric: None is the probability of the likeliest next token.
        noise: standard deviation of the noise, in that of all numbers of the subject's embeddings.
        samples: of the noise; the grids' pairs are these. ``seed`` is of numpy's RandomState, as in Meng et al.
        window: layers of MLPs or attention that are restored at once; the residual stream is restored in one.

    Returns:
        {point: PatchGrid}; ``corrupted`` is the noised run's metric.

    Raises:
        ValueError: a subject that is not in the prompt.

    Source: Meng et al. 2022, arXiv:2202.05262.
    """
    who = "causal_trace"
    native = native_model(model, who)
    tokens = tokens_of(model, prompt, who, "prompt")
    if len(tokens) != 1:
        raise ValueError(f"{who}: one prompt is needed, got {len(tokens)}")
    ids = tokens[0]
    if samples < 1:
        raise ValueError(f"{who}: samples must be 1 or more, got {samples}")
    first, last = _span_of(model, ids, subject, who)
    span = range(first, last)
    embeddings = _C.activations_at(native, [ids], "hook_embed")[0][0]
    scale = noise * float(embeddings[first:last].std(correction=0))
    draws = np.random.RandomState(seed).randn(samples, last - first, embeddings.shape[-1])
    if metric is None:
        metric = Probability(int(torch.as_tensor(model(torch.tensor([ids]))[0, -1]).argmax()))
    ours = metric.resolve(model)[0]
    grids = {}
    for point in map(point_name, [points] if isinstance(points, str) else points):
        axes = _C.PatchAxes(point, window=window if point in ("hook_mlp_out", "hook_attn_out") else 1)
        pairs = [_C.PatchPair(ids, ids, ours, to_interventions=[_noise(draw * scale, span)]) for draw in draws]
        found = _C.patch_grid(native, pairs, axes, memory_budget=memory_budget, progress=progress)
        labels: dict[str, list] = {
            "layer": list(range(native.cfg.n_layers)),
            "position": token_labels(model, ids),
        }
        cost = (found.token_layers_asked, found.token_layers_to_run)
        grids[point] = PatchGrid(point, found.values, tuple(found.axes), labels, found.from_, found.to, *cost)
    return PatchGrids(grids)


def token_labels(model: Any, ids: Sequence[int]) -> list[str]:
    """Each token as text, with its position, so that no two are equal."""
    has_text = getattr(model, "tokenizer", None) is not None
    return [f"{place} {model.tokenizer.decode([one])!r}" if has_text else f"{place}" for place, one in enumerate(ids)]


def _noise(values: np.ndarray, span: range) -> _C.Intervention:
    at = np.zeros((1, span.stop, values.shape[-1]))
    at[0, span.start :] = values
    return _C.Intervention({-1: torch.from_numpy(at).float()}, point="hook_embed", op="add", positions=list(span))


def _span_of(model: Any, ids: Sequence[int], subject: str | tuple[int, int], who: str) -> tuple[int, int]:
    if not isinstance(subject, str):
        first, last = subject
        if not 0 <= first < last <= len(ids):
            raise ValueError(f"{who}: the subject must be positions of the prompt's {len(ids)} tokens, got {subject}")
        return first, last
    text = model.tokenizer.decode(list(ids))
    start = text.find(subject)
    if start < 0 or not subject:
        raise ValueError(f"{who}: the subject {subject!r} is not in the prompt")
    # Several tokens may share one character's bytes: it is whole after the last of them, and begun by each.
    whole, begun = [0], [0]
    for i in range(len(ids)):
        prefix = model.tokenizer.decode(list(ids[: i + 1]))
        same = (one == other for one, other in zip(prefix, text, strict=False))
        whole.append(sum(itertools.takewhile(bool, same)))
        begun.append(whole[-1] + (len(prefix) > whole[-1]))
    inside = [i for i in range(len(ids)) if whole[i] < start + len(subject) and begun[i + 1] > start]
    return inside[0], inside[-1] + 1


def _axes(point, layers, positions, heads, by_key, window) -> _C.PatchAxes:
    has_heads = point in HEADS + PATTERNS
    return _C.PatchAxes(
        point,
        layers=layers,
        heads=[] if heads is None or heads == "all" else list(heads),
        by_position=not isinstance(positions, str),
        by_head=has_heads and heads != "all",
        by_key=by_key,
        window=window,
    )


def _places(who, runs, positions, spans, noising):
    """Of each pair the positions that are patched together, and the names of those of the first one."""
    if spans is not None and positions is not None:
        raise ValueError(f"{who}: give positions or spans, not both")
    if spans is None:
        if isinstance(positions, str) and positions != "all":
            raise ValueError(f"{who}: positions must be numbers or 'all', got {positions!r}")
        some = [] if isinstance(positions, str) else all_or_some(positions, "positions", who)
        out = []
        for to, _ in runs:
            if wrong := [p for p in some if not -len(to) <= p < len(to)]:
                raise IndexError(
                    f"{who}: positions of a prompt of {len(to)} tokens are {-len(to)} to {len(to) - 1}, got {wrong[0]}"
                )
            chosen = [p % len(to) for p in some] or range(len(to))
            out.append([([p], [p]) for p in chosen])
        return out, [place[0][0] for place in out[0]]
    if not spans:
        raise ValueError(f"{who}: spans must hold one at least, got none")
    out = []
    for pair in range(len(runs)):
        of_pair = []
        for name, given in spans.items():
            try:
                clean, corrupted = given[pair] if isinstance(given, list) else given
                clean, corrupted = (
                    list(range(*span)) if isinstance(span, tuple) else listed(span, name, who)
                    for span in (clean, corrupted)
                )
            except (TypeError, ValueError, IndexError):
                raise TypeError(
                    f"{who}: spans are {{name: (clean span, corrupted span)}}, each a (first, last) or a list of "
                    f"positions, with several pairs a list of those; got {given!r} for {name!r} of pair {pair}"
                ) from None
            if len(clean) != len(corrupted):
                raise ValueError(
                    f"{who}: a span must have as many tokens in both prompts; {name!r} of pair {pair} has "
                    f"{len(clean)} and {len(corrupted)}"
                )
            of_pair.append((clean, corrupted) if noising else (corrupted, clean))
        out.append(of_pair)
    return out, list(spans)


def n_heads_at(native: _C.Model, point: str) -> int:
    """How many heads stand at a point with heads: groups of keys and values, or query heads."""
    grouped = point in ("attn.hook_k", "attn.hook_v", "attn.hook_rot_k")
    return native.cfg.n_key_value_heads if grouped else native.cfg.n_heads


def _shape(native, point, layers, names, positions, heads, by_key) -> dict[str, int]:
    """The axes of a point's grid and how long each is."""
    out = {"layer": len(layers) if layers else native.cfg.n_layers}
    if not isinstance(positions, str):
        out["position"] = len(names)
    if point in HEADS + PATTERNS and heads != "all":
        out["head"] = len(heads) if heads else n_heads_at(native, point)
    if by_key:
        out["key"] = len(names)
    return out


def _check_size(who, model, runs, cells: Mapping[str, int], max_cells: int | None) -> None:
    total = sum(cells.values()) * len(runs)
    if max_cells is None or total <= max_cells:
        return
    ids = torch.tensor([runs[0][0]])
    began = time.perf_counter()
    model(ids)
    hours = (time.perf_counter() - began) * total / 4 / 3600  # a patch changes a quarter of a grid's tokens and layers
    listed = ", ".join(f"{point}: {n:,}" for point, n in cells.items())
    raise ValueError(
        f"{who}: {total:,} cells ({listed}, for {len(runs)} pairs) are more than max_cells={max_cells:,}; they would "
        f"take some {hours:.1f} hours. Choose layers, positions or heads, or give max_cells=None"
    )


def _mean_of(patch: Mapping[str, torch.Tensor], point: str) -> torch.Tensor:
    for name, mean in patch.items():
        if point_name(name) == point:
            return mean
    raise ValueError(f"patch_grid: there is no mean of {point} among {', '.join(patch)}")


def _by_callable(native, runs, point, axes, metric: Callable, memory_budget: int, progress):
    """The same for any function of all logits [1, pos, d_vocab]."""
    values, ends = [], []
    for to, from_ in runs:
        everywhere = list(range(len(to)))
        source = _C.activations_at(native, [from_], point)[0]
        resid = _C.patched_residuals(
            native, to, source, axes, positions=everywhere, memory_budget=memory_budget, progress=progress
        )
        values.append(
            torch.tensor([float(metric(native.readout(one).unsqueeze(0))) for one in resid], dtype=torch.float64)
        )
        plain = [native.forward(torch.tensor([ids])) for ids in (to, from_)]
        ends.append([float(metric(logits)) for logits in plain])
    to, from_ = torch.tensor(ends, dtype=torch.float64).T
    return torch.stack(values), to, from_


def _labels(shape: Mapping[str, int], layers, names, heads) -> dict[str, list]:
    given = {"layer": layers, "position": names, "head": heads}
    return {axis: list(given.get(axis) or range(n)) for axis, n in shape.items()}
