"""tests/gpu on devices that every machine has: no CUDA device is at hand here, and its scripts must not rot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "gpu"


def test_the_whole_script_runs_on_the_cpu_with_what_is_installed(tmp_path):
    env = os.environ | {
        "INTROSPECT_PYTHON": sys.executable,
        "INTROSPECT_DEVICE": "cpu",
        "INTROSPECT_INSTALLED": "1",
        "INTROSPECT_QUICK": "1",
        "INTROSPECT_WORK": os.fspath(tmp_path),
    }
    run = subprocess.run(["bash", GPU / "run.sh"], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 beyond their tolerance" in run.stdout
    for line in ("TFLOP/s", "pass 2x32, last logits", "steered in every layer", "greedy text, 4 x 4 tokens"):
        assert line in run.stdout


def test_parity_is_measured_on_a_device_and_another_result_is_a_failure():
    code = (
        f"import sys; sys.path[:0] = [{os.fspath(GPU)!r}, {os.fspath(GPU.parent / 'python')!r}]; "
        "import fenced, works; fenced.load(); import parity; "
        "works.WORKS['wrong'] = lambda model: model(works.TOKENS) + (1.0 if model.device.type == 'fenced' else 0); "
        "sys.argv = ['parity', '--device', 'fenced:1', '--architectures', '1', '--works', 'logits', 'wrong']; "
        "sys.exit(parity.main())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    found = [(line.split()[-1], line.split("  ")[0]) for line in run.stdout.splitlines()[:-1]]
    assert [verdict for verdict, name in found if name in ("logits", "wrong")] == ["ok", "WRONG", "ok", "WRONG"]
    # a readout in bfloat16, and an architecture's activations and text
    assert [verdict for verdict, name in found if name not in ("logits", "wrong")] == ["ok"] * 3
    assert run.stdout.endswith("2 beyond their tolerance\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shell_scripts_are_clean():
    subprocess.run(["shellcheck", *GPU.glob("*.sh")], check=True)
