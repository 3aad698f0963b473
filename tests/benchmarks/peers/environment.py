"""The environments of the peers, which want other packages than we do: each has its own.

    python tests/benchmarks/peers/environment.py [transformer_lens] [repeng] [sae_lens]

makes those named, or all, in build/ of this checkout or where their variables say, and prints the paths of their
Pythons. It takes minutes the first time and seconds after that. Tests and benchmarks start their workers with
`ENVIRONMENT.python()`.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import urllib.request
import venv
from dataclasses import dataclass, field
from pathlib import Path

# torch comes first, alone and pinned, from PyTorch's CPU wheels where they can be reached: PyPI's bring CUDA.
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
TORCH = ["torch==2.13.0"]


@dataclass(frozen=True)
class Environment:
    """A virtual environment of one peer."""

    name: str
    variable: str  # of the process environment, with the folder to use instead of the default
    default: str  # under build/
    packages: list[str]  # beside torch
    check: str  # what must import
    alone: list[str] = field(default_factory=list)  # installed last and without what they ask for

    def folder(self) -> Path:
        """Where it is, or would be."""
        return Path(os.environ.get(self.variable) or Path(__file__).parents[3] / "build" / self.default)

    def python(self) -> Path | None:
        """Its Python; None where it was not made."""
        folder = self.folder()
        return folder / "bin/python" if (folder / "READY").exists() else None

    def make(self) -> Path:
        """Make it, unless it is there and imports."""
        folder = self.folder()
        python, log = folder / "bin/python", folder.with_name(folder.name + ".log")
        if self.python() and subprocess.run([python, "-c", self.check], capture_output=True).returncode == 0:
            return python
        venv.create(folder, clear=True, with_pip=True)
        with log.open("w") as out:
            for packages in (TORCH, [*TORCH, *self.packages], ["--no-deps", *self.alone] if self.alone else []):
                if not packages:
                    continue
                step = [python, "-m", "pip", "install", *_index(), *packages]
                if subprocess.run(step, stdout=out, stderr=subprocess.STDOUT).returncode:
                    sys.exit(f"pip install {' '.join(packages)} failed: see {log}")
        subprocess.run([python, "-c", self.check], check=True)
        (folder / "READY").touch()
        return python


# The last TransformerLens with HookedTransformer, whose numpy is not ours.
TRANSFORMER_LENS = Environment(
    "transformer_lens",
    "INTROSPECT_PEERS",
    "venv-tl",
    ["transformer_lens<4"],
    "from transformer_lens import HookedTransformer",
)
# repeng 0.4.0 wants numpy 1.
REPENG = Environment(
    "repeng",
    "INTROSPECT_REPENG",
    "venv-repeng",
    ["repeng==0.4.0", "numpy<2", "transformers>=5", "gguf"],
    "from repeng import ControlModel, ControlVector, DatasetEntry",
)
# SAELens wants TransformerLens 3; the pins of the other two fight with its own.
SAE_LENS = Environment(
    "sae_lens",
    "INTROSPECT_SAE_LENS",
    "venv-sae",
    ["sae-lens>=6.5", "transformer_lens<4"],
    "import sae_lens; from sparsify import SparseCoder",
    [
        "dictionary-learning==0.1.0",
        "eai-sparsify==1.3.3",
        "natsort",
        "simple-parsing",
        "docstring-parser",
        "zstandard",
        "schedulefree",
    ],
)


def _index() -> list[str]:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{CPU_WHEELS}/torch/", timeout=5).close()
        return ["--extra-index-url", CPU_WHEELS]
    return []


if __name__ == "__main__":
    known = {environment.name: environment for environment in (TRANSFORMER_LENS, REPENG, SAE_LENS)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all if none is given")
    names = parser.parse_args().names or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"there is no environment {', '.join(sorted(unknown))}")
    for name in names:
        print(known[name].make())
