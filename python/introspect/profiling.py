"""Where the time of forward passes goes: per stage seconds, arithmetic and memory, beside what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import ops

if TYPE_CHECKING:
    from .model import Model

__all__ = ["MachineRates", "PassProfile", "StageProfile", "machine_rates", "profile_decode", "profile_forward"]

AT_LEAST = 0.25  # seconds that a rate is measured


@dataclass(frozen=True)
class MachineRates:
    """What the machine reaches where nothing else is to be done, both measured by :func:`machine_rates`."""

    flops: float  #: a second, of matrix products
    bytes: float  #: a second, read from memory

    def floor(self, flops: float, nbytes: float) -> float:
        """Seconds that work must take at these rates."""
        return max(flops / self.flops, nbytes / self.bytes)


@dataclass(frozen=True)
class StageProfile:
    """One stage of a pass: see :func:`introspect.ops.costs_by_stage`."""

    stage: str
    seconds: float
    calls: int
    flops: float
    bytes: float


@dataclass(frozen=True)
class PassProfile:
    """The quickest of several passes."""

    title: str
    stages: list[StageProfile]  #: every stage that took part; their times add up to the pass's

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    def to_dict(self, rates: MachineRates) -> dict:
        """Plain values, with the floor and the share of it that each stage reaches."""
        rows = []
        for s in self.stages:
            floor = rates.floor(s.flops, s.bytes)
            share = floor / s.seconds if s.seconds else None
            rows.append({**s.__dict__, "floor_seconds": floor, "share_of_floor": share})
        return {"pass": self.title, "seconds": self.seconds, "flops": self.flops, "stages": rows}


def machine_rates(model: Model, rows: int = 512, repeats: int = 20) -> MachineRates:
    """The best rates of products and of memory, for this model's dtype and threads.

    Args:
        model: its dtype, and the shape of its MLP's first matrix for the product.
        rows: of the product.
        repeats: of each, of which the best counts; more where these take less than a quarter of a second, so that no
            short spell of another program's decides.

    Products are torch.mm's or this library's, whichever is quicker. Memory is read in a block that is as large as the
    weights, from a quarter of a GiB, which a cache may hold as it would hold them, to two, which none does.
    """
    cfg = model.cfg
    dtype = model.native.dtype
    weight = torch.randn(2 * cfg.d_mlp, cfg.d_model).to(dtype)
    x = torch.randn(rows, cfg.d_model).to(dtype)
    product = min(
        _best(lambda: torch.mm(x, weight.t()), repeats),
        _best(lambda: ops.linear(x, weight), repeats),
    )
    block = torch.ones(min(max(model.native.nbytes, 1 << 28), 1 << 31) // 8, dtype=torch.int64)
    read = _best(block.sum, repeats)
    return MachineRates(2 * x.numel() * weight.shape[0] / product, 8 * block.numel() / read)


def profile_forward(model: Model, batch: int, length: int, *, logits_at: str = "last", repeats: int = 5) -> PassProfile:
    """Passes over random tokens [batch, length].

    Args:
        logits_at: "last": float32 logits of the last position; "all": of every position; "none".
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.cfg.d_vocab, (batch, length), generator=generator)
    return _quickest(f"forward {batch}x{length}", lambda: model(tokens, logits_at=logits_at), repeats)


def profile_decode(model: Model, length: int = 64, *, repeats: int = 20) -> PassProfile:
    """One token after `length` others that are in a cache, or after a quarter of the context where that is shorter."""
    length = min(length, max(1, model.cfg.n_ctx // 4))
    cache = model.native.make_cache(1)
    model(torch.arange(length)[None] % model.cfg.d_vocab, cache=cache, logits_at="none")
    token = torch.zeros(1, 1, dtype=torch.int64)

    def step() -> None:
        cache.truncate(length)
        model(token, cache=cache, logits_at="last")

    return _quickest(f"decode after {length}", step, repeats)


def _quickest(title: str, call: Callable[[], object], repeats: int) -> PassProfile:
    def run() -> None:
        call()

    with torch.no_grad():
        run()
        passes = [ops.costs_by_stage(run) for _ in range(repeats)]
    best = min(passes, key=lambda costs: sum(cost["seconds"] for cost in costs.values()))
    stages = [StageProfile(stage, **cost) for stage, cost in best.items() if cost["calls"] or stage == "other"]
    return PassProfile(title, stages)


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    best, total, done = float("inf"), 0.0, 0
    while done < repeats or total < AT_LEAST:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, total, done = min(best, seconds), total + seconds, done + 1
    return best
