"""Workers of a Ray cluster: each holds the model, and they share out tasks.

Ray is optional: ``pip install introspect[ray]``.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import _C

MOST_DEATHS = 3
"""Workers that may die of one task before it is given up."""
AHEAD = 2
"""Tasks for each worker that may be finished before an earlier one is, where results are wanted in order."""


@dataclass(frozen=True)
class RayWorkers:
    """Where work runs: ``run_experiment(..., ray=introspect.RayWorkers("auto", n=8))``.

    Attributes:
        address: "auto": the cluster that RAY_ADDRESS names, or else one of this machine's own, started for the call;
            "local": that one; otherwise a cluster's address. Where this process is connected already, that cluster.
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

    def run(self, work: Callable[..., Any], *task: Any) -> Any:
        """work(model, *task)."""
        if self.model is None:  # here, so that errors are this call's and typed
            import introspect

            model = introspect.load_model(**self.load)
            if model.hash != self.model_hash:
                raise _C.ConfigError(
                    f"ray: a worker must load the same model ({self.model_hash[:12]}), got {model.hash[:12]} from "
                    f"{self.load['source']}: give RayWorkers(load=...) what load_model needs there"
                )
            self.model = model
        return work(self.model, *task)


class Pool:
    """Workers that share out tasks. One that dies is replaced, and its task run again."""

    def __init__(self, ray: Any, given: RayWorkers, load: Mapping[str, Any], model_hash: str) -> None:
        self.ray = ray
        self.n = given.n or max(1, sum(node["Alive"] for node in ray.nodes()))
        self.made = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_restarts=0)(Worker)
        self.given = load, model_hash
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, int, tuple]] = {}  # by what is waited for: worker, number of the task, task
        self.starting: dict[Any, Any] = {}  # the same: a worker that the cluster may have no room for yet
        self.processes: dict[Any, int] = {}  # of workers that have started
        for _ in range(self.n):
            self._start()

    def _start(self) -> None:
        worker = self.made.remote(*self.given)
        self.starting[worker.process.remote()] = worker

    def put(self, value: Any) -> Any:
        """Something that many tasks are given, sent to each node once."""
        return self.ray.put(value)

    def results(
        self, work: Callable[..., Any], tasks: Iterable[tuple], *, in_order: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """(number of the task, ``work(model, *task)``) as they come, or in the order of tasks.

        Args:
            work: a function of a module.
            tasks: drawn when a worker is free.
            in_order: results wait for those before them, of which there are few at a time.

        Raises:
            Error: a task of which several workers have died, or workers that die as they start.
            Exception: what a worker has raised, of its type.
        """
        errors = self.ray.exceptions
        source, deaths = iter(tasks), Counter[int]()
        waiting: deque[tuple[int, tuple]] = deque()
        early: dict[int, Any] = {}
        drawn, given, is_more = 0, 0, True
        while True:
            while self.idle and (waiting or is_more):
                if not waiting:
                    if in_order and drawn - given >= (1 + AHEAD) * self.n:
                        break
                    new = next(source, None)
                    if new is None:
                        is_more = False
                        break
                    waiting.append((drawn, new))
                    drawn += 1
                n, task = waiting.popleft()
                worker = self.idle.pop()
                self.busy[worker.run.remote(work, *task)] = worker, n, task
            if not (self.busy or waiting or is_more):
                return
            ready, _ = self.ray.wait([*self.busy, *self.starting], timeout=1.0)  # a second: for Ctrl-C
            for one in ready:
                n = -1  # of a worker that starts
                try:
                    if one in self.starting:
                        worker = self.starting.pop(one)
                        self.processes[worker] = self.ray.get(one)
                    else:
                        worker, n, task = self.busy.pop(one)
                        early[n] = self.ray.get(one)
                    self.idle.append(worker)
                except errors.RayTaskError as error:
                    raise error.cause from None
                except (errors.RayActorError, errors.ObjectLostError) as error:
                    deaths[n] += 1
                    if deaths[n] >= MOST_DEATHS:
                        what = "of one task" if n >= 0 else "as they started"
                        raise _C.Error(f"ray: {MOST_DEATHS} workers have died {what}, the last: {error}") from None
                    if n >= 0:
                        waiting.appendleft((n, task))
                    self._start()
            for n in list(early) if not in_order else _in_a_row(early, given):
                given += 1
                yield n, early.pop(n)

    def close(self) -> None:
        for worker in [*self.idle, *self.starting.values(), *(worker for worker, *_ in self.busy.values())]:
            self.ray.kill(worker)


def _in_a_row(numbers: Mapping[int, Any], first: int) -> list[int]:
    last = first
    while last in numbers:
        last += 1
    return list(range(first, last))


@contextmanager
def pool(who: str, given: RayWorkers | str, model: Any) -> Iterator[Pool]:
    """Workers with a model; what was started for the call ends with it.

    Raises:
        TypeError: ``given`` is neither an address nor RayWorkers.
        ImportError: Ray is not installed.
        Error: no cluster is there, or none could be started.
    """
    workers = RayWorkers(given) if isinstance(given, str) else given
    if not isinstance(workers, RayWorkers):
        raise TypeError(f"{who}: ray must be 'auto', 'local', a cluster's address or RayWorkers, got {given!r}")
    load = {
        "source": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        **workers.load,
    }
    with _cluster(who, workers.address) as ray:
        made = Pool(ray, workers, load, model.hash)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def _cluster(who: str, address: str) -> Iterator[Any]:
    """Ray, connected."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and "ray" not in sys.modules:
        # Read when Ray is imported, here and in its processes: the machine's address is then 127.0.0.1 for them.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise ImportError(f"{who}: ray= needs Ray: pip install 'introspect[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": 256 << 20, "_node_ip_address": "127.0.0.1"}
    try:
        _start(who, ray, address, options)
        yield ray
    finally:
        ray.shutdown()


def _start(who: str, ray: Any, address: str, options: Mapping[str, Any]) -> None:
    for is_last in (False, False, True):
        try:
            ray.init(address=address, **options)
            return
        except Exception as error:
            # Ray gives its own processes 30 seconds, which a busy machine may not have.
            if is_last or "timed out during startup" not in str(error):
                raise _C.Error(f"{who}: Ray cannot be started or reached at {address!r}: {error}") from error
            ray.shutdown()
