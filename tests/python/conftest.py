"""Fixtures every test may use, and where the data and the real checkpoints are looked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("invariants")

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("INTROSPECT_SHARED") or ROOT.parent / "shared")
MODELS = Path(os.environ.get("INTROSPECT_MODELS") or Path.home() / ".cache" / "introspect" / "models")

SLOW = bool(os.environ.get("INTROSPECT_SLOW"))
REQUIRE = bool(os.environ.get("INTROSPECT_REQUIRE"))
slow = pytest.mark.skipif(not SLOW, reason="takes minutes: set INTROSPECT_SLOW=1")

# Two threads a process, unless the environment says how many: busy torch processes on few cores starve each other.
torch.set_num_threads(min(int((os.environ.get("OMP_NUM_THREADS") or "2").split(",")[0]), os.cpu_count() or 1))


def existing(path: Path, remedy: str, *, required: bool = REQUIRE) -> Path:
    """The path, or a skip that says where it comes from; a failure where INTROSPECT_REQUIRE is set."""
    if not path.exists():
        (pytest.fail if required else pytest.skip)(f"{path} is not there: {remedy}")
    return path


def _checkpoint(filename: str, *, required: bool = REQUIRE) -> Path:
    remedy = "tests/run.sh fetches it where ../shared/tools/fetch_models.py is at hand"
    return existing(MODELS / filename, remedy, required=required)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed, new for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def numpy_rng() -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of tokenizers, tiny models and stimuli beside the repository, or a skip."""
    return existing(SHARED / "data", "set INTROSPECT_SHARED to the folder that holds data/")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: llama architecture, real weights, the quickest."""
    return _checkpoint("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def qwen05() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct in q4_k_m: the default model."""
    return _checkpoint("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")


@pytest.fixture(scope="session")
def qwen15() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct in q4_k_m, for tests/python/slow."""
    return _checkpoint("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", required=False)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """gemma-3-270m in q4_k_m, for its SentencePiece vocabulary."""
    return _checkpoint("gemma-3-270m-q4_k_m.gguf")


@pytest.fixture(scope="session")
def stories15m(shared_data: Path) -> Path:
    """A tiny real Llama with SentencePiece tokenizer, as an HF folder."""
    return existing(shared_data / "models" / "stories15M", "it belongs to the shared data")
