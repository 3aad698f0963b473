"""The device "fenced" (tests/device): a fault to the host that touches its memory, and it counts copies and waits."""

import functools
import os
import sys
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]


@functools.cache
def load() -> None:
    """Compile the device unless its sources are as they were, and give it to torch."""
    build = ROOT / "build" / f"fenced-{torch.__version__}"
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        name="fenced",
        sources=[os.fspath(path) for path in sorted((ROOT / "tests/device").glob("*.cpp"))],
        build_directory=os.fspath(build),
        extra_cflags=["-O1", "-std=c++20"],
        is_python_module=False,
    )
    module = types.ModuleType("torch.fenced")
    module._lazy_init = lambda: None
    module.device_count = lambda: 2
    sys.modules["torch.fenced"] = module
    torch._register_device_module("fenced", module)


def take_events() -> list[str]:
    """Copies and waits since the last call."""
    return torch.ops.fenced.take_events()
