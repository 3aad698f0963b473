"""TransformerLens's names of checkpoints, and loading under its options."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from .. import _C, hub
from ..chat import given_chat_template, load_chat_template
from ..data import model_registry
from .model_names import aliases
from .tokenizer_adapter import TokenizerAdapter


def resolve(model_name: str | os.PathLike) -> Any:
    """The local path of a model under any name it goes by here or in TransformerLens, fetched if it is not there.

    Raises:
        ConfigError: not a name we know.
        IoError: no such file, or no source of the model could be reached.
    """
    name = os.fspath(model_name)
    if not os.path.exists(name) and name.lower() not in model_registry():
        short = name.removeprefix("EleutherAI/") if name.startswith("EleutherAI/pythia-") else name
        return hub.resolve(aliases().get(short.lower(), name))
    return hub.resolve(name if os.path.exists(name) else name.lower())


def tokenizer(name: str | os.PathLike, *, n_ctx: int) -> TokenizerAdapter:
    """The tokenizer of a folder, a file, or a checkpoint under any of its names.

    Raises:
        ConfigError: not a name we know, or a tokenizer that cannot be read.
        IoError: as ``resolve`` does.
    """
    return TokenizerAdapter(_C.Tokenizer.load(resolve(name)), name_or_path=os.fspath(name), n_ctx=n_ctx)


def load_native(
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
        return _C.Model.load(
            path, dtype=dtype, device=device, chat_template=template, keep_blocks=True, progress=progress
        )
    beside = os.fspath(model_name) if os.path.exists(model_name) else None
    return copy_native(hf_model, dtype=dtype, device=device, tokenizer=beside, who="from_pretrained")


def copy_native(
    hf_model: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tokenizer: Any = None,
    chat_template: Any = None,
    n_ctx: int | None = None,
    who: str,
) -> _C.Model:
    """The native model of a transformers model in memory, whose weights are copied.

    Args:
        tokenizer: a folder or file that holds it, or a transformers tokenizer, which is written to such a folder.
        chat_template: as of ``load_model``; None: the tokenizer's.
        n_ctx: as of ``load_model``.

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
        template: _C.ChatTemplate | None
        if chat_template is not None:
            template = given_chat_template(chat_template, tokenizer)
        else:
            template = None if tokenizer is None else load_chat_template(tokenizer)
        return _C.Model.from_state_dict(
            json.dumps(config),
            hf_model.state_dict(),
            dtype=dtype,
            device=device,
            tokenizer_path=tokenizer,
            chat_template=template,
            n_ctx=n_ctx,
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
