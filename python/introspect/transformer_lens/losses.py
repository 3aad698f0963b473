"""How well next tokens are predicted."""

from __future__ import annotations

import torch

from .. import _C


def lm_cross_entropy_loss(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    per_token: bool = False,
) -> torch.Tensor:
    """Cross-entropy of each next token.

    Args:
        logits: [batch, pos, d_vocab].
        tokens: int64 [batch, pos].
        attention_mask: [batch, pos]; a prediction at, or of, a masked position counts zero and is not averaged over.
        per_token: [batch, pos - 1] instead of their mean.

    Raises:
        ShapeError: a mask of another shape than the tokens.
    """
    log_probs = logits.log_softmax(dim=-1)[..., :-1, :]
    nll = -log_probs.gather(-1, tokens.to(logits.device)[..., 1:, None]).squeeze(-1)
    if attention_mask is None:
        return nll if per_token else nll.mean()
    if attention_mask.shape != tokens.shape:
        raise _C.ShapeError(
            f"lm_cross_entropy_loss: attention_mask must be {list(tokens.shape)} as the tokens are, got "
            f"{list(attention_mask.shape)}"
        )
    real = attention_mask.to(nll.device, torch.bool)
    counted = real[..., :-1] & real[..., 1:]
    nll = nll.masked_fill(~counted, 0.0)
    return nll if per_token else nll.sum() / counted.sum()


def lm_accuracy(logits: torch.Tensor, tokens: torch.Tensor, per_token: bool = False) -> torch.Tensor:
    """How often the most probable next token is the right one; per_token: bool [batch, pos - 1]."""
    right = logits.argmax(dim=-1)[..., :-1] == tokens.to(logits.device)[..., 1:]
    return right if per_token else right.float().mean()
