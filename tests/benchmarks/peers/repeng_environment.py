"""The environment of repeng 0.4.0, which wants numpy 1: it stands beside ours.

    python tests/benchmarks/peers/repeng_environment.py

makes it in build/venv-repeng of this checkout, or in $INTROSPECT_REPENG, and prints the path of its Python. It takes
minutes the first time and seconds after that. Tests and benchmarks find it with `repeng_python()`.
"""

import contextlib
import os
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

# torch comes first, alone and pinned, from PyTorch's CPU wheels where they can be reached: PyPI's bring CUDA.
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
REQUIREMENTS = (["torch==2.13.0"], ["repeng==0.4.0", "numpy<2", "transformers>=5", "gguf"])
CHECK = "from repeng import ControlModel, ControlVector, DatasetEntry"


def repeng_folder() -> Path:
    """Where the environment is, or would be."""
    return Path(os.environ.get("INTROSPECT_REPENG") or Path(__file__).parents[3] / "build/venv-repeng")


def repeng_python() -> Path | None:
    """The environment's Python; None where the environment was not made."""
    folder = repeng_folder()
    return folder / "bin/python" if (folder / "READY").exists() else None


def _index() -> list[str]:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=5).close()
        return ["--extra-index-url", CPU_WHEELS]
    return []


def make() -> Path:
    """Make the environment, unless it is there and imports."""
    folder = repeng_folder()
    python, log = folder / "bin/python", folder.with_name(folder.name + ".log")
    if repeng_python() and subprocess.run([python, "-c", CHECK], capture_output=True).returncode == 0:
        return python
    venv.create(folder, clear=True, with_pip=True)
    with log.open("w") as out:
        for packages in REQUIREMENTS:
            step = [python, "-m", "pip", "install", *_index(), *packages]
            if subprocess.run(step, stdout=out, stderr=subprocess.STDOUT).returncode:
                sys.exit(f"pip install {' '.join(packages)} failed: see {log}")
    subprocess.run([python, "-c", CHECK], check=True)
    (folder / "READY").touch()
    return python


if __name__ == "__main__":
    print(make())
