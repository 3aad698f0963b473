"""Direct logit attribution: what each part of a model adds to a logit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from .. import _C
from ..hooked_model import HookedModel
from .metrics import Token, single_token
from .prompts import Prompts, tokens_of

if TYPE_CHECKING:
    import pandas

    from ..plots.style import Figure

Unit = Literal["layer", "component", "head", "neuron"]
_LABELS = {
    re.compile(r"(\d+)_block"): "block",
    re.compile(r"(\d+)_attn_out"): "attention",
    re.compile(r"(\d+)_mlp_out"): "mlp",
    re.compile(r"L(\d+)H(\d+)"): "head",
    re.compile(r"L(\d+)N(\d+)"): "neuron",
}
_KINDS = {"embed": "embedding", "pos_embed": "embedding", "remainder": "remainder"}


class Part(NamedTuple):
    """What a label stands for."""

    kind: str  # embedding, block, attention, mlp, head, neuron, bias or remainder
    layer: int | None = None
    number: int | None = None  # of a head or neuron


def part_of(label: str) -> Part:
    """The part of a model that a label such as "3_attn_out" or "L3H7" stands for."""
    for pattern, kind in _LABELS.items():
        if found := pattern.fullmatch(label):
            return Part(kind, *map(int, found.groups()))
    return Part(_KINDS.get(label, "bias"))


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """What each part of a model adds to logits, or to differences of logits.

    Attributes:
        labels: of the parts: "embed", "3_attn_out", "3_mlp_out", "3_block", "L3H7", "L3N100", "bias", "ln_final.b",
            "b_U", "remainder".
        values: [parts], or [parts, columns] for several tokens or texts; float32 at least.
        logits: what the parts sum to, a number or [columns]; before a soft cap.
        columns: the tokens, or the texts, of the columns.
        unit: "layer", "component", "head" or "neuron".
    """

    labels: list[str]
    values: torch.Tensor
    logits: torch.Tensor
    columns: list[str]
    unit: Unit

    def __getitem__(self, label: str) -> torch.Tensor:
        """The value of one part."""
        return self.values[self.labels.index(label)]

    def largest(self, n: int = 10, *, smallest: bool = False) -> list[tuple[str, float]]:
        """(label, value) of the parts that add most, or take most away; of several columns their mean."""
        values = self._mean()
        order = sorted(range(len(values)), key=lambda i: values[i], reverse=not smallest)
        return [(self.labels[i], values[i]) for i in order[:n]]

    def by_head(self) -> torch.Tensor:
        """[n_layers, n_heads, ...] of the heads.

        Raises:
            ValueError: the parts are no heads.
        """
        places = [i for i, label in enumerate(self.labels) if part_of(label).kind == "head"]
        if not places:
            raise ValueError(f"LogitAttribution.by_head: unit must be 'head' or 'neuron', got {self.unit!r}")
        n_heads = 1 + max(part_of(self.labels[i]).number or 0 for i in places)
        return self.values[places].unflatten(0, (-1, n_heads))

    def to_pandas(self) -> pandas.DataFrame:
        """One row a part: part, kind, layer, index, and a column for each token or text."""
        import pandas

        parts = [part_of(label) for label in self.labels]
        values = self.values.reshape(len(self.labels), -1).double().numpy(force=True)
        frame = pandas.DataFrame(
            {
                "part": self.labels,
                "kind": [part.kind for part in parts],
                "layer": pandas.array([part.layer for part in parts], dtype="Int64"),
                "index": pandas.array([part.number for part in parts], dtype="Int64"),
            }
        )
        return pandas.concat([frame, pandas.DataFrame(values, columns=self.columns)], axis=1)

    def plot(self, *, n: int = 20, title: str = "") -> Figure:
        """By layer for layers and components, a map for heads, the ``n`` largest for neurons; columns are averaged."""
        from ..plots import head_maps
        from ..plots.attribution import attribution_by_layer, largest_parts

        label = "adds to the logit (nats)"
        if self.unit == "head":
            heads = self.by_head().flatten(2).mean(2) if self.values.dim() == 2 else self.by_head()
            return head_maps({"heads": heads.tolist()}, label=label, title=title)
        values = self._mean()
        if self.unit == "neuron":
            return largest_parts(dict(zip(self.labels, values, strict=True)), n=n, xlabel=label, title=title)
        kinds = ("block",) if self.unit == "layer" else ("attention", "mlp")
        series: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
        for name, value in zip(self.labels, values, strict=True):
            part = part_of(name)
            if part.kind in series and part.layer is not None:
                series[part.kind][part.layer] = value
        return attribution_by_layer(series, ylabel=label, title=title)

    def _mean(self) -> list[float]:
        return self.values.reshape(len(self.labels), -1).double().mean(1).tolist()

    def __repr__(self) -> str:
        most = ", ".join(f"{label} {value:+.2f}" for label, value in self.largest(3))
        return f"LogitAttribution({len(self.labels)} parts by {self.unit}, {len(self.columns)} columns; most: {most})"


def direct_logit_attribution(
    model: Any,
    text_or_tokens: Prompts,
    targets: Token | Sequence[Token],
    wrong: Token | Sequence[Token] | None = None,
    unit: Unit = "component",
    position: int = -1,
) -> LogitAttribution:
    """How much each part of a model adds to the logit of a token, or to its difference from another's.

    The final norm is held at the scale of the true final residual, under which it is linear, so that the parts sum to
    the logit (before a soft cap). Biases of the final norm and the unembedding have rows of their own; "remainder" is
    what hooks add between the parts, and rounding: of narrow dtypes, and of the float32 norms after layers in Gemma.
    (TransformerLens 4's unit "layer" is the running sum of these rows: ``values.cumsum(0)``.)

    Args:
        model: a ``Model`` or ``HookedTransformer``; what is hooked into it counts.
        text_or_tokens: one text, or several, which may differ in length.
        targets: a token, as text or id. For one text a list of them makes a column of each; for several texts a list
            has the token of each.
        wrong: likewise: tokens whose logit is subtracted.
        unit: "layer" (each block), "component" (attention and MLP of each block), "head" (each head and each MLP) or
            "neuron" (each head and each neuron). Biases of attention and MLPs are in "layer" and "component" parts of
            theirs, and otherwise in the row "bias". Blocks that stay in their files are read again for "head" and
            "neuron", once for each text.
        position: whose next token is meant; negative ones count from the end of each text.

    Raises:
        ValueError: text that is not one token, another unit, or lists of other lengths.
        IndexError: a position that a text does not have, or a token outside the vocabulary.
        Error: logits that are not finite; it names the first block.
    """
    who = "direct_logit_attribution"
    model = hooked_model(model, who)
    prompts = tokens_of(model, text_or_tokens, who, "text_or_tokens")
    right, wrongs = _ids(model, targets, who), None if wrong is None else _ids(model, wrong, who)
    n = len(prompts) if len(prompts) > 1 else max(len(right), len(wrongs or []))
    for name, ids in (("targets", right), ("wrong", wrongs)):
        if ids is not None and len(ids) not in (1, n):
            raise ValueError(f"{who}: {name} must be one token or {n}, got {len(ids)}")
    right = right * n if len(right) == 1 else right
    wrongs = wrongs * n if wrongs and len(wrongs) == 1 else wrongs
    points = _C.attribution_points(model.native, unit)
    found = []
    for row, ids in enumerate(prompts):
        of = slice(row, row + 1) if len(prompts) > 1 else slice(None)
        kept = activations_at(model, ids, points, position, who)
        pair: list[Any] = [None if tokens is None else torch.tensor([tokens[of]]) for tokens in (right, wrongs)]
        found.append(_C.direct_logit_attribution(model.native, kept, pair[0], wrong=pair[1], unit=unit))
        check_finite(model, found[-1].logits, ids, who)
    single = len(prompts) == 1 and all(given is None or _is_token(given) for given in (targets, wrong))
    values = torch.cat([one.values[:, 0] for one in found], 1).detach()
    logits = torch.cat([one.logits[0] for one in found]).detach()
    columns = _columns(model, prompts, right, wrongs)
    return LogitAttribution(
        found[0].labels, values[:, 0] if single else values, logits[0] if single else logits, columns, unit
    )


def hooked_model(model: Any, who: str) -> HookedModel:
    """The model itself.

    Raises:
        TypeError: it is none.
    """
    if isinstance(model, HookedModel):
        return model
    hint = "; introspect.load_model makes one of a name or path" if isinstance(model, str) else ""
    raise TypeError(f"{who}: model must be an introspect.Model or HookedTransformer, got {type(model).__name__}{hint}")


def activations_at(
    model: HookedModel, ids: Sequence[int], points: Sequence[str], position: int, who: str
) -> dict[str, torch.Tensor]:
    """What stands at points of one position of a text, [1, 1, ...] each.

    Raises:
        IndexError: a position that the text does not have.
    """
    if not -len(ids) <= position < len(ids):
        raise IndexError(f"{who}: position must be in the text of {len(ids)} tokens, got {position}")
    tokens = torch.tensor([list(ids)])
    _, cache = model._recorded(lambda: model._forward(tokens, logits_at="none"), list(points), pos_slice=position)
    return cache.cache_dict


def check_finite(model: HookedModel, logits: torch.Tensor, ids: Sequence[int], who: str) -> None:
    """Raises Error, naming the first block that is not finite, unless the logits of a text are."""
    tokens = torch.tensor([list(ids)])
    model.native.check_finite(logits, who=who, tokens=tokens, hooks=model._hooks_of_pass(tokens))


def token_text(model: Any, id: int) -> str:
    """A token as text, or its number where the model has no tokenizer."""
    return model.native.tokenizer.decode([id]) if model.native.has_tokenizer else f"token {id}"


def _is_token(given: Any) -> bool:
    return isinstance(given, str | int) or (isinstance(given, torch.Tensor) and given.dim() == 0)


def _ids(model: Any, given: Any, who: str) -> list[int]:
    return [single_token(model, one, who) for one in ([given] if _is_token(given) else given)]


def _columns(model: Any, prompts: Sequence[Any], right: Sequence[int], wrongs: Sequence[int] | None) -> list[str]:
    names = [repr(token_text(model, id)) for id in right]
    if wrongs is not None:
        names = [f"{name} - {token_text(model, id)!r}" for name, id in zip(names, wrongs, strict=True)]
    if len(prompts) > 1:
        names = [f"text {i}: {name}" for i, name in enumerate(names)]
    return names
