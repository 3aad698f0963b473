"""Certificates of a run: its numbers do not hang on how they were computed, and the injection acted where it should."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..experiments.arguments import Arguments
from ..experiments.results import Result
from ..steering.training import ControlVector
from .added import added, adds_to_one_span, spanned
from .together import Experiment, run_together
from .variants import edited

if TYPE_CHECKING:
    from ..model import Model

BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""How far log-odds may lie apart, in nats: sums in another order, through all blocks, and vectors in float32."""
PADDING = 3
"""Tokens by which a neighbour in the batch is longer."""


@dataclass(frozen=True)
class Certificate:
    """What was certified of one injection, as distances in nats of log-odds, base and injected, the larger one.

    Attributes:
        concept, strength, first_layer, last_layer: the injection, the first of the run.
        cached: the planned reading, which goes on from caches, against one pass over the whole text.
        batch: one pass of the conversation alone against the same beside others, left-padded.
        resumed: the reading that a second run takes out of a store against one without a store.
        bound: what these may be in the model's dtype.
        before, span, after: the length of what the injection changed after its last block, before the injected tokens,
            at each of them, and at each token after them: exactly 0, and above 0.
    """

    concept: str
    strength: float
    first_layer: int
    last_layer: int
    cached: float
    batch: float
    resumed: float
    bound: float
    before: float
    span: list[float]
    after: list[float]

    @property
    def holds(self) -> bool:
        """Whether distances are within the bound, and the injection acted at every injected token and not before."""
        within = all(one <= self.bound for one in (self.cached, self.batch, self.resumed))
        return within and self.before == 0 and min(self.span) > 0

    @property
    def sentence(self) -> str:
        """For a report's foot."""
        distances = f"cached = un-cached within {self.cached:.1e} nats, batch = single within {self.batch:.1e}"
        acted = (
            f"the injection of “{self.concept}” changed the residual stream by {min(self.span):.3g} to "
            f"{max(self.span):.3g} at each of {len(self.span)} injected tokens, by {self.before:.3g} before them"
        )
        later = f" and by {min(self.after):.3g} to {max(self.after):.3g} after" if self.after else ""
        verdict = "Certified" if self.holds else "NOT certified"
        resumed = f"resumed = fresh within {self.resumed:.1e} (bound {self.bound:.0e})"
        return f"{verdict}: {distances}, {resumed}; {acted}{later}."

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"sentence": self.sentence, "holds": self.holds, **asdict(self)}


def certify(
    model: Model,
    protocol: Any,
    vectors: Mapping[str, ControlVector],
    *,
    strengths: Any = None,
    strength_unit: str | None = None,
    layers: Any = (_C.default_layers,),
) -> Certificate:
    """Read the first injection of a run in four ways and compare.

    Args:
        protocol: one that adds vectors to whole messages which follow one another, steered during these alone.
        vectors, strengths, strength_unit, layers: as ``run_experiment`` has them.

    Raises:
        ConfigError: a protocol of another kind.
        TypeError, ValueError, IndexError, ShapeError, Error: as ``run_experiment`` does.
    """
    given = Arguments("certify")
    asked = edited(given.protocol(protocol), "certified", paraphrases=None, controls=None, asks_own_question=None)
    if asked.steer_generation or asked.answers or not adds_to_one_span(asked):
        raise _C.ConfigError(
            f"certify: protocol '{asked.name}' must add vectors to whole messages that follow one another, and to "
            "nothing after them"
        )
    name = next(iter(vectors))
    run = Experiment(
        asked,
        {name: vectors[name]},
        strengths=strengths,
        strength_unit=strength_unit,
        layers=layers,
        nulls=0,
        questions=[],
        dose=False,
    )
    (fresh,) = run_together(model, [run], progress=False)
    row = fresh.rows[0]
    tokens, (first, last) = spanned(model, asked)
    blocks = range(row["first_layer"], row["last_layer"] + 1)
    unit = fresh.settings["strength_unit"]
    changes = added(model, vectors[name], row["strength"], unit, blocks, tokens, (first, last))
    answers = [_token(model, asked.yes_token), _token(model, asked.no_token)]
    alone = {
        on: _pass(model, [tokens], changes if on else {}, (first, last), row["last_layer"]) for on in (False, True)
    }
    beside = _pass(model, [tokens, [*tokens, *tokens[-PADDING:]]], changes, (first, last), row["last_layer"])
    odds = {on: _odds(one[0][0], answers) for on, one in alone.items()}
    change = (alone[True][1][0] - alone[False][1][0]).double().norm(dim=-1).tolist()
    return Certificate(
        name,
        row["strength"],
        row["first_layer"],
        row["last_layer"],
        cached=max(abs(odds[on] - row[side]["log_odds"]) for on, side in ((False, "base"), (True, "injected"))),
        batch=abs(_odds(beside[0][0], answers) - odds[True]),
        resumed=_resumed(model, run, fresh),
        bound=BOUNDS[model.dtype],
        before=max(change[:first], default=0.0),
        span=change[first:last],
        after=change[last:],
    )


@torch.no_grad()
def _pass(
    model: Model, rows: list[list[int]], changes: Mapping[int, torch.Tensor], span: tuple[int, int], block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last logits [row, vocabulary] and residuals after a block [row, pos, d_model]; the first row is injected."""
    width = max(map(len, rows))
    tokens = torch.tensor([[one[0]] * (width - len(one)) + one for one in rows])
    mask = torch.tensor([[False] * (width - len(one)) + [True] * len(one) for one in rows])
    begin = width - len(rows[0])

    def of(layer: int) -> Any:
        def add(x: torch.Tensor, hook: Any) -> torch.Tensor:
            x = x.clone()
            x[0, begin + span[0] : begin + span[1]] += changes[layer].to(x)
            return x

        return add

    kept: list[torch.Tensor] = []
    hooks = [(f"blocks.{layer}.hook_resid_post", of(layer)) for layer in changes]
    hooks.append((f"blocks.{block}.hook_resid_post", lambda x, hook: kept.append(x.clone())))
    logits = model.run_with_hooks(tokens, hooks, attention_mask=mask)
    assert logits is not None
    return logits[:, -1], kept[0]


def _odds(logits: torch.Tensor, answers: Sequence[int]) -> float:
    return float(logits[answers[0]] - logits[answers[1]])


def _token(model: Model, text: str) -> int:
    return model.native.tokenizer.encode(text, add_special_tokens=False)[0]


def _resumed(model: Model, run: Experiment, fresh: Result) -> float:
    """A run into a store that is ended after its unsteered readings, and taken up again by another."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.sqlite"
        run_together(model, [run.changed(strengths=0.0, strength_unit="absolute")], store=store, progress=False)
        run_together(model, [run], store=store, progress=False)
        (again,) = run_together(model, [run], store=store, progress=False)
    pairs = zip(fresh.rows, again.rows, strict=True)
    return max(abs(a[side]["log_odds"] - b[side]["log_odds"]) for a, b in pairs for side in ("base", "injected"))
