"""Random transcoders of tiny models, for tests of attribution graphs."""

from __future__ import annotations

import torch

from introspect import _C


def tokens_of(model, n=9):
    return torch.randint(0, model.cfg.d_vocab, (n,), generator=torch.Generator().manual_seed(0))


def origin(model, layer: int, hook_in: str) -> _C.DictionaryOrigin:
    return _C.DictionaryOrigin(
        inputs=[_C.DictionarySite(f"blocks.{layer}.{hook_in}", model.cfg.d_model)],
        outputs=[_C.DictionarySite(f"blocks.{layer}.hook_mlp_out", model.cfg.d_model)],
        model_hash=model.native.hash,
    )


def transcoder(model, layer: int, *, d_sae: int = 24, hook_in: str = "hook_mlp_in", skip: bool = False, **config):
    """A jumprelu transcoder of which about half of the features are active somewhere."""
    rng = torch.Generator().manual_seed(100 + layer)
    D = model.cfg.d_model

    def rand(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    weights = {
        "W_enc": rand(d_sae, D),
        "b_enc": rand(d_sae),
        "W_dec": rand(d_sae, D) / 4,
        "b_dec": rand(D) / 4,
        "threshold": torch.rand(d_sae, generator=rng, dtype=torch.float64),
    }
    if skip:
        weights["W_skip"] = rand(D, D) / 8
    return _C.Dictionary("jumprelu", weights, subtract_b_dec=False, origin=origin(model, layer, hook_in), **config)


def per_layer(model, **options):
    return {layer: transcoder(model, layer, **options) for layer in range(model.cfg.n_layers)}


def cross_layer(model, *, d_sae: int = 12, hook_in: str = "hook_mlp_in"):
    rng = torch.Generator().manual_seed(7)
    L, D = model.cfg.n_layers, model.cfg.d_model

    def rand(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    layers = [
        _C.Dictionary(
            "jumprelu",
            {
                "W_enc": rand(d_sae, D),
                "b_enc": rand(d_sae),
                "W_dec": rand(d_sae, (L - layer) * D) / 4,
                "threshold": torch.rand(d_sae, generator=rng, dtype=torch.float64),
            },
            subtract_b_dec=False,
        )
        for layer in range(L)
    ]
    where = _C.DictionaryOrigin(
        inputs=[_C.DictionarySite(f"blocks.{layer}.{hook_in}", D) for layer in range(L)],
        outputs=[_C.DictionarySite(f"blocks.{layer}.hook_mlp_out", D) for layer in range(L)],
        model_hash=model.native.hash,
    )
    return _C.CrossLayerTranscoder(layers, rand(L, D) / 4, origin=where)


def sae(model, name: str, *, d_sae: int = 20, **config):
    """A jumprelu SAE of the vectors at a hook point."""
    rng = torch.Generator().manual_seed(sum(map(ord, name)))
    D = model.cfg.d_model

    def rand(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    weights = {
        "W_enc": rand(d_sae, D),
        "b_enc": rand(d_sae),
        "W_dec": rand(d_sae, D) / 4,
        "b_dec": rand(D) / 4,
        "threshold": torch.rand(d_sae, generator=rng, dtype=torch.float64),
    }
    where = _C.DictionaryOrigin(inputs=[_C.DictionarySite(name, D)], model_hash=model.native.hash)
    return _C.Dictionary("jumprelu", weights, origin=where, **config)


def saes(model, *points: str):
    return [sae(model, name) for name in points]
