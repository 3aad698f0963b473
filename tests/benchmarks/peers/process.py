"""A peer's worker process and the line-by-line JSON it speaks: this side (Worker), and that side (serve)."""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peers.environment import Environment


class Worker:
    """A script of this folder in a peer's environment, as a context; one request at a time."""

    def __init__(self, environment: "Environment", script: str, threads: int) -> None:
        python = environment.python()
        if python is None:
            make = f"tests/benchmarks/peers/environment.py {environment.name}"
            raise FileNotFoundError(f"no environment in {environment.folder()}: run {make}")
        self._name = environment.name
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        variables.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended before, which the call in progress has said
            self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _call(self, command: str, **arguments) -> Any:
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the worker of {self._name} ended with status {self._process.wait()}: see its messages above"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"in the worker of {self._name}:\n{answer['error']}")
        return answer["result"]


def serve(commands: object) -> None:
    """Answer each request of standard input with the method it names, until there are no more.

    Nothing is busy between requests, so that the other side can be timed meanwhile.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the peers print; the pipe is for answers only
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(commands, request.pop("command"))(**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)
