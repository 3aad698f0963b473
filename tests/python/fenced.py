"""The device "fenced" (tests/cpp/device): a fault to the host that touches its memory; it counts copies and waits."""

import functools
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch

BUILD = Path(os.environ.get("INTROSPECT_BUILD") or Path(__file__).parents[2] / "build/dev")  # as in tests/setup.sh
LIBRARY = BUILD / "tests/cpp/libfenced.so"


@functools.cache
def load() -> None:
    """Gives the device to torch."""
    if not LIBRARY.exists():
        raise FileNotFoundError(f"{LIBRARY} is not there: it is built with the C++ tests (INTROSPECT_BUILD_TESTS=ON)")
    torch.ops.load_library(LIBRARY)
    module = types.ModuleType("torch.fenced")
    module._lazy_init = lambda: None
    module.is_available = lambda: True
    module.device_count = lambda: 2
    sys.modules["torch.fenced"] = module
    torch._register_device_module("fenced", module)


def take_events() -> list[str]:
    """Copies and waits since the last call."""
    return torch.ops.fenced.take_events()


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the device during a call; copies that it goes on during are none."""
    take_events()
    result = call()
    events = take_events()
    del result
    return sum(event not in ("to device", "between devices", "replay") for event in events)


def replays(call: Callable[[], object]) -> int:
    """How often recorded work is replayed during a call."""
    take_events()
    result = call()
    events = take_events()
    del result
    return events.count("replay")
