"""Stateless maths on tensors, for checking by hand and for building upon."""

from ._C import rms_norm, rotary_frequencies

__all__ = ["rms_norm", "rotary_frequencies"]
