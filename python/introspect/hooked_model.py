"""What ``Model`` and ``HookedTransformer`` have in common: a loaded model, hooked, steered and read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from . import _C
from .hooks.activation_cache import ActivationCache
from .hooks.manager import Hooked
from .hooks.points import NamesFilter
from .steering import splice as splicing
from .steering import steer as steering
from .transformer_lens import left_out

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class HookedModel(Hooked):
    """A hooked decoder under either of its names, each of which says how it is called and continued: see ``Model``."""

    steer = steering.steer
    splice = splicing.splice

    @property
    def native(self) -> _C.Model:
        """The native model; inside ``adapted`` the one with the adapter."""
        return self._of_thread.native or self._native

    @native.setter
    def native(self, native: _C.Model) -> None:
        if self._of_thread.native is not None:
            raise _C.ConfigError(
                "Model: weights cannot be changed inside `with model.adapted(...)`: leave the block first"
            )
        self._native = native

    @contextlib.contextmanager
    def adapted(self, adapter: _C.Adapter, *, scale: float = 1.0) -> Iterator[Self]:
        """A LoRA adapter in effect inside the ``with`` block, in this thread, in whatever runs this model.

        Blocks inside one another add their adapters up. After it the model is as it was, bit for bit: its weights are
        shared and never written to. Caches belong to the model that filled them, with or without the adapter.

        Args:
            adapter: ``introspect.Adapter.load(folder)``.
            scale: how strong, against what it was trained for.

        Raises:
            ConfigError: an adapter of another model, or a model with processed weights.
            ShapeError: matrices of other sizes than the model's.
        """
        before = self._of_thread.native
        self._of_thread.native = self.native.with_adapter(adapter, scale=scale)
        try:
            yield self
        finally:
            self._of_thread.native = before

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if hasattr(type(self), name):  # a property that failed: what it said, not that there is none
            return object.__getattribute__(self, name)
        raise AttributeError(self._missing(name))

    def _missing(self, name: str) -> str:
        """What to say of an attribute that is not there."""
        return left_out.missing(type(self).__name__, name, left_out.MODEL)

    def __repr__(self) -> str:
        c = self.native.cfg
        return (
            f"{type(self).__name__}({self.name!r}, {c.original_architecture}, {c.n_layers} layers, "
            f"d_model {c.d_model}, {self.native.n_params / 1e6:.0f}M parameters, {self.dtype}, {self.device})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations; readouts are float32 whatever it is."""
        return self.native.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.native.device

    @property
    def hash(self) -> str:
        """Identity of the checkpoint, hex SHA-256, whatever dtype and device it was loaded to."""
        return self.native.hash

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """The conversation as the text the model was trained on.

        Args:
            messages: ``{"role": ..., "content": ...}``, roles "system", "user" and "assistant".
            add_generation_prompt: end with the header of the assistant's next turn.
            continue_final_message: leave the last message open, for the model to go on with it.

        Raises:
            ConfigError: the model has no chat template, or it refuses these messages.
        """
        return self.native.chat_template.render(
            list(messages), add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )

    def _forward(
        self,
        tokens: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,  # a KVCache
        **options: Any,
    ) -> torch.Tensor | None:
        """A pass of the native model, whose options these are, under what is in effect."""
        hooks = self._hooks_of_pass(tokens, attention_mask, cache)
        return self.native.forward(tokens, hooks=hooks, attention_mask=attention_mask, cache=cache, **options)

    def _recorded(
        self, run: Callable[[], T], names_filter: NamesFilter, *, remove_batch_dim: bool = False, **how: Any
    ) -> tuple[T, ActivationCache]:
        """What ``run`` gives, and the activations of the passes in it; the options are those of ``_recording``."""
        with self._recording(names_filter, **how) as recorded:
            out = run()
            order = self.hook_names if recorded.inner else ()
        cache = ActivationCache(recorded.to_dict(order), self)
        return out, cache.remove_batch_dim() if remove_batch_dim else cache
