"""Erasure of concepts and directions of behaviour: LEACE, difference of means, ablation, weights that cannot write."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import _C
from .._C import DirectionScores, Intervention, LeaceEraser, LeaceFitter
from ..arguments import native_model
from ..hooked_model import HookedModel
from ..hooks.manager import Steered
from ..model import Model
from .probe_inputs import Labels, Position, check_lengths, classes_of, collect

if TYPE_CHECKING:
    import pandas

__all__ = [
    "DirectionScores",
    "FoundDirection",
    "LeaceEraser",
    "LeaceFitter",
    "ablated",
    "ablation_interventions",
    "fit_leace",
    "intervened",
    "orthogonalised",
    "refusal_direction",
]

Changed = TypeVar("Changed", bound=HookedModel)
REFUSALS = ("I", "As", "Sorry", "Unfortunately")  # first words of refusals, as far as each is one token


def fit_leace(
    model: Any,
    texts: Sequence[str],
    labels: Labels,
    *,
    layers: Sequence[int] | None = None,
    position: Position = -1,
    point: str = "hook_resid_post",
    progress: Any = None,
    **options: Any,
) -> dict[int, LeaceEraser]:
    """An eraser of the labels at each layer, from one pass over the texts.

    Args:
        labels: two classes or more.
        layers: block numbers; None is all.
        position: see ``probe_layers``.
        point: a hook point of a block.
        options: those of ``LeaceFitter``: method, affine, shrinkage, svd_tol.

    Returns:
        {layer: LeaceEraser}; ``intervened(model, [eraser.intervention(layer)])`` puts one to work.

    Raises:
        ValueError: labels of one class, or activations that are not finite (naming text and layer).
    """
    native = native_model(model, "fit_leace")
    numbers, classes = classes_of(labels, who="fit_leace")
    check_lengths("fit_leace", texts, numbers, None)
    wanted = list(range(native.cfg.n_layers)) if layers is None else sorted(set(layers))
    z = torch.tensor(numbers)
    concept = z.double()[:, None] if len(classes) == 2 else torch.nn.functional.one_hot(z).double()
    read = collect(native, texts, wanted, [position], point, False, 1 << 30, progress)[0]
    return {layer: LeaceEraser.fit(read.values[:, place], concept, **options) for place, layer in enumerate(wanted)}


@contextlib.contextmanager
def intervened(model: Changed, interventions: Sequence[Intervention]) -> Iterator[Changed]:
    """Interventions in effect for every pass inside the ``with`` block, in this thread.

    Raises:
        HookError, IndexError, ShapeError, ValueError: interventions that do not fit the model, now.
    """
    checked = model.native.make_hooks()
    for intervention in interventions:
        checked.add_intervention(intervention)  # throws now what the first pass would
    effects = [Steered(intervention) for intervention in interventions]
    model._put(effects, everywhere=False)
    try:
        yield model
    finally:
        model._take(effects)


def ablation_interventions(model: Any, direction: torch.Tensor) -> list[Intervention]:
    """The direction [d_model] taken off all that is written to the residual stream.

    At hook_resid_pre, hook_attn_out and hook_mlp_out of every block, all positions: for ``intervened`` and graphs.

    Raises:
        ShapeError, ValueError: a direction that is none.
    """
    return _C.ablation_everywhere(getattr(model, "native", model), direction)


def ablated(model: Changed, direction: torch.Tensor) -> contextlib.AbstractContextManager[Changed]:
    """``with ablated(model, direction): ...`` runs the model without a direction."""
    return intervened(model, ablation_interventions(model, direction))


def orthogonalised(model: Any, direction: torch.Tensor) -> Model:
    """A model whose weights cannot write a direction [d_model]: equal to ``ablated`` up to rounding.

    Embeddings, positions, W_O, W_out and their biases lose their part along it; the unembedding keeps it.

    Raises:
        ConfigError: a family that norms what a block writes (Gemma 2 and 3), where no weights can do it.
        ShapeError, ValueError: a direction that is none.
    """
    native = native_model(model, "orthogonalised")
    return Model(_C.orthogonalised(native, direction), name=f"{getattr(model, 'name', 'model')}, orthogonalised")


@dataclass(frozen=True, eq=False)
class FoundDirection:
    """A direction of behaviour, and what every candidate does.

    Attributes:
        direction: float64 [d_model], the difference of means at its own length.
        layer, position: where it was read, before that block.
        scores: of every candidate.
        baseline_bypass: the behaviour's score in positives as they are; ``baseline_induce``: in negatives.
        chosen: its place among the scores.
    """

    direction: torch.Tensor
    layer: int
    position: int
    scores: tuple[DirectionScores, ...]
    baseline_bypass: float
    baseline_induce: float
    chosen: int

    def to_pandas(self) -> pandas.DataFrame:
        """One row a candidate: layer, position, bypass, induce, kl, chosen."""
        import pandas

        names = ("layer", "position", "bypass", "induce", "kl")
        return pandas.DataFrame(
            [
                {**{name: getattr(one, name) for name in names}, "chosen": i == self.chosen}
                for i, one in enumerate(self.scores)
            ]
        )


def refusal_direction(
    model: Any,
    positives: Sequence[Hashable],
    negatives: Sequence[Hashable],
    *,
    tokens: Sequence[int | str] = REFUSALS,
    n_train: int = 128,
    n_validation: int = 32,
    chat: bool = True,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    most_kl: float = 0.1,
    least_induce: float = 0.0,
    depth: float = 0.8,
    memory_budget: int = 1 << 30,
    progress: Any = None,
) -> FoundDirection:
    """The direction between two sets of requests that carries a behaviour, such as refusing.

    Candidates are differences of means before every block, at every token after the instruction. Each is judged on
    texts that it was not made of: without it, how much of the behaviour is left in positives (bypass, the less the
    better); with it added, how much there is in negatives (induce); and by how much its ablation changes what comes
    next in negatives (KL). The lowest bypass within the limits is taken.

    Args:
        positives: requests that show the behaviour, of which the first n_train are averaged and the next n_validation
            judge.
        negatives: requests that do not.
        tokens: that begin the behaviour: ids, or texts of one token, those of more being left out.
        chat: requests are user messages for the chat template; False: texts as they are.
        positions: negative ones, from the end; None is every token after the instruction (chat), or the last one.
        layers: block numbers before which it is read; None is all before ``depth``.
        most_kl, least_induce, depth: the limits.

    Raises:
        ValueError: too few texts, no token of the behaviour, or no candidate within the limits (it says how
            near they are).
        ConfigError: no chat template.

    Source: Arditi et al. 2024, arXiv:2406.11717.
    """
    native = native_model(model, "refusal_direction")
    needed = n_train + n_validation
    for name, given in (("positives", positives), ("negatives", negatives)):
        if len(given) < needed:
            raise ValueError(f"refusal_direction: {name} must be {needed} texts or more, got {len(given)}")
    ids = _ids(native, tokens)
    if positions is None:
        positions = range(-_C.n_tokens_after_instruction(native), 0) if chat else [-1]
    if layers is None:
        layers = [layer for layer in range(native.cfg.n_layers) if layer < depth * native.cfg.n_layers]
    places, blocks = list(positions), sorted(set(layers))

    def text(request: Any) -> str:
        if not chat:
            return request
        return native.chat_template.render([{"role": "user", "content": request}], add_generation_prompt=True)

    wanted, other = [text(one) for one in positives[:needed]], [text(one) for one in negatives[:needed]]
    candidates = _C.mean_differences(
        native,
        wanted[:n_train],
        other[:n_train],
        positions=places,
        layers=blocks,
        memory_budget=memory_budget,
        progress=progress,
    )
    judged = {"positives": wanted[n_train:], "negatives": other[n_train:]}
    scores = _C.score_directions(
        native,
        candidates,
        positions=places,
        layers=blocks,
        **judged,
        tokens=ids,
        memory_budget=memory_budget,
        progress=progress,
    )
    limits: Mapping[str, Any] = {"most_kl": most_kl, "least_induce": least_induce, "depth": depth}
    chosen = _C.select_direction(scores, n_layers=native.cfg.n_layers, **limits)
    if chosen is None:
        raise ValueError(
            f"refusal_direction: no candidate is within the limits ({limits}): the lowest KL is "
            f"{min(one.kl for one in scores):.3g}, the highest induce {max(one.induce for one in scores):.3g}"
        )
    found = scores[chosen]
    direction = candidates[places.index(found.position), blocks.index(found.layer)].clone()
    return FoundDirection(
        direction,
        found.layer,
        found.position,
        tuple(scores),
        _C.behaviour_score(native, judged["positives"], tokens=ids),
        _C.behaviour_score(native, judged["negatives"], tokens=ids),
        chosen,
    )


def _ids(native: _C.Model, tokens: Sequence[int | str]) -> list[int]:
    ids = []
    for token in tokens:
        own = [token] if isinstance(token, int) else native.tokenizer.encode(token, add_special_tokens=False)
        if len(own) == 1:
            ids += own
    if not ids:
        raise ValueError(f"refusal_direction: no token of the behaviour is one token here, of {list(tokens)}")
    return sorted(set(ids))
