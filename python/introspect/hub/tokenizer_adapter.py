"""The native tokenizer with the methods of a transformers tokenizer that notebooks use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import _C


class Encoding(dict):
    """What calling the tokenizer gives: "input_ids" and "attention_mask", as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: torch.device | str) -> Encoding:
        """The same with tensors on another device."""
        return Encoding({key: value.to(device) for key, value in self.items()})


class TokenizerAdapter:
    """A native Tokenizer; other attributes than these are its own.

    Where there is no BOS token, or no pad token, EOS stands in for it, as TransformerLens sets it up.
    """

    def __init__(self, native: _C.Tokenizer, *, name_or_path: str, n_ctx: int, padding_side: str = "right") -> None:
        self.native = native
        self.name_or_path = name_or_path
        self.model_max_length = n_ctx
        self.padding_side = padding_side
        self.eos_token_id = native.eos_token_id
        self.bos_token_id = native.eos_token_id if native.bos_token_id is None else native.bos_token_id
        self.pad_token_id = native.eos_token_id if native.pad_token_id is None else native.pad_token_id

    def __getattr__(self, name: str) -> Any:
        if name == "native":
            raise AttributeError(name)
        return getattr(self.native, name)

    def __repr__(self) -> str:
        return f"TokenizerAdapter({self.native!r}, padding_side={self.padding_side!r})"

    def __len__(self) -> int:
        return self.native.vocab_size

    def _get_special(self, kind: str) -> str | None:
        id = getattr(self, f"{kind}_token_id")
        return None if id is None else self.native.id_to_token(id)

    def _set_special(self, kind: str, token: str) -> None:
        if (id := self.native.token_to_id(token)) is None:
            raise _C.ConfigError(f"the vocabulary has no token {token!r} to be the {kind} token")
        setattr(self, f"{kind}_token_id", id)

    bos_token = property(lambda s: s._get_special("bos"), lambda s, token: s._set_special("bos", token))
    eos_token = property(lambda s: s._get_special("eos"), lambda s, token: s._set_special("eos", token))
    pad_token = property(lambda s: s._get_special("pad"), lambda s, token: s._set_special("pad", token))

    def encode(self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None) -> Any:
        """The ids of a text, a list or (return_tensors="pt") int64 [1, pos]."""
        ids = self.native.encode(text, add_special_tokens=add_special_tokens)
        return ids if return_tensors is None else torch.tensor([ids])

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The text of ids: one, a list, or a tensor [pos]; spaces are never cleaned up."""
        if clean_up_tokenization_spaces:
            raise _C.ConfigError("decode: clean_up_tokenization_spaces is not supported")
        ids = torch.as_tensor(token_ids)
        if ids.ndim > 1:
            raise _C.ShapeError(f"decode: ids must be [pos], got {list(ids.shape)}; batch_decode takes a batch")
        return self.native.decode(ids.flatten().tolist(), skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The text of each row."""
        return [self.decode(row, skip_special_tokens, **options) for row in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text as the vocabulary spells them."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The vocabulary's spelling of an id, or of each of a list."""
        if isinstance(ids, int):
            return self.native.id_to_token(ids)
        return [self.native.id_to_token(int(id)) for id in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token so spelled, or of each of a list; None for one that does not exist."""
        if isinstance(tokens, str):
            return self.native.token_to_id(tokens)
        return [self.native.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """The whole vocabulary, spelling -> id."""
        vocab = {}
        for id in range(self.native.vocab_size):
            try:
                vocab[self.native.id_to_token(id)] = id
            except IndexError:  # vocabularies may have gaps
                continue
        return vocab

    vocab = property(get_vocab)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Ids and attention mask of a text or of several, as lists or (return_tensors="pt") as tensors [batch, pos]."""
        texts = [text] if isinstance(text, str) else text
        rows = [self.native.encode(one, add_special_tokens=add_special_tokens) for one in texts]
        if truncation:
            rows = [row[: self.model_max_length if max_length is None else max_length] for row in rows]
        masks = [[1] * len(row) for row in rows]
        if padding:
            width = max(map(len, rows))
            for n, row in enumerate(rows):
                if len(row) < width and self.pad_token_id is None:
                    raise _C.ConfigError("tokenizer: there is no pad token to fill texts up with")
                pads, none = [self.pad_token_id or 0] * (width - len(row)), [0] * (width - len(row))
                left = self.padding_side == "left"
                rows[n], masks[n] = (pads + row, none + masks[n]) if left else (row + pads, masks[n] + none)
        if return_tensors is not None:
            if len({len(row) for row in rows}) > 1:
                raise _C.ShapeError("tokenizer: texts of unequal length make no tensor without padding=True")
            return Encoding(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks))
        single = isinstance(text, str)
        return Encoding(input_ids=rows[0] if single else rows, attention_mask=masks[0] if single else masks)
