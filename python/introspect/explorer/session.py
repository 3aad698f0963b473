"""A loaded model as the page uses it: texts to tokens, and the directions that it can be steered with."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from .fields import Fields, Refused
from .workspace import Workspace

MOST_TOKENS = 2_048  # of a prompt
PAIRS = 32  # suffixes of a concept's texts: enough for a look, seconds on a small model
KEPT = 16  # concepts that stay in memory


class Session:
    """One model, its lens, and what was made with it. Only the worker's thread uses it."""

    def __init__(self, model: Any, space: Workspace, dictionaries: Any = None) -> None:
        self.model, self.space, self.dictionaries = model, space, dictionaries
        self._vectors: dict[str, Any] = {}
        self._concepts: OrderedDict[str, Any] = OrderedDict()
        self._lens: Any = None

    @property
    def name(self) -> str:
        return Path(self.model.name).name or self.model.name

    def info(self) -> dict[str, Any]:
        cfg = self.model.cfg
        return {
            "name": self.name,
            "architecture": cfg.original_architecture,
            **{name: getattr(cfg, name) for name in ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx")},
            "dtype": self.model.native.precision,
            "parameters": self.model.native.n_params,
            "chat": self.has_chat,
            "hooks": list(self.model.hook_names),
            "vectors": list(self.space.vectors),
            "lens": self.space.lens.name if self.space.lens else None,
            "most_tokens": min(MOST_TOKENS, cfg.n_ctx),
        }

    @property
    def has_chat(self) -> bool:
        try:
            self.model.apply_chat_template([{"role": "user", "content": "."}], add_generation_prompt=True)
        except Exception:  # a model without a template, or one whose template refuses
            return False
        return True

    # Texts

    def tokens(self, fields: Fields) -> Any:
        """int64 [1, pos] of "prompt", written by the chat template where "chat" is true. Raises Refused."""
        text = fields.text("prompt")
        if not text:
            raise Refused("the prompt is empty: type a text")
        if fields.flag("chat"):
            text = self.model.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        return self.encode(text)

    def encode(self, text: str) -> Any:
        tokens = self.model.to_tokens(text)
        most = min(MOST_TOKENS, self.model.cfg.n_ctx)
        if not 1 <= tokens.shape[1] <= most:
            raise Refused(f"a prompt may have {most:,} tokens, and this one has {tokens.shape[1]:,}", 413)
        return tokens

    def shown(self, ids: Any) -> list[str]:
        """Each token as text."""
        tokenizer = self.model.tokenizer
        return [tokenizer.decode([int(one)]) if tokenizer else str(int(one)) for one in ids]

    # Directions

    @property
    def lens(self) -> Any:
        """The trained lens that was given, or None for the logit lens."""
        if self._lens is None and self.space.lens is not None:
            from ..analysis import Lens

            self._lens = Lens.load(self.space.lens)
        return self._lens

    def vector(self, name: str) -> Any:
        if name not in self.space.vectors:
            there = ", ".join(self.space.vectors) or "none"
            raise Refused(f"there is no control vector {name[:80]!r}; there are {there}", 404)
        if name not in self._vectors:
            from .. import ControlVector

            self._vectors[name] = ControlVector.load(self.space.vectors[name])
        return self._vectors[name]

    def concept(self, word: str) -> Any:
        """A control vector trained for a concept, from pairs of short texts."""
        if word not in self._concepts:
            from .. import ControlVector, concept_pairs, load_suffixes

            if not self.has_chat:
                raise Refused("a concept's vector is trained on chats, and this model has no chat template; use a word")
            pairs = concept_pairs(self.model, word, load_suffixes()[:PAIRS])
            self._concepts[word] = ControlVector.train(self.model, pairs, method="pca_center")
            if len(self._concepts) > KEPT:
                self._concepts.popitem(last=False)
        return self._concepts[word]

    def word_direction(self, word: str) -> Any:
        """The row of the unembedding that raises a word's first token, without what all rows share."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(word, add_special_tokens=False) if tokenizer else []
        if not ids:
            raise Refused("the word is empty: type one, with the space before it that it has in a text")
        rows = self.model.native.weight("unembed.W_U").T
        return (rows[ids[0]].float() - rows.float().mean(0)).contiguous()

    def dictionary(self, name: str, index: int) -> Any:
        """The dictionary of a feature that there is."""
        if self.dictionaries is None:
            raise Refused("there is no dictionary to steer with")
        self.dictionaries.check_feature(name, index)
        return self.dictionaries.sae(name)
