"""Features as readouts of experiments, as features of detect_misalignment, and at the injected tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..arguments import native_model
from ..experiments.readouts import VIEWS, View
from ..experiments.run import conversation_tokens, load_protocol
from ..graph import Graph
from ..steering.splice import checked_sites

if TYPE_CHECKING:
    import pandas


def feature_readout(
    sae: _C.Dictionary,
    *,
    features: Sequence[int] | None = None,
    top_k: int = 10,
    name: str = "features",
    own_question_only: bool = False,
) -> dict[str, Any]:
    """A readout of experiments: a dictionary's features at the read position, with and without an injection.

    ``run_experiment(model, protocol, vectors=..., readouts=feature_readout(sae, features=[12, 40]))`` reads features
    12 and 40 of every run, steered, unsteered and of null vectors alike, into the columns ``features_12`` and
    ``features_12_base`` of ``to_pandas``; without ``features`` each reading has the largest ones,
    {"ids": [...], "values": [...]} under ``name`` in its row.

    Args:
        features: which; None: the ``top_k`` largest of each reading.
        name: of the readout, for several dictionaries in one run.
        own_question_only: True leaves control questions out.

    Returns:
        {name: parameter}; readouts of several dictionaries are joined with ``|``.

    Raises:
        ConfigError: a dictionary whose site is not known, or a name that the library has.
        IndexError: a feature that it does not have.
    """
    if not isinstance(sae, _C.Dictionary):
        raise TypeError(f"feature_readout: sae must be an introspect.SAE, got {type(sae).__name__}")
    inputs = sae.origin.inputs
    if len(inputs) != 1 or not inputs[0].hook_name:
        raise _C.ConfigError("feature_readout: the dictionary must say which point it reads, and it must be one")
    if features is not None and (wrong := [i for i in features if not 0 <= i < sae.d_sae]):
        raise IndexError(f"feature_readout: features must be 0 to {sae.d_sae - 1}, got {wrong[0]}")
    if top_k < 1:
        raise ValueError(f"feature_readout: top_k must be 1 or more, got {top_k}")
    chosen = None if features is None else [int(feature) for feature in features]
    _C.register_feature_readout(
        name,
        sae,
        hook_name=inputs[0].hook_name,
        features=chosen,
        top_k=top_k,
        own_question_only=own_question_only,
    )

    def columns(base: Any, injected: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for suffix, value in (("_base", base), ("", injected)):
            if value is not None and chosen is not None:
                found |= {f"{name}_{int(i)}{suffix}": one for i, one in zip(value["ids"], value["values"], strict=True)}
        return found

    VIEWS[name] = View(columns)
    return {name: {"dictionary": sae.hash[:16], "features": chosen, "top_k": None if chosen else top_k}}


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of a dictionary under a name, as ``detect_misalignment`` and monitors take it.

    Args:
        threshold: its activation at and above which a text is flagged; None: given to ``detect_misalignment``.
        position: of each text's tokens: -1 the last, (0, None) the mean over all.
    """

    sae: _C.Dictionary
    feature: int
    name: str = ""
    threshold: float | None = None
    position: int | tuple[int, int | None] = -1

    def __post_init__(self) -> None:
        if not 0 <= self.feature < self.sae.d_sae:
            raise IndexError(f"Feature: features must be 0 to {self.sae.d_sae - 1}, got {self.feature}")
        _site(self.sae)

    @property
    def layer(self) -> int:
        """The block of the point that is read."""
        return _site(self.sae)[0]

    @property
    def point(self) -> str:
        """The point within its block."""
        return _site(self.sae)[1]

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Its activation for each row [n, ..] of activations at the point, [n]."""
        return self.sae.encode(x.flatten(1), torch.tensor([self.feature]))[:, 0]


def _site(sae: _C.Dictionary) -> tuple[int, str]:
    parts = sae.origin.inputs[0].hook_name.split(".", 2) if len(sae.origin.inputs) == 1 else []
    if len(parts) != 3 or parts[0] != "blocks":
        raise _C.ConfigError("Feature: the dictionary must say which point of a block it reads, and it must be one")
    return int(parts[1]), parts[2]


@dataclass(frozen=True, eq=False)
class InjectedFeatures:
    """Features at the injected tokens, without the injection and with each vector.

    Attributes:
        tokens: the injected ones.
        base: {"": [tokens, d_sae]} as ``vectors``.
        vectors: {vector's name: features [tokens, d_sae]}.
    """

    tokens: tuple[str, ...]
    base: torch.Tensor
    vectors: dict[str, torch.Tensor]

    def to_pandas(self, top_k: int = 10) -> pandas.DataFrame:
        """One row for each vector and each of the features it raises or lowers most, in the mean over the tokens."""
        import pandas

        rows = []
        for name, features in self.vectors.items():
            before, after = self.base.double().mean(0), features.double().mean(0)
            change = after - before
            for feature in change.abs().topk(min(top_k, len(change))).indices.tolist():
                if change[feature] != 0:
                    numbers = {"base": before[feature].item(), "injected": after[feature].item()}
                    rows.append({"vector": name, "feature": feature, **numbers, "change": change[feature].item()})
        return pandas.DataFrame(rows, columns=["vector", "feature", "base", "injected", "change"])


def injected_features(
    model: Any,
    sae: _C.Dictionary,
    protocol: Any,
    vectors: Mapping[str, _C.ControlVector],
    *,
    strength: float = 1.0,
    layers: tuple[int, int] | None = None,
    any_model: bool = False,
) -> InjectedFeatures:
    """Which features light up at the tokens that a protocol injects into: one planned graph of all vectors.

    Args:
        protocol: as of ``run_experiment``.
        vectors: {name: vector}; null vectors are vectors like any other (``introspect.random_rotation``).
        strength: factor of the directions, as they are.
        layers: first and last block, both included; None is every layer the vector has.

    Raises:
        ConfigError, HookError, ShapeError: as ``model.splice``.
    """
    native_model(model, "injected_features")
    checked_sites(model, sae, "injected_features", any_model=any_model)
    layer, point = _site(sae)
    cut = conversation_tokens(model, load_protocol(protocol))
    graph = Graph()
    before = graph.segment(model, cut.before) if cut.before else None
    how = _C.Intervention({}, strength=strength)
    reads: dict[str, int] = {}
    for label, vector in {"": None, **vectors}.items():
        changes = [] if vector is None else _C.as_interventions([vector], how, model=model, layers=layers)
        node = graph.segment(model, cut.injected, before, changes)
        positions = list(range(len(cut.injected)))
        reads[label] = graph.read(node, positions=positions, layers=[layer], point=point)
    found: list[Any] = graph.run()
    encoded = {label: sae.encode(found[read][:, 0].flatten(1)).cpu() for label, read in reads.items()}
    tokens = tuple(model.native.tokenizer.decode([one]) for one in cut.injected)
    return InjectedFeatures(tokens, encoded.pop(""), encoded)
