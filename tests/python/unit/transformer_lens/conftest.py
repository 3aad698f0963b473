"""HookedTransformers of tiny random checkpoints, in float64."""

from pathlib import Path

import pytest
import torch
from lens import load
from tiny import write_tiny
from tiny_chat import write_tiny_chat

from introspect import HookedTransformer


@pytest.fixture(scope="module", params=["Qwen2ForCausalLM", "LlamaForCausalLM"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a tokenizer."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny", request.param)


@pytest.fixture
def model(folder: Path) -> HookedTransformer:
    return load(folder)


@pytest.fixture
def tokens(model: HookedTransformer, rng: torch.Generator) -> torch.Tensor:
    """[3, 12], of the model's vocabulary."""
    return torch.randint(0, model.cfg.d_vocab, (3, 12), generator=rng)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer and a chat template."""
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture
def chat(chat_folder: Path) -> HookedTransformer:
    return load(chat_folder)
