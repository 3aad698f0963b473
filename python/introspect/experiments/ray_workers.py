"""Experiments on the workers of a Ray cluster: each holds the model, and what it has read goes into one store.

Ray is optional: ``pip install introspect[ray]``.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _C
from ..output_files import write_bytes
from . import doses, pieces

MOST_DEATHS = 3
"""Workers that may die of one piece before it is given up."""
PIECES_PER_WORKER = 4


@dataclass(frozen=True)
class RayWorkers:
    """Where an experiment runs: ``run_experiment(..., ray=RayWorkers("auto", n=8))``.

    Attributes:
        address: "auto": the cluster that RAY_ADDRESS names or that this process is connected to, or else one of this
            machine's own, started for the call; "local": always that; otherwise a cluster's address.
        n: workers, each with the whole model. None: one for each node.
        cpus, gpus: of each worker.
        load: arguments of ``load_model`` in a worker. By default those of the model's name, dtype and device.
    """

    address: str = "auto"
    n: int | None = None
    cpus: float = 1
    gpus: float = 0
    load: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """What runs in another process: the model, loaded once."""

    def __init__(self, load: Mapping[str, Any], model_hash: str) -> None:
        self.load, self.model_hash = dict(load), model_hash
        self.model: Any = None

    def process(self) -> int:
        return os.getpid()

    def run(self, what: str, experiments: Sequence[Any], seed: bytes, memory_budget: int, seconds: float) -> bytes:
        """The store with what was there before (``seed``) and what this piece adds, as a file's bytes."""
        if self.model is None:  # here, so that errors are this call's and typed
            import introspect

            model = introspect.load_model(**self.load)
            if model.hash != self.model_hash:
                raise _C.ConfigError(
                    f"ray: a worker must load the same model ({self.model_hash[:12]}), got {model.hash[:12]} from "
                    f"{self.load['source']}: give RayWorkers(load=...) what load_model needs there"
                )
            self.model = model
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.sqlite"
            if seed:
                write_bytes(path, seed)
            store = _C.Store(path)
            if what == "doses":
                pieces.measure_doses(self.model, experiments[0], store, "ray")
            else:
                pieces.run(self.model, experiments, store, memory_budget, seconds)
            del store
            return file_bytes(path)


def file_bytes(path: Path) -> bytes:
    """A store as one file: its write-ahead log included, while others may write to it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        store = _C.Store(copy)
        store.merge(path)
        del store  # which moves the log into the file
        return copy.read_bytes()


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
) -> None:
    """Make all readings of experiments, which are in the native module's form, on a cluster's workers.

    What is in the store is not made again. A worker that dies is replaced, and its piece run again.

    Raises:
        ImportError: Ray is not installed.
        ConfigError: other models take part, or workers load another one.
        Error: a piece of which several workers have died.
        Exception: what a worker has raised, of its type.
    """
    workers = RayWorkers(given) if isinstance(given, str) else given
    if not isinstance(workers, RayWorkers):
        raise TypeError(f"{who}: ray must be 'auto', 'local', a cluster's address or RayWorkers, got {given!r}")
    if any(one["models"] for one in experiments):
        raise _C.ConfigError(f"{who}: ray= and models= cannot go together: workers hold one model each")
    if not store.can_write:
        raise _C.IoError(f"{who}: ray= needs a store that can be written, got {store.path}")
    load = {
        "source": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        **workers.load,
    }
    with _cluster(who, workers.address) as ray:
        pool = _Pool(ray, workers, load, model.hash, store, memory_budget, seconds)
        try:
            known = [part for one in experiments for part in pieces.of_each_concept(one)]
            pool.run([("doses", [one]) for one in known if _has_doses(one)])
            numbers = [
                {**doses.resolve(who, model, one, {}, only_plan=False, store=store)[0], "dose": False}
                for one in experiments
            ]
            first = pieces.unsteered(numbers)
            if first and _misses(pieces.plan_of(model, first, store, memory_budget)):
                pool.run([("readings", first)])
            whole = pieces.plan_of(model, numbers, store, memory_budget)
            done = [whole.found]
            cut = pieces.cut(model, numbers, store, memory_budget, pieces=PIECES_PER_WORKER * pool.n)

            def tell(n: int) -> None:
                done[0] = min(whole.readings, done[0] + cut[n].plan.readings - cut[n].plan.found)
                if progress:
                    progress(f"{len(cut)} pieces on {pool.n} workers", done[0], whole.readings)

            pool.run([("readings", piece.experiments) for piece in cut], tell)
        finally:
            pool.close()


def _has_doses(one: Mapping[str, Any]) -> bool:
    return one["dose"] or any(map(doses.is_target, one["strengths"] or ()))


def _misses(plan: Any) -> bool:
    return plan.found < plan.readings


class _Pool:
    """Workers that share out tasks; each result is merged into the store as it comes."""

    def __init__(
        self,
        ray: Any,
        given: RayWorkers,
        load: Mapping[str, Any],
        model_hash: str,
        store: _C.Store,
        memory_budget: int,
        seconds: float,
    ) -> None:
        self.ray, self.store = ray, store
        self.n = given.n or max(1, sum(node["Alive"] for node in ray.nodes()))
        made = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_restarts=0)(Worker)
        self.new = lambda: made.remote(load, model_hash)
        self.rest = (memory_budget, seconds)
        self.idle = [self.new() for _ in range(self.n)]
        self.busy: dict[Any, tuple[Any, int]] = {}

    def run(self, tasks: Sequence[tuple[str, Any]], tell: Callable[[int], None] = lambda _: None) -> None:
        if not tasks:
            return
        ray = self.ray
        seed = ray.put(file_bytes(self.store.path) if len(self.store) else b"")
        deaths: Counter[int] = Counter()
        waiting = deque(range(len(tasks)))
        while waiting or self.busy:
            while waiting and self.idle:
                n, actor = waiting.popleft(), self.idle.pop()
                what, experiments = tasks[n]
                self.busy[actor.run.remote(what, experiments, seed, *self.rest)] = actor, n
            ready, _ = ray.wait(list(self.busy), num_returns=1, timeout=1.0)  # a second: for Ctrl-C
            for one in ready:
                actor, n = self.busy.pop(one)
                try:
                    data = ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                    deaths[n] += 1
                    if deaths[n] >= MOST_DEATHS:
                        raise _C.Error(
                            f"ray: {MOST_DEATHS} workers have died of one piece, the last: {error}"
                        ) from None
                    waiting.appendleft(n)
                    self.idle.append(self.new())
                    continue
                self._take(data)
                self.idle.append(actor)
                tell(n)

    def _take(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "piece.sqlite"
            write_bytes(path, data)
            if damaged := self.store.merge(path).damaged:
                raise _C.IoError(f"ray: a worker sent {damaged} cells that are no readings")

    def close(self) -> None:
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)


@contextmanager
def _cluster(who: str, address: str) -> Iterator[Any]:
    """Ray, connected; what was started for the call ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ImportError(f"{who}: ray= needs Ray: pip install 'introspect[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": 256 << 20, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, **options)
        yield ray
    finally:
        ray.shutdown()
