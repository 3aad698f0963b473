"""Generation with TransformerLens's arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from .. import _C
from ..generation import Decoding, appended, unpadded
from ..generation import generate as generate_rows
from ..generation import steps as generate_steps
from ..progress import step_bars
from .lens_model import LensModel, Side
from .text import tokenizer_of, tokens_of

_SILENT = contextlib.nullcontext(None)


def generate(
    model: LensModel,
    input: str | Sequence[str] | torch.Tensor = "",
    max_new_tokens: int = 10,
    stop_at_eos: bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    do_sample: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    use_past_kv_cache: bool = True,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    return_type: Literal["input", "str", "tokens", "tensor"] = "input",
    verbose: bool = True,
    **generation_kwargs: Any,
) -> Any:
    """Continues text or tokens; what the hooks of the model change takes part in every step.

    A row of a batch is continued as it would be alone. Draws follow ``torch.manual_seed``.

    Args:
        input: text, a list of texts of any lengths, or tokens [batch, pos] (padding as in ``forward``).
        stop_at_eos: a row ends with its EOS token.
        eos_token_id: that token, or several that end a row; None is the tokenizer's.
        do_sample: False takes the most probable token.
        top_k: draw among this many of the most probable tokens; top_p is then not used.
        top_p: draw among the smallest set of tokens that reaches this probability.
        temperature: 0 is greedy.
        freq_penalty: subtracted from a token's logit for each time it has occurred.
        use_past_kv_cache: False runs everything again for every token: the same result, slower.
        prepend_bos: to text; None is ``cfg.default_prepend_bos``.
        padding_side: None is the tokenizer's; of a list of texts only the order of the returned tokens depends on
            it.
        return_type: "str", "tokens" (or "tensor") or "input", what the input was.
        verbose: a progress bar, on a terminal.

    Returns:
        Prompt and continuation: text (without special tokens), or a list of texts; or tokens
        [batch, pos + new], rows that ended early filled up with EOS.

    Raises:
        ConfigError: an argument that is not supported, or stop_at_eos without a tokenizer or eos_token_id.
        ShapeError: prompt and continuation do not fit into n_ctx.
        Error: the logits are not finite, before a token is chosen; it names the first block.
        ValueError: options out of range.
    """
    if generation_kwargs:
        raise _C.ConfigError(f"generate: not supported here: {', '.join(generation_kwargs)}")
    as_text = _as_text(input, return_type, "generate")
    is_batch = not isinstance(input, str | torch.Tensor)
    side: Side | None = "left" if is_batch and padding_side is None else padding_side
    tokens, mask = tokens_of(model, input, prepend_bos, side)
    prompts = unpadded(tokens, mask)
    how = _decoding(
        max_new_tokens,
        stops=_stop_ids(model, eos_token_id) if stop_at_eos else [],
        do_sample=do_sample,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        freq_penalty=freq_penalty,
        use_cache=use_past_kv_cache,
    )
    if how.temperature > 0 and not how.in_steps:
        how = replace(how, seed=int(torch.randint(2**62, ())))
    with step_bars() if verbose else _SILENT as progress:
        new = generate_rows(model, prompts, how, progress=progress)
    if as_text:
        decode = tokenizer_of(model, "generate").decode
        texts = [decode(ids + more, skip_special_tokens=True) for ids, more in zip(prompts, new, strict=True)]
        return texts[0] if len(texts) == 1 else texts
    return appended(tokens, new, _fill(how)).to(model.cfg.device)


def generate_stream(
    model: LensModel,
    input: str | torch.Tensor = "",
    max_new_tokens: int = 10,
    max_tokens_per_yield: int = 25,
    stop_at_eos: bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    do_sample: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    use_past_kv_cache: bool = True,
    prepend_bos: bool | None = None,
    padding_side: Side | None = None,
    return_type: Literal["input", "str", "tokens", "tensor"] = "input",
    verbose: bool = True,
) -> Iterator[Any]:
    """Continues text or tokens piece by piece: put together, the pieces are the prompt and its continuation.

    The first piece begins with the prompt. Hooks and steering are those in effect when this is called. Arguments
    are those of ``generate`` but for these.

    Args:
        input: one text (or its messages), or tokens [batch, pos].
        max_tokens_per_yield: a piece is given out as soon as it has this many tokens, the prompt's included.
        return_type: "str" gives text, "tokens" (or "tensor") int64 [batch, n]; "input" what the input was. Rows
            that have ended are filled up with EOS.

    Raises:
        ValueError: a list of texts, or options out of range.
        ConfigError: stop_at_eos without a tokenizer or eos_token_id.
    """
    as_text = _as_text(input, return_type, "generate_stream")
    if max_tokens_per_yield < 1:
        raise ValueError(f"generate_stream: max_tokens_per_yield must be positive, got {max_tokens_per_yield}")
    tokens, mask = tokens_of(model, input, prepend_bos, padding_side)
    if as_text and len(tokens) != 1:
        raise ValueError(f"generate_stream: one text is streamed, got {len(tokens)}; tokens of several rows can be")
    how = _decoding(
        max_new_tokens,
        stops=_stop_ids(model, eos_token_id) if stop_at_eos else [],
        do_sample=do_sample,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        freq_penalty=freq_penalty,
        use_cache=use_past_kv_cache,
    )
    columns = generate_steps(model, unpadded(tokens, mask), how)
    pieces = _pieces(tokens.cpu(), columns, how, max_tokens_per_yield, verbose)
    if as_text:
        return _texts(pieces, tokenizer_of(model, "generate_stream").decode)
    return (piece.to(model.cfg.device) for piece in pieces)


def _pieces(
    tokens: torch.Tensor, columns: Iterator[list[int | None]], how: Decoding, per_piece: int, verbose: bool
) -> Iterator[torch.Tensor]:
    """The tokens [batch, pos] and what follows them, cut into pieces of that many tokens; the last may be shorter."""
    piece = tokens
    with step_bars() if verbose else _SILENT as progress:
        for n, chosen in enumerate(columns):
            column = torch.tensor([[_fill(how) if token is None else token] for token in chosen])
            piece = torch.cat([piece, column], dim=1)
            if progress:
                progress("generate", n + 1, how.max_new_tokens)
            if piece.shape[1] >= per_piece:
                yield piece
                piece = piece[:, :0]
    if piece.shape[1]:
        yield piece


def _texts(pieces: Iterator[torch.Tensor], decode: Any) -> Iterator[str]:
    """Pieces [1, n] as text; a character waits for its last token."""
    ids: list[int] = []
    shown = 0  # characters that were given out
    for piece in pieces:
        ids += piece[0].tolist()
        text = decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        yield text[shown:]
        shown = len(text)
    if rest := decode(ids, skip_special_tokens=True)[shown:]:
        yield rest


def _as_text(input: Any, return_type: str, who: str) -> bool:
    """Whether text is returned, not tokens."""
    if return_type not in ("input", "str", "tokens", "tensor"):
        raise ValueError(f"{who}: return_type must be 'input', 'str' or 'tokens', got {return_type!r}")
    return return_type == "str" or (return_type == "input" and not isinstance(input, torch.Tensor))


def _decoding(
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    do_sample: bool,
    top_k: int | None,
    top_p: float | None,
    temperature: float,
    freq_penalty: float,
    use_cache: bool,
) -> Decoding:
    """TransformerLens's options as ours; where nothing is drawn the most probable token is taken, whatever they are."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be positive, got {top_k}")
    return Decoding(
        max_new_tokens,
        temperature=temperature if do_sample else 0.0,
        top_k=top_k,
        top_p=None if top_k is not None else top_p,
        freq_penalty=freq_penalty,
        stop_token_ids=stops,
        use_cache=use_cache,
    )


def _fill(how: Decoding) -> int:
    """What rows that have ended are filled up with."""
    return how.stop_token_ids[0] if how.stop_token_ids else 0


def _stop_ids(model: LensModel, eos_token_id: int | Sequence[int] | None) -> list[int]:
    if eos_token_id is None:
        eos_token_id = getattr(model.tokenizer, "eos_token_id", None)
    if eos_token_id is None:
        raise _C.ConfigError("generate: stop_at_eos needs eos_token_id where the tokenizer has no EOS token")
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
