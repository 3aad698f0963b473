"""Stateless maths on tensors, for checking by hand and for building upon."""

from ._C import (
    QuantisedRows,
    bfloat16_products,
    bfloat16_products_here,
    costs_by_stage,
    linear,
    rms_norm,
    rotary_frequencies,
    use_bfloat16_products,
)

__all__ = [
    "QuantisedRows",
    "bfloat16_products",
    "bfloat16_products_here",
    "costs_by_stage",
    "linear",
    "rms_norm",
    "rotary_frequencies",
    "use_bfloat16_products",
]
