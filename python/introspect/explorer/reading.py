"""What the page shows of a model at work: lens, norms, attention, logits, hook points and generated texts."""

from __future__ import annotations

import contextlib
from typing import Any

from .fields import Fields, Refused
from .session import Session
from .steering import Steering, steering_of
from .worker import Job

MEASURES = ("entropy", "forward_kl", "rank", "max_probability")
MOST_COLUMNS = 96  # positions of one answer
MOST_PATTERN = 512  # tokens of a whole pattern
MOST_HEADS = 12
BINS = 40
PATTERN = "blocks.{}.attn.hook_pattern"


def _steered(session: Session, steering: Steering | None) -> Any:
    return steering.on(session.model) if steering else contextlib.nullcontext()


def tokenized(session: Session, fields: Fields) -> dict[str, Any]:
    """Tokens of the prompt, as ids and as text."""
    tokens = session.tokens(fields)[0]
    return {"ids": tokens.tolist(), "tokens": session.shown(tokens)}


def lens(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """What each layer names as the next token, at positions [first, last), with measures and residual norms.

    With a "steer" in the request, "steered" holds the same of the steered run.
    """
    tokens = session.tokens(fields)
    n = tokens.shape[1]
    first = fields.integer("first", 0, n - 1, 0)
    last = min(fields.integer("last", 1, n, n), first + MOST_COLUMNS)
    if last <= first:
        raise Refused(f"last must be above first, got {first} and {last}")
    top_k = fields.integer("top_k", 1, 50, 8)
    kind = fields.choice("lens", ("logit", "trained"), "logit")
    if kind == "trained" and session.lens is None:
        raise Refused("no trained lens was given: introspect explore ... --lens PATH")
    target = fields.text("target", None, 200) or None
    steering = steering_of(fields.object("steer", None), session)

    def read() -> dict[str, Any]:
        from ..analysis import trajectory

        job.check()
        table = trajectory(
            session.model,
            tokens,
            lens=session.lens if kind == "trained" else None,
            positions=list(range(first, last)),
            targets=[target] if target else [],
            top_k=min(top_k, session.model.cfg.d_vocab),
            progress=job.check,
        )
        job.check()
        return {
            "streams": table.streams,
            "top": table.top_tokens,
            "p": table.top_log_probs.exp(),
            "norm": _norms(session, tokens, first, last),
            **{name: table.measures[name] for name in MEASURES},
            **({"target": table.log_probs[target], "target_rank": table.ranks[target]} if target else {}),
        }

    answer = {"first": first, "last": last, "tokens": session.shown(tokens[0, first:last]), "base": read()}
    if steering:
        with steering.on(session.model):
            answer["steered"] = read()
        answer["steering"] = steering.title
    return answer


def _norms(session: Session, tokens: Any, first: int, last: int) -> list[list[float]]:
    """[streams, positions], the embedding first, as the lens has its rows."""
    import torch

    n_layers = session.model.cfg.n_layers
    names = ["blocks.0.hook_resid_pre"] + [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    with torch.no_grad():
        _, cache = session.model.run_with_cache(tokens, names, pos_slice=(first, last), logits_at="none")
    return [cache[name][0].float().norm(dim=-1).tolist() for name in names]


def logits(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """The most probable next tokens at a position, and what steering makes of them."""
    import torch

    tokens = session.tokens(fields)
    n = tokens.shape[1]
    position = fields.integer("position", 0, n - 1, n - 1)
    top_k = fields.integer("top_k", 1, 100, 12)
    steering = steering_of(fields.object("steer", None), session)

    def log_probs(steering: Steering | None) -> Any:
        job.check()
        with torch.no_grad(), _steered(session, steering):
            out = session.model(tokens[:, : position + 1], logits_at="last")
        return out[0, -1].float().log_softmax(-1)

    base = log_probs(None)
    changed = log_probs(steering) if steering else None
    order = base.topk(min(top_k, base.numel())).indices.tolist()
    if changed is not None:
        order += [one for one in changed.topk(len(order)).indices.tolist() if one not in order]
    rows = [
        {"token": token, "id": one, "p": float(base[one].exp())}
        | ({"steered": float(changed[one].exp())} if changed is not None else {})
        for one, token in zip(order, session.shown(order), strict=True)
    ]
    answer: dict[str, Any] = {"position": position, "rows": rows}
    if changed is not None and steering:
        answer |= {"steering": steering.title, "kl": float((base.exp() * (base - changed)).sum())}
    return answer


def heads(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """Where every head attends from one position: [layer][head] of (token, weight), and the first token's share."""
    import torch

    tokens = session.tokens(fields)
    n = tokens.shape[1]
    position = fields.integer("position", 0, n - 1, n - 1)
    steering = steering_of(fields.object("steer", None), session)
    names = [PATTERN.format(layer) for layer in range(session.model.cfg.n_layers)]
    with torch.no_grad(), _steered(session, steering):
        _, cache = session.model.run_with_cache(tokens, names, pos_slice=[position], logits_at="none")
    job.check()
    rows = torch.stack([cache[name][0, :, -1, :] for name in names]).float()  # [layer, head, key]
    seen = rows[..., : position + 1]
    rest = seen.clone()
    if position > 0:
        rest[..., 0] = 0
    weight, at = rest.max(-1)
    return {"position": position, "first_token": seen[..., 0], "weight": weight, "at": at}


def attention(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """Whole patterns [query][key] of chosen heads."""
    import torch

    tokens = session.tokens(fields)
    n = tokens.shape[1]
    if n > MOST_PATTERN:
        raise Refused(f"whole patterns are drawn of at most {MOST_PATTERN} tokens, and the prompt has {n:,}", 413)
    cfg = session.model.cfg
    wanted = [
        (pair[0], pair[1])
        for pair in (
            Fields({"head": one}).integers("head", 0, 1 << 20, 2) for one in fields.sequence("heads", MOST_HEADS)
        )
        if len(pair) == 2
    ]
    for layer, head in wanted:
        if layer >= cfg.n_layers or head >= cfg.n_heads:
            raise Refused(f"there is no head {layer}.{head}: {cfg.n_layers} layers have {cfg.n_heads} heads each")
    steering = steering_of(fields.object("steer", None), session)
    names = sorted({PATTERN.format(layer) for layer, _ in wanted})
    patterns = {}
    if names:
        with torch.no_grad(), _steered(session, steering):
            _, cache = session.model.run_with_cache(tokens, names, logits_at="none")
        job.check()
        patterns = {
            f"{layer}.{head}": (cache[PATTERN.format(layer)][0, head].float() * 1000).round().int().tolist()
            for layer, head in wanted
        }
    return {"tokens": session.shown(tokens[0]), "patterns": patterns, "scale": 1000}


def point(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """An activation at a hook point: its shape, its size by position, the distribution and the largest entries."""
    import torch

    tokens = session.tokens(fields)
    n = tokens.shape[1]
    name = fields.text("name", most=200)
    position = fields.integer("position", 0, n - 1, n - 1)
    steering = steering_of(fields.object("steer", None), session)
    session.model.native.check_hook_name(name)
    with torch.no_grad(), _steered(session, steering):
        _, cache = session.model.run_with_cache(tokens, [name], logits_at="none")
    job.check()
    value = cache[name][0].float()
    answer: dict[str, Any] = {"name": name, "shape": list(cache[name].shape), "position": position}
    by_position = value.transpose(0, 1) if name.endswith(("hook_pattern", "hook_attn_scores")) else value
    flat = by_position.reshape(by_position.shape[0], -1)
    flat = flat.masked_fill(~flat.isfinite(), 0)  # scores above the diagonal
    if flat.shape[0] != n:
        return answer
    here = flat[position]
    low, high = float(here.min()), float(here.max())
    counts = torch.histc(here, BINS, low, high if high > low else low + 1)
    largest = here.abs().topk(min(12, here.numel())).indices.tolist()
    return answer | {
        "norms": flat.norm(dim=-1),
        "mean": float(here.mean()),
        "std": float(here.std()) if here.numel() > 1 else 0.0,
        "low": low,
        "high": high,
        "histogram": counts.int(),
        "largest": [{"index": one, "value": float(here[one])} for one in largest],
    }


def generate(session: Session, fields: Fields, job: Job) -> dict[str, Any]:
    """Continues the prompt, without and with steering side by side; emits {"row", "text"} as the texts grow."""
    tokens = session.tokens(fields)
    steering = steering_of(fields.object("steer", None), session)
    options: dict[str, Any] = {
        "max_new_tokens": fields.integer("max_new_tokens", 1, 1_000, 60),
        "temperature": fields.number("temperature", 0, 10, 0.0),
        "top_p": fields.number("top_p", 0.01, 1, 1.0),
        "seed": fields.integer("seed", 0, 2**53, 0),
    }
    rows = [False, True] if steering else [False]

    def grown(row: int, text: str) -> None:
        job.emit({"row": row, "text": text})

    job.emit({"rows": ["not steered", f"steered: {steering.title}"] if steering else ["not steered"]})
    scope = steering.on(session.model, rows=rows) if steering else contextlib.nullcontext()
    with scope:
        texts = session.model.generate(tokens.expand(len(rows), -1), on_text=grown, **options)
    return {"texts": texts}
