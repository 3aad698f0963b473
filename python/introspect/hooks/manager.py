"""What is hooked into a model: adding, removing, contexts, and the recording of activations."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import filterfalse
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch

from .. import _C
from .points import Direction, HookFunction, HookPoint, LensHandle, NamesFilter
from .slices import Slice, SliceInput

Named = str | Sequence[str] | Callable[[str], bool]
Hooks = Iterable[tuple[Named, HookFunction]]
Self = TypeVar("Self", bound="Hooked")


@dataclass(frozen=True)
class Pass:
    """What is known of a pass, or of a whole generation, before it runs."""

    model: Hooked
    tokens: torch.Tensor  # int64 [batch, pos], or a residual [batch, pos, d_model] that it starts from
    attention_mask: torch.Tensor | None = None
    cache: Any = None


class Effect(Protocol):
    """Something that is read or changed in every pass until it is taken out."""

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None: ...


@dataclass(frozen=True, eq=False)
class Hook:
    """A function at one point."""

    handle: LensHandle
    point: HookPoint
    prepend: bool

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        if is_inner(self.handle.name):  # called by whoever has the point
            return
        callback = _as_callback(self.handle.user_hook, self.point, self.handle.direction)
        registry.add(self.handle.name, callback, direction=self.handle.direction, prepend=self.prepend)


@dataclass(frozen=True, eq=False)
class Steered:
    """A change that is data."""

    intervention: _C.Intervention

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        registry.add_intervention(self.intervention)


@dataclass(frozen=True, eq=False)
class Recording:
    """What every pass records."""

    turn = 1  # after all else

    names: list[str]
    cache: _C.ActivationCache
    incl_bwd: bool
    options: dict[str, Any]
    pos_slice: Slice = field(default_factory=Slice)
    inner: dict[str, torch.Tensor] = field(default_factory=dict)  # what inner points have shown

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        for name in filterfalse(is_inner, self.names):
            registry.record(name, self.cache, **self.options)
            if self.incl_bwd:
                registry.record(name, self.cache, gradient=True, **self.options)

    def see(self, name: str, value: torch.Tensor) -> None:
        """Keeps what an inner point shows, or its gradient."""
        if self.options["heads"] is not None:
            raise ValueError(f"run_with_cache: '{name}' has no heads to choose among")
        kept = self.pos_slice.apply(value.detach(), dim=1)
        self.inner[name] = kept.to(device=self.options["device"], dtype=self.options["dtype"])

    def to_dict(self, order: Sequence[str]) -> dict[str, torch.Tensor]:
        """What was recorded, in the order of the pass, which is that of these names; then gradients."""
        found = self.cache.to_dict()
        if not self.inner:
            return found
        places = {name: place for place, name in enumerate(order)}
        found |= self.inner
        return {name: found[name] for name in sorted(found, key=lambda name: places.get(name, len(places)))}


def is_inner(name: str) -> bool:
    """True of a point within what stands at a hook point: "blocks.3.hook_resid_post.hook_sae_acts_post"."""
    return ".hook_sae_" in name


class _OfThread(threading.local):
    """What one thread has put into effect, and how deep its ``with`` blocks stand."""

    effects: tuple[Effect, ...] = ()
    level = 0
    native: _C.Model | None = None  # that runs instead of the model's own


class Hooked:
    """A native model, what it is called, and what is in effect for its passes.

    ``native`` is the native model: whoever runs it or asks it for something looks it up here.

    What ``add_hook`` adds is in effect in every thread, until it is removed. A ``with`` block (``hooks``, ``steer``),
    ``run_with_hooks`` and ``run_with_cache`` are in effect in the thread that runs them and in no other, so that many
    threads may use one model: threads started inside a block open blocks of their own.
    """

    def __init__(self, native: _C.Model, *, name: str | None = None) -> None:
        self._of_thread = _OfThread()
        self.native = native
        self.name = name or native.cfg.model_name
        self._lock = threading.Lock()
        self._shared: tuple[Effect, ...] = ()  # replaced, never changed: a pass looks at it without the lock
        self._numbers = itertools.count(1)

    def _hook_flags(self) -> dict[str, bool]:
        """Which of the points that only a hook needs count among "every point"."""
        return {}

    @property
    def context_level(self) -> int:
        """How many ``with`` blocks of this thread stand inside one another."""
        return self._of_thread.level

    def _inner_points(self) -> dict[str, dict[str, HookPoint]]:
        """Points within what stands at a hook point: the hook point -> {full name: point}, in their order."""
        return {}

    @property
    def hook_names(self) -> list[str]:
        """Every hook name, in the order in which a forward pass meets them."""
        names = self.native.hook_names(**self._hook_flags())
        inner = self._inner_points()
        return [each for name in names for each in (*inner.get(name, ()), name)] if inner else names

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every point by its name, those that only a hook needs among them."""
        inner = self._inner_points().values()
        return {**self._own_points, **dict(pair for of in inner for pair in of.items())} if inner else self._own_points

    @cached_property
    def _own_points(self) -> dict[str, HookPoint]:
        names = self.native.hook_names(
            use_attn_result=True, use_split_qkv_input=True, use_attn_in=True, use_hook_mlp_in=True
        )
        return {name: HookPoint(name, self) for name in names}

    def hook_points(self) -> Collection[HookPoint]:
        """The values of ``hook_dict``."""
        return self.hook_dict.values()

    def handles(self, name: str | None = None) -> list[LensHandle]:
        """What is hooked in, at one point or at all."""
        hooks = [effect.handle for effect in self._effects if isinstance(effect, Hook)]
        return [handle for handle in hooks if name in (None, handle.name)]

    # What is in effect

    @property
    def is_hooked(self) -> bool:
        """True if anything would be read or changed in a pass of this thread."""
        return bool(self._effects)

    @property
    def _effects(self) -> tuple[Effect, ...]:
        return self._shared + self._of_thread.effects

    def _put(self, effects: Iterable[Effect], *, everywhere: bool) -> None:
        """Puts them into effect, in every thread or in this one."""
        if everywhere:
            with self._lock:
                self._shared += tuple(effects)
        else:
            self._of_thread.effects += tuple(effects)

    def _take(self, effects: Collection[Effect]) -> None:
        """Takes them out, those of them that are still in."""
        gone = set(map(id, effects))
        with self._lock:
            self._shared = tuple(effect for effect in self._shared if id(effect) not in gone)
        self._of_thread.effects = tuple(effect for effect in self._of_thread.effects if id(effect) not in gone)

    def _hooks_of_pass(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: _C.KVCache | None = None
    ) -> Any:  # optional, which no stub says
        """What a pass over these tokens, or a generation after them, is run with: None if nothing is in effect.

        Whoever runs the native model for a caller asks here, so that nothing which is in effect is left out. A pass may
        also start from a residual [batch, pos, d_model].

        The registry is made for this pass: hooks may add and remove hooks while it runs, and what a hook refers to, its
        model perhaps, hangs on Python objects alone, which the garbage collector can follow.

        Raises:
            ConfigError: steering under a condition, and no tokens or no prompt to decide it on.
        """
        effects = self._effects
        if not effects:
            return None
        registry = self.native.make_hooks()
        of = Pass(self, tokens, attention_mask, cache)
        # A recorder keeps what those before it made of an activation.
        for effect in sorted(effects, key=lambda effect: getattr(effect, "turn", 0)):
            effect.put_into(registry, of)
        return registry

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
                self.native.check_hook_name(name)
        return names

    def _hooks(
        self, named: Named, hook: HookFunction, dir: Direction, permanent: bool, level: int | None, prepend: bool
    ) -> list[Effect]:
        if not callable(hook):
            raise TypeError(f"add_hook: a hook must be callable, got {type(hook).__name__}")
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"add_hook: dir must be 'fwd' or 'bwd', got {dir!r}")
        return [
            Hook(LensHandle(next(self._numbers), name, dir, hook, permanent, level), self.hook_dict[name], prepend)
            for name in self._select(named, "add_hook")
        ]

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

        The hook is called in the passes of every thread; those of a ``hooks`` block are called in its own thread only.

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
        self._put(self._hooks(name, hook, dir, is_permanent, level, prepend), everywhere=True)

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
        """Removes hooks, of one direction, level or set of names if so asked; not those of other threads' blocks."""
        if direction not in ("fwd", "bwd", "both"):
            raise ValueError(f"remove_hooks: direction must be 'fwd', 'bwd' or 'both', got {direction!r}")

        def meant(effect: Effect) -> bool:
            if isinstance(effect, Recording):
                return direction != "bwd" and level is None and names is None
            return isinstance(effect, Hook) and (
                direction in (effect.handle.direction, "both")
                and (including_permanent or not effect.handle.is_permanent)
                and level in (None, effect.handle.context_level)
                and (names is None or effect.handle.name in names)
            )

        self._take([effect for effect in self._effects if meant(effect)])

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Removes hooks; what ``steer`` has put in stays until its block ends, and so do blocks of other threads.

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
        with self._context(reset_hooks_end, clear_contexts) as effects:
            for dir, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, hook in hooks:
                    effects += self._hooks(name, hook, dir, False, self.context_level, False)  # type: ignore[arg-type]
            self._put(effects, everywhere=False)
            yield self

    @contextlib.contextmanager
    def _context(self, reset_hooks_end: bool, clear_contexts: bool) -> Iterator[list[Effect]]:
        """A level of this thread's for the effects that are put into the list; they go when it ends, or fails."""
        effects: list[Effect] = []
        self._of_thread.level += 1
        failed = True
        try:
            yield effects
            failed = False
        finally:
            self._of_thread.level -= 1
            kept = set(map(id, self._effects))
            self._take(effects)
            if not (reset_hooks_end or failed):  # they stay, as what add_hook adds does
                self._put([effect for effect in effects if id(effect) in kept], everywhere=True)
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
    ) -> Iterator[Recording]:
        """What the passes inside the block record of the activations asked for."""
        chosen = Slice.unwrap(pos_slice)
        options: dict[str, Any] = {
            "positions": _as_positions(chosen),
            "heads": None if heads is None else list(heads),
            "device": None if device is None else torch.device(device),
            "dtype": dtype,
        }
        names = self._select(names_filter, "run_with_cache")
        recording = Recording(names, _C.ActivationCache(), incl_bwd, options, chosen)
        with self._context(reset_hooks_end, clear_contexts) as effects:
            effects.append(recording)
            self._put(effects, everywhere=False)
            yield recording


def caching_hooks(
    names: Sequence[str],
    cache: dict[str, torch.Tensor],
    *,
    incl_bwd: bool,
    device: torch.device | str | None,
    remove_batch_dim: bool,
    pos_slice: Slice,
    copy: bool = False,
) -> tuple[list[tuple[str, HookFunction]], list[tuple[str, HookFunction]]]:
    """Forward and backward hooks that put what they see into a dict, gradients under the name with ``_grad``.

    Args:
        copy: for tensors that may change afterwards.
    """

    def keep(tensor: torch.Tensor, *, hook: HookPoint, suffix: str) -> None:
        axis = 2 if hook.name.endswith(("hook_pattern", "hook_attn_scores")) else 1
        kept = pos_slice.apply(tensor.detach(), dim=axis).to(device, copy=copy)
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
