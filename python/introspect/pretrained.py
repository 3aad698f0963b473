"""TransformerLens's names of checkpoints, and loading under its options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch

from . import _C, hub
from .chat import load_chat_template
from .model_names import aliases


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
    config = json.loads(hf_model.config.to_json_string(use_diff=False)) | {"architectures": [type(hf_model).__name__]}
    beside = os.fspath(model_name) if os.path.exists(model_name) else None
    return _C.Model.from_state_dict(
        json.dumps(config), hf_model.state_dict(), dtype=dtype, device=device, tokenizer_path=beside
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
