"""Activation patching under TransformerLens's names: shapes and orders of axes are theirs, the work is planned.

``get_act_patch_*`` run the corrupted prompt and put in, cell by cell, what ``clean_cache`` holds; the result is the
metric of each cell, as it comes (nothing is normalised). All cells are one graph, so that only what a cell can change
is run. A metric that is data (``introspect.LogitDifference``, with token ids) is given only the logits it names and
averaged over the batch; any other callable is given all logits [batch, pos, d_vocab]. ``analysis.patch_grid`` does the
same from prompts, with several pairs, intervals and plots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _C
from .analysis.metrics import Metric
from .analysis.patching import HEADS, PATTERNS, n_heads_at, point_name
from .arguments import native_model
from .hooks.names import get_act_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
]

Setter = Callable[[torch.Tensor, Sequence[int], torch.Tensor], torch.Tensor]


# Setters put one cell of the clean activation into the corrupted one; an index begins with the layer.


def layer_pos_patch_setter(corrupted_activation, index, clean_activation):
    """[batch, pos, ...] at one position: index (layer, pos)."""
    _, pos = index
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """[batch, pos, head, d_head] at one position and head: index (layer, pos, head)."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """[batch, pos, head, d_head] of one head: index (layer, head)."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """[batch, head, dest, src] of one head: index (layer, head)."""
    _, head = index
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """[batch, head, dest, src] of one head and destination: index (layer, head, dest)."""
    _, head, dest = index
    corrupted_activation[:, head, dest] = clean_activation[:, head, dest]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """One attention weight of [batch, head, dest, src]: index (layer, head, dest, src)."""
    _, head, dest, src = index
    corrupted_activation[:, head, dest, src] = clean_activation[:, head, dest, src]
    return corrupted_activation


# The axes that a setter's index runs over, as names of ours.
_PLANNED: dict[Setter, tuple[str, ...]] = {
    layer_pos_patch_setter: ("layer", "position"),
    layer_pos_head_vector_patch_setter: ("layer", "position", "head"),
    layer_head_vector_patch_setter: ("layer", "head"),
    layer_head_pattern_patch_setter: ("layer", "head"),
    layer_head_pos_pattern_patch_setter: ("layer", "head", "position"),
    layer_head_dest_src_pos_pattern_patch_setter: ("layer", "head", "position", "key"),
}
_ORDER = ("layer", "position", "head", "key")  # in which the library runs them


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> pd.DataFrame:
    """Every combination of indices below the given ends, the last column fastest."""
    import pandas as pd

    return pd.DataFrame(list(itertools.product(*map(range, column_max_ranges))), columns=list(column_names))


def generic_activation_patch(
    model: Any,
    corrupted_tokens: torch.Tensor,
    clean_cache: Any,
    patching_metric: Callable[[torch.Tensor], Any] | Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, pd.DataFrame]:
    """The metric of the corrupted run for each cell that ``patch_setter`` writes into an activation.

    Args:
        corrupted_tokens: [batch, pos].
        clean_cache: of run_with_cache on prompts of the same shape.
        patching_metric: of logits [batch, pos, d_vocab], or a metric that is data.
        patch_setter: (corrupted activation, index, clean activation) -> activation. The module's own are planned; any
            other is run cell by cell, with the same numbers.
        activation_name: a shorthand: "resid_pre", "z", "pattern".
        index_axis_names: of "layer", "pos", "head", "head_index", "src_pos", "dest_pos", the layer first: all of it.
        index_df: instead, a row for each index; the result is flat.
        return_index_df: give the table of indices too.

    Returns:
        float32, one dimension an axis, or flat for index_df.

    Raises:
        ValueError: neither or both of index_axis_names and index_df, or other tokens than the cache is of.
        ConfigError: a model that is hooked or steered.
    """
    who = "generic_activation_patch"
    native = native_model(model, who)
    if (index_axis_names is None) == (index_df is None):
        raise ValueError(f"{who}: give index_axis_names or index_df, and None for the other")
    batch = corrupted_tokens if corrupted_tokens.dim() == 2 else corrupted_tokens.unsqueeze(0)
    point = point_name(activation_name)
    shape = None
    if index_df is None:
        assert index_axis_names is not None
        ends = _ends(native, point, batch.shape[1])
        shape = [ends[name] for name in index_axis_names]
        index_df = make_df_from_ranges(shape, index_axis_names)
    indices = [tuple(int(i) for i in row) for row in index_df.itertuples(index=False)]
    values = _planned(native, batch, clean_cache, patching_metric, patch_setter, activation_name, indices, who)
    if values is None:
        values = _cell_by_cell(model, batch, clean_cache, patching_metric, patch_setter, activation_name, indices)
    out = torch.tensor(values, dtype=torch.float32)
    out = out if shape is None else out.view(*shape)
    return (out, index_df) if return_index_df else out


def _ends(native: _C.Model, point: str, n_tokens: int) -> dict[str, int]:
    heads = n_heads_at(native, point)
    positions = dict.fromkeys(("pos", "src_pos", "dest_pos"), n_tokens)
    return {"layer": native.cfg.n_layers, "head": heads, "head_index": heads, **positions}


def _planned(native, batch, cache, metric, setter, name, indices, who) -> list[float] | None:
    """The cells through one graph a row; None where a setter or a choice of cells is not a grid."""
    axes = _PLANNED.get(setter)
    point = point_name(name)
    if axes is None or not indices or any(len(index) != len(axes) for index in indices):
        return None
    if ("head" in axes) != (point in HEADS + PATTERNS):
        return None
    chosen = [sorted(set(column)) for column in zip(*indices, strict=True)]
    cells = list(itertools.product(*chosen))
    if sorted(set(indices)) != cells:
        return None
    of_axis = dict(zip(axes, chosen, strict=True))
    n_tokens = batch.shape[1]
    patched = of_axis.get("position", [])
    sources = torch.stack([_rows(cache, name, layer, batch, point, who) for layer in range(native.cfg.n_layers)], 1)
    ours = _C.PatchAxes(
        point,
        layers=of_axis["layer"],
        heads=of_axis.get("head", []),
        by_position="position" in axes,
        by_head="head" in axes,
        by_key="key" in axes,
    )
    metrics = metric.resolve(None, len(batch)) if isinstance(metric, Metric) else None
    reads = [one.reads(n_tokens, native.cfg.d_vocab) for one in metrics or []]
    everywhere = list(range(n_tokens))
    resid = [
        _C.patched_residuals(
            native, row.tolist(), source, ours, positions=reads[b][0] if metrics else everywhere, patched=patched
        )
        for b, (row, source) in enumerate(zip(batch, sources, strict=True))
    ]
    values = _metrics_of(native, resid, metric, metrics, reads, n_tokens)
    # The library's cells stand in another order of axes, over all keys.
    ranges = {**of_axis, "key": everywhere}
    found = dict(zip(itertools.product(*(ranges[axis] for axis in _ORDER if axis in axes)), values, strict=True))
    order = [axes.index(axis) for axis in _ORDER if axis in axes]
    return [found[tuple(index[i] for i in order)] for index in indices]


def _rows(cache, name: str, layer: int, batch: torch.Tensor, point: str, who: str) -> torch.Tensor:
    """What is put in at a layer, [batch, pos, ...], heads after positions."""
    source = cache[get_act_name(name, layer)]
    if source.dim() == (2 if point not in HEADS + PATTERNS else 3):  # a cache without its batch dimension
        source = source.unsqueeze(0)
    source = source.transpose(1, 2) if point in PATTERNS else source
    if source.shape[:2] != batch.shape:
        raise ValueError(
            f"{who}: the cache is of {tuple(source.shape[:2])} tokens, the corrupted prompts of {tuple(batch.shape)}"
        )
    return source


def _metrics_of(native, resid, metric, metrics, reads, n_tokens) -> list[float]:
    """The metric of each cell, of residuals [cells, positions, d_model] for each row."""
    if metrics is None:
        return [float(metric(torch.stack([native.readout(row[c]) for row in resid]))) for c in range(len(resid[0]))]
    total = torch.zeros(len(resid[0]), dtype=torch.float64)
    step = 256
    for row, one, (_, vocab_ids, needs_reference) in zip(resid, metrics, reads, strict=True):
        if needs_reference:
            raise ValueError(f"{metric}: here the clean run is not known; give the divergence what it is from")
        for first in range(0, len(row), step):
            logits = native.readout(row[first : first + step], vocab_ids=vocab_ids)
            total[first : first + step] += one.evaluate(logits, n_tokens=n_tokens, d_vocab=native.cfg.d_vocab).double()
    return (total / len(resid)).tolist()


def _cell_by_cell(model, batch, cache, metric, setter, name, indices) -> list[float]:
    out = []
    for index in indices:
        at = get_act_name(name, index[0])

        def put(activation, hook, index=index, at=at):
            return setter(activation, index, cache[at])

        logits = model.run_with_hooks(batch, fwd_hooks=[(at, put)])
        value = metric(logits)
        out.append(float(value.mean() if isinstance(metric, Metric) else value))
    return out


def _grid(setter: Setter, name: str, axis_names: tuple[str, ...], doc: str) -> Callable[..., torch.Tensor]:
    """One of TransformerLens's partials of generic_activation_patch."""

    def get_act_patch(model, corrupted_tokens, clean_cache, patching_metric, **options):
        options = {"index_axis_names": axis_names, **options}
        return generic_activation_patch(model, corrupted_tokens, clean_cache, patching_metric, setter, name, **options)

    get_act_patch.__doc__ = f"""{doc}

    Args:
        model, corrupted_tokens, clean_cache, patching_metric: as of generic_activation_patch.
        options: return_index_df; index_df, with index_axis_names=None.
    """
    return get_act_patch


_BY_POS, _BY_HEAD = ("layer", "pos"), ("layer", "head")
_BY_BOTH = ("layer", "pos", "head")

get_act_patch_resid_pre = _grid(
    layer_pos_patch_setter, "resid_pre", _BY_POS, "The residual stream before each block: [layer, pos]."
)
get_act_patch_resid_mid = _grid(
    layer_pos_patch_setter, "resid_mid", _BY_POS, "The residual stream between attention and MLP: [layer, pos]."
)
get_act_patch_attn_out = _grid(
    layer_pos_patch_setter, "attn_out", _BY_POS, "What each attention layer writes: [layer, pos]."
)
get_act_patch_mlp_out = _grid(layer_pos_patch_setter, "mlp_out", _BY_POS, "What each MLP writes: [layer, pos].")
get_act_patch_attn_head_out_by_pos = _grid(
    layer_pos_head_vector_patch_setter, "z", _BY_BOTH, "Each head's z: [layer, pos, head]."
)
get_act_patch_attn_head_q_by_pos = _grid(
    layer_pos_head_vector_patch_setter, "q", _BY_BOTH, "Each head's query: [layer, pos, head]."
)
get_act_patch_attn_head_k_by_pos = _grid(
    layer_pos_head_vector_patch_setter, "k", _BY_BOTH, "Each key: [layer, pos, n_key_value_heads]."
)
get_act_patch_attn_head_v_by_pos = _grid(
    layer_pos_head_vector_patch_setter, "v", _BY_BOTH, "Each value: [layer, pos, n_key_value_heads]."
)
get_act_patch_attn_head_pattern_by_pos = _grid(
    layer_head_pos_pattern_patch_setter,
    "pattern",
    ("layer", "head_index", "dest_pos"),
    "Each head's attention from a position: [layer, head, dest].",
)
get_act_patch_attn_head_pattern_dest_src_pos = _grid(
    layer_head_dest_src_pos_pattern_patch_setter,
    "pattern",
    ("layer", "head_index", "dest_pos", "src_pos"),
    "Each attention weight: [layer, head, dest, src].",
)
get_act_patch_attn_head_out_all_pos = _grid(
    layer_head_vector_patch_setter, "z", _BY_HEAD, "Each head's z at all positions: [layer, head]."
)
get_act_patch_attn_head_q_all_pos = _grid(
    layer_head_vector_patch_setter, "q", _BY_HEAD, "Each head's queries at all positions: [layer, head]."
)
get_act_patch_attn_head_k_all_pos = _grid(
    layer_head_vector_patch_setter, "k", _BY_HEAD, "Keys at all positions: [layer, n_key_value_heads]."
)
get_act_patch_attn_head_v_all_pos = _grid(
    layer_head_vector_patch_setter, "v", _BY_HEAD, "Values at all positions: [layer, n_key_value_heads]."
)
get_act_patch_attn_head_pattern_all_pos = _grid(
    layer_head_pattern_patch_setter, "pattern", ("layer", "head_index"), "Each head's whole pattern: [layer, head]."
)


def get_act_patch_attn_head_all_pos_every(model, corrupted_tokens, clean_cache, metric) -> torch.Tensor:
    """Heads at all positions, [5, layer, head]: z, q, k, v, pattern; of shared keys, the missing ones are 0."""
    every = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    return _stacked(grid(model, corrupted_tokens, clean_cache, metric) for grid in every)


def get_act_patch_attn_head_by_pos_every(model, corrupted_tokens, clean_cache, metric) -> torch.Tensor:
    """Heads by position, [5, layer, pos, head]: z, q, k, v, and patterns by destination; as ..._all_pos_every."""
    by_vector = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )
    grids = [grid(model, corrupted_tokens, clean_cache, metric) for grid in by_vector]
    patterns = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)
    return _stacked([*grids, patterns.transpose(1, 2)])


def get_act_patch_block_every(model, corrupted_tokens, clean_cache, metric) -> torch.Tensor:
    """[3, layer, pos]: resid_pre, attn_out, mlp_out."""
    every = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([grid(model, corrupted_tokens, clean_cache, metric) for grid in every])


def _stacked(grids) -> torch.Tensor:
    """Grids [..., heads] of as many heads as the widest; what a grouped one has fewer is 0, as in TransformerLens 4."""
    grids = list(grids)
    width = max(grid.shape[-1] for grid in grids)
    return torch.stack([torch.nn.functional.pad(grid, (0, width - grid.shape[-1])) for grid in grids])
