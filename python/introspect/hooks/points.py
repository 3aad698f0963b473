"""What a hook is called with: the point it stands at, under TransformerLens's name for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

Direction = Literal["fwd", "bwd"]
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class HookFunction(Protocol):
    """Sees the activation (or its gradient) at a point; returns a replacement of its shape and dtype, or None."""

    def __call__(self, tensor: torch.Tensor, /, *, hook: HookPoint) -> Any: ...


@dataclass(frozen=True)
class LensHandle:
    """One hook at one point."""

    id: int  # the registry's
    name: str
    direction: Direction
    user_hook: HookFunction
    is_permanent: bool = False
    context_level: int | None = None


class Hookable(Protocol):
    """A model, as its hook points know it."""

    def handles(self, name: str | None = None) -> list[LensHandle]: ...

    def add_hook(
        self, name: str, hook: HookFunction, dir: Direction, is_permanent: bool, level: int | None, prepend: bool
    ) -> None: ...

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"],
        including_permanent: bool,
        level: int | None,
        *,
        names: Collection[str] | None,
    ) -> None: ...


class HookPoint:
    """A named place of a model at which activations can be read and changed.

    ``ctx`` is a dict for hooks to leave things in, one for each thread; it lives until
    ``reset_hooks(clear_contexts=True)``.
    """

    def __init__(self, name: str, model: Hookable) -> None:
        self.name = name
        self._of_thread = threading.local()
        self._model = weakref.ref(model)  # what is hooked in refers to its point; the model must not live for that

    def __repr__(self) -> str:
        counts = [f", {len(hooks)} {dir}" for dir, hooks in (("fwd", self.fwd_hooks), ("bwd", self.bwd_hooks)) if hooks]
        return f"HookPoint({self.name!r}{''.join(counts)})"

    @property
    def model(self) -> Hookable:
        """The model this is a point of."""
        model = self._model()
        if model is None:
            raise ReferenceError(f"the model that {self.name} belongs to is gone")
        return model

    @property
    def ctx(self) -> dict[Any, Any]:
        """What the hooks of this thread's passes have left here."""
        return self._of_thread.__dict__.setdefault("ctx", {})

    @ctx.setter
    def ctx(self, value: dict[Any, Any]) -> None:
        self._of_thread.ctx = value

    def layer(self) -> int:
        """The number of the block this point stands in.

        Raises:
            ValueError: it stands in none.
        """
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"HookPoint.layer: {self.name} is not in a block")
        return int(parts[1])

    @property
    def fwd_hooks(self) -> list[LensHandle]:
        """What is hooked into the forward pass here."""
        return [handle for handle in self.model.handles(self.name) if handle.direction == "fwd"]

    @property
    def bwd_hooks(self) -> list[LensHandle]:
        """What is hooked into the backward pass here."""
        return [handle for handle in self.model.handles(self.name) if handle.direction == "bwd"]

    def has_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,
        level: int | None = None,
    ) -> bool:
        """True if a hook of this kind stands here."""
        return any(
            dir in (handle.direction, "both")
            and (including_permanent or not handle.is_permanent)
            and level in (None, handle.context_level)
            for handle in self.model.handles(self.name)
        )

    def add_hook(
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """As the model's ``add_hook``, at this point."""
        self.model.add_hook(self.name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> None:
        """A hook that ``reset_hooks`` leaves in place unless told otherwise."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes what is hooked in here."""
        self.model.remove_all_hook_fns(dir, including_permanent, level, names={self.name})

    def clear_context(self) -> None:
        """Empties ``ctx``."""
        self.ctx = {}
