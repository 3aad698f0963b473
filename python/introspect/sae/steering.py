"""Steering by features, control vectors of features, and the features of a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import _C
from ..hooked_model import HookedModel
from ..steering.splice import checked_sites

if TYPE_CHECKING:
    import pandas

Mode = Literal["add", "clamp", "scale"]
MODES = ("add", "clamp", "scale")


def steer_with_sae(
    model: HookedModel,
    sae: _C.Dictionary,
    feature: int,
    strength: float,
    prompt: Any,
    *,
    mode: Mode = "add",
    error_term: bool = True,
    **options: Any,
) -> Any:
    """What the model writes with one feature raised at every position: ``generate`` under ``model.splice``.

    Args:
        strength: "add": what is added to the feature; "clamp": its value; "scale": its factor.
        prompt: of ``generate``.
        error_term: False puts the edited reconstruction in the place of the activation, which most models do not
            survive: what the dictionary does not explain is then gone.
        options: of ``generate``.

    Raises:
        ValueError: another mode. Else as ``model.splice`` and ``generate``.
    """
    if mode not in MODES:
        raise ValueError(f"steer_with_sae: mode must be add, clamp or scale, got {mode!r}")
    edits: dict[str, Any] = {mode: {feature: strength}}
    with model.splice(sae, error_term=error_term, **edits):
        return model.generate(prompt, **options)  # type: ignore[attr-defined]


def contrastive_steering(
    model: HookedModel,
    sae: _C.Dictionary,
    positive_features: Sequence[int] | Mapping[int, float],
    negative_features: Sequence[int] | Mapping[int, float],
    strength: float,
    prompt: Any,
    *,
    error_term: bool = True,
    **options: Any,
) -> Any:
    """What the model writes with some features raised and others lowered by ``strength`` at every position.

    Args:
        positive_features: raised; {feature: weight} raises each by weight times strength.
        negative_features: lowered likewise.
        error_term: see ``steer_with_sae``.
        options: of ``generate``.

    Raises:
        ValueError: a feature on both sides, or none. Else as ``model.splice`` and ``generate``.
    """
    raised, lowered = (
        {int(feature): weight for feature, weight in (f.items() if isinstance(f, Mapping) else ((i, 1.0) for i in f))}
        for f in (positive_features, negative_features)
    )
    if both := sorted(raised.keys() & lowered.keys()):
        raise ValueError(f"contrastive_steering: features stand on one side, got {both} on both")
    if not raised and not lowered:
        raise ValueError("contrastive_steering: at least one feature is needed, got none")
    add = {f: strength * w for f, w in raised.items()} | {f: -strength * w for f, w in lowered.items()}
    with model.splice(sae, add=add, error_term=error_term):
        return model.generate(prompt, **options)  # type: ignore[attr-defined]


def contrast_features(
    sae: _C.Dictionary, positive: torch.Tensor, negative: torch.Tensor, *, top_k: int = 10
) -> dict[int, float]:
    """The features whose mean differs most between two sets of activations [n, d_in], {feature: difference}.

    What ``model.splice(sae, add=...)`` and ``control_vector`` take; the largest differences first.
    """
    difference = sae.encode(positive).double().mean(0) - sae.encode(negative).double().mean(0)
    largest = difference.abs().topk(min(top_k, len(difference))).indices.tolist()
    return {feature: difference[feature].item() for feature in largest if difference[feature] != 0}


def control_vector(
    sae: _C.Dictionary, features: Mapping[int, float], *, model: HookedModel | None = None
) -> _C.ControlVector:
    """The weighted sum of features' directions, sum_i w_i W_dec_i, as a ControlVector of the dictionary's layer.

    Args:
        features: {feature: weight}; ``model.steer`` with it adds what ``model.splice(add=features)`` does.
        model: to note its architecture and hash, and to check that the dictionary fits it.

    Raises:
        ConfigError: a dictionary of another point than the residual stream between blocks.
        IndexError: a feature that it does not have.
        ValueError: no features.
    """
    if not features:
        raise ValueError("control_vector: at least one feature is needed, got none")
    layer = layer_of(sae, "control_vector")
    ids = list(features)
    if wrong := [i for i in ids if not 0 <= i < sae.d_sae]:
        raise IndexError(f"control_vector: features must be 0 to {sae.d_sae - 1}, got {wrong[0]}")
    weights = torch.tensor([float(features[i]) for i in ids], dtype=torch.float64)
    direction = weights @ directions(sae)[ids].double()
    if model is not None:
        checked_sites(model, sae, "control_vector")
    kind = "" if model is None else model.native.cfg.original_architecture
    return _C.ControlVector(kind, {layer: direction})


def layer_of(sae: _C.Dictionary, who: str) -> int:
    """The block whose output a dictionary of the residual stream writes.

    Raises:
        ConfigError: it writes somewhere else.
    """
    sites = sae.origin.outputs or sae.origin.inputs
    name = sites[0].hook_name if len(sites) == 1 else ""
    parts = name.split(".")
    if len(parts) == 3 and parts[2] == "hook_resid_post":
        return int(parts[1])
    if len(parts) == 3 and parts[2] == "hook_resid_pre" and parts[1] != "0":
        return int(parts[1]) - 1
    raise _C.ConfigError(
        f"{who}: a control vector is added to the residual stream after a block, and the dictionary writes "
        f"{name or 'nobody knows where'}; model.splice(sae, add=...) steers there"
    )


def directions(sae: _C.Dictionary) -> torch.Tensor:
    """What one unit of each feature adds to the activation, [d_sae, d_out], an input norm of each row aside."""
    rows = sae.weights["W_dec"].detach()
    if sae.rank_by_decoder_norm:
        rows = rows / rows.norm(dim=1, keepdim=True)
    return rows / sae.input_scale


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The features of a vector.

    Attributes:
        features: those found, the largest share first.
        weights: of each: a cosine, or the length of its step along the unit direction.
        rest: share of the vector's squared length that these features do not span; of cosines, what the best alone
            leaves.
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    rest: float
    method: str

    def to_pandas(self) -> pandas.DataFrame:
        """One row a feature: feature, weight."""
        import pandas

        return pandas.DataFrame({"feature": self.features, "weight": self.weights})


def decompose(
    vector: _C.ControlVector | torch.Tensor,
    sae: _C.Dictionary,
    *,
    method: Literal["cosine", "pursuit", "encoder"] = "pursuit",
    top_k: int = 10,
) -> Decomposition:
    """Which features a vector is made of.

    Args:
        vector: a ControlVector with a direction at the dictionary's layer, or [d_out].
        method: "cosine": those whose directions lie closest; "pursuit": one after another what fits the rest best, as
            far as it does and never negative; "encoder": what the encoder makes of the vector as if it were an
            activation. A difference of activations is none, so that the encoder's answer is often wrong (Mayne et al.
            2024, arXiv:2411.08790); it is here to be compared.
        top_k: how many.

    Raises:
        ConfigError: a vector without a direction at the dictionary's layer.
        ShapeError: another width.
        ValueError: another method, or a vector of zeros.
    """
    v = _direction(vector, sae)
    d_sae = directions(sae).double()
    if v.shape != d_sae.shape[1:]:
        raise _C.ShapeError(f"decompose: the vector must be [{d_sae.shape[1]}], got {list(v.shape)}")
    length = v.square().sum().item()
    if length == 0:
        raise ValueError("decompose: a vector of zeros has no features")
    units = torch.nn.functional.normalize(d_sae, dim=1)
    if method == "cosine":
        weights, features = (units @ v / v.norm()).topk(min(top_k, len(units)))
        return Decomposition(tuple(features.tolist()), tuple(weights.tolist()), 1 - weights[0].item() ** 2, method)
    if method == "encoder":
        f = sae.encode(v.to(sae.dtype).unsqueeze(0))[0].double()
        weights, features = f.topk(min(top_k, int((f > 0).sum())))
        rest = v - weights @ d_sae[features]
        return Decomposition(
            tuple(features.tolist()), tuple(weights.tolist()), rest.square().sum().item() / length, method
        )
    if method != "pursuit":
        raise ValueError(f"decompose: method must be cosine, pursuit or encoder, got {method!r}")
    rest, found = v, dict[int, float]()
    for _ in range(top_k):
        fits = units @ rest
        best = int(fits.argmax())
        if fits[best] <= 0:
            break
        found[best] = found.get(best, 0.0) + fits[best].item()
        rest = rest - fits[best] * units[best]
    order = sorted(found, key=lambda feature: -found[feature])
    share = rest.square().sum().item() / length
    return Decomposition(tuple(order), tuple(found[feature] for feature in order), share, method)


def _direction(vector: _C.ControlVector | torch.Tensor, sae: _C.Dictionary) -> torch.Tensor:
    if isinstance(vector, torch.Tensor):
        return vector.detach().double().to(sae.device)
    layer = layer_of(sae, "decompose")
    if layer not in vector.directions:
        raise _C.ConfigError(
            f"decompose: the dictionary writes after block {layer}, and the vector has no direction there"
        )
    return vector.directions[layer].double().to(sae.device)
