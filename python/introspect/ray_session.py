"""Ray, connected: to a cluster that is there, or to one of this machine's own that lasts as long as a call."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from . import _C

OBJECT_STORE = 256 << 20
"""Bytes of shared memory for what tasks are given and send."""
PATIENCE = 300
"""Seconds that Ray's processes get to start, where Ray gives 30 or 60 and a busy machine needs more."""

_ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where it is "0" when Ray is imported, the machine's address is 127.0.0.1, for Ray here and for its processes."""
_AT_IMPORT = {"RAY_USAGE_STATS_ENABLED": "0", _ONE_MACHINE: "0"}
_AT_START = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{PATIENCE}",
    "RAY_agent_register_timeout_ms": f"{PATIENCE}000",
    "RAY_gcs_server_port_wait_time_s": f"{PATIENCE}",
    "RAY_raylet_start_wait_time_s": "60",  # less, since a raylet that has aborted is waited for, too
    "RAY_worker_register_timeout_seconds": f"{PATIENCE}",
    "RAY_worker_niceness": "0",  # not 15, with which a busy machine leaves workers a thirtieth of a processor
    "RAY_prestart_worker_first_driver": "0",  # a process for each core, of which we need one for each worker
}


@dataclass(frozen=True)
class Session:
    """Ray, connected, and the node that was started for it if one was."""

    ray: Any
    node: Any = None

    def ended(self) -> str:
        """Which process of our own node has ended without being asked to; "" if all is well.

        Whoever goes on with Ray then is ended by it, without an exception, or waits a minute for it.
        """
        dead = [] if self.node is None else [kind for kind, _ in self.node.dead_processes()]
        return next((kind for kind in dead if kind in ("raylet", "gcs_server")), "")


@contextmanager
def session(who: str, address: str) -> Iterator[Session]:
    """Ray, connected to the cluster at an address; where this process is connected already, to that one.

    Args:
        address: "auto": RAY_ADDRESS, or else "local": a cluster of this machine's own, on loopback if Ray was not
            imported before.

    Raises:
        ConfigError: an address of Ray's client, or that of machines where Ray has been imported for this one alone.
        ImportError: Ray is not installed.
        Error: no cluster is there, or none could be started.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise _C.ConfigError(
            f"{who}: ray= needs a process on a machine of the cluster (host:port), not Ray's client, got {address}"
        )
    if "ray" not in sys.modules:
        for name, value in _AT_IMPORT.items():
            if address == "local" or name != _ONE_MACHINE:
                os.environ.setdefault(name, value)
    with _environment(_AT_START if address == "local" else {}):
        try:
            import ray
        except ImportError:
            raise ImportError(f"{who}: ray= needs Ray: pip install 'introspect[ray]'") from None
        if ray.is_initialized():
            yield Session(ray)
            return
        _check_reachable(who, address)
        node = None
        try:
            node, options = _own_node(who) if address == "local" else (None, {"address": address})
            _connect(who, ray, options)
        except BaseException:
            _end(ray, node)
            raise
    made = Session(ray, node)
    try:
        yield made
    finally:
        _end(ray, node)


def _check_reachable(who: str, address: str) -> None:
    """Raises ConfigError where a cluster of machines would be told that this process is at 127.0.0.1."""
    here = address == "local" or address.rpartition(":")[0] in ("127.0.0.1", "localhost")
    if not here and os.environ.get(_ONE_MACHINE) == "0":
        raise _C.ConfigError(
            f"{who}: Ray in this process knows the machine as 127.0.0.1 ({_ONE_MACHINE}=0, from the environment or a "
            f"call with ray='local'), got the cluster {address}: use a fresh process without that variable"
        )


@contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    """Environment variables set for a while, where they are not set."""
    added = [name for name in names if name not in os.environ]
    os.environ.update({name: names[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _connect(who: str, ray: Any, options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except Exception as error:
        raise _C.Error(f"{who}: Ray cannot be started or reached at {options['address']!r}: {error}") from error


def _own_node(who: str) -> tuple[Any, dict[str, Any]]:
    """A cluster of one node, on loopback if Ray was not imported before, and what ``ray.init`` connects to it with."""
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    on_loopback = {"_node_ip_address": "127.0.0.1"}
    try:
        kind, params = _patient_node(), [_node_params(local) for _ in range(3)]
    except (ImportError, TypeError):  # a Ray whose inside is another one
        return None, {"address": "local", **local, **on_loopback}
    for n, one in enumerate(params, 1):
        node = kind.__new__(kind)  # so that what a start that fails has left behind can be ended
        try:
            node.__init__(one, head=True, shutdown_at_exit=False, spawn_reaper=True)
            return node, {"address": node.address, **on_loopback}
        except BaseException as error:
            _end_node(node)
            if not isinstance(error, Exception):
                raise
            if n == len(params):  # a port may have been taken meanwhile
                raise _C.Error(f"{who}: Ray cannot be started on this machine: {error}") from error
    raise AssertionError


def _patient_node() -> Any:
    """Ray's node, but one that starts however long its agents take.

    The raylet aborts if the dashboard's agent, a Python process that imports Ray, has not written its ports to files
    within 15 seconds, a limit that cannot be set and that a busy machine exceeds (ray-project/ray, issue 65983). What
    the agent writes where there is no dashboard, -1, stands there already. Of the other agent's port, which is given,
    the raylet waits for no file.
    """
    from ray._private.node import Node

    inside: Any = import_module("ray._raylet")
    ports = ("DASHBOARD_AGENT_LISTEN_PORT_NAME", "METRICS_AGENT_PORT_NAME", "METRICS_EXPORT_PORT_NAME")
    if not all(hasattr(inside, name) for name in ("persist_port", *ports)):  # before 2.54 the driver chose the ports
        return Node

    class PatientNode(Node):
        def start_raylet(self, *given: Any, **options: Any) -> None:
            for name in ports:
                inside.persist_port(self._session_dir, self._node_id, getattr(inside, name), -1)
            super().start_raylet(*given, **options)

    return PatientNode


def _node_params(local: Mapping[str, Any]) -> Any:
    from ray._private import parameter

    made: Any = parameter.RayParams
    return made(
        **local,
        node_ip_address="127.0.0.1",
        dashboard_port=None,
        dashboard_agent_listen_port=None,
        runtime_env_agent_port=_free_port(),
        include_log_monitor=False,  # workers' output is not shown
        no_monitor=True,  # nothing to scale
    )


def _free_port() -> int:
    """Below those that the system gives to whoever asks for any, so that nobody has taken it meanwhile."""
    for port in random.SystemRandom().sample(range(10_000, 30_000), 2_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise _C.Error("ray: a free port is needed on 127.0.0.1, got none between 10000 and 30000")


def _end(ray: Any, node: Any) -> None:
    with suppress(Exception):  # which would stand in the place of the call's own
        ray.shutdown()
    if node is not None:
        _end_node(node)


def _end_node(node: Any) -> None:
    if hasattr(node, "all_processes"):
        with suppress(Exception):
            node.kill_all_processes(check_alive=False, allow_graceful=True)
