"""What one injection does to a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from .. import _C


@dataclass(frozen=True)
class Dose:
    """What one injection does to a model. Divergences are in nats, per token, KL(injected || base) of the next token.

    Attributes:
        concept, strength, first_layer, last_layer: the injection; ``unit`` is the strength's.
        target: the dose that was asked for, such as "kl=0.5"; empty: a strength was.
        kl: mean over the injected tokens.
        kl_later: mean over the tokens after them, down to the read position (NaN where there is none).
        kl_read: at the read position.
        sd: length of what is added to a block's output, in standard deviations of the natural residual along the
            vector's own direction, mean over the range's blocks. Natural is the unsteered conversation without its
            first token and those of massive activations.
        sd_overall: the same along any direction (root mean square over the dimensions).
        relative: the same length in median norms of the residual stream at the injected tokens.
        leak, leak_base: probability of the concept's word by the logit lens after the range's last block, mean over the
            injected tokens, with and without the injection.
        next, next_base: the same of the next token.
        monotone: whether more strength gave more dose wherever it was measured on the way to a target.
        null_index: of a random rotation of the vector; -1 is the vector.
    """

    concept: str
    strength: float
    unit: str
    first_layer: int
    last_layer: int
    target: str
    kl: float
    kl_later: float
    kl_read: float
    sd: float
    sd_overall: float
    relative: float
    leak: float
    leak_base: float
    next: float
    next_base: float
    monotone: bool = True
    null_index: int = -1

    @classmethod
    def of(cls, native: _C.NativeDose, unit: str, target: str = "", monotone: bool = True) -> Dose:
        names = [one.name for one in fields(cls) if one.name not in ("unit", "target", "monotone")]
        return cls(**{name: getattr(native, name) for name in names}, unit=unit, target=target, monotone=monotone)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def note(data: dict[str, Any], doses: Iterable[Dose], relative_strength: float) -> None:
    """Write doses into a result's JSON: all into ``settings``, and what tables show into the rows of their injections.

    Rows have the strength as it is injected: the run's times the protocol's relative one.
    """
    listed = list(doses)
    if not listed:
        return
    noted = [*data["settings"].get("dose", []), *(one.to_dict() for one in listed)]
    places = ("concept", "strength", "first_layer", "last_layer", "null_index")
    data["settings"]["dose"] = list({tuple(one[name] for name in places): one for one in noted}.values())
    by_place = {(one.concept, one.strength * relative_strength, one.first_layer, one.last_layer): one for one in listed}
    for row in data["rows"]:
        one = by_place.get((row["concept"], row["strength"], row["first_layer"], row["last_layer"]))
        if one is not None and row["null_index"] < 0:
            row["dose_kl"], row["dose_sd"] = one.kl, one.sd
            if one.target:
                row["dose_target"] = one.target
