"""Dictionaries attached to a model under SAELens's names, with points within them that hooks read and change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from .. import _C
from ..hooks.manager import Effect, Hook, Hooked, Pass, Recording
from ..hooks.points import HookPoint
from ..steering.splice import checked_sites
from .lens_model import LensModel

POINTS = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_error")
Saes: TypeAlias = "_C.Dictionary | Sequence[_C.Dictionary]"


@dataclass(eq=False)
class Attached:
    """A dictionary in the place of an activation, or beside it."""

    turn = -1  # hooks at its point see what it makes

    sae: _C.Dictionary
    input: str
    output: str
    use_error_term: bool
    points: dict[str, HookPoint] = field(default_factory=dict)
    placed: dict[torch.device, _C.Dictionary] = field(default_factory=dict)  # on the devices of activations

    def on(self, device: torch.device) -> _C.Dictionary:
        """The dictionary where the activation is."""
        if self.sae.device == device:
            return self.sae
        if device not in self.placed:
            self.placed[device] = self.sae.to(device)
        return self.placed[device]

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        if self is not attached(of.model).get(self.input):  # another one stands there for a while
            return
        effects = [effect for effect in of.model._effects if isinstance(effect, Hook | Recording)]
        if not self._is_seen(effects) and not _wants_gradients(self, effects, of):
            if not self.use_error_term:
                registry.add_intervention(
                    _C.splice(self.sae, keeps="nothing", hook_name=self.input, hook_name_out=self.output)
                )
            return
        read: dict[str, torch.Tensor] = {}
        if self.input != self.output:
            registry.add(self.input, lambda x, name: read.update(x=x))

        def spliced(x: torch.Tensor, name: str) -> torch.Tensor:
            return _C.splice_seen(
                self.on(x.device),
                x,
                read.get("x"),
                keeps_error=self.use_error_term,
                see=lambda *seen: self._see(effects, *seen),
            )

        registry.add(self.output, spliced)
        if any(_is_backward(effect) for effect in effects):  # so that the pass has gradients to give
            registry.add(self.output, lambda gradient, name: None, direction="bwd")

    def _is_seen(self, effects: list[Hook | Recording]) -> bool:
        return any(
            effect.handle.name in self.points
            if isinstance(effect, Hook)
            else any(n in self.points for n in effect.names)
            for effect in effects
        )

    def _see(self, effects: list[Hook | Recording], name: str, value: torch.Tensor) -> torch.Tensor:
        """What goes on from a point within the dictionary after the hooks there."""
        full = f"{self.output}.{name}"
        here = [e for e in effects if (full == e.handle.name if isinstance(e, Hook) else full in e.names)]
        hooks = [effect for effect in here if isinstance(effect, Hook)]
        for hook in sorted(hooks, key=lambda hook: not hook.prepend):
            if hook.handle.direction == "fwd":
                given = value.clone()
                answer = hook.handle.user_hook(given, hook=hook.point)
                value = _replacement(full, value, given if answer is None else answer)
        recordings = [effect for effect in here if isinstance(effect, Recording)]
        for recording in recordings:
            recording.see(full, value)
        backward = [effect for effect in here if _is_backward(effect)]
        if backward and torch.is_grad_enabled():
            value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            value.register_hook(lambda gradient: _gradient(full, gradient, backward))
        return value


def _is_backward(effect: Hook | Recording) -> bool:
    return effect.incl_bwd if isinstance(effect, Recording) else effect.handle.direction == "bwd"


def _wants_gradients(one: Attached, effects: list[Hook | Recording], of: Pass) -> bool:
    """Whether gradients may be asked for of this pass: they flow as SAELens has them, through the features alone."""
    if not torch.is_grad_enabled():
        return False
    if of.tokens.requires_grad or any(isinstance(e, Hook) or e.incl_bwd for e in effects):
        return True
    native = of.model.native
    own = native.named_weights(skip_quantised=True) if native.keeps_blocks else []  # nobody has those in files
    return any(tensor.requires_grad for tensor in (*one.sae.weights.values(), *(tensor for _, tensor in own)))


def _replacement(name: str, value: torch.Tensor, answer: Any) -> torch.Tensor:
    if not isinstance(answer, torch.Tensor):
        raise _C.HookError(f"hook at '{name}' must return a tensor or None, got {type(answer).__name__}")
    if answer.shape != value.shape or answer.dtype != value.dtype:
        raise _C.HookError(
            f"hook at '{name}' must return {list(value.shape)} {value.dtype}, got {list(answer.shape)} {answer.dtype}"
        )
    return answer


def _gradient(name: str, gradient: torch.Tensor, effects: Sequence[Hook | Recording]) -> torch.Tensor:
    for effect in effects:
        if isinstance(effect, Recording):
            effect.see(f"{name}_grad", gradient)
        else:
            answer: Any = effect.handle.user_hook(gradient.clone(), hook=effect.point)
            answer = answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer
            gradient = gradient if answer is None else _replacement(name, gradient, answer)
    return gradient


def attached(model: Hooked) -> dict[str, Attached]:
    """What is attached in this thread, by the point that it reads; of several at one point the last."""
    return {effect.input: effect for effect in model._effects if isinstance(effect, Attached)}


def inner_points(model: Hooked) -> dict[str, dict[str, HookPoint]]:
    """The points within what is attached, by the hook point that it writes."""
    return {one.output: one.points for one in attached(model).values()}


def acts_to_saes(model: LensModel) -> dict[str, _C.Dictionary]:
    """The dictionaries that are attached, by the hook point that they read."""
    return {name: one.sae for name, one in attached(model).items()}


def _attach(model: LensModel, sae: _C.Dictionary, use_error_term: bool | None, hook: str, any_model: bool) -> Attached:
    where = checked_sites(model, sae, "add_sae", hook=hook, any_model=any_model)
    error = getattr(sae, "use_error_term", False) if use_error_term is None else use_error_term
    one = Attached(sae, *where, bool(error))
    skipped = {"hook_sae_acts_pre"} if sae.architecture == "matching_pursuit" else set()
    if not error:
        skipped.add("hook_sae_error")
    names = [f"{one.output}.{name}" for name in (*POINTS, "hook_sae_output") if name not in skipped]
    one.points = {name: HookPoint(name, model) for name in names}
    if not error:
        _C.splice(sae, keeps="nothing", hook_name=where[0], hook_name_out=where[1])  # throws what a pass would
    return one


def add_sae(
    model: LensModel,
    sae: _C.Dictionary,
    use_error_term: bool | None = None,
    *,
    hook: str = "",
    any_model: bool = False,
) -> None:
    """Puts a dictionary in the place of the activation it was trained on, until ``reset_saes``.

    What goes on is its reconstruction, with the error term the activation itself, bit for bit, unless a hook at a point
    within it changes something: ``<hook>.hook_sae_input``, ``acts_pre``, ``acts_post``, ``recons``, ``error`` and
    ``output`` (of a transcoder under the point it writes) are hook points like any other while it is attached.
    Gradients flow through the features and not through the error, as in SAELens. One that was attached to the same
    point before is replaced.

    Args:
        use_error_term: None is ``sae.use_error_term``, or False.
        hook: another point than that it was trained at, where you know better.
        any_model: a dictionary of another model hash is let in, with a warning.

    Raises:
        ConfigError: a dictionary of another model or of several sites.
        HookError: a point that the model does not have. (SAELens goes on without the dictionary.)
        ShapeError: another width.
    """
    one = _attach(model, sae, use_error_term, hook, any_model)
    model._take([old for old in model._effects if isinstance(old, Attached) and old.input == one.input])
    model._put([one], everywhere=True)


def reset_saes(model: LensModel, act_names: str | Sequence[str] | None = None) -> None:
    """Takes out the dictionaries at these points, or all of them.

    Raises:
        HookError: nothing is attached there.
    """
    names = [act_names] if isinstance(act_names, str) else act_names
    here = attached(model)
    for name in names or ():
        if name not in here:
            raise _C.HookError(
                f"reset_saes: no dictionary is attached at '{name}', only at {', '.join(here) or 'none'}"
            )
    wanted = [e for e in model._effects if isinstance(e, Attached) and (names is None or e.input in names)]
    model._take(wanted)


@contextlib.contextmanager
def saes(
    model: LensModel,
    saes: Saes = (),
    reset_saes_end: bool = True,
    use_error_term: bool | None = None,
    *,
    any_model: bool = False,
) -> Iterator[LensModel]:
    """Dictionaries attached inside the ``with`` block, in this thread; after it what was attached before is again.

    Args:
        reset_saes_end: False leaves them attached, in every thread.
        use_error_term, any_model: as of ``add_sae``, whose errors these are.
    """
    given = [saes] if isinstance(saes, _C.Dictionary) else list(saes)
    with model._context(reset_saes_end, False) as effects:
        made: list[Effect] = [_attach(model, sae, use_error_term, "", any_model) for sae in given]
        effects += made
        model._put(effects, everywhere=False)
        yield model


def run_with_saes(
    model: LensModel,
    *model_args: Any,
    saes: Saes = (),
    reset_saes_end: bool = True,
    use_error_term: bool | None = None,
    **model_kwargs: Any,
) -> Any:
    """``forward`` with dictionaries attached, as ``add_sae`` attaches them."""
    with model.saes(saes, reset_saes_end, use_error_term):  # type: ignore[attr-defined]
        return model.forward(*model_args, **model_kwargs)


def run_with_cache_with_saes(
    model: LensModel,
    *model_args: Any,
    saes: Saes = (),
    reset_saes_end: bool = True,
    use_error_term: bool | None = None,
    **kwargs: Any,
) -> Any:
    """``run_with_cache`` with dictionaries attached; the cache has the points within them.

    ``cache["blocks.3.hook_resid_post.hook_sae_acts_post"]`` are features [batch, pos, d_sae]. (SAELens leaves out the
    point itself, ``blocks.3.hook_resid_post``; here it is what goes on from there.)
    """
    with model.saes(saes, reset_saes_end, use_error_term):  # type: ignore[attr-defined]
        return model.run_with_cache(*model_args, **kwargs)  # type: ignore[attr-defined]


def run_with_hooks_with_saes(
    model: LensModel,
    *model_args: Any,
    saes: Saes = (),
    reset_saes_end: bool = True,
    use_error_term: bool | None = None,
    **kwargs: Any,
) -> Any:
    """``run_with_hooks`` with dictionaries attached; hooks may name the points within them."""
    with model.saes(saes, reset_saes_end, use_error_term):  # type: ignore[attr-defined]
        return model.run_with_hooks(*model_args, **kwargs)  # type: ignore[attr-defined]
