"""TransformerLens's search for heads that show a pattern of attention: ``detect_head``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from .. import _C
from ..hooks.names import get_act_name
from .prompts import tokens_of

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
HEAD_NAMES: tuple[HeadName, ...] = get_args(HeadName)
ErrorMeasure = Literal["abs", "mul"]
Heads = Sequence[tuple[int, int]] | Mapping[int, Sequence[int]]


def get_previous_token_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """Attention of every token [1, pos] or [pos] to the one before it: float32 [pos, pos]."""
    return torch.ones(tokens.shape[-1] - 1).diag(-1)


def get_duplicate_token_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """Attention of every token [1, pos] or [pos] to the same one before it: float32 [pos, pos]."""
    ids = tokens.reshape(-1).cpu()
    return (ids[:, None] == ids).float().tril(-1)


def get_induction_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """Attention of every token [1, pos] or [pos] to what followed the same one before it: float32 [pos, pos]."""
    duplicate = get_duplicate_token_head_detection_pattern(tokens)
    return torch.nn.functional.pad(duplicate, (1, -1)).tril()


_PATTERNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def get_supported_heads() -> None:
    """Prints the names of patterns that ``detect_head`` knows."""
    print(f"Supported heads: {HEAD_NAMES}")


def detect_head(
    model: Any,
    seq: str | Sequence[str] | torch.Tensor,
    detection_pattern: torch.Tensor | HeadName,
    heads: Heads | None = None,
    cache: Any = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> torch.Tensor:
    """How well the attention of each head shows a pattern, with TransformerLens's arguments and numbers.

    Args:
        model: a ``Model`` or ``HookedTransformer``; what is hooked into it counts.
        seq: a text, texts, whose scores are averaged, or token ids [pos] or [batch, pos].
        detection_pattern: one of HEAD_NAMES, or a lower triangular pattern [pos, pos].
        heads: (layer, head) pairs, or {layer: heads}; the score of all others is -1. None: every head.
        cache: an ActivationCache with the patterns of one text, instead of a pass. It is not changed.
        exclude_bos: attention to the first token counts for nothing.
        exclude_current_token: nor does that of a token to itself.
        error_measure: "mul", the part of all attention that the pattern's ones get, or "abs", one less the mean of
            absolute differences in a row, the latter rounded to three digits.

    Returns:
        [n_layers, n_heads], float32 (float64 of a float64 model).

    Raises:
        ValueError: another name or measure, a pattern with numbers above the diagonal, or a cache for several texts.
        ShapeError: a pattern of another size than the text, or a text of one token.
        IndexError: heads that the model does not have.
    """
    who = "detect_head"
    if error_measure not in ("mul", "abs"):
        raise ValueError(f"{who}: error_measure must be 'mul' or 'abs', got {error_measure!r}")
    if isinstance(detection_pattern, str) and detection_pattern not in _PATTERNS:
        raise ValueError(f"{who}: detection_pattern must be a tensor or one of {HEAD_NAMES}, got {detection_pattern!r}")
    wanted = _heads_by_layer(heads, model.native.cfg)
    texts = [torch.tensor(ids) for ids in tokens_of(model, seq, who, "seq")]
    if cache is not None and len(texts) > 1:
        raise ValueError(f"{who}: a cache holds one text, got {len(texts)} texts: leave cache out, or give one text")
    how = {
        "exclude_bos": exclude_bos,
        "exclude_current_token": exclude_current_token,
        "error_measure": error_measure,
    }
    scores = []
    for tokens in texts:
        if len(tokens) < 2:
            raise _C.ShapeError(f"{who}: a text must have at least two tokens, got {len(tokens)}")
        pattern = detection_pattern
        if isinstance(pattern, str):
            pattern = _PATTERNS[pattern](tokens)
        if error_measure == "mul" and not bool(((pattern == 0) | (pattern == 1)).all()):
            warnings.warn(f"{who}: with 'mul' a pattern should hold zeros and ones only", stacklevel=2)
        scores.append(_scores(model, tokens, pattern, cache, max(wanted, default=-1) + 1, how))
    mean = torch.stack(scores).mean(0)
    out = torch.full((model.native.cfg.n_layers, model.native.cfg.n_heads), -1.0, dtype=torch.float64)
    for layer, those in wanted.items():
        out[layer, those] = mean[layer, those]
    return out.to(torch.float64 if model.dtype == torch.float64 else torch.float32)


def compute_head_attention_similarity_score(
    attention_pattern: torch.Tensor,
    detection_pattern: torch.Tensor,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """The score of one head's attention [pos, pos], which is not written to; arguments are those of detect_head."""
    score = _C.match_pattern(
        attention_pattern,
        detection_pattern,
        exclude_bos=exclude_bos,
        exclude_current_token=exclude_current_token,
        error_measure=error_measure,
    )
    return float(score)


def _scores(
    model: Any, tokens: torch.Tensor, pattern: torch.Tensor, cache: Any, n_layers: int, how: Mapping[str, Any]
) -> torch.Tensor:
    """[n_layers, n_heads] of one text; of a cache, or a model into which something is hooked, from kept attention."""
    if cache is None and not model.is_hooked:
        return _C.match_heads(model.native, tokens, pattern, n_layers=n_layers, **how)
    if cache is None:
        names = [get_act_name("pattern", layer) for layer in range(n_layers)]
        _, cache = model._recorded(lambda: model._forward(tokens[None], logits_at="none"), names)
    kept = [cache[get_act_name("pattern", layer)].squeeze(0) for layer in range(n_layers)]
    return torch.stack([_C.match_pattern(attention, pattern, **how) for attention in kept])


def _heads_by_layer(heads: Heads | None, cfg: Any) -> dict[int, list[int]]:
    if heads is None:
        return {layer: list(range(cfg.n_heads)) for layer in range(cfg.n_layers)}
    pairs = [(layer, head) for layer, those in heads.items() for head in those] if isinstance(heads, Mapping) else heads
    found: dict[int, list[int]] = {}
    for layer, head in pairs:
        if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise IndexError(
                f"detect_head: heads must be of layers 0 to {cfg.n_layers - 1} and 0 to {cfg.n_heads - 1}, got "
                f"({layer}, {head})"
            )
        found.setdefault(layer, []).append(head)
    return found
