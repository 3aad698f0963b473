"""repeng's ``control``: a model whose layers can be given control vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .. import _C
from ..hooks.manager import Effect, Pass, Steered
from .generation import generate
from .wrapped import after_final_norm, as_model, config_of

Operator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Combined:
    """A control that is a function: it is called with the output of a block."""

    layer: int
    hook: Callable[[torch.Tensor, str], torch.Tensor]

    def put_into(self, registry: _C.HookRegistry, of: Pass) -> None:
        registry.add(f"blocks.{self.layer}.hook_resid_post", self.hook)


class Output(NamedTuple):
    """What calling a ControlModel gives."""

    logits: torch.Tensor  # float32 [batch, pos, d_vocab]
    past_key_values: _C.KVCache | None
    hidden_states: tuple[torch.Tensor, ...] | None  # [batch, pos, d_model] each


class ControlModel:
    """A model with controls on some of its layers, in effect for every call of it until ``reset``.

    The control of layer l is combined with the output of block l, at every token of prompt and continuation. A wrapped
    introspect.Model can be used meanwhile, and is steered too; a transformers model is copied and never changed.
    Attributes that repeng's class does not have are the introspect.Model's.

    Args:
        model: an introspect.Model, a path, a name or a transformers model.
        layer_ids: block numbers, counted from the end if negative.

    Raises:
        IndexError: a layer the model does not have.
        ConfigError: a model that is not supported.
    """

    def __init__(self, model: Any, layer_ids: Iterable[int]) -> None:
        self.model = as_model(model)
        self._given = model
        self._config = config_of(model)
        n_layers = self.model.native.cfg.n_layers
        wanted = list(layer_ids)
        if outside := [layer for layer in wanted if not -n_layers <= layer < n_layers]:
            raise IndexError(f"ControlModel: layer_ids must be in [{-n_layers}, {n_layers}), got {outside}")
        self.layer_ids = [layer % n_layers for layer in wanted]
        # Layer -> its control (None without one): the model's own, so that all ControlModels around it share them.
        self._controls: dict[int, Effect | None] = vars(self.model).setdefault("_repeng_controls", {})
        if any(layer in self._controls for layer in self.layer_ids):
            warnings.warn("ControlModel: this model is wrapped already; unwrap() it first", stacklevel=2)
        for layer in self.layer_ids:
            self._controls.setdefault(layer)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # asked for before __init__ has set it
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def config(self) -> Any:
        """The transformers model's configuration, or its main sizes under transformers' names."""
        return self._config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def set_control(
        self, control: Any, coeff: float = 1.0, *, normalize: bool = False, operator: Operator | None = None
    ) -> None:
        """Puts ``coeff`` times a vector's directions on the layers, in place of what was there.

        Args:
            control: a ControlVector, or an introspect.ControlVector, with a direction for each of ``layer_ids``.
            coeff: below zero steers away from what the vector stands for.
            normalize: scale each token's activation back to the length it had before.
            operator: instead of +: called with the block's output and the direction, both [batch, pos, d_model].

        Raises:
            KeyError: no direction for one of the layers; nothing is changed then.
            ShapeError: a direction of another width.
            ValueError: one that is not finite.
        """
        directions = control.directions
        self.set_raw_control(
            {layer: torch.as_tensor(coeff * directions[layer]) for layer in self.layer_ids},
            normalize=normalize,
            operator=operator,
        )

    def set_raw_control(
        self, control: Mapping[int, torch.Tensor] | None, *, normalize: bool = False, operator: Operator | None = None
    ) -> None:
        """The same with tensors by layer, [d_model] or [batch, pos, d_model] or what broadcasts to it; None resets.

        Other layers than ``layer_ids`` are not looked at.
        """
        if not self._controls:
            raise _C.ConfigError("ControlModel: this model was unwrapped; wrap it again to control it")
        tensors = {} if control is None else {layer: torch.as_tensor(control[layer]) for layer in self.layer_ids}
        checked = self.model.native.make_hooks()
        added: dict[int, Effect | None] = dict.fromkeys(self.layer_ids)
        for layer, tensor in tensors.items():
            if operator is None and not normalize and tensor.ndim == 1:
                intervention = _C.Intervention({layer: tensor})
                checked.add_intervention(intervention)
                added[layer] = Steered(intervention)
            else:
                hook = _callback(tensor, normalize, operator or torch.add, self.model.native.cfg.d_model)
                added[layer] = Combined(layer, hook)
        self.model._take([old for layer in self.layer_ids if (old := self._controls.get(layer)) is not None])
        self.model._put([effect for effect in added.values() if effect is not None], everywhere=True)
        self._controls.update(added)

    def reset(self) -> None:
        """Takes the controls of all layers away."""
        self.set_raw_control(None)

    def unwrap(self) -> Any:
        """Takes the controls away and gives back the model that was wrapped; this object then controls nothing."""
        if self._controls:
            self.reset()
        for layer in self.layer_ids:
            self._controls.pop(layer, None)
        return self._given.unwrap() if isinstance(self._given, ControlModel) else self._given

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continues tokens, or text, under the controls: see ``introspect.repeng.generation.generate``."""
        return generate(self.model, *args, defaults=getattr(self._given, "generation_config", None), **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: _C.KVCache | None = None,
        use_cache: bool = True,
        output_hidden_states: bool = False,
        **unsupported: Any,
    ) -> Output:
        """One pass under the controls.

        Args:
            input_ids: int64 [batch, pos].
            attention_mask: [batch, pos], or with those of the cache before them; 0 for padding, on either side.
            past_key_values: what an earlier call returned; continued in place.
            use_cache: return keys and values.
            output_hidden_states: return the input of block 0 and the output of every block, the last after the final
                norm.

        Raises:
            ConfigError: other arguments, unless they are None or False.
            IndexError, ShapeError: as a call of the introspect.Model does.
        """
        ignored = {"return_dict", "token_type_ids"}
        asked = {name for name, value in unsupported.items() if value is not None and value is not False}
        if refused := sorted(asked - ignored):
            raise _C.ConfigError(f"ControlModel: not supported here: {', '.join(refused)}")
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.model.native.make_cache(len(input_ids))
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        options: dict[str, Any] = {"attention_mask": mask, "cache": cache}
        if not output_hidden_states:
            return Output(_logits(self.model._forward(input_ids, **options)), cache, None)
        n_layers = self.model.native.cfg.n_layers
        names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))]
        logits, read = self.model._recorded(lambda: self.model._forward(input_ids, **options), names)
        states = [read[name] for name in names]
        states[-1] = after_final_norm(self.model, states[-1]).to(states[-1])
        return Output(_logits(logits), cache, tuple(states))

    __call__ = forward


def _logits(logits: torch.Tensor | None) -> torch.Tensor:
    assert logits is not None  # they are asked for at every position
    return logits


def _callback(
    control: torch.Tensor, normalize: bool, operator: Operator, d_model: int
) -> Callable[[torch.Tensor, str], torch.Tensor]:
    """A hook that combines a control with what it sees."""
    if control.shape[-1] != d_model:
        raise _C.ShapeError(f"ControlModel: a direction must be [{d_model}], got {list(control.shape)}")
    if not control.isfinite().all():
        raise ValueError("ControlModel: a direction must be finite, got NaN or infinity")

    def hook(resid: torch.Tensor, name: str) -> torch.Tensor:
        combined = operator(resid, control.to(resid).expand_as(resid))
        if normalize:
            combined = combined / combined.norm(dim=-1, keepdim=True) * resid.norm(dim=-1, keepdim=True)
        return combined

    return hook


def model_layer_list(model: Any) -> Sequence[int]:
    """The block numbers of a model: what ``layer_ids`` are chosen from."""
    return range(as_model(model).cfg.n_layers)
