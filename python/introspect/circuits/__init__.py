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
from .circuit import Circuit

__all__ = [
    "Circuit",
    "Discovery",
    "EdgeAttribution",
    "Faithfulness",
    "acdc",
    "edge_attribution",
    "faithfulness",
    "run_circuit",
]
