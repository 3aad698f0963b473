"""Feature cards in the files of SAEDashboard and Neuronpedia, and back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from .. import _C
from .._json import parse_json
from ..arguments import native_model
from ..output_files import write_bytes, write_text
from .features import FeatureStatistics, feature_card

BATCH = 128  # features of a file, and the most that Neuronpedia takes at once
LONGEST_CONTEXT = 1024  # tokens that Neuronpedia takes
MOST_LOGITS = 20

Card = dict[str, Any]


def saedashboard_feature(statistics: FeatureStatistics, card: Card, *, dataset: str = "") -> dict[str, Any]:
    """A card under SAEDashboard's names (sae_dashboard/neuronpedia/neuronpedia_dashboard.py), numbers to 3 places."""
    alignment = card["alignment"]
    coactive = card["coactive"]
    logits = card.get("logit_histogram", {"values": [], "heights": []})
    return {
        "feature_index": card["feature"],
        "neuron_alignment_indices": alignment["indices"],
        "neuron_alignment_values": _rounded(alignment["values"]),
        "neuron_alignment_l1": _rounded(alignment["l1"]),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [one["feature"] for one in coactive],
        "correlated_features_l1": _rounded([one["cosine"] for one in coactive]),
        "correlated_features_pearson": _rounded([one["pearson"] for one in coactive]),
        "neg_str": [_clean(one["token"]) for one in card.get("bottom_logits", [])],
        "neg_values": _rounded([one["value"] for one in card.get("bottom_logits", [])]),
        "pos_str": [_clean(one["token"]) for one in card.get("top_logits", [])],
        "pos_values": _rounded([one["value"] for one in card.get("top_logits", [])]),
        "frac_nonzero": round(card["frequency"], 8),
        "freq_hist_data_bar_values": _rounded(card["histogram"]["values"]),
        "freq_hist_data_bar_heights": card["histogram"]["heights"],
        "logits_hist_data_bar_heights": logits["heights"],
        "logits_hist_data_bar_values": _rounded(logits["values"]),
        "n_prompts_total": len(statistics.activations.tokens),
        "n_tokens_in_prompt": statistics.activations.tokens.shape[1],
        "dataset": dataset,
        "decoder_weights_dist": _head_shares(statistics, card["feature"]),
        "vector": statistics.sae.weights["W_dec"][card["feature"]].detach().float().tolist(),
        "activations": [
            {
                "bin_min": round(group["low"], 3),
                "bin_max": round(group["high"], 3),
                "bin_contains": round(group["share"], 8),
                "tokens": [_clean(token) for token in context["tokens"]],
                "values": _rounded(context["values"]),
                "qualifying_token_index": context["position"],
            }
            for group in card["groups"]
            for context in group["contexts"]
        ],
    }


def write_saedashboard(
    statistics: FeatureStatistics,
    folder: str | os.PathLike,
    features: Sequence[int] | None = None,
    *,
    model_id: str | None = None,
    sae_set: str = "introspect",
    dataset: str = "",
    **card_options: Any,
) -> list[Path]:
    """SAEDashboard's batch-N.json files, 128 features each; dead features are left out as there.

    Args:
        features: which; None: all that were active.
        model_id: Neuronpedia's name of the model; None: the model's own.
        sae_set: the name of the dictionaries.
        dataset: where the texts are from.
        card_options: of ``feature_card``.

    Raises:
        IoError: a folder that cannot be written to.
    """
    folder = Path(folder)
    os.makedirs(folder, exist_ok=True)
    name = model_id or native_model(statistics.model, "write_saedashboard").cfg.model_name
    written = []
    for number, cards in enumerate(_batches(statistics, features, card_options)):
        made = [saedashboard_feature(statistics, card, dataset=dataset) for card in cards]
        batch = {"model_id": name, "layer": _layer(statistics.sae), "sae_set": sae_set, "features": made}
        written.append(folder / f"batch-{number}.json")
        write_text(written[-1], json.dumps(batch, ensure_ascii=False))
    return written


def read_saedashboard(path: str | os.PathLike) -> list[Card]:
    """The cards of a batch-N.json file, or of all in a folder; what the files lack is left out of them.

    Raises:
        IoError: files that are missing or not SAEDashboard's.
    """
    cards: list[Card] = []
    for file in _files(path, "batch-*.json"):
        batch = _object(file.read_text(encoding="utf-8", errors="replace"), file)
        if not isinstance(batch.get("features"), list):
            raise _C.IoError(f"read_saedashboard: {file}: 'features' must be a list")
        cards += [_card(feature, batch.get("model_id", ""), file) for feature in batch["features"]]
    return cards


def neuronpedia_upload(
    cards: Sequence[Card],
    *,
    model_id: str,
    source: str,
    explanations: Mapping[int, Sequence[Any]] | None = None,
) -> list[dict[str, Any]]:
    """Bodies of POST /api/feature/upload-batch, at most 128 features each; nothing is sent.

    Args:
        explanations: {feature: Explanations, or texts}.
    """

    def body(card: Card) -> dict[str, Any]:
        made = [_explanation(one) for one in (explanations or {}).get(card["feature"], [])]
        return {
            "index": card["feature"],
            "density": card["frequency"],
            "topLogits": _logits(card.get("top_logits", [])),
            "bottomLogits": _logits(card.get("bottom_logits", [])),
            "explanations": made,
            "activations": [
                {
                    "tokens": [_clean(token) for token in context["tokens"][:LONGEST_CONTEXT]],
                    "values": context["values"][:LONGEST_CONTEXT],
                    "quantileMin": group["low"],
                    "quantileMax": group["high"],
                    "quantileFraction": group["share"],
                }
                for group in card["groups"]
                for context in group["contexts"]
            ],
        }

    found = [body(card) for card in cards]
    return [
        {"modelId": model_id, "source": source, "features": found[first : first + BATCH]}
        for first in range(0, len(found), BATCH)
    ]


def write_neuronpedia(
    statistics: FeatureStatistics,
    folder: str | os.PathLike,
    features: Sequence[int] | None = None,
    *,
    model_id: str,
    source_set: str,
    release: str,
    creator_name: str = "",
    creator_id: str = "",
    url: str = "",
    dataset: str = "",
    **card_options: Any,
) -> Path:
    """Neuronpedia's import folder: {release, model, sourceset, source}.jsonl, {features, activations}/batch-N.jsonl.gz.

    They stand in folder/model_id/LAYER-source_set, which is returned.

    Raises:
        IoError: a folder that cannot be written to.
    """
    layer = _layer(statistics.sae)
    source = f"{layer}-{source_set}"
    out = Path(folder) / model_id / source
    for name in ("features", "activations"):
        os.makedirs(out / name, exist_ok=True)
    created = datetime.now().isoformat(timespec="microseconds")
    common = {"creatorId": creator_id, "createdAt": created}
    heads: dict[str, dict[str, Any]] = {
        "release": {"name": release, "description": release, "creatorName": creator_name, "urls": [url] if url else []},
        "model": {
            "id": model_id,
            "displayName": model_id,
            "displayNameShort": model_id,
            "instruct": model_id.endswith(("-it", "-instruct")),
            "layers": native_model(statistics.model, "write_neuronpedia").cfg.n_layers,
        },
        "sourceset": {"modelId": model_id, "name": source_set, "releaseName": release, "creatorName": creator_name},
        "source": {
            "id": source,
            "modelId": model_id,
            "setName": source_set,
            "dataset": dataset,
            "num_prompts": len(statistics.activations.tokens),
            "num_tokens_in_prompt": statistics.activations.tokens.shape[1],
        },
    }
    for name, fields in heads.items():
        write_text(out / f"{name}.jsonl", json.dumps({**fields, **common, "visibility": "PUBLIC"}) + "\n")
    for number, cards in enumerate(_batches(statistics, features, card_options)):
        lines: dict[str, list[dict[str, Any]]] = {"features": [], "activations": []}
        for card in cards:
            made = saedashboard_feature(statistics, card, dataset=dataset)
            place = {"modelId": model_id, "layer": source, "index": str(card["feature"]), **common}
            lines["features"].append(_neuronpedia_feature(made, card, place))
            lines["activations"] += [_neuronpedia_activation(one, place) for one in made["activations"]]
        for name, rows in lines.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_bytes(out / name / f"batch-{number}.jsonl.gz", gzip.compress(text.encode(), mtime=0))
    return out


def read_neuronpedia(folder: str | os.PathLike) -> list[Card]:
    """The cards of a folder that ``write_neuronpedia`` or Neuronpedia's tools wrote.

    Raises:
        IoError: files that are missing or not Neuronpedia's.
    """
    features: dict[str, dict[str, Any]] = {}
    for file in _files(Path(folder) / "features", "batch-*.jsonl.gz"):
        for row in _lines(file):
            row["feature_index"], row["activations"] = int(row["index"]), []
            features[str(row["index"])] = row
    for file in _files(Path(folder) / "activations", "batch-*.jsonl.gz"):
        for row in _lines(file):
            if str(row.get("index")) not in features:
                raise _C.IoError(f"read_neuronpedia: {file}: feature {row.get('index')!r} is not among the features")
            features[str(row["index"])]["activations"].append(
                {
                    "bin_min": row.get("binMin"),
                    "bin_max": row.get("binMax"),
                    "bin_contains": row.get("binContains"),
                    "tokens": row.get("tokens"),
                    "values": row.get("values"),
                    "qualifying_token_index": row.get("qualifyingTokenIndex"),
                }
            )
    return [_card(row, row.get("modelId", ""), Path(folder)) for row in features.values()]


def _neuronpedia_feature(made: dict[str, Any], card: Card, place: dict[str, Any]) -> dict[str, Any]:
    others = ("feature_index", "n_prompts_total", "n_tokens_in_prompt", "dataset", "vector", "activations")
    near = card["neighbours"]
    return {
        **place,
        "maxActApprox": max((max(one["values"]) for one in made["activations"]), default=0.0),
        "hasVector": True,
        "vector": made["vector"],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": round(card["max_active"], 3),
        "hookName": card["hook_name"],
        "topkCosSimIndices": [one["feature"] for one in near],
        "topkCosSimValues": _rounded([one["cosine"] for one in near]),
        **{name: value for name, value in made.items() if name not in others},
    }


def _neuronpedia_activation(one: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    values = one["values"][:LONGEST_CONTEXT]
    found = {
        **place,
        "tokens": one["tokens"][:LONGEST_CONTEXT],
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "values": values,
        "binMin": one["bin_min"],
        "binMax": one["bin_max"],
        "binContains": one["bin_contains"],
        "qualifyingTokenIndex": one["qualifying_token_index"],
        "dfaValues": [],
        "lossValues": [],
    }
    content = json.dumps([found[name] for name in sorted(found) if name != "createdAt"], ensure_ascii=False)
    return {"id": "c" + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24], **found}


def _batches(
    statistics: FeatureStatistics, features: Sequence[int] | None, options: dict[str, Any]
) -> Iterator[list[Card]]:
    active = statistics.ids[statistics.counts > 0].tolist()
    chosen = active if features is None else [int(one) for one in features if int(one) in set(active)]
    if not chosen:
        raise ValueError("no feature of those asked for was active on these texts: there is nothing to write")
    for first in range(0, len(chosen), BATCH):
        yield [feature_card(statistics, one, **options) for one in chosen[first : first + BATCH]]


def _head_shares(statistics: FeatureStatistics, feature: int) -> list[float]:
    """Of an attention dictionary: the share of each head in the lengths of the decoder row's parts."""
    sites = statistics.sae.origin.outputs or statistics.sae.origin.inputs
    if len(sites) != 1 or not sites[0].hook_name.endswith("attn.hook_z"):
        return []
    heads = native_model(statistics.model, "saedashboard_feature").cfg.n_heads
    lengths = statistics.sae.weights["W_dec"][feature].detach().float().view(heads, -1).norm(dim=1)
    return _rounded((lengths / lengths.sum()).tolist())


def _layer(sae: _C.Dictionary) -> int:
    parts = sae.origin.inputs[0].hook_name.split(".") if sae.origin.inputs else []
    return int(parts[1]) if len(parts) > 2 and parts[0] == "blocks" else 0


def _card(feature: Any, model: str, file: Path) -> Card:
    """A card of SAEDashboard's fields: those that both have."""
    try:
        groups: dict[tuple[float, float, float], list[dict[str, Any]]] = {}
        for one in feature["activations"]:
            key = (one["bin_min"], one["bin_max"], one["bin_contains"])
            if len(one["tokens"]) != len(one["values"]):
                raise ValueError(f"{len(one['tokens'])} tokens have {len(one['values'])} values")
            position = one.get("qualifying_token_index")
            if position is None:
                position = one["values"].index(max(one["values"]))
            groups.setdefault(key, []).append(
                {"position": position, "tokens": list(one["tokens"]), "values": list(one["values"])}
            )
        return {
            "feature": int(feature["feature_index"]),
            "model": model,
            "frequency": float(feature["frac_nonzero"]),
            "max_active": max((max(c["values"]) for g in groups.values() for c in g), default=0.0),
            "histogram": {
                "values": feature["freq_hist_data_bar_values"],
                "heights": feature["freq_hist_data_bar_heights"],
            },
            "top_logits": _pairs(feature["pos_str"], feature["pos_values"]),
            "bottom_logits": _pairs(feature["neg_str"], feature["neg_values"]),
            "groups": [
                {"low": low, "high": high, "share": share, "contexts": contexts}
                for (low, high, share), contexts in groups.items()
            ],
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _C.IoError(f"{file}: a feature is not as SAEDashboard writes it: {error!r}") from error


def _pairs(tokens: Sequence[str], values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"token": token, "value": value} for token, value in zip(tokens, values, strict=True)]


def _logits(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"token": _clean(one["token"]), "value": one["value"]} for one in found[:MOST_LOGITS]]


def _explanation(one: Any) -> dict[str, str]:
    if isinstance(one, str):
        return {"text": one, "methodName": "", "modelName": ""}
    return {"text": one.text, "methodName": one.method, "modelName": one.model}


def _rounded(values: Any) -> list[float]:
    listed = values.tolist() if isinstance(values, torch.Tensor) else values
    return [round(float(one), 3) for one in listed]


def _clean(token: str) -> str:
    """Databases of text take no NUL."""
    return token.replace("\0", " ")


def _files(path: str | os.PathLike, pattern: str) -> list[Path]:
    path = Path(path)
    found = sorted(path.glob(pattern), key=lambda file: (len(file.name), file.name)) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise _C.IoError(f"{path}: there is no file {pattern}")
    return found


def _object(text: str, file: Path) -> dict[str, Any]:
    found = parse_json(text, str(file))
    if not isinstance(found, dict):
        raise _C.IoError(f"{file}: it must hold a JSON object")
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
    except (OSError, EOFError) as error:
        raise _C.IoError(f"{file}: it is not gzip: {error}") from error
    for line in text.split("\n"):
        if line.strip():
            yield _object(line, file)
