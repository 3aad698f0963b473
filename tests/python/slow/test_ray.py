"""Sweeps, studies and activations on two Ray workers of this machine, with workers and drivers killed in the middle.

Starting Ray takes some ten seconds, and each test of a driver does it once or twice.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from shared_out import has_same_bits, tasks
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect import RayWorkers, ray_session
from introspect.experiments import ray_workers
from introspect.ray_cluster import Pool, pool

# Before Ray is imported, as the library does where it imports it: Ray then listens on loopback alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
ray = pytest.importorskip("ray")

TWO = RayWorkers("local", n=2, cpus=1)
FLOOR = 1e-9  # float64, whose products are a BLAS's: which readings share a batch depends on the piece
LAYERS = "1-5"
LONGEST = 600  # seconds of a command, on a busy machine


@pytest.fixture(autouse=True)
def as_many_threads_as_a_worker():
    """ATen's activations have other last digits where threads divide them elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """One for all tests of this process, which the calls find connected."""
    with ray_session.session("tests", "local"):
        yield


@pytest.fixture
def new_processes():
    """Started by a test, and ended with it."""
    out = []
    yield out
    for process in out:
        process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("ray")
    write_tiny_chat(out / "model", num_hidden_layers=6)
    random_vectors(range(1, 6))["cat"].save(out / "cat.safetensors")
    return out


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder / "model", dtype="float32")


def written(folder):
    """Key, value and time of what a command has kept in its folder."""
    store = folder / "cells.sqlite"
    rows = introspect.Store(store, read_only=True).rows() if store.exists() else []
    return {row["key"]: (row["value"], row["written"]) for row in rows}


def sweep(model, store, **more):
    options = {
        "layers": introspect.layer_ranges(1, 5),
        "nulls": 2,
        "strengths": [1.0, 2.0],
        "questions": ["Is ice hot?"],
    }
    return introspect.run_experiment(
        model, "no_info", vectors=random_vectors(range(1, 6)), **options, store=store, **more
    )


def values(store):
    return {row["key"]: row["value"] for row in introspect.Store(store, read_only=True).rows()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_two_workers_give_the_undisturbed_table(cluster, folder, tmp_path, dtype):
    model = introspect.load_model(folder / "model", dtype=dtype)
    whole = sweep(model, tmp_path / "whole.sqlite")
    shared = sweep(model, tmp_path / "shared.sqlite", ray=TWO)
    assert len(shared.rows) == len(whole.rows)
    floor = 0.5 if dtype == "bfloat16" else FLOOR  # where its products are oneDNN's
    for one, other in zip(shared.rows, whole.rows, strict=True):
        assert {**one, "base": 0, "injected": 0} == {**other, "base": 0, "injected": 0}
        assert one["injected"]["log_odds"] == pytest.approx(other["injected"]["log_odds"], rel=0, abs=floor)
    if has_same_bits(dtype):
        assert values(tmp_path / "shared.sqlite") == values(tmp_path / "whole.sqlite")  # bit for bit


@pytest.mark.parametrize("seconds", [0.05, 60.0])
def test_a_worker_killed_in_the_middle_changes_nothing(cluster, model, tmp_path, monkeypatch, seconds):
    sweep(model, tmp_path / "whole.sqlite")
    killed, pools = [], []
    start, take = Pool.__init__, ray_workers._take
    monkeypatch.setattr(Pool, "__init__", lambda self, *given: [start(self, *given), pools.append(self)][0])
    made, start_worker = [], Pool._start
    monkeypatch.setattr(Pool, "_start", lambda self: [made.append(1), start_worker(self)][1])

    def kill_after_taking(store, data):
        added = take(store, data)
        busy = [worker for worker, *_ in pools[0].busy.values()]
        if not killed and busy:
            killed.append(pools[0].processes[busy[0]])
            os.kill(killed[0], signal.SIGKILL)
        return added

    monkeypatch.setattr(ray_workers, "_take", kill_after_taking)
    monkeypatch.setattr(ray_workers, "SECONDS_BETWEEN", seconds)
    sweep(model, tmp_path / "killed.sqlite", ray=TWO)
    assert len(killed) == 1 and len(made) > TWO.n  # it was seen to die, and replaced
    assert values(tmp_path / "killed.sqlite") == values(tmp_path / "whole.sqlite")  # bit for bit


def test_a_worker_that_dies_while_the_other_waits_is_replaced_and_the_task_given_up_after_three(
    cluster, model, tmp_path
):
    def die(model, deaths, number):
        died = len(list(deaths.iterdir()))
        if number == 1 and died < 1:
            (deaths / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number, model.cfg.n_layers

    def always_die(model):
        os.kill(os.getpid(), signal.SIGKILL)

    with pool("test", TWO, model) as workers:
        listed = dict(workers.results(die, tasks((tmp_path, 0), (tmp_path, 1))))
        assert listed == {0: (0, 6), 1: (1, 6)}
        assert len(list(tmp_path.iterdir())) == 1
        in_order = [n for n, _ in workers.results(die, tasks(*((tmp_path, n) for n in range(2, 12))), in_order=True)]
        assert in_order == list(range(10))
        with pytest.raises(introspect.Error, match="3 workers have died of one task"):
            list(workers.results(always_die, tasks(())))


def test_what_a_worker_raises_reaches_the_caller_as_it_is(cluster, model, tmp_path):
    elsewhere = RayWorkers("local", n=1, load={"source": str(tmp_path / "none")})
    with pytest.raises(introspect.IoError, match="none"):
        sweep(model, tmp_path / "bad.sqlite", ray=elsewhere)


def test_activations_that_workers_read_are_the_same_bytes(cluster, model, tmp_path):
    texts = [f"text {n}: " + "one cat and some bread. " * (n % 7) for n in range(400)]
    options = {
        "hooks": ["blocks.3.hook_resid_post", "blocks.1.hook_resid_post"],
        "context_size": 16,
        "prepend_bos": False,
        "sequence_separator_token": None,
        "memory_budget": 400_000,  # several passes
    }
    whole = introspect.sae.write_activations(model, texts, tmp_path / "whole", **options)
    assert whole.rows > 2000
    shared = introspect.sae.write_activations(model, texts, tmp_path / "shared", **options, ray=TWO)
    assert (tmp_path / "shared/rows.bin").read_bytes() == (tmp_path / "whole/rows.bin").read_bytes()
    assert shared.is_complete and shared.sites == whole.sites and shared.notes == whole.notes

    some = introspect.sae.write_activations(model, texts, tmp_path / "some", **options, tokens=1000, ray=TWO)
    assert some.rows == 1000
    data = (tmp_path / "some/rows.bin").read_bytes()
    assert data == (tmp_path / "whole/rows.bin").read_bytes()[: len(data)]


def command(*arguments):
    """Environment and words of the command line in another process."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    } | {"OMP_NUM_THREADS": "1"}
    return {"args": [sys.executable, "-m", "introspect", *map(str, arguments)], "env": environment, "text": True}


def sweep_command(folder, output, *more):
    return command(
        "sweep", folder / "model", "no_info", "--vector", f"cat={folder / 'cat.safetensors'}", "--layers", LAYERS,
        "--all-ranges", "--strength", "1", "--strength", "2", "--nulls", "4", "--questions", "own", "--yes", "--json",
        "-o", output, *more,
    )  # fmt: skip


def status_of(pid):
    """State, parent and start time of a process, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = text.rpartition(")")[2].split()
    return words[0], int(words[1]), int(words[19])


def is_there(pid, start):
    """Whether the process that started then runs: no zombie, and no other that has its number now."""
    status = status_of(pid)
    return status is not None and status[0] not in "ZX" and status[2] == start


def with_starts(pids):
    return {(pid, status[2]) for pid in pids if (status := status_of(pid))}


def processes_of(parent):
    """The processes that a process has started, and theirs."""
    parents = {
        int(folder.name): status[1] for folder in Path("/proc").glob("[0-9]*") if (status := status_of(folder.name))
    }
    out = {parent}
    while more := {pid for pid, one in parents.items() if one in out} - out:
        out |= more
    return out


def addresses_listened_to(pids):
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    out = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                out.add(local.partition(":")[0])
    return out


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def processes_named(end, among):
    """Those whose program or script ends so."""
    out = []
    for pid in among:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(word.endswith(end) for word in words[:3]):
            out.append(pid)
    return out


@pytest.mark.timeout(6 * LONGEST)
def test_drivers_killed_in_the_middle_go_on_to_the_same_table(folder, tmp_path, new_processes):
    subprocess.run(**sweep_command(folder, tmp_path / "whole"), check=True, capture_output=True, timeout=LONGEST)
    whole = values(tmp_path / "whole/cells.sqlite")
    shared, deadline = tmp_path / "shared", time.monotonic() + 4 * LONGEST
    kept, addresses, everybody = {}, set(), set()
    for end in ("kill -9", "Ctrl-C", "no raylet"):
        with (tmp_path / "errors").open("w") as errors:
            driver = subprocess.Popen(
                **sweep_command(folder, shared, "--ray", "local"), stderr=errors, start_new_session=True
            )
        new_processes.append(driver)
        while len(written(shared)) <= len(kept):
            assert driver.poll() is None, (tmp_path / "errors").read_text()
            assert time.monotonic() < deadline
            everybody |= with_starts(started := processes_of(driver.pid))
            addresses |= addresses_listened_to(started - {driver.pid})
            time.sleep(0.05)
        if end == "kill -9":
            driver.kill()
        elif end == "Ctrl-C":
            os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        else:
            os.kill(processes_named("raylet/raylet", started)[0], signal.SIGKILL)
        code = driver.wait(timeout=LONGEST)
        said = (tmp_path / "errors").read_text()
        assert code == {"kill -9": -signal.SIGKILL, "Ctrl-C": 130, "no raylet": 1}[end], said
        assert "what was finished is kept" in said or end == "kill -9"
        before, kept = kept, written(shared)
        assert before.items() < kept.items() and len(kept) < len(whole)  # nothing lost, nothing made twice
        while left := {pid for pid, start in everybody if is_there(pid, start)}:
            assert time.monotonic() < deadline, f"processes that still run after {end}: {left}"
            time.sleep(0.2)
    assert addresses and addresses <= LOOPBACK

    done = subprocess.run(**sweep_command(folder, shared, "--ray", "local"), capture_output=True, timeout=LONGEST)
    assert done.returncode == 0, done.stderr
    assert values(shared / "cells.sqlite") == whole  # bit for bit
    assert kept.items() < written(shared).items()
    tables = [json.loads((tmp_path / name / "no_info.json").read_text()) for name in ("whole", "shared")]
    assert tables[0]["rows"] == tables[1]["rows"]


def test_a_cluster_starts_while_its_agents_are_held(tmp_path):
    """Ray's raylet gives one of them 15 seconds, which a busy machine does not have."""
    script = """
import os
from introspect import ray_session
with ray_session.session("test", "local") as session:
    print(session.ray.get(session.ray.remote(lambda: os.getpid()).remote()), flush=True)
"""
    process = subprocess.Popen(**{**command(), "args": [sys.executable, "-c", script]}, stdout=subprocess.PIPE)
    held = set()
    try:
        while process.poll() is None:
            for name in ("dashboard/agent.py", "agent/main.py"):
                pids = processes_named(name, processes_of(process.pid))
                for pid, start in with_starts(pids) - held:
                    held.add((pid, start))
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.02)
        assert process.returncode == 0 and int(process.stdout.read()) > 0
        assert len(held) == 2
    finally:
        process.kill()
        for pid, start in held:  # which nobody else may end: their raylet is gone
            if is_there(pid, start):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(3 * LONGEST)
def test_a_study_of_the_atlas_on_two_workers(folder, tmp_path):
    for name, more in (("whole", ()), ("shared", ("--ray", "local"))):
        subprocess.run(
            **command(
                "replicate", "lindsey_control", "--model", folder / "model", "--concepts", "cat,bread",
                "--yes", "--json", "-o", tmp_path / name, *more,
            ),
            check=True, capture_output=True, timeout=LONGEST,
        )  # fmt: skip
    assert values(tmp_path / "shared/cells.sqlite") == values(tmp_path / "whole/cells.sqlite")
