"""Generation with TransformerLens's arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch

from .. import _C
from ..model import padded
from ..progress import step_bars
from .sampling import sample_logits
from .token_methods import Side
from .transformer_config import HookedTransformerConfig


class GenerationMethods:
    """What a HookedTransformer writes by itself."""

    engine: _C.Model
    cfg: HookedTransformerConfig
    tokenizer: Any
    _hooks_of_pass: Callable[..., Any]

    def generate(
        self: Any,
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
        if return_type not in ("input", "str", "tokens", "tensor"):
            raise ValueError(f"generate: return_type must be 'input', 'str' or 'tokens', got {return_type!r}")
        is_text = not isinstance(input, torch.Tensor)
        if return_type == "input":
            return_type = "str" if is_text else "tokens"
        side = "left" if is_text and not isinstance(input, str) and padding_side is None else padding_side
        tokens, mask = self._tokens_of(input, prepend_bos, side)
        if mask is None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
        prompts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
        stops = self._stop_ids(eos_token_id) if stop_at_eos else []
        options = {"top_k": top_k, "top_p": top_p, "temperature": temperature if do_sample else 0.0}
        silent = contextlib.nullcontext(lambda what, done, total: None)
        with step_bars() if verbose else silent as step:
            if freq_penalty == 0 and use_past_kv_cache:
                new = self._generate_natively(prompts, max_new_tokens, stops, options, step)
            else:
                options["freq_penalty"] = freq_penalty if do_sample else 0.0
                new = self._generate_in_steps(prompts, max_new_tokens, stops, options, use_past_kv_cache, step)
        if return_type == "str":
            decode = self._tokenizer("generate").decode
            texts = [decode(ids + more, skip_special_tokens=True) for ids, more in zip(prompts, new, strict=True)]
            return texts[0] if len(texts) == 1 else texts
        width = max(map(len, new))
        fill = stops[0] if stops else 0
        filled = torch.tensor([row + [fill] * (width - len(row)) for row in new], dtype=torch.long)
        return torch.cat([tokens.cpu(), filled.reshape(len(new), width)], dim=1).to(self.cfg.device)

    def generate_stream(
        self: Any,
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
        if return_type not in ("input", "str", "tokens", "tensor"):
            raise ValueError(f"generate_stream: return_type must be 'input', 'str' or 'tokens', got {return_type!r}")
        if max_tokens_per_yield < 1:
            raise ValueError(f"generate_stream: max_tokens_per_yield must be positive, got {max_tokens_per_yield}")
        as_text = return_type == "str" or (return_type == "input" and not isinstance(input, torch.Tensor))
        tokens, mask = self._tokens_of(input, prepend_bos, padding_side)
        if as_text and len(tokens) != 1:
            raise ValueError(f"generate_stream: one text is streamed, got {len(tokens)}; tokens of several rows can be")
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        prompts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
        stops = self._stop_ids(eos_token_id) if stop_at_eos else []
        options = {"top_k": top_k, "top_p": top_p, "temperature": temperature if do_sample else 0.0}
        options["freq_penalty"] = freq_penalty if do_sample else 0.0
        hooks = self._hooks_of_pass(*padded(prompts))  # what is in effect now, wherever the pieces are taken
        return self._stream(
            tokens,
            prompts,
            max_new_tokens,
            max_tokens_per_yield,
            stops,
            options,
            use_past_kv_cache,
            hooks,
            as_text,
            verbose,
        )

    def _stream(
        self: Any,
        tokens: torch.Tensor,
        prompts: list[list[int]],
        max_new_tokens: int,
        per_piece: int,
        stops: list[int],
        options: dict[str, Any],
        use_cache: bool,
        hooks: Any,
        as_text: bool,
        verbose: bool,
    ) -> Iterator[Any]:
        decode = self._tokenizer("generate_stream").decode if as_text else None
        fill = stops[0] if stops else 0
        piece = tokens.cpu()
        shown = ""  # what the text was when a piece was last given out
        everything = piece

        def given_out(last: bool = False) -> Any:
            nonlocal shown
            if decode is None:
                return piece.to(self.cfg.device)
            text = decode(everything[0].tolist(), skip_special_tokens=True)
            text = text if last else text.rstrip("\ufffd")  # the rest of a character is still to come
            new, shown = text[len(shown) :], text
            return new

        silent = contextlib.nullcontext(lambda what, done, total: None)
        with step_bars() if verbose else silent as step:
            for n, chosen in enumerate(self._steps(prompts, max_new_tokens, stops, options, use_cache, hooks)):
                column = torch.tensor([[fill if token is None else token] for token in chosen])
                piece, everything = torch.cat([piece, column], dim=1), torch.cat([everything, column], dim=1)
                step("generate", n + 1, max_new_tokens)
                if piece.shape[1] >= per_piece:
                    yield given_out()
                    piece = piece[:, :0]
        if piece.shape[1]:
            yield given_out(last=True)

    def _stop_ids(self, eos_token_id: int | Sequence[int] | None) -> list[int]:
        if eos_token_id is None:
            eos_token_id = getattr(self.tokenizer, "eos_token_id", None)
        if eos_token_id is None:
            raise _C.ConfigError("generate: stop_at_eos needs eos_token_id where the tokenizer has no EOS token")
        return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)

    def _generate_natively(
        self: Any, prompts: list[list[int]], max_new_tokens: int, stops: list[int], options: dict[str, Any], step: Any
    ) -> list[list[int]]:
        top_k, top_p = options["top_k"], options["top_p"]
        if top_k is not None and top_k < 1:
            raise ValueError(f"generate: top_k must be positive, got {top_k}")

        def on_token(row: Any, token: Any) -> bool:
            counts[row] += 1
            if row == 0 or counts[row] == max(counts):
                step("generate", max(counts), max_new_tokens)
            return True

        counts = [0] * len(prompts)
        return self.engine.generate(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=options["temperature"],
            top_k=top_k or 0,
            top_p=1.0 if top_p is None or top_k is not None else top_p,
            seed=int(torch.randint(2**62, ())) if options["temperature"] > 0 else 0,
            stop_at_eos=False,
            stop_token_ids=stops,
            hooks=self._hooks_of_pass(*padded(prompts)),
            on_token=on_token,
        )

    def _generate_in_steps(
        self: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        stops: list[int],
        options: dict[str, Any],
        use_cache: bool,
        step: Any,
    ) -> list[list[int]]:
        """The same with ``sample_logits``, one pass for each token."""
        new: list[list[int]] = [[] for _ in prompts]
        hooks = self._hooks_of_pass(*padded(prompts))
        for n, chosen in enumerate(self._steps(prompts, max_new_tokens, stops, options, use_cache, hooks)):
            for row, token in zip(new, chosen, strict=True):
                row += [] if token is None else [token]
            step("generate", n + 1, max_new_tokens)
        return new

    def _steps(
        self: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        stops: list[int],
        options: dict[str, Any],
        use_cache: bool,
        hooks: Any,
    ) -> Iterator[list[int | None]]:
        """The next token of each row, None for one that has ended, until all have."""
        tokens, mask = padded(prompts)
        width = tokens.shape[1]
        cache = self.engine.make_cache(len(prompts)) if use_cache else None
        rows = [list(prompt) for prompt in prompts]
        running = [True] * len(prompts)
        for _ in range(max_new_tokens):
            seen = len(cache) if cache is not None else 0
            with torch.no_grad():
                logits = self.engine.forward(
                    tokens[:, seen:],
                    hooks=hooks,
                    cache=cache,
                    attention_mask=mask[:, seen:],
                    logits_at="last",
                    n_prompt=width,
                    history=tokens[:, :seen],
                )[:, 0].cpu()
            self.engine.check_finite(
                logits[[r for r, alive in enumerate(running) if alive]],
                who="generate",
                cache=cache,
                tokens=tokens,
                attention_mask=mask,
                hooks=hooks,
            )
            chosen = [
                int(sample_logits(logits[r : r + 1], tokens=torch.tensor([row]), **options))
                for r, row in enumerate(rows)
            ]
            yield [token if alive else None for token, alive in zip(chosen, running, strict=True)]
            running = [alive and token not in stops for token, alive in zip(chosen, running, strict=True)]
            if not any(running):
                return
            for row, token in zip(rows, chosen, strict=True):
                row.append(token)
            tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
