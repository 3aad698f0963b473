"""Results of several runs of one protocol as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .fields import SETTING

# What runs whose results become one may differ in: these are kept by row, or say nothing of the numbers.
FREE = {"seed", "nulls", "threads", "versions", "incomplete", "control_filter", "dose"}


def difference(
    old: Mapping[str, Any], model: Mapping[str, Any], protocol: Mapping[str, Any], settings: Mapping[str, Any]
) -> str | None:
    """Why two results cannot be one: "model hash abc against def"; None if they can.

    Args:
        old: the ``model``, ``protocol`` and ``settings`` of a result. Of the other one what is known: names that it
            does not have are not compared.
    """
    for part, name, new in (
        ("protocol", "name", protocol),
        ("protocol", "hash", protocol),
        ("model", "hash", model),
        ("model", "dtype", model),
    ):
        one, other = old[part].get(name), new.get(name)
        if one != other and name in new:
            return f"the {part}'s {name} is {_short(one)} there and {_short(other)} here"
    names = (old["settings"].keys() | settings.keys()) - FREE
    for name in sorted(names, key=lambda name: (name != "strength_unit", name)):  # residual_norm follows from it
        one, other = old["settings"].get(name), settings.get(name)
        if one != other:
            return f"{name} is {_short(one)} there and {_short(other)} here"
    filters = [(one.get("control_filter") or {}).get("below") for one in (old["settings"], settings)]
    if filters[0] != filters[1]:
        return f"control_filter is {_short(filters[0])} there and {_short(filters[1])} here"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "..."


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of both, those of the same setting and question from ``new``.

    Rotations of another seed than the settings' are rows with a ``seed`` of their own.

    Raises:
        ValueError: another model, dtype, protocol or choice of settings; it names the difference.
    """
    if problem := difference(old, new["model"], new["protocol"], new["settings"]):
        raise ValueError(f"Result: results that become one must be of one kind, but {problem}")
    seed = old["settings"].get("seed")
    rows = {_key(row, seed): row for row in old["rows"]}
    for row in new["rows"]:
        own = row.get("seed", new["settings"].get("seed"))
        kept = {name: value for name, value in row.items() if name != "seed"}
        if own != seed and _depends_on_seed(row, new["protocol"]):
            kept["seed"] = own
        rows[_key(kept, seed)] = kept
    settings = {**old["settings"], **new["settings"]}
    if seed is not None:
        settings["seed"] = seed
    settings["nulls"] = max(part["settings"].get("nulls", 0) for part in (old, new))
    if doses := _doses(*(part["settings"].get("dose", ()) for part in (old, new))):
        settings["dose"] = doses
    settings.pop("incomplete", None)
    if left := new["settings"].get("incomplete"):
        settings["incomplete"] = {"done": len(rows), "of": len(rows) + left["of"] - left["done"]}
    return {
        **old,
        "protocol": {**old["protocol"], **new["protocol"]},
        "settings": settings,
        "rows": list(rows.values()),
    }


def _depends_on_seed(row: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
    is_drawn = protocol.get("inject") == "random" or protocol.get("read") == "sample"
    return is_drawn or row.get("null_index", -1) >= 0


def _key(row: Mapping[str, Any], seed: Any) -> tuple:
    return (*(row.get(name) for name in SETTING), row.get("seed", seed))


def _doses(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The doses of two results of one kind; of the same injection those of ``new``."""

    def place(one: Mapping[str, Any]) -> tuple:
        return (one["concept"], one["strength"], one["first_layer"], one["last_layer"])

    return list({place(one): dict(one) for one in (*old, *new)}.values())
