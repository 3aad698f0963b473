"""What the benchmarks share: calls timed in turns, peak memory, and the floor that matrix products set."""

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

SMOLLM2 = Path.home() / ".cache/introspect/models/SmolLM2-135M-Instruct.Q4_1.gguf"


class Times(NamedTuple):
    """Wall times of one side, in ms."""

    best: float
    median: float


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A side for `take_turns`: runs `call`, whose result is dropped after the clock has stopped; ms."""

    def side() -> float:
        start = time.perf_counter()
        result = call()
        elapsed = 1e3 * (time.perf_counter() - start)
        del result
        return elapsed

    return side


def take_turns(repeats: int, *sides: Callable[[], float], pause: float = 0.0) -> list[Times]:
    """Best and median of several runs of each side, one run each in turn, after one that is not counted.

    pause: seconds between runs, for sides in other processes: OpenMP's threads spin for some 20 ms after their work.
    """
    runs: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, times in zip(sides, runs, strict=True):
            time.sleep(pause)
            elapsed = side()
            if repeat:
                times.append(elapsed)
    return [Times(min(times), statistics.median(times)) for times in runs]


def matrix_products(weights: Sequence[torch.Tensor], rows: int) -> list[Callable[[], float]]:
    """Sides that multiply [rows, in] by each weight [out, in] and do nothing else: the floor of a forward pass.

    The first uses torch.mm, as ATen's linear does; the second oneDNN, which is quicker for few rows, where it is there.
    """
    inputs = {n: torch.randn(rows, n) for n in {w.shape[1] for w in weights}}
    sides = [timed(lambda: [torch.mm(inputs[w.shape[1]], w.t()).shape for w in weights])]
    if torch.backends.mkldnn.is_available():
        product = torch.ops.mkldnn._linear_pointwise
        sides.append(timed(lambda: [product(inputs[w.shape[1]], w, None, "none", [], "").shape for w in weights]))
    return sides


def peak_bytes(call: Callable[[], object]) -> tuple[int, object]:
    """By how much the resident memory of this process rises at most during `call`, and what it returned (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that an earlier call left with the allocator would hide some
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before, result


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return 1024 * int(line.split()[1])
