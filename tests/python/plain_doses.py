"""What an injection does, by passes over whole texts with plain hooks."""

import torch

LAYERS = (1, 2)
EXACT = {"abs": 1e-9, "rel": 1e-9}  # float64: the same sums in another order
QUIET = {"layers": LAYERS, "progress": False}


@torch.no_grad()
def run(model, ids, positions=(), added=None):
    """Log-probabilities [T, V] and residuals {block: [T, D]} of one pass, added[block] being added at positions."""
    index = list(positions)

    def hook_of(what):
        def hook(x, hook):
            x = x.clone()
            x[:, index] += what
            return x

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", hook_of(what)) for layer, what in (added or {}).items()]
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=hooks):
        logits, cache = model.run_with_cache(torch.tensor([ids]), names_filter=names)
    return logits[0].log_softmax(-1), {layer: cache[name][0] for layer, name in enumerate(names)}


def added_of(model, vector, strength, norms=None):
    """{block: what is added}, strengths being fractions of the norms where they are given. Operands are float32."""
    out = {}
    for layer in LAYERS:
        direction = vector.directions[layer]
        factor = strength * (norms[layer] / direction.norm().item()) if norms else strength
        out[layer] = (direction * factor).double()
    return out


def kl(steered, base):
    return (steered.exp() * (steered - base)).sum(-1)
