"""What is hooked into a model: adding, removing, contexts, and the recording of activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from . import _C
from .hook_points import Direction, HookFunction, HookPoint, LensHandle, NamesFilter
from .slices import Slice, SliceInput

Named = str | Sequence[str] | Callable[[str], bool]
Hooks = Iterable[tuple[Named, HookFunction]]
Self = TypeVar("Self", bound="Hooked")


@dataclass(frozen=True, eq=False)
class Recording:
    """What every pass records, as long as it is in effect."""

    names: list[str]
    cache: _C.ActivationCache
    incl_bwd: bool
    options: dict[str, Any]


class Hooked:
    """A native model and one registry of what is hooked into it, in effect for every pass until it is removed."""

    def __init__(self, engine: _C.Model) -> None:
        self.engine = engine
        self.context_level = 0
        self._registry = engine.make_hooks()
        self._handles: dict[int, LensHandle] = {}
        self._recordings: list[Recording] = []
        self._conditional: list[Any] = []  # steer.Conditional

    def _hook_flags(self) -> dict[str, bool]:
        """Which of the points that only a hook needs count among "every point"."""
        return {}

    @property
    def hook_names(self) -> list[str]:
        """Every hook name, in the order in which a forward pass meets them."""
        return self.engine.hook_names(**self._hook_flags())

    @cached_property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every point by its name, those that only a hook needs among them."""
        names = self.engine.hook_names(
            use_attn_result=True, use_split_qkv_input=True, use_attn_in=True, use_hook_mlp_in=True
        )
        return {name: HookPoint(name, self) for name in names}

    def hook_points(self) -> Collection[HookPoint]:
        """The values of ``hook_dict``."""
        return self.hook_dict.values()

    def handles(self, name: str | None = None) -> list[LensHandle]:
        """What is hooked in, at one point or at all."""
        return [handle for handle in self._handles.values() if name in (None, handle.name)]

    def _conditions_met(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: _C.KVCache | None = None
    ) -> list[_C.Intervention]:
        """What steering under conditions does to a pass over these tokens."""
        return [one for each in self._conditional for one in each.of_pass(self, tokens, attention_mask, cache)]

    def _active_hooks(self, conditions_met: Sequence[_C.Intervention] = ()) -> Any:  # optional, which no stub says
        """What a pass is run with: a copy, so that hooks may add and remove hooks while it runs."""
        if self._registry.empty and not self._recordings and not conditions_met:
            return None
        hooks = self._registry.copy()
        for intervention in conditions_met:
            hooks.add_intervention(intervention)
        for recording in self._recordings:
            for name in recording.names:
                hooks.record(name, recording.cache, **recording.options)
                if recording.incl_bwd:
                    hooks.record(name, recording.cache, gradient=True, **recording.options)
        return hooks

    # Adding and removing

    def _select(self, named: NamesFilter, who: str) -> list[str]:
        """The names meant by a name, a list of them, a predicate, or None for all; each of them exists."""
        if named is None:
            return self.hook_names
        if isinstance(named, str):
            names = [named]
        elif callable(named):
            if names := [name for name in self.hook_names if named(name)]:
                return names
            raise _C.HookError(f"{who}: the predicate is true of none of the {len(self.hook_names)} hook points")
        else:
            names = list(named)
        for name in names:
            if name not in self.hook_dict:
                self.engine.make_hooks().add(name, lambda tensor, name: None)  # throws, naming the nearest
        return names

    def _add(
        self, named: Named, hook: HookFunction, dir: Direction, permanent: bool, level: int | None, prepend: bool
    ) -> list[int]:
        if not callable(hook):
            raise TypeError(f"add_hook: a hook must be callable, got {type(hook).__name__}")
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"add_hook: dir must be 'fwd' or 'bwd', got {dir!r}")
        ids: list[int] = []
        for name in self._select(named, "add_hook"):
            callback = _as_callback(hook, self.hook_dict[name], dir)
            id = self._registry.add(name, callback, direction=dir, prepend=prepend)
            self._handles[id] = LensHandle(id, name, dir, hook, permanent, level)
            ids.append(id)
        return ids

    def _remove(self, ids: Iterable[int]) -> None:
        for id in ids:
            if self._handles.pop(id, None):
                self._registry.remove(id)

    def add_hook(
        self,
        name: Named,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Calls ``hook(activation, hook=point)`` at each named point from now on; what it returns replaces it.

        Args:
            name: a hook name, a list of them, or a predicate on names. Points that only a hook needs
                (``attn.hook_result`` and others) are shown to a predicate only if their flag is set.
            hook: returns a tensor of the same shape and dtype, or None to leave the activation as it is.
            dir: "bwd" sees and replaces gradients, during ``backward``.
            is_permanent: stays when hooks are reset.
            level: that of a context, for ``reset_hooks(level=...)``.
            prepend: runs before the hooks that are there.

        Raises:
            HookError: a name that does not exist (the nearest are listed), or a predicate that is true of none.
        """
        self._add(name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: Named, hook: HookFunction, dir: Direction = "fwd") -> None:
        """A hook that ``reset_hooks`` leaves in place unless told otherwise."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
        *,
        names: Collection[str] | None = None,
    ) -> None:
        """Removes hooks, of one direction, level or set of names if so asked."""
        if direction not in ("fwd", "bwd", "both"):
            raise ValueError(f"remove_hooks: direction must be 'fwd', 'bwd' or 'both', got {direction!r}")
        self._remove(
            [
                handle.id
                for handle in self._handles.values()
                if direction in (handle.direction, "both")
                and (including_permanent or not handle.is_permanent)
                and level in (None, handle.context_level)
                and (names is None or handle.name in names)
            ]
        )
        if direction != "bwd" and level is None and names is None:
            self._recordings.clear()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks; what ``steer`` has put in stays until its block ends.

        Args:
            clear_contexts: empty the ``ctx`` of every point.
            direction: only forward or backward ones.
            including_permanent: permanent ones too.
            level: only those of one context level.
        """
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empties the ``ctx`` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    @contextlib.contextmanager
    def hooks(
        self: Self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Hooks that are in effect inside the ``with`` block.

        Leaving it, by an exception too, removes exactly the hooks it has put in, whatever else has been hooked in
        before it, inside it or around it.

        Args:
            fwd_hooks: (name, hook) pairs as for ``add_hook``.
            bwd_hooks: the same for gradients: they act on the backward pass of what is computed inside the block,
                even if ``backward`` is called after it.
            reset_hooks_end: False leaves the hooks in place.
            clear_contexts: empty the ``ctx`` of every point at the end.

        Raises:
            HookError: as ``add_hook`` does; nothing is then hooked in.
        """
        with self._context(reset_hooks_end, clear_contexts) as ids:
            for dir, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, hook in hooks:
                    ids += self._add(name, hook, dir, False, self.context_level, False)  # type: ignore[arg-type]
            yield self

    @contextlib.contextmanager
    def _context(self, reset_hooks_end: bool, clear_contexts: bool) -> Iterator[list[int]]:
        """A level of its own for the hooks whose ids are put into the list; they go when it ends, or fails."""
        ids: list[int] = []
        self.context_level += 1
        failed = True
        try:
            yield ids
            failed = False
        finally:
            self.context_level -= 1
            if reset_hooks_end or failed:
                self._remove(ids)
            if clear_contexts:
                self.clear_contexts()

    # Recording

    @contextlib.contextmanager
    def _recording(
        self,
        names_filter: NamesFilter,
        *,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: Slice | SliceInput = None,
        heads: Sequence[int] | None = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[_C.ActivationCache]:
        """A native cache into which the passes inside the block record the activations asked for."""
        cache = _C.ActivationCache()
        options: dict[str, Any] = {
            "positions": _as_positions(Slice.unwrap(pos_slice)),
            "heads": None if heads is None else list(heads),
            "device": None if device is None else torch.device(device),
            "dtype": dtype,
        }
        recording = Recording(self._select(names_filter, "run_with_cache"), cache, incl_bwd, options)
        self._recordings.append(recording)
        failed = True
        try:
            yield cache
            failed = False
        finally:
            if (reset_hooks_end or failed) and recording in self._recordings:
                self._recordings.remove(recording)
            if clear_contexts:
                self.clear_contexts()


def caching_hooks(
    names: Sequence[str],
    cache: dict[str, torch.Tensor],
    *,
    incl_bwd: bool,
    device: torch.device | str | None,
    remove_batch_dim: bool,
    pos_slice: Slice,
) -> tuple[list[tuple[str, HookFunction]], list[tuple[str, HookFunction]]]:
    """Forward and backward hooks that put what they see into a dict, gradients under the name with ``_grad``."""

    def keep(tensor: torch.Tensor, *, hook: HookPoint, suffix: str) -> None:
        axis = 2 if hook.name.endswith(("hook_pattern", "hook_attn_scores")) else 1
        kept = pos_slice.apply(tensor.detach(), dim=axis).to(device)
        cache[hook.name + suffix] = kept[0] if remove_batch_dim else kept

    forward: list[tuple[str, HookFunction]] = [(name, partial(keep, suffix="")) for name in names]
    return forward, [(name, partial(keep, suffix="_grad")) for name in names] if incl_bwd else []


def _as_positions(positions: Slice) -> tuple[int | None, ...] | list[int] | None:
    """A choice of positions as the native recorder takes it."""
    if positions.mode == "identity":
        return None
    chosen = positions.slice
    if isinstance(chosen, slice):
        return (chosen.start, chosen.stop, 1 if chosen.step is None else chosen.step)
    chosen = np.atleast_1d(chosen)
    return (np.flatnonzero(chosen) if chosen.dtype == bool else chosen).tolist()


def _as_callback(
    hook: HookFunction, point: HookPoint, direction: Direction
) -> Callable[[torch.Tensor, str], torch.Tensor | None]:
    """The hook as the engine calls it; backward hooks may answer with a tuple of one, as torch's do."""
    may_be_tuple = direction == "bwd"

    def callback(tensor: torch.Tensor, name: str) -> torch.Tensor | None:
        answer: Any = hook(tensor, hook=point)
        return answer[0] if may_be_tuple and isinstance(answer, tuple) and len(answer) == 1 else answer

    return callback
