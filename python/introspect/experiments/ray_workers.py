"""Experiments on the workers of a Ray cluster: what each has read goes into one store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _C
from ..output_files import write_bytes
from ..ray_cluster import Pool, RayWorkers, pool
from . import doses, pieces
from .dose import Dose

PIECES_PER_WORKER = 4


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

    What is in the store is not made again. A worker that dies is replaced, and its piece run again.

    Returns:
        Of each experiment what ``doses.resolve`` makes of it.

    Raises:
        ImportError: Ray is not installed.
        ConfigError: other models take part, or workers load another one.
        Error: a piece of which several workers have died.
        Exception: what a worker has raised, of its type.
    """
    if any(one["models"] for one in experiments):
        raise _C.ConfigError(f"{who}: ray= and models= cannot go together: workers hold one model each")
    if not store.can_write:
        raise _C.IoError(f"{who}: ray= needs a store that can be written, got {store.path}")
    rest = (memory_budget, seconds)
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
        for n in _run(workers, store, rest, [("readings", piece.experiments) for piece in cut]):
            done = min(whole.readings, done + cut[n].plan.readings - cut[n].plan.found)
            if progress:
                progress(f"{len(cut)} pieces on {workers.n} workers", done, whole.readings)
    return resolved


def _has_doses(one: Mapping[str, Any]) -> bool:
    return one["dose"] or any(map(doses.is_target, one["strengths"] or ()))


def _misses(plan: Any) -> bool:
    return plan.found < plan.readings


def _run(workers: Pool, store: _C.Store, rest: tuple[int, float], tasks: Sequence[tuple[str, Any]]) -> Iterator[int]:
    """Run tasks; the number of each, once what it has read is in the store."""
    if not tasks:
        return
    seed = workers.put(_file_bytes(Path(store.path)) if len(store) else b"")
    for n, data in workers.results(run_piece, [(*task, seed, *rest) for task in tasks]):
        _take(store, data)
        yield n


def run_piece(
    model: Any, what: str, experiments: Sequence[Any], seed: bytes, memory_budget: int, seconds: float
) -> bytes:
    """In a worker: what a piece adds to the store whose file is ``seed``, as a store's file."""
    with tempfile.TemporaryDirectory() as folder:
        before, path = Path(folder) / "seed.sqlite", Path(folder) / "cells.sqlite"
        store = _C.Store(path)
        if seed:
            write_bytes(before, seed)
            store.merge(before)
        if what == "doses":
            pieces.measure_doses(model, experiments[0], store, "ray")
        else:
            pieces.run(model, experiments, store, memory_budget, seconds)
        return _file_bytes(path, unless_in=before if seed else None)


def _file_bytes(path: Path, unless_in: Path | None = None) -> bytes:
    """A store as one file, its write-ahead log included while others may write to it; see ``Store.merge``."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        store = _C.Store(copy)
        store.merge(path, unless_in=unless_in)
        del store  # which moves the log into the file
        return copy.read_bytes()


def _take(store: _C.Store, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.sqlite"
        write_bytes(path, data)
        if damaged := store.merge(path).damaged:
            raise _C.IoError(f"ray: a worker sent {damaged} cells that are no readings")
