"""The thread that a model's work runs in: one job after another, each given up as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from .fields import Refused
from .json_text import dumps

POLL = 0.1  # seconds between looks at whether the client is still there


class Cancelled(Exception):
    """Nobody waits for this job any more."""


class Job:
    """One piece of work: it asks ``check`` between its steps, and what it ``emit``s is streamed."""

    def __init__(self, emit: Callable[[Any], None] | None = None) -> None:
        self._gone = threading.Event()
        self._emit = emit

    def cancel(self) -> None:
        self._gone.set()

    @property
    def cancelled(self) -> bool:
        return self._gone.is_set()

    def check(self, *_: Any) -> None:
        """Raises Cancelled if the client has gone. It can be given to the library as ``progress``."""
        if self.cancelled:
            raise Cancelled

    def emit(self, value: Any) -> None:
        self.check()
        if self._emit:
            self._emit(value)


class Worker:
    """One thread for one model. What uses different models may run at once; what uses this one waits in line."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"explorer-{name}")
        self._jobs: set[Job] = set()

    def stop(self) -> None:
        """Give everything up; what runs ends at its next step."""
        for job in list(self._jobs):
            job.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, job: Job, function: Callable[[Job], Any]) -> asyncio.Future:
        def run() -> Any:
            job.check()
            return function(job)

        self._jobs.add(job)
        future = asyncio.get_running_loop().run_in_executor(self._pool, run)
        future.add_done_callback(lambda _: self._jobs.discard(job))
        return future

    async def run(self, request: Request, function: Callable[[Job], Any]) -> Any:
        """What ``function(job)`` gives. Raises Cancelled when the client goes before it is done."""
        job = Job()
        future = self._start(job, function)
        try:
            while not future.done():
                await asyncio.wait([future], timeout=POLL)
                if not future.done() and await request.is_disconnected():
                    job.cancel()
            return future.result()
        finally:
            job.cancel()

    def stream(self, request: Request, function: Callable[[Job], Any]) -> StreamingResponse:
        """Server-sent events of what ``function(job)`` emits, then {"done": what it gives} or {"error": sentence}."""
        return StreamingResponse(self._events(request, function), media_type="text/event-stream")

    async def _events(self, request: Request, function: Callable[[Job], Any]) -> AsyncIterator[str]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(value: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, value)

        job = Job(put)
        future = self._start(job, function)
        try:
            while not (future.done() and queue.empty()):
                try:
                    yield _event(await asyncio.wait_for(queue.get(), POLL))
                except asyncio.TimeoutError:
                    if await request.is_disconnected():
                        return
            try:
                yield _event({"done": future.result()})
            except Cancelled:
                return
            except Exception as error:
                yield _event({"error": sentence(error)})
        finally:
            job.cancel()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks any more


def _event(value: Any) -> str:
    return f"data: {dumps(value)}\n\n"


def sentence(error: BaseException) -> str:
    """What a person is told of an error: its own words, or, of a fault of ours, what it is."""
    if isinstance(error, Refused | ImportError | IndexError | MemoryError | OSError | RuntimeError | ValueError):
        return " ".join(str(error).split())[:2000] or type(error).__name__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (a fault of introspect's)"


__all__ = ["Cancelled", "Job", "Worker", "sentence"]
