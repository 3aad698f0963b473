"""Attribution patching: estimates of all effects of patching from one gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .. import _C
from ..arguments import native_model
from .effects import Direction, EffectGrid, ends_of, pairs_of
from .metrics import Metric
from .patching import PatchGrids, token_labels
from .prompts import Prompts


def attribution_patch(
    model: Any,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    points: Sequence[str] = ("z",),
    *,
    direction: Direction = "denoising",
    method: Literal["atp", "atp+qk", "atp*"] = "atp",
    sum_positions: bool = False,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> PatchGrids:
    """Estimates of what patching each node would add to the metric: (other activation - own one) times the gradient.

    Denoising patches the corrupted run: (clean - corrupted) times the gradient there; noising patches the clean one.

    Args:
        clean, corrupted: a text, token ids, or a list of them, one a pair; the prompts of a pair are equally long.
        points: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern",
            "pattern_dest_src", "mlp_post" (neurons).
        method: "atp"; "atp+qk" takes queries and keys through the softmax, and is linear from the pattern on;
            "atp*" has GradDrop too: the mean over layers of the absolute estimates without what flows back through
            that layer, which is never negative.
        sum_positions: a node is a whole layer, head or neuron; pairs may then be of several lengths.
        memory_budget: bytes of a batch of pairs with its gradients, weights aside.

    Returns:
        {point: EffectGrid} with the axes of TransformerLens's get_act_patch_*: [layer, pos] of streams and outputs,
        [layer, pos, head] of z, q, k and v (k and v by group), [layer, head, dest] of patterns and
        [layer, head, dest, src] of their weights, [layer, pos, neuron] of mlp_post; without positions if these are
        summed.

    Raises:
        ValueError: prompts of different lengths (both are named, and the first token that differs), an answer that is
            not one token, unknown points or methods, "atp*" in a model of one layer, or more values than memory holds.
        HookError: a point that the model does not have.
        TypeError: a metric that is not data.
        ConfigError: a model that is hooked or steered.

    Source: Nanda 2023, Attribution patching; Kramar et al. 2024, arXiv:2403.00745.
    """
    who = "attribution_patch"
    native = native_model(model, who)
    if method not in ("atp", "atp+qk", "atp*"):
        raise ValueError(f"{who}: method must be atp, atp+qk or atp*, got {method!r}")
    pairs, cleans = pairs_of(model, clean, corrupted, metric, direction, who)
    found = _C.attribution_patching(
        native,
        pairs,
        points=[points] if isinstance(points, str) else list(points),
        correct_qk=method != "atp",
        grad_drop=method == "atp*",
        sum_positions=sum_positions,
        reference_is_to=direction == "noising",
        memory_budget=memory_budget,
        progress=progress,
    )
    tokens = token_labels(model, cleans[0]) if len(cleans) == 1 else list(range(len(cleans[0])))
    grids: dict[str, Any] = {}
    for at in found.points:
        labels = {
            axis: tokens if axis in ("position", "dest", "src") else list(range(size))
            for axis, size in zip(at.axes, at.values.shape[1:], strict=True)
        }
        ends = ends_of(found, direction)
        grids[at.point] = EffectGrid(at.point, at.values, tuple(at.axes), labels, *ends, direction=direction)
    return PatchGrids(grids)
