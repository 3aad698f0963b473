"""How tasks are shared out among workers that die, by a Ray that runs in this process."""

import gc
import os
import re
import sys
import types
import weakref
from functools import partial
from itertools import chain, repeat

import pytest
from shared_out import tasks
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect import RayWorkers, ray_cluster, ray_session
from introspect.experiments import pieces, ray_workers
from introspect.ray_cluster import Pool, Worker, facts_of, loading_of
from introspect.ray_session import Session

BUDGET = 64 << 20


class RayError(Exception):
    """Every other of Ray's: a worker that died, was ended for its memory or cannot be reached, a lost result."""


class Raised(RayError):
    """RayTaskError."""

    def __init__(self, cause):
        self.cause = cause


class FakeRay:
    """Workers of this process.

    ``deaths``: {number of a worker: after how many results it dies}; ``late``: numbers of those that die when all
    results of their first task have come, but not its end.
    """

    exceptions = types.SimpleNamespace(RayTaskError=Raised, RayError=RayError)

    def __init__(self, deaths=(), cpus=(2.0,), late=()):
        self.deaths, self.cpus, self.late = dict(deaths), cpus, late
        self.made, self.killed, self.puts, self.kill_fails = 0, [], [], False

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": one} if one else {}} for one in self.cpus]

    def put(self, value):
        self.puts.append(value)
        return value

    def remote(self, **options):
        self.options = options
        return lambda kind: types.SimpleNamespace(remote=lambda *given: FakeWorker(self, kind(*given)))

    def wait(self, refs, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        return ref()

    def kill(self, worker):
        self.killed.append(worker)
        if self.kill_fails:
            raise RayError("nobody there")


class FakeWorker:
    def __init__(self, ray, worker):
        self.ray, self.number, ray.made = ray, ray.made, ray.made + 1
        self.left = ray.deaths.get(self.number, 10**9)
        self.worker = worker
        self.process = types.SimpleNamespace(remote=lambda: lambda: self._answer(self.number))
        self.run = types.SimpleNamespace(options=lambda num_returns: types.SimpleNamespace(remote=self._run))

    def _answer(self, value):
        if self.left < 0:
            raise RayError(f"worker {self.number}")
        return value

    def _run(self, *task):
        made = self.worker.run(*task)
        while self.left >= 0:
            try:
                value = next(made)
            except StopIteration:
                if self.number in self.ray.late:
                    self.left = -1
                    yield partial(self._answer, None)
                return
            except Exception as error:
                yield partial(self._raise, error)
                return
            self.left -= 1
            yield partial(self._answer, value)

    def _raise(self, cause):
        raise Raised(cause)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("ray") / "model", num_hidden_layers=3))


@pytest.fixture(scope="module")
def new_pool(model):
    def make(n=2, deaths=(), **more):
        return Pool(Session(FakeRay(deaths, **more)), RayWorkers(n=n), loading_of(model, {}), facts_of(model))

    return make


def several(model, first, n):
    for i in range(n):
        yield first + i


def one(model, n):
    return n


def test_results_of_all_tasks_come_once_and_in_order_where_asked(new_pool):
    pool = new_pool(n=3)
    assert sorted(pool.results(several, tasks((0, 2), (10, 1), (20, 3)))) == [
        (0, 0), (0, 1), (1, 10), (2, 20), (2, 21), (2, 22),
    ]  # fmt: skip
    assert list(pool.results(one, tasks(*((n,) for n in range(9))), in_order=True)) == [(n, n) for n in range(9)]
    assert pool.ray.made == 3
    pool.close()
    assert len(pool.ray.killed) == 3


def test_a_task_of_a_worker_that_died_is_asked_for_again(new_pool):
    asked = []
    pool = new_pool(n=1, deaths={0: 2})

    def task():
        asked.append(len(asked))
        return 10 * asked[-1], 4

    assert [value for _, value in pool.results(several, [task])] == [0, 1, 10, 11, 12, 13]
    assert asked == [0, 1] and pool.ray.made == 2
    (first,) = pool.ray.killed  # it may be alive, and hold what the other needs
    assert first.number == 0 and list(pool.processes.values()) == [1]


def test_a_worker_that_cannot_be_ended_is_replaced_and_hides_no_error(new_pool):
    pool = new_pool(n=1, deaths={0: 0})
    pool.ray.kill_fails = True
    assert list(pool.results(several, tasks((0, 2)))) == [(0, 0), (0, 1)]
    pool.close()
    assert [worker.number for worker in pool.ray.killed] == [0, 1]


def test_a_result_that_comes_again_with_a_task_run_again_is_not_kept(new_pool):
    class Value:
        pass

    alive = weakref.WeakSet()

    def value(model, n):
        alive.add(made := Value())
        return made

    left = []
    for n, _ in new_pool(n=1, late=(0,)).results(value, tasks((0,), (1,), (2,)), in_order=True):
        del _
        gc.collect()
        left.append((n, len(alive)))
    assert left == [(0, 1), (1, 1), (2, 1)]


def test_three_deaths_of_one_task_end_the_call_unless_something_came_between(new_pool):
    with pytest.raises(introspect.Error, match="3 workers have died of one task, the last: worker 2"):
        list(new_pool(n=1, deaths={0: 0, 1: 0, 2: 0}).results(several, tasks((0, 2))))
    patient = new_pool(n=1, deaths={0: 1, 1: 1, 2: 1, 3: 1})
    assert len(list(patient.results(several, tasks((0, 2))))) == 4 + 2
    with pytest.raises(introspect.Error, match="3 workers have died as they started"):
        list(new_pool(n=1, deaths={n: -1 for n in range(3)}).results(one, tasks((0,))))
    between = new_pool(n=1, deaths={0: -1, 1: -1, 2: 0, 3: -1})
    assert list(between.results(one, tasks((7,)))) == [(0, 7)] and between.ray.made == 5


def test_what_a_task_raises_is_raised_after_what_it_gave(new_pool):
    def fails(model, n):
        yield n
        raise introspect.IoError("full")

    got = []
    with pytest.raises(introspect.IoError, match="full"):
        for value in new_pool(n=1).results(fails, tasks((7,))):
            got.append(value)
    assert got == [(0, 7)]


def test_workers_that_never_start_are_given_up(new_pool, monkeypatch):
    pool = new_pool(n=1)
    monkeypatch.setattr(pool.ray, "wait", lambda refs, timeout: ([], refs))
    monkeypatch.setattr(ray_cluster, "PATIENCE", 0.0)
    with pytest.raises(introspect.Error, match="no room for one of cpus=2, gpus=0"):
        list(pool.results(one, tasks((0,))))


def test_a_cluster_that_has_lost_its_raylet_is_an_error_and_left_alone(new_pool):
    pool = new_pool(n=1)
    dead = types.SimpleNamespace(dead_processes=lambda: [("dashboard", 1), ("raylet", 2)])
    pool.session = Session(pool.ray, dead)
    with pytest.raises(introspect.Error, match="lost its raylet; what was finished is kept"):
        list(pool.results(one, tasks((0,))))
    pool.close()
    assert pool.ray.killed == []


def test_a_raylet_that_is_seen_to_die_after_its_workers_is_an_error_before_ray_is_used_again(new_pool):
    pool = new_pool(n=1, deaths={0: 0})
    seen = chain([[], [], []], repeat([("gcs_server", 1)]))  # at the start, at the result, after the death
    pool.session = Session(pool.ray, types.SimpleNamespace(dead_processes=lambda: next(seen)))
    with pytest.raises(introspect.Error, match="lost its gcs_server"):
        list(pool.results(several, tasks((0, 2))))
    assert pool.ray.made == 1


@pytest.mark.parametrize(
    ("n", "cpus", "nodes", "expected"),
    [
        (None, None, (16.0, 16.0), (2, 16.0)),
        (None, None, (0.0, 16.0, 8.0), (2, 8.0)),  # a head without processors
        (4, None, (16.0, 16.0), (4, 8.0)),
        (3, None, (16.0, 16.0), (3, 8.0)),
        (5, None, (2.0,), (5, 1.0)),
        (None, 3.0, (16.0,), (1, 3.0)),
        (None, None, (), (1, 1.0)),
    ],
)
def test_processors_of_nodes_are_shared_by_their_workers(n, cpus, nodes, expected):
    assert ray_cluster._shares(RayWorkers(n=n, cpus=cpus), FakeRay(cpus=nodes).nodes()) == expected


def test_workers_of_no_sense_are_refused():
    for bad in (
        {"n": 0},
        {"n": 1.5},
        {"n": True},
        {"cpus": 0},
        {"gpus": -1},
        {"gpus": float("nan")},
        {"cpus": float("nan")},
    ):
        with pytest.raises(ValueError, match="RayWorkers"):
            RayWorkers(**bad)


@pytest.mark.parametrize(
    "other", ["introspect", "torch", "model", "dtype", "device", "chat template", "n_ctx", "weights"]
)
def test_a_worker_that_is_not_like_the_driver_is_refused(model, other):
    worker = Worker(loading_of(model, {}), {**facts_of(model), other: "0.0.0"})
    with pytest.raises(introspect.ConfigError, match=rf"worker must have .*{other} 0\.0\.0.*got {other} "):
        list(worker.run(one, 1))


def test_a_worker_with_another_chat_template_or_model_is_refused(model, tmp_path):
    plain = introspect.load_model(model.name, chat_template="plain")
    with pytest.raises(introspect.ConfigError, match="chat template"):
        list(Worker(loading_of(plain, {}), facts_of(plain)).run(one, 1))
    assert list(Worker(loading_of(plain, {"chat_template": "plain"}), facts_of(plain)).run(one, 1)) == [1]
    other = write_tiny_chat(tmp_path / "other", seed=1, num_hidden_layers=3)
    with pytest.raises(introspect.ConfigError, match=re.escape(str(other))):
        list(Worker(loading_of(model, {"source": str(other)}), facts_of(model)).run(one, 1))


def test_a_worker_loads_from_a_path_that_holds_in_every_folder(model, monkeypatch):
    monkeypatch.chdir(os.path.dirname(model.name))
    relative = introspect.load_model("model")
    assert loading_of(relative, {})["source"] == os.path.realpath(model.name)


def test_a_worker_is_told_the_kind_of_device_and_given_a_gpu_for_a_model_on_one(model, monkeypatch):
    native = types.SimpleNamespace(device="cuda:1", dtype="torch.float32", cfg=types.SimpleNamespace(n_ctx=8))
    native.weights_held = "dense"
    on_gpu = types.SimpleNamespace(native=native, name="somewhere")
    assert loading_of(on_gpu, {})["device"] == "cuda" and loading_of(model, {})["device"] == "cpu"
    for given, device, expected in (
        (None, "cuda", 1),
        (None, "cpu", 0),
        (0.5, "cuda", 0.5),
        (2, "cpu", 2),
        (0, "cpu", 0),
    ):
        assert ray_cluster._gpus("test", given, device) == expected
    monkeypatch.setattr(ray_cluster, "session", None)  # nothing may start
    with (
        pytest.raises(introspect.ConfigError, match="GPUs for a model on cuda, got gpus=0"),
        ray_cluster.pool("test", RayWorkers("local", gpus=0), on_gpu),
    ):
        pass


def test_clients_addresses_are_refused(model):
    with pytest.raises(introspect.ConfigError, match="host:port"), ray_session.session("test", "ray://there:1"):
        pass


def test_a_cluster_of_machines_is_refused_where_ray_was_imported_for_one(monkeypatch):
    fake = types.SimpleNamespace(is_initialized=lambda: False, init=None, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    for address in ("there:6379", "auto"):
        with pytest.raises(introspect.ConfigError, match="there:6379: use a fresh process"):  # noqa: SIM117
            with ray_session.session("test", address):
                pass
    ray_session._check_reachable("test", "local")
    ray_session._check_reachable("test", "127.0.0.1:6379")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    ray_session._check_reachable("test", "there:6379")


def test_a_node_that_cannot_be_ended_hides_no_error():
    def fail(**options):
        raise OSError("gone")

    ended = []
    node = types.SimpleNamespace(all_processes={}, kill_all_processes=lambda **options: (ended.append(1), fail()))
    ray_session._end(types.SimpleNamespace(shutdown=fail), node)
    assert ended == [1]


def test_a_free_port_is_below_those_that_the_system_gives():
    assert len({ray_session._free_port() for _ in range(4)}) == 4
    assert all(10_000 <= ray_session._free_port() < 30_000 for _ in range(4))


def test_what_is_set_for_the_start_is_gone_after_it(monkeypatch):
    name, *others = ray_session._AT_START
    monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    with ray_session._environment(ray_session._AT_START):
        assert os.environ[name] == "7"
        assert all(os.environ[other] == ray_session._AT_START[other] for other in others)
    assert dict(os.environ) == before


def test_a_piece_sends_what_it_reads_as_it_reads_it_and_never_what_was_there(model, tmp_path):
    given = introspect.experiments.arguments.Arguments("test")
    options = {"layers": [(1, 1), (2, 2)], "strengths": [1.0, 2.0], "nulls": 1, "questions": ["Is ice hot?"]}
    from introspect.experiments.run import native_experiment
    from introspect.studies.together import DEFAULTS

    protocol, controls = given.controls(given.protocol("no_info"), None)
    made = native_experiment(given, {**DEFAULTS, "vectors": random_vectors(), **options})
    experiments = [{"own_strengths": [], **made, "protocol": protocol, "controls": controls}]
    whole = introspect.Store(tmp_path / "whole.sqlite")
    pieces.run(model, experiments, whole, BUDGET, 0.0)
    keys = {row["key"] for row in whole.rows()}

    store = introspect.Store(tmp_path / "parts.sqlite")
    parts = [
        ray_workers._take(store, data)
        for data in ray_workers.run_piece(model, "readings", experiments, b"", BUDGET, 0.0, 0.0)
    ]
    assert sum(parts) == len(store) == len(keys) and all(parts)
    assert {row["key"] for row in store.rows()} == keys

    first = introspect.Store(tmp_path / "first.sqlite")
    pieces.run(model, pieces.unsteered(experiments), first, BUDGET, 0.0)
    n_first = len(first)
    assert 0 < n_first < len(keys)
    seed = ray_workers._file_bytes(tmp_path / "first.sqlite")
    rest = list(ray_workers.run_piece(model, "readings", experiments, seed, BUDGET, 0.0, 60.0))
    assert [ray_workers._take(first, data) for data in rest] == [len(keys) - n_first]


def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(model, tmp_path):
    introspect.Store(tmp_path / "kept.sqlite")
    store = introspect.Store(tmp_path / "kept.sqlite", read_only=True)
    with pytest.raises(introspect.IoError, match=r"kept\.sqlite"):
        introspect.run_experiment(
            model, "no_info", vectors=random_vectors(), strengths=1.0, nulls=0, store=store, ray="nowhere:1"
        )


def test_the_command_line_says_what_to_install_before_it_loads_a_model(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from introspect.cli.app import app

    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["sweep", str(tmp_path / "none"), "no_info", "--vector", "cat=none", "--layers", "1-2", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--ray", "auto"])
    assert done.exit_code == 2 and "introspect[ray]" in done.output


def test_workers_of_the_command_line_are_given_the_chat_template_too(tmp_path, monkeypatch):
    from introspect.cli.experiment import ray_workers as of_command

    assert of_command(None, "plain") is None and of_command("auto", None) == "auto"
    assert of_command("auto", "plain") == RayWorkers("auto", load={"chat_template": "plain"})
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    assert of_command("local", "own.jinja").load == {"chat_template": str(tmp_path / "own.jinja")}
    long = "{{ messages[0]['content'] }}" * 20  # no file may have such a name
    (tmp_path / "plain").mkdir()
    (tmp_path / "chatml").touch()
    for given in (long, "x" * 300, "plain", "chatml", "none.jinja"):
        assert of_command("local", given).load == {"chat_template": given}
