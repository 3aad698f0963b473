"""Kill -9 in the middle of a sweep, twenty times, and two sweeps on one store at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from tiny_chat import write_tiny_chat

import introspect
from introspect.experiments.results import Result

KILLS = 20
FLOOR = 1e-9  # float64: which readings share a batch depends on what was missing


class Worker:
    """Processes that each run the sweep of sweep_worker.py."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests" / "python" / "sweep_worker.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, name, store):
        """The child's id, and the file of its progress."""
        log = self.folder / f"{name}.log"
        asked = {"model": self.model, "store": store, "result": self.folder / f"{name}.json", "log": log}
        self.process.stdin.write(json.dumps({key: str(value) for key, value in asked.items()}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), log

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def worker(folder):
    model = write_tiny_chat(folder / "model", num_hidden_layers=6)
    worker = Worker(model, folder)
    yield worker
    worker.close()


def progress(log):
    """What the callback has been told: (done, total) each time."""
    if not log.exists():
        return []
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines() if line.count(" ") == 1]


def ended(child):
    """Whether a process that is not our own child is gone, or is a zombie of its parent's."""
    try:
        with open(f"/proc/{child}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait(child, result, seconds=300):
    deadline = time.monotonic() + seconds
    while not ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return Result.load(result)


def cells(store):
    """Key, value and time of every cell, in the order of writing."""
    if not store.exists():
        return []
    opened = introspect.Store(store)
    assert opened.problems() == []
    return [(row["key"], row["value"], row["written"]) for row in opened.rows()]


def same_table(one, other):
    assert len(one.rows) == len(other.rows)
    for left, right in zip(one.rows, other.rows, strict=True):
        for name in left.keys() - {"base", "injected"}:
            assert left[name] == right[name]
        for side in ("base", "injected"):
            for name in ("log_odds", "p_yes", "p_no"):
                assert left[side][name] == pytest.approx(right[side][name], abs=FLOOR)


@pytest.fixture(scope="module")
def undisturbed(worker, folder):
    child, log = worker.start("undisturbed", folder / "undisturbed.sqlite")
    result = wait(child, folder / "undisturbed.json")
    assert len({done for done, _ in progress(log)}) > 2 * KILLS, "too few commits to kill between"
    return result


def test_twenty_kills_lose_nothing_and_repeat_nothing(worker, folder, undisturbed):
    chance = random.Random(0)
    store = folder / "killed.sqlite"
    total = len(introspect.Store(folder / "undisturbed.sqlite"))
    kept = []
    for life in range(KILLS):
        child, log = worker.start(f"life {life}", store)
        # Some die before they have begun, the others after some more readings, in the middle of whatever comes next.
        further = chance.choice([0, chance.randrange(1, total // (KILLS + 5))])
        while further and max((done for done, _ in progress(log)), default=0) < len(kept) + further:
            assert not ended(child)
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        while not ended(child):
            time.sleep(0.001)
        assert not (folder / f"life {life}.json").exists(), "it was finished before it could be killed"

        after = cells(store)
        assert after[: len(kept)] == kept  # every cell as it was written, at the time at which it was written
        if told := progress(log):
            # A run is first told what it has found. It computes what is missing then and nothing else.
            assert told[0] == (len(kept), total)
            assert max(done for done, _ in told) <= len(after)  # what it was told is done had been committed
        kept = after
    assert 0 < len(kept) < total

    child, log = worker.start("last", store)
    result = wait(child, folder / "last.json")
    assert progress(log)[0] == (len(kept), total) and progress(log)[-1] == (total, total)
    finished = cells(store)
    assert finished[: len(kept)] == kept
    assert {key for key, *_ in finished} == {key for key, *_ in cells(folder / "undisturbed.sqlite")}
    same_table(result, undisturbed)


def test_two_processes_on_one_store_do_not_harm_each_other(worker, folder, undisturbed):
    store = folder / "shared.sqlite"
    children = [worker.start(f"process {i}", store)[0] for i in range(2)]
    results = [wait(child, folder / f"process {i}.json") for i, child in enumerate(children)]
    for result in results:
        same_table(result, undisturbed)
    assert {key for key, *_ in cells(store)} == {key for key, *_ in cells(folder / "undisturbed.sqlite")}
