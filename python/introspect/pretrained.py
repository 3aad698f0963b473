"""TransformerLens's names of checkpoints, and loading under its options."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from . import _C, hub
from .chat import load_chat_template
from .tokenizer_face import TokenizerFace

# Owner of repositories -> those whose last part, in small letters, TransformerLens takes as a short name.
_REPOSITORIES = {
    "EleutherAI": [
        *(f"pythia-{size}{kind}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
          for kind in ("", "-deduped", "-v0", "-deduped-v0")),
        "pythia-14m", "pythia-31m", "gpt-neox-20b",
    ],
    "HuggingFaceTB": [f"SmolLM2-{size}{kind}" for size in ("135M", "360M", "1.7B") for kind in ("", "-Instruct")],
    "Qwen": [
        *(f"Qwen2-{size}{kind}" for size in ("0.5B", "1.5B", "7B") for kind in ("", "-Instruct")),
        *(f"Qwen2.5-{size}{kind}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
          for kind in ("", "-Instruct")),
        *(f"Qwen3-{size}" for size in ("0.6B", "0.6B-Base", "1.7B", "4B", "8B", "14B")),
    ],
    "google": [
        *(f"gemma-2-{size}{kind}" for size in ("2b", "9b", "27b") for kind in ("", "-it")),
        "gemma-3-270m", "gemma-3-270m-it", "gemma-3-1b-pt", "gemma-3-1b-it",
    ],
    "meta-llama": [
        "Llama-2-7b-hf", "Llama-2-13b-hf", "Llama-2-7b-chat-hf", "Llama-2-13b-chat-hf", "Llama-2-70b-chat-hf",
        "Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct", "Meta-Llama-3-70B", "Meta-Llama-3-70B-Instruct",
        "Llama-3.1-8B", "Llama-3.1-8B-Instruct", "Llama-3.1-70B", "Llama-3.1-70B-Instruct",
        "Llama-3.2-1B", "Llama-3.2-1B-Instruct", "Llama-3.2-3B", "Llama-3.2-3B-Instruct", "Llama-3.3-70B-Instruct",
    ],
    "microsoft": ["Phi-3-mini-4k-instruct"],
    "mistralai": ["Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "Mistral-Nemo-Base-2407"],
    "openai-community": ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"],
}  # fmt: skip
_OTHER_NAMES = {
    "distilgpt2": "distilbert/distilgpt2",
    "distil-gpt2": "distilbert/distilgpt2",
    "distill-gpt2": "distilbert/distilgpt2",
    "distillgpt2": "distilbert/distilgpt2",
    "gpt2-xs": "distilbert/distilgpt2",
    "gpt2-small": "openai-community/gpt2",
    "gpt-neox": "EleutherAI/gpt-neox-20b",
    "neox": "EleutherAI/gpt-neox-20b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-70b-chat": "meta-llama/Llama-2-70b-chat-hf",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "phi-3": "microsoft/Phi-3-mini-4k-instruct",
}
# Pythia's sizes before they were counted with the embeddings.
_OLD_PYTHIA = {"19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b",
               "6.7b": "6.9b", "13b": "12b"}  # fmt: skip


@functools.cache
def aliases() -> dict[str, str]:
    """Short names, in small letters, and the hub ids they stand for."""
    names = {repo.lower(): f"{owner}/{repo}" for owner, repos in _REPOSITORIES.items() for repo in repos}
    for old, new in _OLD_PYTHIA.items():
        names |= {
            name.replace(f"-{new}", f"-{old}", 1): id for name, id in names.items() if name.startswith(f"pythia-{new}")
        }
    return names | _OTHER_NAMES


def resolve(model_name: str | os.PathLike) -> Any:
    """The local path of a model under any name it goes by here or in TransformerLens, fetched if it is not there.

    Raises:
        ConfigError: not a name we know.
        IoError: no such file, or no source of the model could be reached.
    """
    name = os.fspath(model_name)
    if not os.path.exists(name) and name.lower() not in hub.model_registry():
        short = name.removeprefix("EleutherAI/") if name.startswith("EleutherAI/pythia-") else name
        return hub.resolve(aliases().get(short.lower(), name))
    return hub.resolve(name if os.path.exists(name) else name.lower())


def tokenizer(name: str | os.PathLike, *, n_ctx: int) -> TokenizerFace:
    """The tokenizer of a folder, a file, or a checkpoint under any of its names.

    Raises:
        ConfigError: not a name we know, or a tokenizer that cannot be read.
        IoError: as ``resolve`` does.
    """
    return TokenizerFace(_C.Tokenizer.load(resolve(name)), name_or_path=os.fspath(name), n_ctx=n_ctx)


def load_engine(
    model_name: str | os.PathLike,
    *,
    hf_model: Any = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None = None,
) -> _C.Model:
    """The native model of a checkpoint, or of a transformers model that is in memory already.

    Raises:
        ConfigError: an architecture or option that is not supported.
        IoError: as ``resolve`` does.
    """
    if hf_model is None:
        path = resolve(model_name)
        template = load_chat_template(path)
        return _C.Model.load(path, dtype=dtype, device=device, chat_template=template, progress=progress)
    beside = os.fspath(model_name) if os.path.exists(model_name) else None
    return copy_engine(hf_model, dtype=dtype, device=device, tokenizer=beside, who="from_pretrained")


def copy_engine(
    hf_model: Any, *, dtype: torch.dtype, device: torch.device, tokenizer: Any = None, who: str
) -> _C.Model:
    """The native model of a transformers model in memory, whose weights are copied.

    Args:
        tokenizer: a folder or file that holds it, or a transformers tokenizer, which is written to such a folder.

    Raises:
        TypeError: a torch module that is not of transformers.
        ConfigError: an architecture or option that is not supported, or a tokenizer that cannot be written.
    """
    if not hasattr(getattr(hf_model, "config", None), "to_json_string"):
        raise TypeError(
            f"{who}: of torch modules only transformers' models can be copied, got {type(hf_model).__name__}"
        )
    config = json.loads(hf_model.config.to_json_string(use_diff=False)) | {"architectures": [type(hf_model).__name__]}
    with contextlib.ExitStack() as temporary:
        if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
            if not hasattr(tokenizer, "save_pretrained"):
                raise TypeError(
                    f"{who}: tokenizer must be a path or a transformers tokenizer, got {type(tokenizer).__name__}"
                )
            folder = temporary.enter_context(tempfile.TemporaryDirectory())
            tokenizer.save_pretrained(folder)
            tokenizer = folder
        return _C.Model.from_state_dict(
            json.dumps(config),
            hf_model.state_dict(),
            dtype=dtype,
            device=device,
            tokenizer_path=tokenizer,
            chat_template=None if tokenizer is None else load_chat_template(tokenizer),
        )


def checked_dtype(dtype: torch.dtype | str, who: str) -> torch.dtype:
    """A dtype, or the one of this name.

    Raises:
        ConfigError: not one of the four that models are run in.
    """
    wanted = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if wanted not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise _C.ConfigError(f"{who}: dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
    return wanted
