"""Which edges between the parts of a model carry a behaviour. The native part is cpp's circuits module."""

from .attribution import (
    Discovery,
    EdgeAttribution,
    Faithfulness,
    acdc,
    edge_attribution,
    faithfulness,
    run_circuit,
)
from .attribution_graph import (
    AttributionGraph,
    AttributionPlan,
    GraphNode,
    GraphPath,
    GraphScores,
    GraphTarget,
    Injection,
    attribute,
)
from .circuit import Circuit
from .graph_comparison import GraphComparison, compare, mean_graph
from .qk import HeadLoadings, QkAttribution, head_loadings, qk_attribution
from .validation import Validation, feature_interventions, predicted_effects, validate

__all__ = [
    "AttributionGraph",
    "AttributionPlan",
    "Circuit",
    "Discovery",
    "EdgeAttribution",
    "Faithfulness",
    "GraphComparison",
    "GraphNode",
    "GraphPath",
    "GraphScores",
    "GraphTarget",
    "HeadLoadings",
    "Injection",
    "QkAttribution",
    "Validation",
    "acdc",
    "attribute",
    "compare",
    "edge_attribution",
    "faithfulness",
    "feature_interventions",
    "head_loadings",
    "mean_graph",
    "predicted_effects",
    "qk_attribution",
    "run_circuit",
    "validate",
]
