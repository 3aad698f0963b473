"""Random dictionaries of every architecture, and the features that their equations give in plain torch."""

import torch

import introspect
from introspect import SAE

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


def features(architecture: str, w: dict[str, torch.Tensor], x: torch.Tensor, k: float) -> torch.Tensor:
    """f [N, F] of x [N, D], from which b_dec has been taken off: the equation as the paper has it, by loops."""
    if architecture == "matching_pursuit":
        return torch.stack([_pursued(row, w["W_dec"], int(k)) for row in x])
    q = x @ w["W_enc"]
    if architecture == "gated":
        gate = (q + w["b_gate"] > 0).to(q.dtype)
        return gate * torch.relu(torch.exp(w["r_mag"]) * q + w["b_mag"])
    p = q + w["b_enc"]
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


def _pursued(x: torch.Tensor, W: torch.Tensor, k: int, least: float = 1e-2) -> torch.Tensor:
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
