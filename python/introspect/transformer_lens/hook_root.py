"""Hooks in modules of one's own: put a HookPoint wherever an activation is, and a HookedRootModule around all of them.

class Double(HookedRootModule):
    def __init__(self):
        super().__init__()
        self.hook_in, self.hook_out = HookPoint(), HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_out(2 * self.hook_in(x))
"""

from __future__ import annotations

import contextlib
import difflib
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from .. import _C
from ..hooks import points as hook_points
from ..hooks.manager import caching_hooks
from ..hooks.slices import Slice, SliceInput

Direction = Literal["fwd", "bwd"]
Directions = Literal["fwd", "bwd", "both"]
Hook = Callable[..., Any]  # hook(tensor, hook=point) -> a replacement, or None
Named = str | Sequence[str] | Callable[[str], bool]
Self = TypeVar("Self", bound="HookedRootModule")


@dataclass(frozen=True, eq=False)
class LensHandle:
    """One hook at one point."""

    hook: torch.utils.hooks.RemovableHandle
    user_hook: Hook
    is_permanent: bool = False
    context_level: int | None = None


class HookPoint(torch.nn.Module, metaclass=ABCMeta):
    """A place in a module of one's own at which an activation can be read and changed; called, it gives its input.

    The hook points of a model of this library have the same methods and count as instances, but are no torch modules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        self.ctx: dict[Any, Any] = {}
        self.name: str | None = None  # in the module that it is set up in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input itself, or what hooks make of it."""
        return x

    def extra_repr(self) -> str:
        return repr(self.name) if self.name else ""

    def layer(self) -> int:
        """The number of the block that the point stands in.

        Raises:
            ValueError: it stands in none.
        """
        parts = (self.name or "").split(".")
        if parts[0] != "blocks" or len(parts) < 2 or not parts[1].isdigit():
            raise ValueError(f"HookPoint.layer: {self.name} is not in a block")
        return int(parts[1])

    def add_hook(
        self,
        hook: Hook,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Calls ``hook(activation, hook=point)``, or with the gradient, from now on; what it returns replaces it.

        Args:
            dir: "bwd" sees and replaces gradients, during ``backward``.
            is_permanent: stays when hooks are reset.
            level: that of a context, for ``remove_hooks(level=...)``.
            prepend: before the hooks that are there.

        Raises:
            ValueError: another direction.
        """
        handles = self._of(dir, "add_hook")

        def forward(module: torch.nn.Module, args: Any, output: Any) -> Any:
            return hook(output, hook=self)

        def backward(module: torch.nn.Module, grad_input: Any, grad_output: Any) -> Any:
            answer = hook(grad_output[0], hook=self)
            return (answer,) if isinstance(answer, torch.Tensor) else answer

        if dir == "fwd":
            handle = self.register_forward_hook(forward, prepend=prepend)
        else:
            handle = self.register_full_backward_hook(backward, prepend=prepend)
        handles.insert(0 if prepend else len(handles), LensHandle(handle, hook, is_permanent, level))

    def _of(self, dir: str, who: str) -> list[LensHandle]:
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"HookPoint.{who}: the direction must be 'fwd' or 'bwd', got {dir!r}")
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks

    def add_perma_hook(self, hook: Hook, dir: Direction = "fwd") -> None:
        """A hook that stays when hooks are reset, unless told otherwise."""
        self.add_hook(hook, dir, is_permanent=True)

    def has_hooks(self, dir: Directions = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook of this kind stands here."""
        handles = [*self.fwd_hooks, *self.bwd_hooks] if dir == "both" else self._of(dir, "has_hooks")
        return any(
            (including_permanent or not handle.is_permanent) and level in (None, handle.context_level)
            for handle in handles
        )

    def remove_hooks(
        self, dir: Directions = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Takes hooks away, of one direction or level if so asked."""
        for one in ("fwd", "bwd") if dir == "both" else (dir,):
            handles = self._of(one, "remove_hooks")
            for handle in list(handles):
                if (including_permanent or not handle.is_permanent) and level in (None, handle.context_level):
                    handle.hook.remove()
                    handles.remove(handle)

    def clear_context(self) -> None:
        """Empties ``ctx``."""
        self.ctx = {}


HookPoint.register(hook_points.HookPoint)


class HookedRootModule(torch.nn.Module):
    """A torch module whose HookPoints can be named: call ``setup`` at the end of ``__init__``."""

    mod_dict: dict[str, torch.nn.Module]
    hook_dict: dict[str, HookPoint]

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Gives every module within this one its name, and collects them in ``mod_dict`` and ``hook_dict``."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        for name, module in self.mod_dict.items():
            module.name = name  # type: ignore[assignment]
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}

    def __getattr__(self, name: str) -> Any:
        if name in ("hook_dict", "mod_dict"):
            raise AttributeError(
                f"{type(self).__name__}: call setup() at the end of __init__, when all modules are there"
            )
        return super().__getattr__(name)

    def hook_points(self) -> Iterable[HookPoint]:
        """The values of ``hook_dict``."""
        return self.hook_dict.values()

    def _select(self, named: Named | None, who: str) -> list[str]:
        if named is None:
            return list(self.hook_dict)
        if callable(named):
            if chosen := [name for name in self.hook_dict if named(name)]:
                return chosen
            raise _C.HookError(f"{who}: the predicate is true of none of the {len(self.hook_dict)} hook points")
        names = [named] if isinstance(named, str) else list(named)
        for name in names:
            if name not in self.hook_dict:
                near = ", ".join(difflib.get_close_matches(name, self.hook_dict, n=3, cutoff=0)) or "none"
                raise _C.HookError(f"{who}: hook point {name!r} does not exist; the nearest names are {near}")
        return names

    def add_hook(
        self,
        name: Named,
        hook: Hook,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """As a point's ``add_hook``, at each point that a name, a list of names or a predicate on names means.

        Raises:
            HookError: a name that does not exist; the nearest are listed.
        """
        for one in self._select(name, "add_hook"):
            self.hook_dict[one].add_hook(hook, dir, is_permanent, level, prepend)

    check_and_add_hook = add_hook

    def add_perma_hook(self, name: Named, hook: Hook, dir: Direction = "fwd") -> None:
        """A hook that ``reset_hooks`` leaves in place unless told otherwise."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def remove_all_hook_fns(
        self, direction: Directions = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Takes hooks away at every point, of one direction or level if so asked."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empties the ``ctx`` of every point."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Directions = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """``remove_all_hook_fns``, and ``clear_contexts`` if asked."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    @contextlib.contextmanager
    def hooks(
        self: Self,
        fwd_hooks: Iterable[tuple[Named, Hook]] = (),
        bwd_hooks: Iterable[tuple[Named, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Hooks that are in effect inside the ``with`` block; leaving it, also by an exception, removes just these.

        Args:
            fwd_hooks: (name, hook) pairs as for ``add_hook``.
            bwd_hooks: the same for gradients; ``backward`` must be called inside the block.
            reset_hooks_end: False leaves the hooks in place.
            clear_contexts: empty the ``ctx`` of every point at the end.

        Raises:
            HookError: as ``add_hook``; nothing is hooked in then.
        """
        pairs = [(dir, self._select(name, "hooks"), hook) for dir, given in (("fwd", fwd_hooks), ("bwd", bwd_hooks))
                 for name, hook in given]  # fmt: skip
        self.context_level += 1
        added: list[tuple[HookPoint, str, LensHandle]] = []
        try:
            for dir, names, hook in pairs:
                for name in names:
                    point = self.hook_dict[name]
                    point.add_hook(hook, dir, level=self.context_level)  # type: ignore[arg-type]
                    added.append((point, dir, point._of(dir, "hooks")[-1]))
            yield self
        finally:
            self.context_level -= 1
            for point, dir, handle in added if reset_hooks_end else ():
                handle.hook.remove()
                if handle in (handles := point._of(dir, "hooks")):
                    handles.remove(handle)
            if clear_contexts:
                self.clear_contexts()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Iterable[tuple[Named, Hook]] = (),
        bwd_hooks: Iterable[tuple[Named, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """A call of the module with hooks that go when it ends.

        ``bwd_hooks`` act on a ``backward`` that is called later, and so need reset_hooks_end=False.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: Named | None = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, torch.Tensor], list, list]:
        """(dict, fwd_hooks, bwd_hooks) of hooks that will fill the dict; gradients under the name with ``_grad``."""
        cache = {} if cache is None else cache
        forward, backward = caching_hooks(
            self._select(names_filter, "get_caching_hooks"),
            cache,
            incl_bwd=incl_bwd,
            device=device,
            remove_batch_dim=remove_batch_dim,
            pos_slice=Slice.unwrap(pos_slice),
            copy=True,
        )
        return cache, forward, backward

    def add_caching_hooks(
        self,
        names_filter: Named | None = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The dict of ``get_caching_hooks``, filled by every call until hooks are reset."""
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, pairs in (("fwd", forward), ("bwd", backward)):
            for name, hook in pairs:
                self.add_hook(name, hook, dir)  # type: ignore[arg-type]
        self.is_caching = True
        return cache

    def cache_all(self, cache: dict[str, torch.Tensor], incl_bwd: bool = False, device: Any = None) -> None:
        """``add_caching_hooks`` at every point."""
        self.add_caching_hooks(None, incl_bwd, device, cache=cache)

    def cache_some(
        self, cache: dict[str, torch.Tensor], names: Named, incl_bwd: bool = False, device: Any = None
    ) -> None:
        """``add_caching_hooks`` at some points."""
        self.add_caching_hooks(names, incl_bwd, device, cache=cache)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Named | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """A call of the module, and {name: activation} at the points asked for.

        Args:
            names_filter: a name, a list of names, a predicate on names, or None for every point.
            device: where the activations are kept.
            remove_batch_dim: drop the first dimension of what is kept.
            incl_bwd: call ``backward`` on the output, a scalar, and keep gradients under the names with ``_grad``.
            pos_slice: which positions are kept, as ``utils.Slice`` takes them.

        Raises:
            HookError: a name that does not exist; the nearest are listed.
        """
        cache, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
        return out, cache
