"""Random dictionaries of every architecture, and what their equations give in plain torch."""

import torch

import introspect
from introspect import _C, SAE

ARCHITECTURES = ("standard", "gated", "topk", "abstopk", "batchtopk", "jumprelu", "matching_pursuit", "groupmax")
K = {"topk": 4, "abstopk": 4, "batchtopk": 2.5, "groupmax": 4, "matching_pursuit": 5}


def weights(architecture: str, d_in=7, d_sae=24, d_out=None, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    """Arguments of SAE; everything but the directions is small, so that gates and thresholds matter."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    d_out = d_in if d_out is None else d_out
    out = {"W_dec": draw(d_sae, d_out), "b_dec": 0.3 * draw(d_out)}
    if architecture == "matching_pursuit":
        out["W_dec"] /= out["W_dec"].norm(dim=1, keepdim=True)
        out["W_enc"] = None
    else:
        out["W_enc"] = draw(d_in, d_sae)
    if architecture == "gated":
        out |= {"b_gate": 0.5 * draw(d_sae), "b_mag": 0.5 * draw(d_sae), "r_mag": 0.3 * draw(d_sae)}
    elif architecture != "matching_pursuit":
        out["b_enc"] = 0.5 * draw(d_sae)
    if architecture == "jumprelu":
        out["threshold"] = draw(d_sae).abs()
    return {name: None if t is None else t.to(dtype) for name, t in out.items()}


def dictionary(architecture: str, *, options=None, **sizes) -> SAE:
    return SAE(**weights(architecture, **sizes), architecture=architecture, k=K.get(architecture, 0), **(options or {}))


def dictionary_at(
    hook, d_in, architecture="standard", *, hook_out=None, d_out=None, d_sae=24, seed=0, dtype=torch.float64, size=0.3,
    skip=False, origin=None, **config,
) -> SAE:  # fmt: skip
    """One of random weights of one size that reads ``hook`` [.., d_in] and writes ``hook_out``, or the same point."""
    d_out = d_in if d_out is None else d_out
    rng = torch.Generator().manual_seed(seed)

    def weight(*shape):
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * size).to(dtype)

    made = {"W_dec": weight(d_sae, d_out), "b_dec": weight(d_out)}
    if architecture == "matching_pursuit":
        made["W_dec"] = torch.nn.functional.normalize(made["W_dec"], dim=1)
    else:
        made["W_enc"] = weight(d_sae, d_in)
    if architecture == "gated":
        made |= {name: weight(d_sae) for name in ("b_gate", "b_mag", "r_mag")}
    elif architecture != "matching_pursuit":
        made["b_enc"] = weight(d_sae)
    if architecture == "jumprelu":
        made["threshold"] = weight(d_sae).abs()
    if skip:
        made["W_skip"] = weight(d_out, d_in)
    sites = {
        "inputs": [_C.DictionarySite(hook, d_in)],
        "outputs": [_C.DictionarySite(hook_out or hook, d_out)],
    }
    given = {"subtract_b_dec": hook_out is None, "k": K.get(architecture, 0.0)} | config
    made_at = _C.DictionaryOrigin(**(sites | (origin or {})))
    return SAE.of(_C.Dictionary(architecture, made, origin=made_at, **given))


def encode(sae, x: torch.Tensor) -> torch.Tensor:
    """Features of x [.., D] by the equations, without a kernel of the library; with gradients."""
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
    named = dict(w) | ({"W_enc": w["W_enc"].T} if "W_enc" in w else {})
    by_norm = w["W_dec"].norm(dim=1) if sae.rank_by_decoder_norm else None
    f = features(sae.architecture, named, x.reshape(-1, x.shape[-1]), sae.k, by_norm, sae.residual_threshold)
    return f.reshape(*x.shape[:-1], -1)


def decode(sae, f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
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


def edited(f: torch.Tensor, *, add=None, clamp=None, scale=None, ablate=()) -> torch.Tensor:
    """Features after edits."""
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


def features(
    architecture: str, w: dict[str, torch.Tensor], x: torch.Tensor, k: float, by_norm=None, least=1e-2
) -> torch.Tensor:
    """f [N, F] of x [N, D], from which b_dec has been taken off: the equation as the paper has it, by loops.

    ``by_norm`` [F] is what pre-activations are times; matching pursuit ends a row whose rest is shorter than ``least``.
    """
    if architecture == "matching_pursuit":
        return torch.stack([_pursued(row, w["W_dec"], int(k), least) for row in x])
    q = x @ w["W_enc"]
    if architecture == "gated":
        gate = (q + w["b_gate"] > 0).to(q.dtype)
        return gate * torch.relu(torch.exp(w["r_mag"]) * q + w["b_mag"])
    p = q + w.get("b_enc", 0)
    if by_norm is not None:
        p = p * by_norm
    if architecture == "standard":
        return torch.relu(p)
    if architecture == "jumprelu":
        return p * (p > w["threshold"])
    if architecture == "topk":
        return torch.stack([_kept(row, torch.relu(row), int(k)) for row in p])
    if architecture == "abstopk":
        return torch.stack([_kept(row, row.abs(), int(k)) for row in p])
    if architecture == "batchtopk":
        flat = torch.relu(p).flatten()
        return _kept(flat, flat, int(k * len(p))).reshape(p.shape)
    if architecture == "groupmax":
        groups = torch.relu(p).reshape(len(p), int(k), -1)
        return torch.stack([torch.stack([_kept(g, g, 1) for g in row]) for row in groups]).reshape(p.shape)
    raise AssertionError(architecture)


def _kept(p: torch.Tensor, rank: torch.Tensor, k: int) -> torch.Tensor:
    """p where it ranks among the k highest above 0, of equal ones the first; written out without topk."""
    order = sorted(range(len(p)), key=lambda i: (-rank[i].item(), i))[:k]
    mask = torch.zeros_like(p)
    mask[[i for i in order if rank[i] > 0]] = 1
    return p * mask


def _pursued(x: torch.Tensor, W: torch.Tensor, k: int, least: float) -> torch.Tensor:
    """As SAELens ends it: a feature that comes again counts, and is the last."""
    rest, f, seen = x, torch.zeros(len(W), dtype=x.dtype), set()
    for _ in range(k):
        scores = torch.relu(W @ rest)
        i = int(scores.argmax())
        f = f.index_add(0, torch.tensor([i]), scores[i : i + 1])
        rest = rest - scores[i] * W[i]
        if rest.norm() < least or scores[i] == 0 or i in seen:
            break
        seen.add(i)
    return f


def reconstruction(sae: SAE, w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The whole of a dictionary without input norm and skip."""
    shift = w["b_dec"] if sae.subtract_b_dec else 0
    return features(sae.architecture, w, x - shift, sae.k) @ w["W_dec"] + w["b_dec"]


def normal(*shape, seed=1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def origin(*names, widths, outputs=None) -> introspect.sae.DictionaryOrigin:
    sites = [introspect.sae.DictionarySite(name, width) for name, width in zip(names, widths, strict=True)]
    return introspect.sae.DictionaryOrigin(inputs=sites, outputs=sites if outputs is None else outputs)
