"""What features do over texts: statistics, contexts in which they are active, neighbours, effects on logits, cards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..arguments import native_model
from .contexts import Contexts, check_dictionary, contexts_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

BARS = 50  # of histograms, as SAEDashboard has them


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What features did over contexts.

    Attributes:
        model, sae: whose they are.
        activations: all that was not 0, feature by feature.
        frequencies: share of the tokens read at which a feature is active, float64 [n].
        counts: the number of these tokens, int64 [n].
        context_counts: contexts with such a token, int64 [n].
        mean_active: mean of a feature where it is active; 0 for one that never is, float64 [n].
        max_active: the largest value, float64 [n].
        labels: {feature: name}, of the user's.
    """

    model: Any
    sae: _C.Dictionary
    activations: _C.FeatureActivations
    frequencies: torch.Tensor
    counts: torch.Tensor
    context_counts: torch.Tensor
    mean_active: torch.Tensor
    max_active: torch.Tensor
    labels: Mapping[int, str]

    @property
    def ids(self) -> torch.Tensor:
        """The features that were looked at, int64 [n]: tensors are in this order."""
        return self.activations.ids

    @property
    def dead_share(self) -> float:
        """Share of the features that were never active."""
        return (self.counts == 0).double().mean().item()

    def top(self, k: int = 10, *, by: str = "frequencies") -> list[int]:
        """The features with the highest ``frequencies``, ``mean_active``, ``max_active`` or ``counts``."""
        if by not in ("frequencies", "mean_active", "max_active", "counts", "context_counts"):
            raise ValueError(f"FeatureStatistics.top: by must be the name of a statistic, got {by!r}")
        order = getattr(self, by).double().topk(min(k, len(self.ids))).indices
        return self.ids[order].tolist()

    def contexts(
        self, feature: int, *, top: int = 20, quantiles: int = 5, per_quantile: int = 5, seed: int = 0
    ) -> list[_C.ContextGroup]:
        """Contexts in which a feature is active, in SAEDashboard's groups: the top ones, then intervals of its values.

        Raises:
            IndexError: a feature that was not looked at.
        """
        return _C.context_groups(
            self.activations, feature, top=top, quantiles=quantiles, per_quantile=per_quantile, seed=seed
        )

    def coactive(self, feature: int, k: int = 10) -> _C.Neighbours:
        """The features whose values correlate most with one's, over the tokens read."""
        return _C.coactive_features(self.activations, feature, k)

    def labelled(self, labels: Mapping[int, str]) -> FeatureStatistics:
        """The same with names of features."""
        return replace(self, labels={int(feature): str(name) for feature, name in labels.items()})

    def card(self, feature: int, **options: Any) -> dict[str, Any]:
        """All that is known of one feature: see ``feature_card``."""
        return feature_card(self, feature, **options)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a feature: feature, label, frequency, count, contexts, mean_active, max_active."""
        import pandas

        return pandas.DataFrame(
            {
                "feature": self.ids.tolist(),
                "label": [self.labels.get(one, "") for one in self.ids.tolist()],
                "frequency": self.frequencies.tolist(),
                "count": self.counts.tolist(),
                "contexts": self.context_counts.tolist(),
                "mean_active": self.mean_active.tolist(),
                "max_active": self.max_active.tolist(),
            }
        )

    def plot(self) -> Figure:
        """A histogram of log10 frequency."""
        from ..plots.features import density_histogram

        return density_histogram(self.frequencies, tokens=self.activations.read_tokens)

    def save(self, path: str | os.PathLike) -> None:
        """The activations as one .safetensors file, from which pages can be made again. IoError."""
        self.activations.save(path)

    @staticmethod
    def load(path: str | os.PathLike, model: Any, sae: _C.Dictionary) -> FeatureStatistics:
        """What ``save`` wrote, for the model and dictionary it is of.

        Raises:
            ConfigError: another dictionary or model.
            IoError: a file that does not hold feature activations.
        """
        activations = _C.FeatureActivations.load(path)
        if activations.dictionary_hash != sae.hash:
            raise _C.ConfigError(f"FeatureStatistics.load: {os.fspath(path)} is of another dictionary")
        if activations.model_hash not in ("", native_model(model, "FeatureStatistics.load").hash):
            raise _C.ConfigError(f"FeatureStatistics.load: {os.fspath(path)} is of another model")
        return _statistics(model, sae, activations)

    def __repr__(self) -> str:
        return (
            f"FeatureStatistics({len(self.ids)} features on {self.activations.read_tokens} tokens, "
            f"{self.dead_share:.1%} never active)"
        )


def feature_statistics(
    model: Any,
    sae: _C.Dictionary,
    texts: Contexts | torch.Tensor | str | Sequence[str],
    *,
    features: Sequence[int] | None = None,
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    batch_tokens: int = 4096,
    memory_budget: int = 2 << 30,
    progress: Any = None,
) -> FeatureStatistics:
    """How often features are active over texts, how strongly, and where: one pass, then any feature's page.

    Args:
        model: the model; of a crosscoder between models, one for each it reads.
        texts: see ``contexts_of``.
        features: these only, at less memory and time; None: all.
        context_size, special_tokens: see ``contexts_of``.
        batch_tokens: of a pass.
        memory_budget: bytes of what is held, 12 a token and active feature.
        progress: called with (what, done, total).

    Raises:
        ConfigError, HookError, ShapeError: a dictionary that is not of this model.
        ValueError: no tokens, or more active features than fit the budget.
        IndexError: features that the dictionary does not have.
    """
    who = "feature_statistics"
    ids = None if features is None else torch.tensor([int(one) for one in features])
    options: dict[str, Any] = {"ids": ids, "batch_tokens": batch_tokens, "memory_budget": memory_budget}
    if isinstance(model, Sequence):
        contexts = contexts_of(model[0], texts, sae, context_size=context_size, special_tokens=special_tokens, who=who)
        x = read_inputs(model, sae, contexts, progress=progress)
        found = _C.feature_activations_of_rows(sae, contexts.tokens, x, **contexts.arguments, **options)
        return _statistics(model[-1], sae, found)
    check_dictionary(who, model, sae)
    contexts = contexts_of(model, texts, sae, context_size=context_size, special_tokens=special_tokens, who=who)
    found = _C.feature_activations(model, sae, contexts.tokens, **contexts.arguments, **options, progress=progress)
    return _statistics(model, sae, found)


def read_inputs(models: Any, sae: _C.Dictionary, contexts: Contexts, *, progress: Any = None) -> torch.Tensor:
    """What a dictionary reads over contexts, [contexts, tokens, d_in]; models: one, or one for each that it reads.

    Raises:
        ConfigError: a dictionary whose sites are not known, or that reads another number of models.
    """
    listed = list(models) if isinstance(models, Sequence) else [models]
    sites = sae.origin.inputs
    needed = 1 + max((site.model for site in sites), default=-1)
    if needed != len(listed):
        raise _C.ConfigError(f"read_inputs: the dictionary reads {needed} models, got {len(listed)}")
    parts: dict = {}
    for number, model in enumerate(listed):
        names = [site.hook_name for site in sites if site.model == number]
        found = _C.read_contexts(model, names, contexts.tokens, lengths=contexts.lengths, progress=progress)
        widths = [site.width for site in sites if site.model == number]
        places = [i for i, site in enumerate(sites) if site.model == number]
        parts |= dict(zip(places, found.split(widths, -1), strict=True))
    return torch.cat([parts[i] for i in range(len(sites))], -1)


def logit_effects(
    model: Any, sae: _C.Dictionary, features: Sequence[int] | torch.Tensor, *, site: int = -1
) -> torch.Tensor:
    """What a unit of each feature adds to the logits on the direct path, [features, d_vocab].

    The decoder row (through W_O or W_out at attn.hook_z and mlp.hook_post) times the final norm's weight and W_U;
    LayerNorm takes the mean off first. To have logits divide by the norm's denominator at a token; a soft cap is left
    out.

    Raises:
        ConfigError: a dictionary from whose output there is no linear way to the logits.
        IndexError: features that it does not have.
    """
    return _C.logit_effects(model, sae, torch.as_tensor(features, dtype=torch.int64), site=site)


def feature_card(
    statistics: FeatureStatistics,
    feature: int,
    *,
    top: int = 20,
    quantiles: int = 5,
    per_quantile: int = 5,
    logits: int = 10,
    neighbours: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """All that is known of one feature, as plain numbers, texts, lists and dicts: what pages and files are made of.

    Keys: feature, label, model, hook_name, d_sae, frequency, count, tokens, contexts, mean_active, max_active,
    histogram {values, heights} of the values that are not 0, decoder_norm, encoder_decoder_cosine (None where the two
    are of different spaces), alignment {indices, values, l1} with single dimensions of the activation, top_logits and
    bottom_logits [{token, id, value}] and logit_histogram (absent for dictionaries without a linear way to the logits),
    neighbours [{feature, cosine}] by decoder, coactive [{feature, pearson, cosine, shared}], and groups [{low, high,
    share, contexts: [{context, position, tokens, values}]}] as ``FeatureStatistics.contexts`` gives them.

    Args:
        top, quantiles, per_quantile, seed: of the contexts shown.
        logits: how many tokens of either end.
        neighbours: how many of either kind.

    Raises:
        IndexError: a feature that was not looked at.
    """
    sae, activations = statistics.sae, statistics.activations
    native = native_model(statistics.model, "feature_card")
    place = activations.index(feature)
    values = activations.values[activations.offsets[place] : activations.offsets[place + 1]]
    direction = sae.weights["W_dec"][feature].detach().float().cpu()
    by_size = direction.abs().topk(min(3, len(direction))).indices
    card: dict[str, Any] = {
        "feature": int(feature),
        "label": statistics.labels.get(int(feature), ""),
        "model": native.cfg.model_name,
        "hook_name": sae.origin.inputs[0].hook_name if sae.origin.inputs else "",
        "d_sae": sae.d_sae,
        "frequency": statistics.frequencies[place].item(),
        "count": statistics.counts[place].item(),
        "tokens": activations.read_tokens,
        "contexts": statistics.context_counts[place].item(),
        "mean_active": statistics.mean_active[place].item(),
        "max_active": statistics.max_active[place].item(),
        "histogram": histogram(values),
        "decoder_norm": sae.decoder_norms[feature].item(),
        "encoder_decoder_cosine": _encoder_cosine(sae, feature),
        "alignment": {
            "indices": by_size.tolist(),
            "values": direction[by_size].tolist(),
            "l1": (direction[by_size].abs() / direction.abs().sum()).tolist(),
        },
    }
    try:
        effects = logit_effects(statistics.model, sae, [feature])[0]
    except _C.ConfigError:
        pass  # an output in the middle of a block: there are no direct effects to show
    else:
        card["top_logits"] = _tokens_at(native, effects, effects.topk(min(logits, len(effects))).indices)
        card["bottom_logits"] = _tokens_at(native, effects, (-effects).topk(min(logits, len(effects))).indices)
        card["logit_histogram"] = histogram(effects)
    near = _C.decoder_neighbours(sae, feature, neighbours)
    card["neighbours"] = [
        {"feature": one, "cosine": cosine}
        for one, cosine in zip(near.ids.tolist(), near.similarity.tolist(), strict=True)
    ]
    beside = statistics.coactive(feature, neighbours)
    columns = (beside.ids, beside.similarity, beside.cosine, beside.shared)
    card["coactive"] = [
        {"feature": one, "pearson": pearson, "cosine": cosine, "shared": shared}
        for one, pearson, cosine, shared in zip(*(column.tolist() for column in columns), strict=True)
    ]
    groups = statistics.contexts(feature, top=top, quantiles=quantiles, per_quantile=per_quantile, seed=seed)
    card["groups"] = [_group(native, activations, group) for group in groups]
    return card


def histogram(values: torch.Tensor) -> dict[str, list[float]]:
    """Middle and height of 50 bars from the lowest to the highest value, as SAEDashboard draws them; {} of nothing."""
    if not len(values):
        return {"values": [], "heights": []}
    low, high = values.min().item(), values.max().item()
    width = (high - low) / BARS
    heights = torch.histc(values.double(), bins=BARS, min=low, max=high)
    return {"values": [low + width * (i + 0.5) for i in range(BARS)], "heights": heights.tolist()}


def _statistics(model: Any, sae: _C.Dictionary, activations: _C.FeatureActivations) -> FeatureStatistics:
    table = _C.feature_table(activations)
    return FeatureStatistics(
        model,
        sae,
        activations,
        table.density,
        table.count,
        table.contexts,
        table.mean_active,
        table.max_active,
        {},
    )


def _encoder_cosine(sae: _C.Dictionary, feature: int) -> float | None:
    encoder = sae.weights.get("W_enc")
    if encoder is None or sae.d_in != sae.d_out:
        return None
    rows = encoder[feature].double(), sae.weights["W_dec"][feature].double()
    return torch.nn.functional.cosine_similarity(*rows, dim=0).item()


def _tokens_at(native: _C.Model, effects: torch.Tensor, ids: torch.Tensor) -> list[dict[str, Any]]:
    return [
        {"token": token_text(native, one), "id": one, "value": value}
        for one, value in zip(ids.tolist(), effects[ids].tolist(), strict=True)
    ]


def _group(native: _C.Model, activations: _C.FeatureActivations, group: _C.ContextGroup) -> dict[str, Any]:
    shown = []
    rows, positions = group.rows.tolist(), group.positions.tolist()
    for row, position, values in zip(rows, positions, group.values, strict=True):
        length = activations.lengths[row].item()
        shown.append(
            {
                "context": row,
                "position": position,
                "tokens": [token_text(native, one) for one in activations.tokens[row, :length].tolist()],
                "values": values[:length].tolist(),
            }
        )
    return {"low": group.low, "high": group.high, "share": group.share, "contexts": shown}


def token_text(native: _C.Model, token: int) -> str:
    """A token as text, with the space it begins with; its number where the tokenizer has none such."""
    try:
        text = native.tokenizer.decode([token])
        begins_word = native.tokenizer.id_to_token(token).startswith(
            "\u2581"
        )  # SentencePiece drops a text's first space
    except (_C.ConfigError, IndexError, ValueError):
        return f"<{token}>"
    return " " + text if begins_word and not text.startswith(" ") else text
