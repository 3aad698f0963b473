"""Which edges matter: attribution of edges, runs of circuits, faithfulness and automatic discovery."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import _C
from ..analysis.metrics import Metric, MetricLike
from ..analysis.prompts import Prompts, check_aligned, tokens_of
from ..arguments import all_or_some, native_model
from .circuit import Circuit

if TYPE_CHECKING:
    import pandas as pd

    from ..plots.style import Figure

MAX_EXACT = 20_000  # edges times prompts
Ablation = Literal["patching", "zero", "mean", "mean-positional"]
Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "exact"]


@dataclass(frozen=True)
class EdgeAttribution:
    """Scores of every edge of a model.

    ``circuit`` holds all edges; ``by_position`` is [pos, senders, receivers] where it was asked for; ``clean`` and
    ``corrupted`` are the metric [prompts] of both runs. The methods of the circuit are this one's too.
    """

    circuit: Circuit
    clean: torch.Tensor
    corrupted: torch.Tensor | None
    by_position: torch.Tensor | None = field(default=None, repr=False)

    def top(self, n: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
        """See ``Circuit.top``."""
        return self.circuit.top(n, absolute=absolute, prune=prune)

    def greedy(self, n: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
        """See ``Circuit.greedy``."""
        return self.circuit.greedy(n, absolute=absolute, prune=prune)

    def node_scores(self) -> dict[str, float]:
        """See ``Circuit.node_scores``."""
        return self.circuit.node_scores()

    def to_pandas(self) -> pd.DataFrame:
        """One row an edge of the model, those of the largest |score| first."""
        return self.circuit.to_pandas()


def edge_attribution(
    model: Any,
    clean: Prompts,
    corrupted: Prompts | None = None,
    metric: MetricLike | None = None,
    *,
    method: Method = "eap",
    ig_steps: int = 5,
    gauss: bool = False,
    ablation: Ablation = "patching",
    mean_over: Prompts | None = None,
    per_position: bool = False,
    ungrouped: bool = False,
    edges: Sequence[str] | None = None,
    max_edges: int | None = MAX_EXACT,
    progress: Any = None,
) -> EdgeAttribution:
    """How much the metric changes when an edge carries what its sender writes in the corrupted run: all edges at once.

    The score of an edge is the mean over prompts of (alternative - clean output of the sender) times the gradient of
    the metric at the receiver's input; positive: replacing it raises the metric. Gradients of all receivers come from
    one backward pass a point.
    Source: Syed et al. 2023 (arXiv:2310.10348), Hanna et al. 2024 (arXiv:2403.17806).

    Args:
        clean, corrupted: a text, token ids, or a list of them; the prompts of a pair are equally long. corrupted may be
            missing where ``ablation`` is not patching.
        metric: LogitDifference and its neighbours, or a callable on logits [1, pos, d_vocab] of each prompt.
        method: "eap", gradients at the clean run; "eap-ig", their mean along the way from the corrupted to the clean
            embedding; "eap-ig-activations", the same along the way of each layer's heads and each MLP on its own;
            "clean-corrupted", the mean of both ends; "exact", each edge patched in a run of its own (slow).
        ig_steps: points of integrated gradients.
        gauss: Gauss and Legendre's points instead of EAP-IG's k / ig_steps: closer to the integral with few steps.
        ablation: what is put in: the corrupted run's output, zero, or its mean (over prompts and positions, or over
            prompts at each position).
        mean_over: prompts of the means; None is the corrupted ones, or else the clean ones.
        per_position: scores of each position as well.
        ungrouped: a key and a value receiver for each query head, not for each group, as EAP-IG has them.
        edges: of the exact method, only these; None is all.
        max_edges: of the exact method, times prompts; more are an error that says how many and how long. None is any
            number.

    Raises:
        ValueError: pairs of unequal length (both are named, and the first token that differs), no metric, a metric
            without a gradient unless exact, names of no edge, too many of them, an answer that is not one token.
        Error: scores that are not finite.
        ShapeError: per_position with prompts of several lengths.
        IndexError: tokens or positions that are not there.
        ConfigError: a model that is hooked or steered, or lives on several devices.
    """
    prompts = _prompts(model, clean, corrupted, metric, "edge_attribution")
    chosen = all_or_some(edges, "edges", "edge_attribution")
    if method == "exact" and max_edges is not None:
        n_edges = len(chosen) or Circuit.whole(model, ungrouped=ungrouped).n_edges
        _check_size(prompts["model"], prompts["clean"], n_edges, max_edges)
    found = _C.edge_attribution(
        **prompts,
        method=method,
        ig_steps=ig_steps,
        gauss=gauss,
        ablation=ablation,
        mean_over=_means(model, mean_over, "edge_attribution"),
        per_position=per_position,
        ungrouped=ungrouped,
        edges=chosen,
        progress=progress,
    )
    return EdgeAttribution(Circuit(found.circuit), found.clean, found.corrupted, found.by_position)


def run_circuit(
    model: Any,
    circuit: Circuit | Sequence[Circuit],
    clean: Prompts,
    corrupted: Prompts | None = None,
    metric: MetricLike | None = None,
    *,
    ablation: Ablation = "patching",
    mean_over: Prompts | None = None,
    progress: Any = None,
) -> torch.Tensor:
    """The metric [prompts] of runs in which edges outside of the circuit carry their sender's alternative, exactly.

    Args:
        circuit: one, or a list, which gives [circuits, prompts]; taken as it is, not pruned.

    Other arguments and errors are those of ``edge_attribution``.

    Raises:
        ConfigError: a circuit of another model.
    """
    several = [circuit] if isinstance(circuit, Circuit) else list(circuit)
    values = _C.run_circuits(
        **_prompts(model, clean, corrupted, metric, "run_circuit"),
        circuits=[one.native for one in several],
        ablation=ablation,
        mean_over=_means(model, mean_over, "run_circuit"),
        progress=progress,
    )
    return values[0] if isinstance(circuit, Circuit) else values


@dataclass(frozen=True)
class Faithfulness:
    """How much of the metric the best edges keep: ``faithfulness`` is 0 with no edge and 1 with all of them.

    ``cpr`` is the area under it over the share of edges, ``cmd`` that between it and 1 (Mueller et al. 2025). The share
    of edges runs from the first of ``shares`` to 1.
    """

    shares: list[float]
    n_edges: list[int]
    metric: list[float]
    faithfulness: list[float]
    full: float
    empty: float
    cpr: float
    cmd: float

    def to_pandas(self) -> pd.DataFrame:
        """One row a share of edges."""
        import pandas as pd

        columns = ("shares", "n_edges", "metric", "faithfulness")
        return pd.DataFrame(
            {name.removesuffix("s") if name == "shares" else name: getattr(self, name) for name in columns}
        )

    def plot(self, *, title: str = "") -> Figure:
        """Faithfulness over the share of edges, on a logarithmic axis."""
        from ..plots.circuits import faithfulness_curve

        return faithfulness_curve({"": self}, title=title)


def faithfulness(
    model: Any,
    circuit: Circuit | EdgeAttribution,
    clean: Prompts,
    corrupted: Prompts | None = None,
    metric: MetricLike | None = None,
    *,
    shares: Sequence[float] | None = None,
    absolute: bool = True,
    ablation: Ablation = "patching",
    mean_over: Prompts | None = None,
    progress: Any = None,
) -> Faithfulness:
    """The faithfulness of the top edges of scores, for growing shares of all edges.

    Args:
        circuit: whose scores rank the edges.
        shares: None is MIB's: .001, .002, .005, .01, .02, .05, .1, .2, .5, 1.
        absolute: edges of the largest |score|, as CMD wants; False takes those whose replacement lowers the metric
            most, as CPR does of a metric that is high where the model does the task.

    Other arguments and errors are those of ``run_circuit``.

    Raises:
        ValueError: shares that do not ascend within (0, 1], or a metric that is the same with all edges and none.
    """
    scored = circuit.circuit if isinstance(circuit, EdgeAttribution) else circuit
    found = _C.faithfulness(
        **_prompts(model, clean, corrupted, metric, "faithfulness"),
        circuit=scored.native,
        shares=list(shares or []),
        absolute=absolute,
        ablation=ablation,
        mean_over=_means(model, mean_over, "faithfulness"),
        progress=progress,
    )
    names = ("shares", "n_edges", "metric", "faithfulness", "full", "empty", "cpr", "cmd")
    return Faithfulness(**{name: getattr(found, name) for name in names})


@dataclass(frozen=True)
class Discovery:
    """What automatic discovery found: the circuit, its metric (mean over prompts), and how many circuits were run."""

    circuit: Circuit
    metric: float
    n_runs: int


def acdc(
    model: Any,
    clean: Prompts,
    corrupted: Prompts | None = None,
    metric: MetricLike | None = None,
    *,
    threshold: float,
    start: Circuit | None = None,
    ablation: Ablation = "patching",
    mean_over: Prompts | None = None,
    ungrouped: bool = False,
    progress: Any = None,
) -> Discovery:
    """Take edges out one by one, from the logits down, while the metric rises by less than the threshold.

    A run computes only the layers from the edge's receiver on, and several edges are tried ahead in one pass; results
    are those of one after another. Source: Conmy et al. 2023, arXiv:2304.14997.

    Args:
        metric: what is to stay low: None is Divergence(), from the clean run; ``-LogitDifference(...)``.
        threshold: in the metric's unit.
        start: only its edges are tried, and all others are out (a large model's best edges by attribution).

    Other arguments and errors are those of ``edge_attribution``.
    """
    if metric is None:
        from ..analysis.metrics import Divergence

        metric = Divergence()
    circuit, n_runs, value = _C.acdc(
        **_prompts(model, clean, corrupted, metric, "acdc"),
        threshold=threshold,
        start=None if start is None else start.native,
        ungrouped=ungrouped,
        ablation=ablation,
        mean_over=_means(model, mean_over, "acdc"),
        progress=progress,
    )
    return Discovery(Circuit(circuit), value, n_runs)


def _prompts(
    model: Any, clean: Prompts, corrupted: Prompts | None, metric: MetricLike | None, who: str
) -> Mapping[str, Any]:
    """The arguments that every function hands to the library."""
    native = native_model(model, who)
    if metric is None:
        raise ValueError(f"{who}: a metric is needed, LogitDifference for example")
    cleans = tokens_of(model, clean, who, "clean")
    others = [] if corrupted is None else tokens_of(model, corrupted, who, "corrupted")
    if others:
        if len(cleans) != len(others):
            raise ValueError(
                f"{who}: as many clean as corrupted prompts are needed, got {len(cleans)} and {len(others)}"
            )
        check_aligned(model, list(zip(cleans, others, strict=True)), who)
    return {
        "model": native,
        "clean": [torch.tensor(ids) for ids in cleans],
        "corrupted": [torch.tensor(ids) for ids in others],
        "metrics": metric.resolve(model, len(cleans)) if isinstance(metric, Metric) else [],
        "of_logits": None if isinstance(metric, Metric) else metric,
    }


def _check_size(native: _C.Model, clean: Sequence[torch.Tensor], n_edges: int, max_edges: int) -> None:
    n = n_edges * len(clean)
    if n <= max_edges:
        return
    began = time.perf_counter()
    native.forward(clean[0].unsqueeze(0), logits_at="none")
    hours = (time.perf_counter() - began) * n / 2 / 3600  # a run begins at the edge's receiver, halfway up
    raise ValueError(
        f"edge_attribution: {n:,} exact runs ({n_edges:,} edges of {len(clean)} prompts) are more than "
        f"max_edges={max_edges:,}; they would take some {hours:.1f} hours. Choose edges, or give max_edges=None"
    )


def _means(model: Any, mean_over: Prompts | None, who: str) -> list[torch.Tensor]:
    if mean_over is None:
        return []
    return [torch.tensor(ids) for ids in tokens_of(model, mean_over, who, "mean_over")]
