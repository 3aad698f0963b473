"""Generation with the arguments of transformers that programs around repeng pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import _C
from ..generation import Decoding, appended, unpadded
from ..generation import generate as generate_rows
from ..hooked_model import HookedModel

# transformers' own where neither the call nor the model's generation config says anything.
_DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "max_new_tokens": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Arguments that are fine as long as they ask for what is done anyway.
_HARMLESS: dict[str, Any] = {
    "use_cache": (True, False),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "return_dict_in_generate": (False,),
    "token_type_ids": None,  # whatever it is
}


def generate(
    model: HookedModel,
    inputs: torch.Tensor | str | Sequence[str] | None = None,
    *,
    input_ids: torch.Tensor | str | Sequence[str] | None = None,
    attention_mask: torch.Tensor | None = None,
    generation_config: Any = None,
    streamer: Any = None,
    defaults: Any = None,
    **kwargs: Any,
) -> Any:
    """Continues tokens or text, with what is hooked into the model.

    Greedy unless ``do_sample``; draws follow ``torch.manual_seed``. A row of a batch is continued as it would be alone.

    Args:
        inputs: int64 [batch, pos], text, or a list of texts; ``input_ids`` is another name.
        attention_mask: [batch, pos], 0 for padding. Without one, ``pad_token_id`` is taken for padding unless it also
            ends a row, as in transformers.
        generation_config: a transformers GenerationConfig, for what is not said by name.
        streamer: a transformers streamer, for one row.
        defaults: the GenerationConfig of a transformers model.
        kwargs: ``max_new_tokens`` (or ``max_length``, with the prompt), ``do_sample``, ``temperature``, ``top_k``,
            ``top_p``, ``repetition_penalty``, ``eos_token_id`` (one or several; None is the tokenizer's) and
            ``pad_token_id`` (None is the first that ends a row), with transformers' defaults.

    Returns:
        int64 [batch, pos + new], rows that ended early filled up with ``pad_token_id``; for text the continuation as
        text, without special tokens, for a list a list of them.

    Raises:
        ConfigError: an argument that is not supported, named.
        ValueError: options out of range, or nothing to continue.
        ShapeError: prompt and continuation do not fit into the model's context.
    """
    prompt = inputs if inputs is not None else input_ids
    if prompt is None:
        raise ValueError("generate: inputs or input_ids are required, got neither")
    o = _options(kwargs, generation_config, defaults)
    ends = _ids(o["eos_token_id"])
    if not ends and model.native.has_tokenizer:
        ends = model.native.tokenizer.stop_token_ids
    pad = o["pad_token_id"]
    if isinstance(prompt, torch.Tensor):
        tokens = prompt.cpu()
        if attention_mask is not None:
            rows = unpadded(tokens, attention_mask.cpu().bool())
        else:
            rows = unpadded(tokens, tokens != pad if pad is not None and pad not in ends else None)
    else:
        texts = [prompt] if isinstance(prompt, str) else prompt
        rows = [model.native.to_tokens(text)[0].tolist() for text in texts]
    if streamer is not None and len(rows) != 1:
        raise ValueError(f"generate: a streamer takes one row, got {len(rows)}")
    n_new = o["max_new_tokens"]
    if n_new is None:
        width = prompt.shape[1] if isinstance(prompt, torch.Tensor) else max(map(len, rows))
        n_new = max(o["max_length"] - width, 0)
    if o["do_sample"] and not o["temperature"] > 0:
        raise ValueError(f"generate: temperature must be positive with do_sample, got {o['temperature']}")

    how = Decoding(
        n_new,
        temperature=o["temperature"] if o["do_sample"] else 0.0,
        top_k=o["top_k"],
        top_p=o["top_p"],
        repetition_penalty=o["repetition_penalty"],
        stop_token_ids=ends,
        seed=int(torch.randint(2**62, ())) if o["do_sample"] else 0,
    )
    if streamer is None:
        new = generate_rows(model, rows, how)
    else:
        streamer.put(torch.tensor(rows))
        new = generate_rows(model, rows, how, on_token=lambda row, token: streamer.put(torch.tensor([token])))
        streamer.end()
    if not isinstance(prompt, torch.Tensor):
        continued = [model.native.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
        return continued[0] if isinstance(prompt, str) else continued
    return appended(prompt, new, pad if pad is not None else ends[0] if ends else 0)


def _options(given: dict[str, Any], *configs: Any) -> dict[str, Any]:
    """Every option, from the call, the configs in their order, or transformers' defaults."""
    refused = []
    for name, value in given.items():
        if name not in _DEFAULTS and value is not None:
            harmless = _HARMLESS.get(name, ())
            if harmless is not None and value not in harmless:
                refused.append(name)
    if refused:
        raise _C.ConfigError(f"generate: not supported here: {', '.join(refused)}")
    options = {}
    for name, default in _DEFAULTS.items():
        values = [given.get(name), *(getattr(config, name, None) for config in configs)]
        options[name] = next((value for value in values if value is not None), default)
    return options


def _ids(token_ids: int | Sequence[int] | torch.Tensor | None) -> list[int]:
    return [] if token_ids is None else torch.as_tensor(token_ids).flatten().tolist()
