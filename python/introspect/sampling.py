"""Choosing the next token."""

from __future__ import annotations

import torch


def sample_logits(
    final_logits: torch.Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of each row, int64 [batch], drawn with torch's generator.

    Args:
        final_logits: [batch, d_vocab].
        top_k: draw among this many of the most probable tokens; it goes before top_p, which is then not used.
        top_p: draw among the smallest set of most probable tokens that reaches this probability.
        temperature: 0 is greedy.
        freq_penalty: subtracted from a logit (after the division by the temperature) for each time its token stands in
            ``tokens``.
        repetition_penalty: Keskar et al. 2019, arXiv:1909.05858.
        tokens: [batch, pos], what stands before; required by the two penalties.

    Raises:
        ValueError: options out of range, or a penalty without tokens.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"sample_logits: temperature must be 0 or more, top_k positive and top_p in (0, 1], got {temperature}, "
            f"{top_k} and {top_p}"
        )
    if tokens is None and (freq_penalty != 0 or repetition_penalty != 1):
        raise ValueError("sample_logits: a penalty needs tokens")
    logits = final_logits.float()
    if repetition_penalty != 1 and tokens is not None:
        seen = logits.gather(1, tokens)
        penalised = torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty)
        logits = logits.scatter(1, tokens, penalised)
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if freq_penalty != 0 and tokens is not None:
        ones = torch.ones_like(tokens, dtype=logits.dtype)
        logits = logits - freq_penalty * torch.zeros_like(logits).scatter_add(1, tokens, ones)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # reached before this token
        outside[:, 0] = False
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1).squeeze(1)
