"""Experiments on the workers of a Ray cluster: what each has read goes into one store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from .. import _C
from ..output_files import write_bytes
from ..ray_cluster import Pool, RayWorkers, pool
from . import doses, pieces
from .dose import Dose

PIECES_PER_WORKER = 4
SECONDS_BETWEEN = 10.0
"""Seconds after which a worker sends what it has read of a piece: no more is lost with it."""


def fill(
    who: str,
    model: Any,
    experiments: Sequence[Mapping[str, Any]],
    store: _C.Store,
    given: RayWorkers | str,
    *,
    memory_budget: int,
    seconds: float,
    progress: Callable[[str, int, int], None] | None,
) -> list[tuple[dict[str, Any], list[Dose]]]:
    """Make all readings of experiments, which are in the native module's form, on a cluster's workers.

    What is in the store is not made again. A worker that dies is replaced, and the rest of its piece run again.

    Returns:
        Of each experiment what ``doses.resolve`` makes of it.

    Raises:
        ImportError: Ray is not installed.
        TypeError: ``given`` is neither an address nor RayWorkers.
        ConfigError: other models take part, workers load another one, or see ``ray_cluster.pool``.
        IoError: the store cannot be written, or a worker has sent cells that are no readings.
        Error: a piece of which several workers have died.
        Exception: what a worker has raised, of its type.
    """
    if any(one["models"] for one in experiments):
        raise _C.ConfigError(f"{who}: ray= and models= cannot go together: workers hold one model each")
    if not store.can_write:
        raise _C.IoError(f"{who}: ray= needs a store that can be written, got {store.path}")
    rest = (memory_budget, seconds, SECONDS_BETWEEN)
    with pool(who, given, model) as workers:
        known = [part for one in experiments for part in pieces.of_each_concept(one)]
        for _ in _run(workers, store, rest, [("doses", [one]) for one in known if _has_doses(one)]):
            pass
        solved: dict[Any, list[Dose]] = {}
        resolved = [doses.resolve(who, model, one, solved, only_plan=False, store=store) for one in experiments]
        numbers = [{**one, "dose": False} for one, _ in resolved]
        first = pieces.unsteered(numbers)
        if first and _misses(pieces.plan_of(model, first, store, memory_budget)):
            for _ in _run(workers, store, rest, [("readings", first)]):
                pass
        whole = pieces.plan_of(model, numbers, store, memory_budget)
        cut = pieces.cut(model, numbers, store, memory_budget, pieces=PIECES_PER_WORKER * workers.n)
        done = whole.found
        for added in _run(workers, store, rest, [("readings", piece.experiments) for piece in cut]):
            done = min(whole.readings, done + added)
            if progress:
                progress(f"{len(cut)} pieces on workers", done, whole.readings)
    return resolved


def _has_doses(one: Mapping[str, Any]) -> bool:
    return one["dose"] or any(map(doses.is_target, one["strengths"] or ()))


def _misses(plan: Any) -> bool:
    return plan.found < plan.readings


def _run(
    workers: Pool, store: _C.Store, rest: tuple[int, float, float], tasks: Sequence[tuple[str, list[Any]]]
) -> Iterator[int]:
    """Run tasks; how many cells came into the store, each time some did."""

    def whole() -> Any:
        return workers.put(_file_bytes(Path(store.path)) if len(store) else b"")

    def task(what: str, experiments: list[Any]) -> Callable[[], tuple]:
        given = iter([seed])  # once: who runs it again is given what has come meanwhile
        return lambda: (what, experiments, next(given, None) or whole(), *rest)

    if tasks:
        seed = whole()
        for _, data in workers.results(run_piece, [task(*one) for one in tasks]):
            yield _take(store, data)


def run_piece(
    model: Any,
    what: str,
    experiments: Sequence[Any],
    seed: bytes,
    memory_budget: int,
    pass_seconds: float,
    seconds_between: float,
) -> Iterator[bytes]:
    """In a worker: what a piece adds to the store whose file is ``seed``, as it is read, as stores' files."""

    def work() -> None:
        if what == "doses":
            pieces.measure_doses(model, experiments[0], store, "ray")
        else:
            pieces.run(model, experiments, store, memory_budget, pass_seconds)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        path, sent = Path(folder) / "cells.sqlite", Path(folder) / "sent.sqlite"
        store = _C.Store(path)
        if seed:
            write_bytes(sent, seed)
            store.merge(sent)
        else:
            _C.Store(sent)
        working = thread.submit(work)
        is_done = False
        while not is_done:
            is_done = bool(wait([working], timeout=seconds_between).done)
            if new := _new_bytes(path, sent):
                yield new
        working.result()  # raises what it has raised


def _new_bytes(path: Path, sent: Path) -> bytes:
    """What a store has and ``sent`` lacks, which has it then, as a file; nothing if that is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        store = _C.Store(copy)
        if not store.merge(path, unless_in=sent).added:
            return b""
        data = _file_bytes(copy)
        _C.Store(sent).merge(copy)
        return data


def _file_bytes(path: Path) -> bytes:
    """A store as one file, its write-ahead log included while others may write to it; see ``Store.merge``."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        store = _C.Store(copy)
        store.merge(path)
        del store  # which moves the log into the file
        return copy.read_bytes()


def _take(store: _C.Store, data: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.sqlite"
        write_bytes(path, data)
        merged = store.merge(path)
        if merged.damaged:
            raise _C.IoError(f"ray: a worker sent {merged.damaged} cells that are no readings")
        return merged.added
