"""What each feature does to a number of the logits: gradients, and gradients along a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import _C
from ..analysis.metrics import Metric, MetricLike
from ..analysis.prompts import tokens_of
from ..arguments import native_model
from ..steering.splice import checked_sites

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class FeatureAttribution:
    """Effects of the features of one text on a number.

    Attributes:
        metric: the number itself.
        positions: of each entry, [entries].
        features: which feature, [entries].
        activations: what it is there, [entries].
        effects: its part of the number, to first order, [entries].
        error: that of what the dictionary does not explain, [pos].
        bias: that of b_dec, an input norm and a skip, [pos].
        tokens: the text.
    """

    metric: float
    positions: torch.Tensor
    features: torch.Tensor
    activations: torch.Tensor
    effects: torch.Tensor
    error: torch.Tensor
    bias: torch.Tensor
    tokens: tuple[str, ...]

    def by_feature(self) -> dict[int, float]:
        """Effects summed over positions, those of the largest size first."""
        ids, places = self.features.unique(return_inverse=True)
        sums = torch.zeros(len(ids), dtype=torch.float64).index_add(0, places, self.effects.double())
        order = sums.abs().argsort(descending=True)
        return dict(zip(ids[order].tolist(), sums[order].tolist(), strict=True))

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each feature that is not 0 at a position: position, token, feature, activation, effect."""
        import pandas

        order = self.effects.abs().argsort(descending=True)
        positions = self.positions[order].tolist()
        return pandas.DataFrame(
            {
                "position": positions,
                "token": [self.tokens[position] for position in positions],
                "feature": self.features[order].tolist(),
                "activation": self.activations[order].tolist(),
                "effect": self.effects[order].tolist(),
            }
        )

    def __repr__(self) -> str:
        return (
            f"FeatureAttribution({len(self.effects)} entries over {len(self.tokens)} tokens, metric {self.metric:.4g})"
        )


def attribute_features(
    model: Any,
    sae: _C.Dictionary,
    prompt: Any,
    metric: MetricLike,
    *,
    method: Literal["gradient", "ig"] = "gradient",
    steps: int = 10,
    hook: str = "",
    any_model: bool = False,
) -> FeatureAttribution:
    """What each feature of a text does to a metric, to first order: f_i (W_dec_i . dm/dx), at every position.

    Effects, error and bias of a position sum to x . dm/dx. With method "ig" the gradient is the mean over a path on
    which features and error grow from nothing, so that all effects and errors together are what the metric is more
    than with b_dec alone in the place of the activation, up to the steps' fineness.
    Source: Marks et al. 2024, arXiv:2403.19647 (both methods, error nodes).

    Args:
        prompt: a text, or token ids.
        metric: as of ``patch_grid``: ``introspect.LogitDifference(" Mary", " John")``, or a function of logits
            [batch, pos, d_vocab] that gives [batch].
        steps: of the path, the middle of each.
        hook, any_model: as of ``model.splice``.

    Raises:
        ValueError: another method, no steps, several prompts. Else as ``model.splice``.
        ConfigError: a model that is hooked or steered.
    """
    who = "attribute_features"
    native = native_model(model, who)
    if method not in ("gradient", "ig") or steps < 1:
        raise ValueError(f"{who}: method must be gradient or ig and steps 1 or more, got {method!r} and {steps}")
    source_name, name = checked_sites(model, sae, who, hook=hook, any_model=any_model)
    prompts = tokens_of(model, prompt, who, "prompt")
    if len(prompts) != 1:
        raise ValueError(f"{who}: one prompt is needed, got {len(prompts)}")
    tokens = torch.tensor(prompts)
    measure = _measure(model, metric)
    hooks, cache = native.make_hooks(), _C.ActivationCache()
    for one in {source_name, name}:
        hooks.record(one, cache)
    with torch.no_grad():
        logits: Any = native.forward(tokens, hooks=hooks)
    x, source = cache[name], cache[source_name]
    value = measure(logits).sum().item()
    flat, read = x.reshape(x.shape[1], -1), source.reshape(x.shape[1], -1)
    if method == "gradient":
        path = [x]
    else:
        nothing = sae.decode(torch.zeros(len(read), sae.d_sae, dtype=sae.dtype, device=sae.device), read)
        start = nothing.reshape(x.shape).to(x.dtype)
        path = [start + (x - start) * ((step + 0.5) / steps) for step in range(steps)]
    gradient = torch.stack([_gradient(native, name, tokens, at, measure) for at in path]).mean(0)
    offsets, features, activations, effects, error, bias = _C.feature_effects(
        sae, flat, gradient.reshape(flat.shape), None if source_name == name else read
    )
    positions = torch.repeat_interleave(torch.arange(len(flat)), offsets.diff())
    ids = prompts[0]
    has_text = getattr(model, "tokenizer", None) is not None
    shown = tuple(model.tokenizer.decode([one]) if has_text else str(one) for one in ids)
    return FeatureAttribution(value, positions, features, activations, effects, error, bias, shown)


def _measure(model: Any, metric: MetricLike) -> Callable[[torch.Tensor], torch.Tensor]:
    if not isinstance(metric, Metric):
        return metric
    resolved = metric.resolve(model)[0]
    return lambda logits: torch.stack([resolved.of_logits(row, None) for row in logits])


def _gradient(
    native: _C.Model, name: str, tokens: torch.Tensor, x: torch.Tensor, measure: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The gradient of the metric by the activation at a point, where it is x."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        hooks = native.make_hooks()
        hooks.add(name, lambda value, hook: leaf)
        logits: Any = native.forward(tokens, hooks=hooks)
        (gradient,) = torch.autograd.grad(measure(logits).sum(), leaf)
    return gradient
