"""Tiny models as transformers and as ours, and what lenses are compared with."""

import torch
from tiny import tiny_transformers

import introspect
from introspect.analysis import Lens

FAMILIES = ["qwen2", "llama", "gemma2", "gemma3 layer types", "gpt2", "gpt_neox", "phi3"]
TOKENS = torch.tensor([[5, 17, 40, 3, 99, 62, 8, 21, 54, 77, 30, 12]])
SAME = {"rtol": 0, "atol": 1e-9}  # float64


def pair(name):
    theirs = tiny_transformers(name)
    return theirs, introspect.load_model(theirs, dtype="float64")


def backbone(theirs):
    return theirs.base_model


def final_norm(theirs):
    base = backbone(theirs)
    return next(getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(base, n))


def their_readout(theirs, resid):
    """log-probabilities of residuals through norm, unembedding and soft cap of a transformers model."""
    logits = theirs.get_output_embeddings()(final_norm(theirs)(resid))
    if cap := getattr(theirs.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)


@torch.no_grad()
def their_streams(theirs, tokens=TOKENS):
    """What enters each block, and what leaves the last one, [T, D] each."""
    base, last = backbone(theirs), []
    handle = final_norm(theirs).register_forward_hook(lambda module, given, out: last.append(given[0]))
    hidden = base(tokens, output_hidden_states=True).hidden_states
    handle.remove()
    return [h[0] for h in hidden[:-1]] + [last[0][0]]


def random_lens(model, seed=0, bias=True):
    rng = torch.Generator().manual_seed(seed)
    d = model.cfg.d_model
    draw = lambda *shape: torch.randn(*shape, generator=rng) / d  # noqa: E731
    layers = range(-1, model.cfg.n_layers - 1)
    return Lens("tuned", model, {layer: (draw(d, d), draw(d) if bias else None) for layer in layers})
