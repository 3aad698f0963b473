"""Path patching: what one part of a model tells another one directly, exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from .. import _C
from ..arguments import all_or_some, native_model
from .effects import Direction, EffectGrid, ends_of, pairs_of
from .metrics import Metric
from .patching import token_labels
from .prompts import Prompts

Node = str | tuple[int, int] | tuple[int, int, str]
MAX_CELLS = 100_000
_NODE = re.compile(
    r"input|logits|m(?P<mlp>\d+)|a(?P<layer>\d+)\.(?P<unit>[hg])(?P<head>\d+)(<(?P<reads>[qkv])>)?", re.ASCII
)


def path_patching(
    model: Any,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    senders: Literal["heads", "mlps", "all"] | Sequence[Node | Sequence[Node]] = "heads",
    receivers: Node | Sequence[Node] = "logits",
    freeze_mlps: bool = True,
    positions: Sequence[int] | None = None,
    by_position: bool = False,
    direction: Direction = "denoising",
    max_cells: int | None = MAX_CELLS,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> EffectGrid:
    """The effect on the metric of what each sender tells the receivers by itself.

    The patched run's receivers read what they would read if the sender had written what it writes in the other run,
    and nothing between the two had answered: what heads between them write is frozen. Norms are computed anew, nothing
    is linearised. Denoising patches the corrupted run, noising (as in the paper) the clean one.

    Nodes have the names of edge attribution: "a9.h6" or (9, 6) is a head as a sender, "m3" an MLP, "input" the
    embedding; "a9.h6<q>" or (9, 6, "q") a head's queries as a receiver, "a9.g1<k>" the keys of a group (of a head,
    where each has its own), "logits" the final norm and the unembedding.

    Args:
        clean, corrupted: a text, token ids, or a list of them, one a pair; the prompts of a pair are equally long.
        senders: every head, MLP, or node; or a list. An entry that is a list is patched together.
        receivers: one or several, which are patched together.
        freeze_mlps: False: MLPs between sender and receivers answer, and are part of the paths.
        positions: at which senders are patched; negative ones count from the end; None is all.
        by_position: one position at a time, as an axis.
        max_cells: more are an error that says how many and how long; None is any number.
        memory_budget: bytes of one pass, weights aside.

    Returns:
        Effects by layer and head ("heads"), by layer ("mlps") or by sender; 0 exactly for senders above the receivers.

    Raises:
        ValueError: prompts of different lengths (both are named, and the first token that differs), an answer that is
            not one token, nodes that are none, logits beside other receivers, or too many cells.
        IndexError: layers, heads or positions that are not there.
        TypeError: a metric that is not data.
        ConfigError: a model that is hooked or steered.

    Source: Wang et al. 2023, arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
    """
    who = "path_patching"
    native = native_model(model, who)
    cfg = native.cfg
    heads: list[list[Node]] = [[(layer, head)] for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    mlps: list[list[Node]] = [[f"m{layer}"] for layer in range(cfg.n_layers)]
    named: dict[str, list[list[Node]]] = {"heads": heads, "mlps": mlps, "all": [["input"], *heads, *mlps]}
    if isinstance(senders, str) and senders not in named:
        raise ValueError(f"{who}: senders are heads, mlps, all, or a list of nodes, got {senders!r}")
    groups = named[senders] if isinstance(senders, str) else [_together(entry) for entry in senders]
    heard = _together(receivers)
    chosen = all_or_some(positions, "positions", who)
    found, cleans = _run(
        model, clean, corrupted, metric, groups, [heard], native=native, who=who, freeze_mlps=freeze_mlps,
        positions=chosen, by_position=by_position, direction=direction, max_cells=max_cells,
        memory_budget=memory_budget, progress=progress,
    )  # fmt: skip
    layers, n_heads = list(range(cfg.n_layers)), list(range(cfg.n_heads))
    labels: dict[str, list] = {"sender": [" + ".join(map(_shown, group)) for group in groups]}
    if senders == "heads":
        labels = {"layer": layers, "head": n_heads}
    elif senders == "mlps":
        labels = {"layer": layers}
    if by_position:
        tokens = cleans[0]
        places = [p % len(tokens) for p in chosen] or range(len(tokens))
        shown = token_labels(model, tokens) if len(cleans) == 1 else list(range(len(tokens)))
        labels["position"] = [shown[p] for p in places]
    title = "paths to " + ", ".join(map(_shown, heard))
    return _grid(title, found, found.values[:, 0], labels, direction)


def direct_path_grid(
    model: Any,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    source: Node | None = None,
    component: Literal["q", "k", "v"] = "q",
    freeze_mlps: bool = True,
    direction: Direction = "denoising",
    max_cells: int | None = MAX_CELLS,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> EffectGrid:
    """The effect of the path from one head, or from each, into the queries, keys or values of each later head.

    TransformerLens 4's get_act_patch_direct_path and its all_sources, with norms after attention, parallel blocks and
    grouped keys (a cell for each group). Effects are 0 where there is no path.

    Args:
        source: (layer, head) or "a5.h1"; None: every head.
        component: of the later heads.

    Other arguments and errors are those of ``path_patching``.

    Returns:
        Axes layer and head of the later head; of every source, source_layer and source_head before them.
    """
    who = "direct_path_grid"
    native = native_model(model, who)
    cfg = native.cfg
    if component not in ("q", "k", "v"):
        raise ValueError(f"{who}: component must be q, k or v, got {component!r}")
    layers, heads = list(range(cfg.n_layers)), list(range(cfg.n_heads))
    readers = heads if component == "q" else list(range(cfg.n_key_value_heads))
    unit = "h" if component == "q" or len(readers) == len(heads) else "g"
    receivers = [[f"a{layer}.{unit}{head}<{component}>"] for layer in layers for head in readers]
    groups = [[source]] if source is not None else [[(layer, head)] for layer in layers for head in heads]
    found, _ = _run(
        model, clean, corrupted, metric, groups, receivers, native=native, who=who, freeze_mlps=freeze_mlps,
        positions=[], by_position=False, direction=direction, max_cells=max_cells, memory_budget=memory_budget,
        progress=progress,
    )  # fmt: skip
    labels = {"layer": layers, "head": readers}
    if source is None:
        labels = {"source_layer": layers, "source_head": heads, **labels}
    title = f"{'' if source is None else _shown(source) + ' '}to {component} of later heads"
    return _grid(title, found, found.values.transpose(1, 2), labels, direction)


def _run(model, clean, corrupted, metric, groups, receivers, *, native, who, direction, max_cells, **options):
    pairs, cleans = pairs_of(model, clean, corrupted, metric, direction, who)
    found = _C.path_patching(
        native,
        pairs,
        senders=[[_sender(node, who) for node in group] for group in groups],
        receivers=[[_receiver(node, native.cfg, who) for node in group] for group in receivers],
        reference_is_to=direction == "noising",
        most_cells=(1 << 62) if max_cells is None else max_cells,
        **options,
    )
    return found, cleans


def _grid(title, found, values, labels, direction) -> EffectGrid:
    ends = ends_of(found, direction)
    shape = [len(names) for names in labels.values()]
    effects = values.reshape(len(values), *shape) - found.to.view(-1, *[1] * len(shape))
    cost = (found.token_layers_asked, found.token_layers_to_run)
    return EffectGrid(title, effects, tuple(labels), labels, *ends, *cost, direction=direction)


def _together(entry: Any) -> list[Node]:
    """The nodes of an entry: one node, or a list of them."""
    return [entry] if isinstance(entry, str | tuple) else list(entry)


def _shown(node: Node) -> str:
    if isinstance(node, str):
        return node
    return f"a{node[0]}.h{node[1]}" + (f"<{node[2]}>" if len(node) > 2 else "")


def _parsed(node: Any, who: str) -> re.Match:
    is_node = isinstance(node, str) or (isinstance(node, tuple) and len(node) in (2, 3))
    found = _NODE.fullmatch(_shown(node)) if is_node else None
    if found is None:
        raise ValueError(f"{who}: nodes are named like a9.h6, m3, input, a9.h6<q>, a9.g1<k> and logits, got {node!r}")
    return found


def _sender(node: Any, who: str) -> _C.PathSender:
    found = _parsed(node, who)
    if found[0] == "input":
        return _C.PathSender("input")
    if found["mlp"]:
        return _C.PathSender("mlp", int(found["mlp"]))
    if found[0] == "logits" or found["reads"] or found["unit"] == "g":
        raise ValueError(f"{who}: {found[0]} reads and does not write; senders are like a9.h6, m3 and input")
    return _C.PathSender("head", int(found["layer"]), int(found["head"]))


def _receiver(node: Any, cfg: Any, who: str) -> _C.PathReceiver:
    found = _parsed(node, who)
    if found[0] == "logits":
        return _C.PathReceiver("logits")
    if found["mlp"]:
        return _C.PathReceiver("mlp", int(found["mlp"]))
    if found[0] == "input" or not found["reads"]:
        raise ValueError(f"{who}: {found[0]} writes; receivers are like a9.h6<q>, m3 and logits")
    layer, head, is_group = int(found["layer"]), int(found["head"]), found["unit"] == "g"
    shared = cfg.n_heads // cfg.n_key_value_heads
    if found["reads"] == "q" and is_group:
        raise ValueError(f"{who}: queries are of heads, got {found[0]}")
    if found["reads"] != "q" and not is_group and shared > 1:
        raise ValueError(
            f"{who}: keys and values belong to groups of {shared} heads here; {found[0]} is a{layer}.g{head // shared}"
            f"<{found['reads']}>"
        )
    return _C.PathReceiver(found["reads"], layer, head)
