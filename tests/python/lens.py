"""HookedTransformers of tiny checkpoints."""

from pathlib import Path

from introspect import HookedTransformer, HookedTransformerKeyValueCache

FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: other kernels for other shapes, nothing else


def load(folder: str | Path, **options) -> HookedTransformer:
    return HookedTransformer.from_pretrained(folder, **{"dtype": "float64", "device": "cpu", **options})


def cache_for(model: HookedTransformer, batch: int) -> HookedTransformerKeyValueCache:
    return HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)
