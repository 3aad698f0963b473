"""A feature's page as the browser gets it, from what ``introspect.sae`` knows of the feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 10


def of_statistics(card: Mapping[str, Any], labels: Mapping[int, str]) -> dict[str, Any]:
    """The page of ``feature_card``'s dictionary."""
    near = [{"index": one["feature"], "similarity": one["cosine"]} for one in card["neighbours"]]
    beside = [{"index": one["feature"], "similarity": one["pearson"]} for one in card["coactive"]]
    return {
        "index": card["feature"],
        "label": labels.get(card["feature"], ""),
        "hook": card["hook_name"],
        "density": card["frequency"],
        "count": card["count"],
        "tokens_seen": card["tokens"],
        "max": card["max_active"],
        "mean": card["mean_active"],
        "decoder_norm": card["decoder_norm"],
        "histogram": _bars(card["histogram"]),
        "logits": {"raised": _pairs(card.get("top_logits", ())), "lowered": _pairs(card.get("bottom_logits", ()))},
        "logit_histogram": _bars(card.get("logit_histogram", {})),
        "neighbours": {"decoder": _named(near, labels, card["feature"]), "coactive": _named(beside, labels, -1)},
        "groups": [_group(group) for group in card["groups"]],
        "cached": True,
    }


def of_weights(model: Any, sae: Any, index: int, labels: Mapping[int, str]) -> dict[str, Any]:
    """The page of a feature of which no activation is known: its direction alone."""
    import torch

    from .. import ConfigError
    from ..sae.features import histogram, logit_effects, token_text

    rows = torch.nn.functional.normalize(sae.weights["W_dec"].detach().float(), dim=1)
    values, ids = (rows @ rows[index]).topk(min(SHOWN + 1, len(rows)))
    near = [{"index": i, "similarity": v} for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    page: dict[str, Any] = {
        "index": index,
        "label": labels.get(index, ""),
        "hook": sae.origin.inputs[0].hook_name if sae.origin.inputs else "",
        "decoder_norm": float(sae.weights["W_dec"][index].norm()),
        "logits": {"raised": [], "lowered": []},
        "neighbours": {"decoder": _named(near, labels, index), "coactive": []},
        "groups": [],
        "cached": False,
    }
    if model is None:
        return page
    try:
        effects = logit_effects(model, sae, [index])[0]
    except ConfigError:
        return page  # written in the middle of a block: there is no direct way to the logits
    for name, sign in (("raised", 1), ("lowered", -1)):
        best = (sign * effects).topk(min(SHOWN, len(effects))).indices.tolist()
        page["logits"][name] = [[token_text(model.native, one), float(effects[one])] for one in best]
    return page | {"logit_histogram": _bars(histogram(effects))}


def _pairs(tokens: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[one["token"], one["value"]] for one in tokens]


def _named(found: Sequence[dict[str, Any]], labels: Mapping[int, str], but: int) -> list[dict[str, Any]]:
    return [{**one, "label": labels.get(one["index"], "")} for one in found if one["index"] != but][:SHOWN]


def _bars(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Edges and counts of middles and heights."""
    middles = given.get("values") or []
    if len(middles) < 2:
        return None
    half = (middles[1] - middles[0]) / 2
    return {"edges": [middles[0] - half, *(m + half for m in middles)], "counts": given["heights"]}


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    is_top = group["share"] < 0
    share = f"{100 * group['share']:.2g}% of the tokens"
    title = "Highest" if is_top else f"From {group['low']:.3g} to {group['high']:.3g}: {share}"
    examples = [{"tokens": c["tokens"], "values": c["values"], "at": c["position"]} for c in group["contexts"]]
    return {"title": title, "examples": examples}
