"""Why a model predicts one token instead of another: ``debug_prediction``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .attribution import (
    LogitAttribution,
    activations_at,
    check_finite,
    direct_logit_attribution,
    hooked_model,
    part_of,
    token_text,
)
from .metrics import Token, single_token
from .prompts import Prompts, tokens_of

if TYPE_CHECKING:
    import pandas

    from ..plots.style import Figure


@dataclass(frozen=True, eq=False)
class DebuggedPrediction:
    """What speaks for an expected token and what for the actual one, layer by layer.

    Attributes:
        expected, actual: the tokens as text, and their ids in ``ids``.
        exact: what each component adds to the logit of the expected token less that of the actual one, with the final
            norm's scale held fixed: these sum to the difference.
        naive: the same components, each with the whole final norm on itself alone, as is often done: they sum to
            nothing in particular.
        heads, neurons: the exact parts by head and by neuron, where they were asked for.
        streams: "0_pre", "0_mid", ..., "final_post": where along the residual stream the lens reads.
        logits, log_probs: [streams, 2], of expected and actual through the logit lens.
        ranks: int64 [streams, 2]: from 1, the most likely token.
        turn: the component that puts the expected token behind for good, "12_mlp_out" ("12_block" where attention and
            MLP stand side by side); None where it was never ahead, or is at the end.
        top: the likeliest token of all, and its probability.
    """

    expected: str
    actual: str
    ids: tuple[int, int]
    exact: LogitAttribution
    naive: dict[str, float]
    heads: LogitAttribution | None
    neurons: LogitAttribution | None
    streams: list[str]
    logits: torch.Tensor
    log_probs: torch.Tensor
    ranks: torch.Tensor
    turn: str | None
    top: tuple[str, float]

    @property
    def difference(self) -> float:
        """Logit of the expected token less that of the actual one, before a soft cap, in nats."""
        return float(self.exact.logits)

    @property
    def sentence(self) -> str:
        """Where the turn happens, and what speaks most against the expected token (or for it, where it wins)."""
        expected, actual = repr(self.expected), repr(self.actual)
        wins = self.difference >= 0
        text = f"{expected} is {'ahead of' if wins else 'behind'} {actual} by {abs(self.difference):.2f} nats"
        text += f" (ranks {int(self.ranks[-1, 0])} and {int(self.ranks[-1, 1])})."
        if self.turn is not None:
            part = part_of(self.turn)
            before = self.streams.index(f"{part.layer}_mid" if part.kind == "mlp" else f"{part.layer}_pre")
            here, there = (float(self.logits[i, 0] - self.logits[i, 1]) for i in (before, before + 1))
            text += (
                f" The turn is in {_named(self.turn)}: by the logit lens {expected} is last ahead before it, by "
                f"{here:.2f}, and behind by {-there:.2f} after it; it adds {float(self.exact[self.turn_row]):+.2f}."
            )
        elif not wins:
            text += " By the logit lens it is never ahead."
        speaks = [(label, v) for label, v in self.exact.largest(3, smallest=not wins) if (v > 0) == wins and v != 0]
        text += f" Most speaks {'for' if wins else 'against'} it: " + _listed(speaks)
        if self.heads is not None:
            heads = [one for one in self.heads.largest(len(self.heads.labels), smallest=not wins)]
            found = [(label, v) for label, v in heads if part_of(label).kind == "head" and (v > 0) == wins][:3]
            text += "; of the heads " + _listed(found)
        if self.neurons is not None:
            neurons = [one for one in self.neurons.largest(len(self.neurons.labels), smallest=not wins)]
            found = [(label, v) for label, v in neurons if part_of(label).kind == "neuron" and (v > 0) == wins][:3]
            text += "; of the neurons " + _listed(found)
        return text + "."

    @property
    def turn_row(self) -> str:
        """The row of ``exact`` that the turn is in; of a block with parallel layers the one that takes more away."""
        turn = self.turn or ""
        if part_of(turn).kind != "block":
            return turn
        layer = part_of(turn).layer
        return min((f"{layer}_attn_out", f"{layer}_mlp_out"), key=lambda label: float(self.exact[label]))

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer: what attention and MLP add, exactly and naively, and both tokens by the lens after it.

        ``running`` is the sum of the embeddings, the biases at the end and all layers up to this one.
        """
        import pandas

        return pandas.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        layers = range(sum(part_of(label).kind == "mlp" for label in self.exact.labels))
        rows: list[dict[str, Any]] = []
        for layer, running in zip(layers, self._running(), strict=True):
            attention, mlp = f"{layer}_attn_out", f"{layer}_mlp_out"
            after = self.streams.index(f"{layer + 1}_pre" if layer + 1 < len(layers) else "final_post")
            p, ranks = self.log_probs[after].exp(), self.ranks[after]
            rows.append(
                {
                    "layer": layer,
                    "attention": float(self.exact[attention]),
                    "mlp": float(self.exact[mlp]),
                    "running": running,
                    "naive_attention": self.naive[attention],
                    "naive_mlp": self.naive[mlp],
                    "lens_difference": float(self.logits[after, 0] - self.logits[after, 1]),
                    "p_expected": float(p[0]),
                    "p_actual": float(p[1]),
                    "rank_expected": int(ranks[0]),
                    "rank_actual": int(ranks[1]),
                }
            )
        return rows

    def _running(self) -> list[float]:
        by_layer: dict[int, float] = {}
        start = 0.0
        for label, value in zip(self.exact.labels, self.exact.values.double().tolist(), strict=True):
            layer = part_of(label).layer
            if layer is None:
                start += value
            else:
                by_layer[layer] = by_layer.get(layer, 0.0) + value
        return list(accumulate(by_layer.values(), initial=start))[1:]

    def plot(self, *, title: str | None = None) -> Figure:
        """What each layer adds and its running sum; below, the log-probability of both tokens by the logit lens."""
        from ..plots.attribution import two_tokens

        rows = self._rows()
        series = {kind: {row["layer"]: row[kind] for row in rows} for kind in ("attention", "mlp")}
        after = [i for i, name in enumerate(self.streams) if not name.endswith("_mid")][1:]
        lines = {
            f"expected {self.expected!r}": self.log_probs[after, 0].tolist(),
            f"actual {self.actual!r}": self.log_probs[after, 1].tolist(),
        }
        turn = None if self.turn is None else part_of(self.turn).layer
        heading = f"expected {self.expected!r}, actual {self.actual!r}" if title is None else title
        return two_tokens(series, [row["running"] for row in rows], lines, turn=turn, title=heading)

    def __repr__(self) -> str:
        return f"DebuggedPrediction: {self.sentence}"


def debug_prediction(
    model: Any,
    text: Prompts,
    expected: Token,
    actual: Token | None = None,
    *,
    heads: bool = False,
    neurons: bool = False,
    position: int = -1,
) -> DebuggedPrediction:
    """What makes a model predict ``actual`` instead of ``expected``: by layer, component, head and neuron.

    Args:
        model: a ``Model`` or ``HookedTransformer``; what is hooked into it counts.
        text: a text or token ids.
        expected: the right token, as text or id.
        actual: the wrong one. None: the likeliest token but for the expected one.
        heads: take the difference apart by heads too.
        neurons: and by neurons.
        position: whose next token is meant.

    Returns:
        A DebuggedPrediction: ``sentence``, ``to_pandas()``, ``plot()``, and the parts themselves.

    Raises:
        ValueError: text that is not one token, several texts, or two equal tokens.
        IndexError: a position that the text does not have, or a token outside the vocabulary.
        Error: logits that are not finite; it names the first block.
    """
    who = "debug_prediction"
    model = hooked_model(model, who)
    prompts = tokens_of(model, text, who, "text")
    if len(prompts) != 1:
        raise ValueError(f"{who}: one text is required, got {len(prompts)}")
    (ids,) = prompts
    right = single_token(model, expected, who)
    points = {*_C.attribution_points(model.native, "component"), *_C.prediction_points(model.native)}
    kept = activations_at(model, ids, sorted(points), position, who)
    final = kept[f"blocks.{model.native.cfg.n_layers - 1}.hook_resid_post"]
    likely = model.native.readout(final).detach().flatten().softmax(0)
    check_finite(model, likely, ids, who)
    if actual is None:
        wrong = next(int(id) for id in likely.topk(2).indices if int(id) != right)
    else:
        wrong = single_token(model, actual, who)
    if right == wrong:
        raise ValueError(f"{who}: expected and actual must be two tokens, got {token_text(model, right)!r} twice")
    found = _C.debug_prediction(model.native, kept, right, wrong)
    top = int(likely.argmax())
    texts = token_text(model, right), token_text(model, wrong)
    exact = LogitAttribution(
        found.exact.labels,
        found.exact.values.detach().flatten(),
        found.exact.logits.detach().flatten()[0],
        [f"{texts[0]!r} - {texts[1]!r}"],
        "component",
    )

    def by(unit: Any) -> LogitAttribution:
        return direct_logit_attribution(model, ids, right, wrong, unit=unit, position=position)

    return DebuggedPrediction(
        *texts,
        (right, wrong),
        exact,
        dict(zip(found.exact.labels, found.naive.detach().tolist(), strict=False)),
        by("head") if heads else None,
        by("neuron") if neurons else None,
        found.streams,
        found.logits.detach(),
        found.log_probs.detach(),
        found.ranks,
        None if found.turn is None else _component_after(found.streams, found.turn),
        (token_text(model, top), float(likely[top])),
    )


def _component_after(streams: list[str], place: int) -> str:
    """What is written between a stream and the next one that the lens reads."""
    layer, _, where = streams[place].partition("_")
    if where == "mid":
        return f"{layer}_mlp_out"
    return f"{layer}_attn_out" if streams[place + 1] == f"{layer}_mid" else f"{layer}_block"


def _named(label: str) -> str:
    part = part_of(label)
    names = {"attention": "attention of layer", "mlp": "the MLP of layer", "block": "layer"}
    if part.kind in names:
        return f"{names[part.kind]} {part.layer}"
    return {"embed": "the embedding", "pos_embed": "the position"}.get(label, label)


def _listed(parts: list[tuple[str, float]]) -> str:
    return ", ".join(f"{re.sub('^the ', '', _named(label))} {value:+.2f}" for label, value in parts) or "nothing"
