"""How a text goes on: the tokens after each prompt, under whatever is in effect, by every function that generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .hooks.manager import Hooked
from .sampling import sample_logits


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and when a row ends."""

    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_k: int | None = None  # among this many of the most probable tokens
    top_p: float | None = None  # among the smallest set of tokens with this probability
    repetition_penalty: float = 1.0  # over prompt and continuation
    freq_penalty: float = 0.0  # for each time that a token has occurred; run in steps
    stop_token_ids: Sequence[int] = ()
    stop_at_eos: bool = False  # at the checkpoint's own stop tokens too; not in steps
    seed: int = 0  # of a draw that is not in steps: those are torch's generator's
    padding_side: str = "left"
    use_cache: bool = True  # False runs everything again for each token, in steps

    @property
    def in_steps(self) -> bool:
        """Whether Python chooses each token: the native function has neither of these options."""
        return self.freq_penalty != 0 or not self.use_cache


def generate(
    model: Hooked,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    *,
    on_token: Callable[[int, int], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt; one that ends a row is among them.

    Args:
        prompts: token ids, a row each, of any lengths.
        on_token: called with (row, token) as soon as it is chosen.
        progress: called with ("generate", tokens of the longest row, max_new_tokens).

    Raises:
        ValueError: an empty prompt, or options out of range.
        ShapeError: prompt and continuation do not fit into n_ctx.
        Error: the logits are not finite, before a token is chosen; it names the first block.
    """
    new: list[list[int]] = [[] for _ in prompts]
    longest = 0

    def chosen(row: Any, token: Any) -> bool:  # ints, which the stubs of a callback do not say
        nonlocal longest
        new[row].append(token)
        if progress and len(new[row]) > longest:
            longest = len(new[row])
            progress("generate", longest, how.max_new_tokens)
        if on_token:
            on_token(row, token)
        return True

    if how.in_steps:
        for column in steps(model, prompts, how):
            for row, token in enumerate(column):
                if token is not None:
                    chosen(row, token)
        return new
    return model.native.generate(
        list(map(list, prompts)),
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        top_k=how.top_k or 0,
        top_p=1.0 if how.top_p is None else how.top_p,
        repetition_penalty=how.repetition_penalty,
        seed=how.seed,
        stop_at_eos=how.stop_at_eos,
        stop_token_ids=list(how.stop_token_ids),
        padding_side=how.padding_side,
        hooks=model._hooks_of_pass(*padded(prompts)),
        on_token=chosen,
    )


def steps(model: Hooked, prompts: Sequence[Sequence[int]], how: Decoding) -> Iterator[list[int | None]]:
    """The next token of each row, None for one that has ended, until all have: one pass for each, ``sample_logits``.

    What is in effect when this is called is in effect in every step, wherever they are taken.
    """
    if how.stop_at_eos:
        raise ValueError("generate: steps end at stop_token_ids only, got stop_at_eos")
    tokens, mask = padded(prompts)
    return _steps(model, tokens, mask, how, model._hooks_of_pass(tokens, mask))


def _steps(
    model: Hooked, tokens: torch.Tensor, mask: torch.Tensor, how: Decoding, hooks: Any
) -> Iterator[list[int | None]]:
    n_rows, width = tokens.shape
    cache: Any = model.native.make_cache(n_rows) if how.use_cache else None  # optional, which no stub says
    running = [True] * n_rows
    for _ in range(how.max_new_tokens):
        seen = len(cache) if cache is not None else 0
        with torch.no_grad():
            logits = model.native.forward(
                tokens[:, seen:],
                hooks=hooks,
                cache=cache,
                attention_mask=mask[:, seen:],
                logits_at="last",
                n_prompt=width,
                history=tokens[:, :seen],
            )
        assert logits is not None  # they are asked for
        last = logits[:, 0].cpu()
        model.native.check_finite(
            last[torch.tensor(running)], who="generate", cache=cache, tokens=tokens, attention_mask=mask, hooks=hooks
        )
        chosen = [
            int(
                sample_logits(
                    last[row : row + 1],
                    top_k=how.top_k,
                    top_p=how.top_p,
                    temperature=how.temperature,
                    freq_penalty=how.freq_penalty,
                    repetition_penalty=how.repetition_penalty,
                    tokens=tokens[row : row + 1, mask[row]],
                )
            )
            for row in range(n_rows)
        ]
        yield [token if alive else None for token, alive in zip(chosen, running, strict=True)]
        running = [alive and token not in how.stop_token_ids for token, alive in zip(chosen, running, strict=True)]
        if not any(running):
            return
        tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones(n_rows, 1, dtype=torch.bool)], dim=1)


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as tokens [batch, pos] and their mask, with zeros at the left."""
    width = max(map(len, rows), default=0)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return tokens, mask


def unpadded(tokens: torch.Tensor, mask: torch.Tensor | None) -> list[list[int]]:
    """The real ids of each row of tokens [batch, pos]; without a mask all are."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    return [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]


def appended(tokens: torch.Tensor, new: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Tokens [batch, pos + new], rows that ended early filled up; where the tokens are."""
    width = max(map(len, new))
    filled = torch.tensor([[*ids, *[fill] * (width - len(ids))] for ids in new], dtype=torch.long)
    return torch.cat([tokens.cpu(), filled.reshape(len(new), width)], dim=1).to(tokens.device)
