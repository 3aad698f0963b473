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
from .attribution_graph import AttributionGraph, GraphNode, GraphPath, GraphScores, GraphTarget, attribute
from .circuit import Circuit
from .qk import HeadLoadings, QkAttribution, head_loadings, qk_attribution

__all__ = [
    "AttributionGraph",
    "Circuit",
    "Discovery",
    "EdgeAttribution",
    "Faithfulness",
    "GraphNode",
    "GraphPath",
    "GraphScores",
    "GraphTarget",
    "HeadLoadings",
    "QkAttribution",
    "acdc",
    "attribute",
    "edge_attribution",
    "faithfulness",
    "head_loadings",
    "qk_attribution",
    "run_circuit",
]
