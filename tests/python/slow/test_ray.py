"""A sweep on two Ray workers of this machine, and one of them killed in the middle. Starting Ray takes a minute."""

import os
import signal

import pytest
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.experiments import ray_workers
from introspect.experiments.ray_workers import RayWorkers

ray = pytest.importorskip("ray")

FLOOR = 1e-9  # float64: which readings share a batch depends on the piece


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all tests, which the calls find connected."""
    ray.init(address="local", include_dashboard=False, num_cpus=2, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(
        write_tiny_chat(tmp_path_factory.mktemp("ray") / "model", num_hidden_layers=6), dtype="float64"
    )


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


def test_two_workers_give_the_undisturbed_table_and_a_kill_changes_nothing(model, tmp_path, monkeypatch):
    whole = sweep(model, tmp_path / "whole.sqlite")
    shared = sweep(model, tmp_path / "shared.sqlite", ray=RayWorkers("local", n=2))
    assert len(shared.rows) == len(whole.rows)
    for one, other in zip(shared.rows, whole.rows, strict=True):
        assert {**one, "base": 0, "injected": 0} == {**other, "base": 0, "injected": 0}
        assert one["injected"]["log_odds"] == pytest.approx(other["injected"]["log_odds"], abs=FLOOR)
    assert values(tmp_path / "shared.sqlite").keys() == values(tmp_path / "whole.sqlite").keys()

    killed = []
    take = ray_workers._Pool._take

    def kill_after_taking(pool, data):
        take(pool, data)
        if not killed and pool.busy:
            actor, _ = next(iter(pool.busy.values()))
            killed.append(pids[actor])
            os.kill(pids[actor], signal.SIGKILL)

    pids = {}
    start = ray_workers._Pool.__init__

    def started(pool, *given):
        start(pool, *given)
        pids.update({actor: pool.ray.get(actor.process.remote()) for actor in pool.idle})

    monkeypatch.setattr(ray_workers._Pool, "_take", kill_after_taking)
    monkeypatch.setattr(ray_workers._Pool, "__init__", started)
    sweep(model, tmp_path / "killed.sqlite", ray=RayWorkers("local", n=2))
    assert len(killed) == 1
    assert values(tmp_path / "killed.sqlite") == values(tmp_path / "shared.sqlite")  # bit for bit


def test_what_a_worker_raises_reaches_the_caller_as_it_is(model, tmp_path):
    elsewhere = RayWorkers("local", n=1, load={"source": str(tmp_path / "none")})
    with pytest.raises(introspect.IoError, match="none"):
        sweep(model, tmp_path / "bad.sqlite", ray=elsewhere)
