"""The kernels on another processor: compiled for arm64 and run in an emulator, with their C++ tests."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static", "cmake", "ninja", "unzip")


@pytest.mark.skipif(
    os.environ.get("INTROSPECT_SLOW") != "all", reason="fetches 430 MB and compiles: INTROSPECT_SLOW=all"
)
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs g++-aarch64-linux-gnu and qemu-user-static")
@pytest.mark.timeout(3600)
def test_core_and_ops_pass_their_tests_on_arm64():
    run = subprocess.run(["bash", ROOT / "tests/arm64/run.sh"], capture_output=True, text=True, timeout=3500)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "AArch64" in run.stdout and "All tests passed" in run.stdout
