"""Small random dictionaries at points of a model, and what they do in plain torch."""

import torch

import introspect
from introspect import _C

ARCHITECTURES = ("standard", "gated", "topk", "abstopk", "jumprelu", "groupmax", "matching_pursuit")
K = {"topk": 5, "abstopk": 5, "groupmax": 4, "matching_pursuit": 3}


def dictionary_at(
    hook,
    d_in,
    architecture="standard",
    *,
    d_sae=24,
    hook_out=None,
    d_out=None,
    seed=0,
    dtype=torch.float64,
    size=0.3,
    skip=False,
    origin=None,
    **config,
):
    """A dictionary of random weights that reads ``hook`` [.., d_in] and writes ``hook_out``, or the same point."""
    rng = torch.Generator().manual_seed(seed)
    d_out = d_in if d_out is None else d_out
    transcodes = hook_out is not None

    def weight(*shape):
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * size).to(dtype)

    weights = {"W_dec": weight(d_sae, d_out), "b_dec": weight(d_out)}
    if architecture == "matching_pursuit":
        weights["W_dec"] = torch.nn.functional.normalize(weights["W_dec"], dim=1)
    else:
        weights["W_enc"] = weight(d_sae, d_in)
    if architecture == "gated":
        weights |= {name: weight(d_sae) for name in ("b_gate", "b_mag", "r_mag")}
    elif architecture != "matching_pursuit":
        weights["b_enc"] = weight(d_sae)
    if architecture == "jumprelu":
        weights["threshold"] = weight(d_sae).abs()
    if skip:
        weights["W_skip"] = weight(d_out, d_in)
    sites = {
        "inputs": [_C.DictionarySite(hook, d_in)],
        "outputs": [_C.DictionarySite(hook_out or hook, d_out)],
    }
    given = {"subtract_b_dec": not transcodes, "k": K.get(architecture, 0.0)} | config
    made = _C.DictionaryOrigin(**(sites | (origin or {})))
    return introspect.SAE.of(_C.Dictionary(architecture, weights, origin=made, **given))


def encode(sae, x):
    """Features in plain torch: the equations, without a kernel of the library."""
    w = sae.weights
    x = x.to(w["W_dec"].dtype)
    if sae.input_norm == "constant_norm_rescale":
        x = x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))
    elif sae.input_norm == "layer_norm":
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + sae.layer_norm_eps)
    elif sae.input_norm == "expected_average_only_in":
        x = x * sae.input_scale
    if sae.subtract_b_dec:
        x = x - w["b_dec"]
    if sae.architecture == "matching_pursuit":
        return pursue(sae, x)
    p = x @ w["W_enc"].T + w.get("b_enc", 0)
    if sae.architecture == "gated":
        return torch.relu(p * w["r_mag"].exp() + w["b_mag"]) * (p + w["b_gate"] > 0)
    if sae.rank_by_decoder_norm:
        p = p * w["W_dec"].norm(dim=1)
    if sae.architecture == "jumprelu":
        return p * (p > w["threshold"])
    if sae.architecture == "standard":
        return torch.relu(p)
    if sae.architecture == "groupmax":
        groups = torch.relu(p).unflatten(-1, (int(sae.k), -1))
        kept = torch.zeros_like(groups).scatter(-1, groups.argmax(-1, keepdim=True), 1)
        return (groups * kept).flatten(-2)
    f = torch.relu(p) if sae.architecture == "topk" else p
    rank = f if sae.architecture == "topk" else f.abs()
    return f * torch.zeros_like(f).scatter(-1, rank.topk(int(sae.k)).indices, 1)


def pursue(sae, x):
    """Matching pursuit, row by row."""
    W = sae.weights["W_dec"]
    rows = []
    for rest in x.reshape(-1, x.shape[-1]):
        f = torch.zeros(len(W), dtype=x.dtype)
        for _ in range(int(sae.k)):
            v, i = torch.relu(W @ rest).max(0)
            if rest.norm() < sae.residual_threshold or v <= 0 or f[i] != 0:
                break
            f = f + v * torch.nn.functional.one_hot(i, len(W))
            rest = rest - v * W[i]
        rows.append(f)
    return torch.stack(rows).reshape(*x.shape[:-1], len(W))


def decode(sae, f, x):
    """What features stand for, in plain torch."""
    w = sae.weights
    if sae.rank_by_decoder_norm:
        f = f / w["W_dec"].norm(dim=1)
    y = f @ w["W_dec"] + w["b_dec"]
    if sae.input_norm == "constant_norm_rescale":
        y = y * (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5)
    elif sae.input_norm == "layer_norm":
        y = y * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
    elif sae.input_norm == "expected_average_only_in":
        y = y / sae.input_scale
    return y + x @ w["W_skip"].T if "W_skip" in w else y


def edited(f, *, add=None, clamp=None, scale=None, ablate=()):
    """Features after edits, in plain torch."""
    f = f.clone()
    for feature, amount in (add or {}).items():
        f[..., feature] += amount
    for feature, value in (clamp or {}).items():
        f[..., feature] = value
    for feature, factor in (scale or {}).items():
        f[..., feature] *= factor
    for feature in ablate:
        f[..., feature] = 0
    return f
