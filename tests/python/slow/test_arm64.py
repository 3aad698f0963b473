"""Another processor: the library compiled for arm64 and run in an emulator, with its C++ tests and passes of models.

Only by request (INTROSPECT_SLOW=all): torch's wheel for arm64 is fetched (430 MB), and most of an hour goes by.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import write_tiny

import introspect

ROOT = Path(__file__).parents[3]
TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static", "cmake", "ninja", "unzip")
pytestmark = [
    pytest.mark.skipif(os.environ.get("INTROSPECT_SLOW") != "all", reason="an hour and 430 MB: INTROSPECT_SLOW=all"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs g++-aarch64-linux-gnu, qemu-user-static, cmake, ninja, unzip"
    ),
    pytest.mark.timeout(7200),
]


def arm64(*arguments: str) -> str:
    run = subprocess.run(["bash", ROOT / "tests/arm64/run.sh", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout


def test_core_and_ops_pass_their_tests():
    out = arm64("ops")
    assert "AArch64" in out and "All tests passed" in out


def test_the_modules_up_to_models_pass_their_tests():
    out = arm64("models")
    assert "AArch64" in out and "All tests passed" in out


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square."""
    return (a - b).square().mean().sqrt().item()


IDS = [1, 17, 42, 99, 5, 64, 3, 3, 80, 23]
# Rows of 64 numbers fill registers, heads of 32; those of the default sizes do not.
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize("sizes", [{}, SIZES])
def test_a_pass_gives_this_machines_logits(tmp_path, sizes):
    check_pass(write_tiny(tmp_path / "model", **sizes), tmp_path, "dense")


@pytest.mark.parametrize("held", ["dense", "stored"])
def test_a_pass_of_a_real_model_gives_this_machines_logits(tmp_path, held):
    folder = os.environ.get("INTROSPECT_MODELS")
    path = Path(folder or "") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("no SmolLM2-135M-Instruct.Q4_1.gguf in INTROSPECT_MODELS")
    check_pass(path, tmp_path, held)


def check_pass(path: Path, work: Path, held: str) -> None:
    weights = {"dense": "dense", "stored": "as stored"}[held]
    here, there = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        out = work / f"{name}.txt"
        arm64("forward", str(out), str(path), name, held, *map(str, IDS))
        model = introspect.load_model(path, dtype=dtype, weights=weights if path.is_file() else None)
        here[dtype] = model(torch.tensor([IDS]))[0]
        there[dtype] = torch.tensor([float(line) for line in out.read_text().split()]).view_as(here[dtype])
    # The invariants' floor for float32 on real weights (DESIGN 6).
    assert (there[torch.float32] - here[torch.float32]).abs().max().item() < 1e-3
    # Another order of float32 sums rounds other numbers to bfloat16: as far from float32's logits, not as near to each
    # other.
    exact = here[torch.float32]
    assert difference(there[torch.bfloat16], exact) < 1.5 * difference(here[torch.bfloat16], exact)
