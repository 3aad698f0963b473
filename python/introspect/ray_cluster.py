"""Workers of a Ray cluster: each holds the model, and they share out tasks.

Ray is optional: ``pip install introspect[ray]``.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from . import _C
from .ray_session import Session, session

MOST_DEATHS = 3
"""Workers that may die of one task, one after another without a result, before it is given up."""
AHEAD = 2
"""Tasks for each worker that may be finished before an earlier one is, where results are wanted in order."""
SECONDS_TO_DIE = 1.0
"""Seconds by which a worker's death is known before that of the node that has taken it along."""
PATIENCE = 600.0
"""Seconds without any worker after which it is given up: clusters that grow need minutes for a node."""


@dataclass(frozen=True)
class RayWorkers:
    """Where work runs: ``run_experiment(..., ray=introspect.RayWorkers("auto", n=8))``.

    Attributes:
        address: "auto": the cluster that RAY_ADDRESS names, or else one of this machine's own, started for the call;
            "local": that one; otherwise a cluster's address. Where this process is connected already, that cluster.
        n: workers, each with the whole model. None: one for each node that has processors.
        cpus: of each worker, and its threads unless OMP_NUM_THREADS says otherwise. None: a node's, shared by its
            workers.
        gpus: of each worker. None: one where the model is on a GPU, otherwise none.
        load: arguments of ``load_model`` in a worker, besides those that the model tells: its name, dtype, kind of
            device, n_ctx and how its weights are held. A ``chat_template`` that was given to the model must stand
            here, too.
    """

    address: str = "auto"
    n: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1):
            raise ValueError(f"RayWorkers: n must be at least 1, or None, got {self.n!r}")
        if not (self.gpus is None or self.gpus >= 0) or not (self.cpus is None or self.cpus > 0):
            raise ValueError(
                f"RayWorkers: cpus must be above 0 and gpus at least 0, got {self.cpus!r} and {self.gpus!r}"
            )


def facts_of(model: Any) -> dict[str, str]:
    """What readings depend on and must be the same wherever they are made."""
    import torch

    import introspect

    native = getattr(model, "native", model)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    chat = "none"
    if native.has_chat_template:
        try:
            text = native.chat_template.render(turns, add_generation_prompt=True, date_string="1 Jan 2026")
        except Exception as error:  # what a template raises
            text = str(error)
        chat = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {
        "introspect": introspect.__version__,
        "torch": torch.__version__,
        "model": native.hash[:12],
        "dtype": str(native.dtype),
        "device": _kind(native.device),
        "n_ctx": str(native.cfg.n_ctx),
        "weights": native.weights_held,
        "chat template": chat,
    }


def _kind(device: Any) -> str:
    """ "cuda" of "cuda:1": a worker's own first GPU is "cuda:0" there."""
    return str(device).partition(":")[0]


def loading_of(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``load_model`` that make a model again from its files, as far as it tells them."""
    native = getattr(model, "native", model)
    name = getattr(model, "name", "")
    out: dict[str, Any] = {
        "source": os.path.abspath(name) if os.path.exists(name) else name,  # workers have folders of their own
        "dtype": str(native.dtype).removeprefix("torch."),
        "device": _kind(native.device),
        "n_ctx": native.cfg.n_ctx,
        "weights": native.weights_held,
    }
    return {**out, **given}


class Worker:
    """What runs in another process: the model, loaded once."""

    def __init__(self, load: Mapping[str, Any], facts: Mapping[str, str]) -> None:
        self.load, self.facts = dict(load), dict(facts)
        self.model: Any = None

    def process(self) -> int:
        return os.getpid()

    def run(self, work: Callable[..., Any], *task: Any) -> Iterator[Any]:
        """What work(model, *task) returns, or what it yields if it is a generator."""
        if self.model is None:  # here, so that errors are this call's and typed
            import torch

            import introspect

            self._check({"introspect": introspect.__version__, "torch": torch.__version__})  # before a long load
            model = introspect.load_model(**self.load)
            self._check(facts_of(model))
            self.model = model
        made = work(self.model, *task)
        if isinstance(made, Iterator):
            yield from made
        else:
            yield made

    def _check(self, own: Mapping[str, str]) -> None:
        other = {name: one for name, one in own.items() if one != self.facts.get(name)}
        if other:
            wanted = ", ".join(f"{name} {self.facts.get(name)}" for name in other)
            came = ", ".join(f"{name} {one}" for name, one in other.items())
            raise _C.ConfigError(
                f"ray: a worker must have what the driver has ({wanted}), got {came} with "
                f"{self.load['source']}: install the same there, and give RayWorkers(load=...) what load_model needs"
            )


class Pool:
    """Workers that share out tasks. One that dies is replaced, and its task run again."""

    def __init__(self, session: Session, given: RayWorkers, load: Mapping[str, Any], facts: Mapping[str, str]) -> None:
        self.session, self.ray = session, session.ray
        self.n, cpus = _shares(given, self.ray.nodes())
        gpus = given.gpus or 0
        self.wanted = f"cpus={cpus:g}, gpus={gpus:g}"
        self.made = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker)
        self.given = load, facts
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, int, Callable[[], tuple]]] = {}  # by what is waited for: worker, number, task
        self.starting: dict[Any, Any] = {}  # the same: a worker that the cluster may have no room for yet
        self.processes: dict[Any, int] = {}  # of workers that have started and are not known to be dead
        self.idle_since = time.monotonic()
        for _ in range(self.n):
            self._start()

    def _start(self) -> None:
        worker = self.made.remote(*self.given)
        self.starting[worker.process.remote()] = worker

    def put(self, value: Any) -> Any:
        """Something that many tasks are given, sent to each node once."""
        return self.ray.put(value)

    def results(
        self, work: Callable[..., Any], tasks: Iterable[Callable[[], tuple]], *, in_order: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """(number of the task, ``work(model, *task())``) as they come, or in the order of tasks.

        Args:
            work: a function of a module. What a generator yields comes as it is yielded.
            tasks: drawn when a worker is free; called again for a worker in the place of one that has died.
            in_order: results wait for those before them, of which there are few at a time; one of each task.

        Raises:
            Error: a task of which several workers have died, workers that do not start, or a cluster of this machine's
                that has ended.
            Exception: what a worker has raised, of its type.
        """
        errors = self.ray.exceptions
        source, deaths = iter(tasks), Counter[int]()
        waiting: deque[tuple[int, Callable[[], tuple]]] = deque()
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
                self.busy[worker.run.options(num_returns="streaming").remote(work, *task())] = worker, n, task
            if not (self.busy or waiting or is_more):
                return
            for one in self._ready():
                n = -1  # of a worker that starts
                try:
                    if one in self.starting:
                        worker = self.starting.pop(one)
                        self.processes[worker] = self.ray.get(one)
                        self.idle.append(worker)
                        deaths.pop(n, None)
                        continue
                    worker, n, task = self.busy[one]
                    if (made := next(one, None)) is None:  # the task's end
                        del self.busy[one]
                        self.idle.append(worker)
                        continue
                    value = self.ray.get(made)
                    deaths.pop(n, None)
                    if not in_order:
                        yield n, value
                    elif n >= given:  # not of a task run again that has given its result already
                        early[n] = value
                except errors.RayTaskError as error:
                    raise error.cause from None
                except (
                    errors.RayError
                ) as error:  # the worker has died, or cannot be reached: not all such are RayActorErrors
                    self._check_cluster(SECONDS_TO_DIE)
                    self.busy.pop(one, None)
                    self._end(worker)
                    deaths[n] += 1
                    if deaths[n] >= MOST_DEATHS:
                        what = "of one task" if n >= 0 else "as they started"
                        raise _C.Error(f"ray: {MOST_DEATHS} workers have died {what}, the last: {error}") from None
                    if n >= 0:
                        waiting.appendleft((n, task))
                    self._start()
            for n in _in_a_row(early, given):
                given += 1
                yield n, early.pop(n)

    def _ready(self) -> list[Any]:
        """What has come, within a second."""
        ready, _ = self.ray.wait([*self.busy, *self.starting], timeout=1.0)  # a second: for Ctrl-C
        self._check_cluster()
        if self.busy or ready:
            self.idle_since = time.monotonic()
        elif time.monotonic() - self.idle_since > PATIENCE:
            raise _C.Error(
                f"ray: no worker has started in {PATIENCE:g} s: the cluster has no room for one of {self.wanted} "
                "(RayWorkers(cpus=..., gpus=...)), or cannot start Python processes; what was finished is kept"
            )
        return ready

    def _check_cluster(self, seconds: float = 0.0) -> None:
        """Raises Error if our own cluster has ended, or does within some seconds."""
        end = time.monotonic() + seconds
        while not (what := self.session.ended()):
            if self.session.node is None or time.monotonic() >= end:
                return
            time.sleep(0.05)
        raise _C.Error(f"ray: this machine's cluster has lost its {what}; what was finished is kept, run it again")

    def close(self) -> None:
        if self.session.ended():
            return  # with its workers
        for worker in [*self.idle, *self.starting.values(), *(worker for worker, *_ in self.busy.values())]:
            self._end(worker)

    def _end(self, worker: Any) -> None:
        """Frees what a worker holds of the cluster, if it is alive."""
        self.processes.pop(worker, None)
        with suppress(Exception):  # which would stand in the place of the call's own
            self.ray.kill(worker)


def _shares(given: RayWorkers, nodes: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    """How many workers there are, and the processors of each."""
    cpus = [one for node in nodes if node["Alive"] and (one := node["Resources"].get("CPU", 0.0)) > 0]
    n = given.n or max(1, len(cpus))
    if given.cpus is not None or not cpus:
        return n, given.cpus or 1.0
    of_a_node = -(-n // len(cpus))
    return n, max(1.0, min(cpus) // of_a_node)


def _gpus(who: str, given: float | None, device: Any) -> float:
    """GPUs of a worker that loads its model to a device."""
    on_gpu = _kind(device) == "cuda"
    if given is None:
        return float(on_gpu)
    if on_gpu and given == 0:
        raise _C.ConfigError(
            f"{who}: workers need GPUs for a model on {device}, got gpus=0: leave gpus out for one of each, "
            "or give the fraction that each may take"
        )
    return given


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
        ConfigError: a model that is not from files, workers without GPUs for a model on one, or an address that this
            process cannot connect to.
        ImportError: Ray is not installed.
        Error: no cluster is there, or none could be started.
    """
    workers = RayWorkers(given) if isinstance(given, str) else given
    if not isinstance(workers, RayWorkers):
        raise TypeError(f"{who}: ray must be 'auto', 'local', a cluster's address or RayWorkers, got {given!r}")
    load = loading_of(model, workers.load)
    if not load["source"]:
        raise _C.ConfigError(f"{who}: workers load the model from its files: give RayWorkers(load={{'source': ...}})")
    workers = replace(workers, gpus=_gpus(who, workers.gpus, load["device"]))
    with session(who, workers.address) as connected:
        made = Pool(connected, workers, load, facts_of(model))
        try:
            yield made
        finally:
            made.close()
