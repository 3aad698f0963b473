"""How large the residual stream is: what strengths that are fractions of it are fractions of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _C
from ..hooks.manager import Hooked

Text = str | torch.Tensor | Sequence[int] | Sequence[Mapping[str, str]]


def residual_norms(
    model: Hooked,
    text: Text,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | tuple[int, int | None] | None = None,
    attention_mask: torch.Tensor | None = None,
) -> dict[int, float]:
    """The usual size of the residual stream after each block: the median over positions of its norm.

    This is what "residual norm" means in this library. A few tokens (the first one, often a full stop) have norms up to
    hundreds of times the others'; they alone can triple a mean, and leave a median as it is.

    Args:
        model: an introspect.Model; what is hooked into it or steers it takes no part.
        text: a text, tokens ([pos] or [batch, pos]), or messages ({"role", "content"}), whose last one stays open where
            it is the assistant's and is followed by the generation prompt where it is not.
        layers: block numbers; None is every block.
        positions: a list of positions, or the tuple (first, last), last not included and None for the end; negative
            ones count from the end, and padding does not count. None is all of them.
        attention_mask: bool [batch, pos], False for padding.

    Returns:
        {block: norm}.

    Raises:
        IndexError: a layer or a position that is not there.
        ValueError: no tokens, layers or positions.
        ShapeError: tokens of another shape, or more than n_ctx.
        Error: a residual stream that is not finite, naming the first such block.

    Source of the observation: Sun et al. 2024, arXiv:2402.17762 (massive activations).
    """
    tokens = _tokens(model, text)
    if isinstance(positions, tuple):
        if len(positions) != 2:
            raise ValueError(f"residual_norms: a tuple of positions is (first, last), got {positions}; give a list")
        n = tokens.shape[1] if attention_mask is None else int(attention_mask.sum(1).min())
        positions = range(n)[slice(*positions)]
    return _C.residual_norms(
        model,
        tokens,
        layers=None if layers is None else list(layers),
        positions=None if positions is None else list(positions),
        attention_mask=attention_mask,
    )


def _tokens(model: Hooked, text: Any) -> torch.Tensor:
    """int64 [batch, pos] of whatever stands for a text."""
    if isinstance(text, str):
        return model.native.to_tokens(text)
    if isinstance(text, torch.Tensor):
        return text if text.dim() == 2 else text.reshape(1, -1)
    listed = list(text)
    if listed and all(isinstance(one, Mapping) for one in listed):
        is_open = listed[-1].get("role") == "assistant"
        written = model.native.chat_template.render(
            listed, add_generation_prompt=not is_open, continue_final_message=is_open
        )
        return torch.tensor([model.native.tokenizer.encode(written, add_special_tokens=False)], dtype=torch.long)
    if not all(isinstance(one, int) for one in listed):
        raise TypeError(f"residual_norms: a text, tokens or messages are needed, got {type(text).__name__}")
    return torch.tensor([listed], dtype=torch.long)
