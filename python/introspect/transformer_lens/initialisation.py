"""Random initial weights, for matrices that act from the right and have a dimension of heads in front."""

from __future__ import annotations

import math
from typing import Literal

import torch


def fan_in_and_out(tensor: torch.Tensor) -> tuple[int, int]:
    """How many inputs and outputs a weight connects: [n] 1 and n, [in, out], or [heads, in, out] in and heads x out.

    Raises:
        ValueError: a scalar, or more than three dimensions.
    """
    if tensor.ndim not in (1, 2, 3):
        raise ValueError(f"calc_fan_in_and_fan_out: a weight must have 1 to 3 dimensions, got {list(tensor.shape)}")
    if tensor.ndim == 1:
        return 1, tensor.shape[0]
    heads = tensor.shape[0] if tensor.ndim == 3 else 1
    return tensor.shape[-2], heads * tensor.shape[-1]


def uniform_(tensor: torch.Tensor, std: float) -> torch.Tensor:
    """Filled, in place, with uniform numbers of a standard deviation."""
    most = math.sqrt(3) * std
    with torch.no_grad():
        return tensor.uniform_(-most, most)


def _xavier(param: torch.Tensor, gain: float) -> float:
    return gain * math.sqrt(2 / sum(fan_in_and_out(param)))


def _kaiming(param: torch.Tensor, a: float, nonlinearity: str, gain: float, mode: str) -> float:
    fan = fan_in_and_out(param)[0 if mode == "fan_in" else 1]
    return gain * torch.nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan)  # type: ignore[arg-type]


def init_xavier_uniform_(param: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Uniform numbers of variance 2 gain² / (fan in + fan out), in place (Glorot & Bengio 2010)."""
    return uniform_(param, _xavier(param, gain))


def init_xavier_normal_(param: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Normal numbers of variance 2 gain² / (fan in + fan out), in place (Glorot & Bengio 2010)."""
    with torch.no_grad():
        return param.normal_(std=_xavier(param, gain))


def init_kaiming_uniform_(
    param: torch.Tensor,
    a: float = 0,
    nonlinearity: str = "relu",
    gain: float = 1.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
) -> torch.Tensor:
    """Uniform numbers of standard deviation gain x the non-linearity's gain / sqrt(fan), in place (He et al. 2015)."""
    return uniform_(param, _kaiming(param, a, nonlinearity, gain, mode))


def init_kaiming_normal_(
    param: torch.Tensor,
    a: float = 0,
    nonlinearity: str = "relu",
    gain: float = 1.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
) -> torch.Tensor:
    """Normal numbers of that standard deviation, in place (He et al. 2015)."""
    with torch.no_grad():
        return param.normal_(std=_kaiming(param, a, nonlinearity, gain, mode))
