"""Dictionaries beside a model: loaded by name, read on texts, and feature pages from a token cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fields import Refused
from .labels import NAME as LABELS
from .labels import Labels
from .session import Session
from .workspace import Workspace

PAGES = "pages.safetensors"
MOST_FEATURES = 200  # of one answer


SPLITS = {"hook_attn_out": ("attention", 0), "hook_resid_post": ("residual", 0), "hook_resid_pre": ("residual", -1)}
MLP_INPUTS = ("hook_mlp_in", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")


def place_of(reads: str, writes: str) -> tuple[str, int] | None:
    """The site and layer that a dictionary of these hook points has in an attribution graph; None for none."""
    found = re.fullmatch(r"blocks\.(\d{1,5})\.(.+)", reads)
    if not found:
        return None
    layer, point = int(found[1]), found[2]
    if point in SPLITS and writes in ("", reads):
        site, before = SPLITS[point]
        return site, layer + before
    return ("mlp", layer) if point in MLP_INPUTS else None


@dataclass(frozen=True)
class Sets:
    """What ``circuits.attribute`` takes: transcoders of layers or a cross-layer one, and SAEs."""

    transcoders: Any = field(default_factory=dict)
    saes: list[Any] = field(default_factory=list)

    def encoder(self, site: str, layer: int) -> tuple[str, Any] | None:
        """What makes a site's features, and the point that it reads; None where none is open or its file is silent."""
        if site == "mlp" and isinstance(self.transcoders, dict):
            one = self.transcoders.get(layer)
            name = "" if one is None else _name(one.origin.inputs)
        elif site == "mlp":
            inputs = self.transcoders.origin.inputs
            one = self.transcoders.layers[layer] if layer < self.transcoders.n_layers else None
            name = inputs[layer].hook_name if layer < len(inputs) else ""
        else:
            found = (sae for sae in self.saes if place_of(_name(sae.origin.inputs), "") == (site, layer))
            one = next(found, None)
            name = "" if one is None else _name(one.origin.inputs)
        return (name, one) if one is not None and name else None

    def __bool__(self) -> bool:
        return bool(self.saes) or not isinstance(self.transcoders, dict) or bool(self.transcoders)


class Dictionaries:
    """Dictionaries of a workspace. Only the worker's thread uses what needs the model."""

    def __init__(self, space: Workspace, session: Session | None) -> None:
        self._space, self._session = space, session
        self._loaded: dict[str, Any] = {}
        self._pages: dict[str, Any] = {}
        self._labels: dict[str, Labels] = {}
        self._loaded_crossing: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        return list(self._space.dictionaries)

    def path(self, name: str) -> Path:
        if name not in self._space.dictionaries:
            raise Refused(f"there is no dictionary {name[:80]!r}; there are {', '.join(self.names) or 'none'}", 404)
        return self._space.dictionaries[name]

    def sae(self, name: str) -> Any:
        if name not in self._loaded:
            import introspect

            layer = self._space.layers.get(name)
            options = {} if layer is None else {"layer": layer}
            self._loaded[name] = introspect.SAE.load(self.path(name), **options)
        return self._loaded[name]

    def session(self) -> Session:
        if self._session is None:
            raise Refused("this needs the model: introspect explore ... --model MODEL", 409)
        return self._session

    def labels(self, name: str) -> Labels:
        if name not in self._labels:
            self._labels[name] = Labels(self._beside(name, LABELS))
        return self._labels[name]

    def _beside(self, name: str, file: str) -> Path:
        """A file of ours in a dictionary's folder, or beside its file."""
        path, layer = self.path(name), self._space.layers.get(name)
        if path.is_dir():
            return path / (file if layer is None else f"layer_{layer}.{file}")
        return path.with_name(f"{path.stem}.{file}")

    def hook(self, name: str, *, output: bool = False) -> str:
        """The point that a dictionary reads or writes. Raises Refused where its file does not say."""
        origin = self.sae(name).origin
        sites = (origin.outputs if output else origin.inputs) or origin.inputs
        if len(sites) != 1 or not sites[0].hook_name:
            raise Refused(f"the dictionary {name} does not say which point of a model it is of")
        return sites[0].hook_name

    def of_graph(self, places: Collection[tuple[str, int]]) -> Sets:
        """The open dictionaries of a graph's places, (site, layer) each. Raises Refused for two of one."""
        transcoders: dict[int, Any] = {}
        saes: dict[tuple[str, int], Any] = {}
        for name in self.names:
            sae = self.sae(name)
            place = place_of(_name(sae.origin.inputs), _name(sae.origin.outputs))
            if place is None or place not in places:
                continue
            if place in saes or (place[0] == "mlp" and place[1] in transcoders):
                raise Refused(f"two dictionaries are open that read {self.hook(name)}: which one is the graph of?", 409)
            if place[0] == "mlp":
                transcoders[place[1]] = sae
            else:
                saes[place] = sae
        crossing = list(self._space.cross_layer) if any(site == "mlp" for site, _ in places) else []
        if len(crossing) > 1 or (crossing and transcoders):
            raise Refused("more than one set of transcoders is open: which one is the graph of?", 409)
        return Sets(self._cross_layer(crossing[0]) if crossing else transcoders, list(saes.values()))

    def _cross_layer(self, name: str) -> Any:
        if name not in self._loaded_crossing:
            from ..sae.files import load_cross_layer

            self._loaded_crossing[name] = load_cross_layer(self._space.cross_layer[name])
        return self._loaded_crossing[name]

    def info(self, name: str) -> dict[str, Any]:
        sae = self.sae(name)
        origin = sae.origin
        return {
            "name": name,
            "d_in": sae.d_in,
            "d_out": sae.d_out,
            "d_sae": sae.d_sae,
            "architecture": str(sae.architecture),
            "reads": [site.hook_name for site in origin.inputs],
            "writes": [site.hook_name for site in origin.outputs],
            "model": origin.model_name,
            "labels": len(self.labels(name).all()),
            "pages": self.has_pages(name),
            "can_read": self._session is not None,
        }

    def check_feature(self, name: str, index: int) -> None:
        d_sae = self.sae(name).d_sae
        if not 0 <= index < d_sae:
            raise Refused(f"there is no feature {index} in {name}: 0 to {d_sae - 1:,}", 404)

    # Texts

    def encode(self, name: str, tokens: Any) -> Any:
        """Features of each token, [pos, d_sae] dense float32; those of special tokens are as they are."""
        import torch

        hook = self.hook(name)
        session = self.session()
        session.model.native.check_hook_name(hook)
        with torch.no_grad():
            _, cache = session.model.run_with_cache(tokens, [hook], logits_at="none")
            x = cache[hook][0]
            return self.sae(name).encode(x.reshape(x.shape[0], -1).to(self.sae(name).dtype)).float()

    def active(self, name: str, tokens: Any, *, position: int | None = None, most: int = 30) -> list[dict[str, Any]]:
        """The features that are largest anywhere in a text, or at one position, with their values at every token.

        Anywhere is after the first token, at which most models have a few activations far larger than all others.
        """
        values = self.encode(name, tokens)
        start = 1 if len(values) > 1 else 0
        strongest, where = values[start:].max(0)
        where = where + start
        key = strongest if position is None else values[position]
        order = key.topk(min(most, MOST_FEATURES, key.numel())).indices.tolist()
        labels = self.labels(name).all()
        return [
            {
                "index": one,
                "label": labels.get(one, ""),
                "max": float(strongest[one]),
                "at": int(where[one]),
                "values": values[:, one].tolist(),
            }
            for one in order
            if float(key[one]) > 0
        ]

    def values(self, name: str, tokens: Any, index: int) -> list[float]:
        self.check_feature(name, index)
        return self.encode(name, tokens)[:, index].tolist()

    # Directions

    def decoder(self, name: str) -> Any:
        """[d_sae, d_out]."""
        return self.sae(name).weights["W_dec"].detach().float()

    def nearest(self, name: str, direction: Any, most: int) -> list[tuple[int, float]]:
        """(feature, cosine) of the decoder rows that point most alike."""
        import torch

        rows = torch.nn.functional.normalize(self.decoder(name), dim=1)
        if direction.numel() != rows.shape[1]:
            raise Refused(f"a vector must have {rows.shape[1]} numbers, got {direction.numel()}")
        cosine = rows @ torch.nn.functional.normalize(direction.float(), dim=0)
        values, ids = cosine.topk(min(most, rows.shape[0]))
        return list(zip(ids.tolist(), values.tolist(), strict=True))

    # Pages

    def has_pages(self, name: str) -> bool:
        """Whether there is a token cache: what every feature did over texts."""
        return name in self._pages or self._beside(name, PAGES).is_file()

    def statistics(self, name: str) -> Any:
        """The token cache as FeatureStatistics, from memory or its file; None where it was not built yet."""
        if name not in self._pages and self._beside(name, PAGES).is_file():
            from ..sae.features import FeatureStatistics

            model = self.session().model
            self._pages[name] = FeatureStatistics.load(self._beside(name, PAGES), model, self.sae(name))
        return self._pages.get(name)

    def build_pages(self, name: str, job: Any) -> dict[str, Any]:
        """Runs the texts once and keeps what every feature did, in memory and in a file beside the dictionary."""
        from ..sae.features import feature_statistics

        def progress(what: str, done: int, total: int) -> None:
            job.emit({"what": what, "at": done, "of": total})

        texts = self._texts()
        found = feature_statistics(self.session().model, self.sae(name), texts, progress=progress)
        self._pages[name] = found
        kept = True
        try:
            found.save(self._beside(name, PAGES))
        except Exception:  # a folder that cannot be written to: the pages last as long as the server
            kept = False
        return {"texts": len(texts), "tokens": found.activations.read_tokens, "kept": kept}

    def _texts(self) -> list[str]:
        """The texts given, one a line, or the 582 short ones that the library ships."""
        if self._space.texts is None:
            from ..data import load_suffixes

            return [text for text in load_suffixes() if text.strip()]
        lines = self._space.texts.read_text(encoding="utf-8").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise Refused(f"{self._space.texts.name} holds no texts: one a line is needed")
        return texts

    def listed(self, name: str, by: str, most: int) -> list[dict[str, Any]]:
        """The features with the highest statistic of the token cache; the first ones where there is none."""
        labels, found = self.labels(name).all(), self.statistics(name)
        if found is None:
            return [{"index": one, "label": labels.get(one, "")} for one in range(min(most, self.sae(name).d_sae))]
        ids = found.top(most, by=by)
        frequency = dict(zip(found.ids.tolist(), found.frequencies.tolist(), strict=True))
        largest = dict(zip(found.ids.tolist(), found.max_active.tolist(), strict=True))
        return [
            {"index": one, "label": labels.get(one, ""), "density": frequency[one], "max": largest[one]} for one in ids
        ]

    def card(self, name: str, index: int) -> dict[str, Any]:
        """A feature's page; without a token cache only what its weights say."""
        from . import cards

        self.check_feature(name, index)
        labels, found = self.labels(name).all(), self.statistics(name)
        if found is not None:
            return cards.of_statistics(found.card(index), labels)
        model = self._session.model if self._session else None
        return cards.of_weights(model, self.sae(name), index, labels)


def _name(sites: Sequence[Any]) -> str:
    return sites[0].hook_name if len(sites) == 1 else ""
