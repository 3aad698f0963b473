"""Features that rise between two models or two sets of texts, monitors of them, and crosscoders between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import _C
from ..analysis.misalignment import MisalignmentReport
from .contexts import Contexts, contexts_of
from .features import feature_statistics, read_inputs

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Pool = Literal["mean", "max"]
ROUNDING = 1e-6  # of a feature's mean: smaller changes are 0
Texts = Contexts | torch.Tensor | Sequence[str]


@dataclass(frozen=True, eq=False)
class FeatureShift:
    """How features change from one model, or set of texts, to another, with what chance gives.

    Attributes:
        ids: features, int64 [n]; tensors are in this order.
        before, after: mean over the texts of each feature's mean (or largest) activation, float64 [n].
        change: after - before.
        scores: change in the standard deviations of the nulls.
        p: chance that the highest of all features rises as far, float64 [n]: adjusted for looking at all of them.
        threshold: of scores, which the highest feature of a null passes once in 1 / alpha times.
        alpha: chance that a feature is said to rise where none does.
        nulls: how many shuffles.
        names: of the two sides.
    """

    ids: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    change: torch.Tensor
    scores: torch.Tensor
    p: torch.Tensor
    threshold: float
    alpha: float
    nulls: int
    names: tuple[str, str]

    def top(self, k: int = 10) -> list[int]:
        """The features that rise most, in standard deviations of the nulls."""
        return self.ids[self.scores.topk(min(k, len(self.ids))).indices].tolist()

    @property
    def risen(self) -> list[int]:
        """The features that rise beyond what chance gives, the highest score first; often none."""
        order = self.scores.argsort(descending=True)
        return [int(self.ids[i]) for i in order.tolist() if self.p[i] <= self.alpha]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a feature, the highest score first: feature, before, after, change, score, p."""
        import pandas

        order = self.scores.argsort(descending=True)
        columns = {"feature": self.ids, "before": self.before, "after": self.after, "change": self.change}
        columns |= {"score": self.scores, "p": self.p}
        return pandas.DataFrame({name: values[order].tolist() for name, values in columns.items()})

    def plot(self) -> Figure:
        """Change against score, with the threshold."""
        from ..plots.features import rising_features as draw

        return draw(self)

    def __repr__(self) -> str:
        return f"FeatureShift({len(self.risen)} of {len(self.ids)} features rise beyond {self.nulls} nulls)"


def rising_features(
    model: Any,
    sae: _C.Dictionary,
    texts: Texts,
    *,
    against: Any,
    pool: Pool = "mean",
    nulls: int = 200,
    alpha: float = 0.05,
    names: tuple[str, str] = ("before", "after"),
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    seed: int = 0,
    progress: Any = None,
) -> FeatureShift:
    """Which features of a dictionary rise in a model against another one, or on texts against others.

    Two models read the same texts (fine-tuned against base: persona features): each text is a pair, and the nulls flip
    the sign of whole texts' differences. Two sets of texts in one model: the nulls shuffle which set a text is of. Each
    feature's p counts all features (the highest of each null), so that of thousands none need be corrected again.

    Args:
        model: the one in which features rise.
        sae: read in both models as it is. For a fine-tuned copy its own hash differs: that is what is looked at.
        texts: those in which they rise.
        against: the other model, or the other texts.
        pool: a text's number for a feature: mean over its tokens, or the largest.
        nulls: at least 20; p is at least 1 / (1 + nulls).
        alpha: of the threshold.
        names: of the two sides, for tables and pictures; the second is the one in which they rise.
        context_size, special_tokens: see ``contexts_of``.
        seed: of the nulls.

    Raises:
        ValueError: fewer than two texts of a side, or fewer than 20 nulls.
        ConfigError, HookError, ShapeError: as ``feature_statistics``.

    Sources: Wang et al. 2025, 2506.19823 (persona features); Westfall & Young 1993 (single-step maxT).
    """
    who = "rising_features"
    if nulls < 20:
        raise ValueError(f"{who}: at least 20 nulls are needed, got {nulls}")
    if not 0 < alpha < 1:
        raise ValueError(f"{who}: alpha must lie between 0 and 1, got {alpha}")
    of = {"pool": pool, "context_size": context_size, "special_tokens": special_tokens, "progress": progress}
    two_models = isinstance(getattr(against, "native", against), _C.Model)
    after = text_features(model, sae, texts, **of)
    before = text_features(against, sae, texts, **of) if two_models else text_features(model, sae, against, **of)
    if min(len(after), len(before)) < 2:
        raise ValueError(f"{who}: at least two texts of each side are needed, got {len(before)} and {len(after)}")
    chance = torch.Generator().manual_seed(seed)
    # A bias of rounding is as regular as a true change, and none.
    still = (after.mean(0) - before.mean(0)).abs() <= ROUNDING * (after.mean(0) + before.mean(0)).abs()
    if two_models:
        values = after - before
        signs = torch.randint(0, 2, (nulls, len(values)), generator=chance).double() * 2 - 1
        shuffled = signs @ values / len(values)
    else:
        values = torch.cat([after, before])
        weights = torch.cat(
            [torch.full((len(after),), 1 / len(after)), torch.full((len(before),), -1 / len(before))]
        ).double()
        orders = torch.stack([torch.randperm(len(values), generator=chance) for _ in range(nulls)])
        shuffled = weights[orders] @ values
    change = after.mean(0) - before.mean(0)
    change[still], shuffled[:, still] = 0, 0
    band = _C.max_null_band(change.tolist(), shuffled.tolist(), confidence=1 - alpha)
    scores, p = (torch.tensor(one, dtype=torch.float64) for one in (band.scores, band.p))
    ids = torch.arange(sae.d_sae)
    return FeatureShift(ids, before.mean(0), after.mean(0), change, scores, p, band.threshold, alpha, nulls, names)


def text_features(
    model: Any,
    sae: _C.Dictionary,
    texts: Texts,
    *,
    features: Sequence[int] | None = None,
    pool: Pool = "mean",
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    progress: Any = None,
) -> torch.Tensor:
    """One number for each text and feature: the mean over its tokens, or the largest, float64 [texts, features].

    Raises:
        ValueError: another pool, or a text without a token that is read.
    """
    if pool not in ("mean", "max"):
        raise ValueError(f"text_features: pool must be mean or max, got {pool!r}")
    first = model[0] if isinstance(model, Sequence) else model
    contexts = contexts_of(
        first, texts, sae, context_size=context_size, special_tokens=special_tokens, who="text_features"
    )
    wanted = None if features is None else sorted(set(features))
    found = feature_statistics(
        model, sae, contexts, features=wanted, progress=progress, memory_budget=1 << 40
    ).activations
    n, width = contexts.n_texts, contexts.tokens.shape[1]
    text = contexts.texts[found.places // width]
    feature = torch.repeat_interleave(torch.arange(len(found.ids)), found.offsets.diff())
    out = torch.zeros(n * len(found.ids), dtype=torch.float64)
    at, values = text * len(found.ids) + feature, found.values.double()
    if pool == "mean":
        tokens = torch.zeros(n, dtype=torch.float64)
        tokens.index_add_(0, contexts.texts, contexts.read().sum(1).double())
        if not tokens.all():
            raise ValueError(f"text_features: text {int(tokens.argmin())} has only special tokens")
        pooled = out.index_add_(0, at, values).view(n, -1) / tokens[:, None]
    else:
        pooled = out.scatter_reduce_(0, at, values, "amax", include_self=True).view(n, -1)
    return pooled if features is None else pooled[:, [found.index(one) for one in features]]


@dataclass(frozen=True, eq=False)
class FeatureMonitor:
    """Features of a dictionary as a monitor: each text's pooled activation against a threshold of each.

    Attributes:
        sae: whose features.
        features: {name: feature}.
        thresholds: {name: at and above which a text is flagged}.
        pool: as of ``text_features``.
    """

    sae: _C.Dictionary
    features: Mapping[str, int]
    thresholds: Mapping[str, float]
    pool: Pool = "mean"

    def scores(self, model: Any, texts: Sequence[str], *, progress: Any = None) -> torch.Tensor:
        """Float64 [texts, features]."""
        return text_features(
            model, self.sae, texts, features=list(self.features.values()), pool=self.pool, progress=progress
        )

    def detect(self, model: Any, texts: Sequence[str], *, progress: Any = None) -> MisalignmentReport:
        """Scores, thresholds and verdicts, as ``detect_misalignment`` gives them."""
        scores = self.scores(model, texts, progress=progress)
        return MisalignmentReport(tuple(texts), tuple(self.features), dict(self.thresholds), scores)

    def report(
        self, model: Any, positives: Sequence[str], negatives: Sequence[str], *, confidence: float = 0.95
    ) -> dict[str, _C.MonitorReport]:
        """Recall, false alarms and AUC of each feature on texts that neither it nor its threshold was found on."""
        bad, good = self.scores(model, positives), self.scores(model, negatives)
        return {
            name: _C.monitor_report(
                bad[:, i].tolist(), good[:, i].tolist(), threshold=self.thresholds[name], confidence=confidence
            )
            for i, name in enumerate(self.features)
        }


def feature_monitor(
    model: Any,
    sae: _C.Dictionary,
    features: Mapping[str, int],
    harmless: Sequence[str],
    *,
    false_positive_rate: float = 0.01,
    pool: Pool = "mean",
    progress: Any = None,
) -> FeatureMonitor:
    """A monitor whose thresholds at most this share of harmless texts reaches, feature by feature.

    Args:
        harmless: texts of their own, neither those that features were found on nor those it is judged on.

    Raises:
        ValueError: no texts, no features, or a rate that is not from 0 to below 1.
    """
    if not features:
        raise ValueError("feature_monitor: at least one feature is needed, got none")
    scores = text_features(model, sae, harmless, features=list(features.values()), pool=pool, progress=progress)
    thresholds = {name: _C.threshold_at(scores[:, i].tolist(), false_positive_rate) for i, name in enumerate(features)}
    return FeatureMonitor(sae, dict(features), thresholds, pool)


@dataclass(frozen=True, eq=False)
class CrosscoderClasses:
    """Which model each feature of a crosscoder is of.

    Attributes:
        relative_norm: |W_dec| in the second model of the sum of both, float64 [d_sae]: 0 the first only, 1 the second.
        classes: "first only", "shared", "second only" or "between", one a feature.
        cosine: of the two decoder rows, float64 [d_sae]; NaN where one of them is 0 or widths differ.
        shared_range, only_range: the edges of the classes.
        names: of the two models.
    """

    relative_norm: torch.Tensor
    classes: tuple[str, ...]
    cosine: torch.Tensor
    shared_range: tuple[float, float]
    only_range: tuple[float, float]
    names: tuple[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Features of each class."""
        return {name: self.classes.count(name) for name in CLASSES}

    def of(self, name: str) -> list[int]:
        """The features of a class, those farthest towards it first."""
        if name not in CLASSES:
            raise ValueError(f"CrosscoderClasses.of: the class must be one of {', '.join(CLASSES)}, got {name!r}")
        found = [i for i, one in enumerate(self.classes) if one == name]
        towards = {"first only": 0.0, "second only": 1.0}.get(name, 0.5)
        return sorted(found, key=lambda i: abs(self.relative_norm[i].item() - towards))

    def to_pandas(self) -> pandas.DataFrame:
        """One row a feature: feature, class, relative_norm, cosine."""
        import pandas

        return pandas.DataFrame(
            {
                "feature": range(len(self.classes)),
                "class": self.classes,
                "relative_norm": self.relative_norm.tolist(),
                "cosine": self.cosine.tolist(),
            }
        )

    def plot(self) -> Figure:
        """A histogram of relative norms."""
        from ..plots.features import relative_norms

        return relative_norms(self)


CLASSES = ("first only", "shared", "second only", "between")


def crosscoder_classes(
    crosscoder: _C.Dictionary,
    *,
    shared_range: tuple[float, float] = (0.4, 0.6),
    only_range: tuple[float, float] = (0.1, 0.9),
    names: tuple[str, str] = ("the first model", "the second model"),
) -> CrosscoderClasses:
    """Features of a crosscoder between two models by the relative norm of their decoder rows.

    An L1 crosscoder makes features look exclusive that are not; ``latent_scaling`` tells them apart.

    Args:
        shared_range: relative norms of shared features.
        only_range: at most the first, of the first model only; at least the second, of the second only.

    Raises:
        ConfigError: a dictionary that does not write to two models.

    Sources: Lindsey et al. 2024 (crosscoders); Minder et al. 2025, 2504.02922 (the edges).
    """
    rows = _decoders(crosscoder, "crosscoder_classes")
    norms = [one.norm(dim=1) for one in rows]
    relative = norms[1] / (norms[0] + norms[1]).clamp_min(1e-30)

    def named(value: float) -> str:
        if value <= only_range[0]:
            return "first only"
        if value >= only_range[1]:
            return "second only"
        return "shared" if shared_range[0] <= value <= shared_range[1] else "between"

    same_width = rows[0].shape == rows[1].shape
    cosine = (rows[0] * rows[1]).sum(1) / (norms[0] * norms[1]) if same_width else torch.full_like(relative, torch.nan)
    classes = tuple(named(value) for value in relative.tolist())
    return CrosscoderClasses(relative, classes, cosine, shared_range, only_range, names)


@dataclass(frozen=True, eq=False)
class LatentScaling:
    """Whether features that look exclusive to the second model are.

    Attributes:
        features: int64 [n].
        error_ratio: nu of the error: near 0, the first model lacks it; near 1, the first model has it and the
            dictionary left it in the error (Complete Shrinkage).
        reconstruction_ratio: nu of the reconstruction: near 1, other features write it for the first model (Latent
            Decoupling).
    """

    features: torch.Tensor
    error_ratio: torch.Tensor
    reconstruction_ratio: torch.Tensor

    def to_pandas(self) -> pandas.DataFrame:
        """One row a feature: feature, error_ratio, reconstruction_ratio."""
        import pandas

        return pandas.DataFrame(
            {
                "feature": self.features.tolist(),
                "error_ratio": self.error_ratio.tolist(),
                "reconstruction_ratio": self.reconstruction_ratio.tolist(),
            }
        )


def latent_scaling(
    models: tuple[Any, Any],
    crosscoder: _C.Dictionary,
    texts: Texts,
    features: Sequence[int],
    *,
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    progress: Any = None,
) -> LatentScaling:
    """How much of the second model's direction of each feature stands in the first model's error and reconstruction.

    beta fits a target of one model by f W_dec_second, least squares over the tokens; nu is beta of the first model over
    beta of the second. Targets: the error (of the second model with the feature's own part put back), and the
    reconstruction.

    Args:
        models: the two that the crosscoder reads.
        features: those that look exclusive to the second model.

    Raises:
        ConfigError: a crosscoder that does not read and write two models of one width.

    Source: Minder et al. 2025, 2504.02922, section 3 (latent scaling).
    """
    who = "latent_scaling"
    first, second = _decoders(crosscoder, who)
    if first.shape != second.shape:
        raise _C.ConfigError(f"{who}: both models must be of one width, got {first.shape[1]} and {second.shape[1]}")
    contexts = contexts_of(
        models[0], texts, crosscoder, context_size=context_size, special_tokens=special_tokens, who=who
    )
    x = read_inputs(list(models), crosscoder, contexts, progress=progress)[contexts.read()]
    ids = torch.tensor([int(one) for one in features])
    f = crosscoder.encode(x)
    y, decoded = _sides(crosscoder, x), _sides(crosscoder, crosscoder.decode(f, x))
    active = f[:, ids].double()
    direction = second[ids]
    weight = active.square().sum(0) * direction.square().sum(1)

    def beta(target: torch.Tensor) -> torch.Tensor:
        return (active * (target @ direction.T)).sum(0) / weight

    error = [y[i] - decoded[i] for i in (0, 1)]
    own = beta(error[1]) + 1  # the part put back fits itself once
    return LatentScaling(ids, beta(error[0]) / own, beta(decoded[0]) / beta(decoded[1]))


def _decoders(crosscoder: _C.Dictionary, who: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder rows for either model, float64 [d_sae, d]."""
    outputs = crosscoder.origin.outputs or crosscoder.origin.inputs
    if sorted({site.model for site in outputs}) != [0, 1]:
        raise _C.ConfigError(
            f"{who}: the crosscoder must write to two models, and its file says {len({s.model for s in outputs})}"
        )
    sides = _sides(crosscoder, crosscoder.weights["W_dec"])
    return sides[0], sides[1]


def _sides(crosscoder: _C.Dictionary, rows: torch.Tensor) -> list[torch.Tensor]:
    """What rows [.., d_out] hold of either model, float64."""
    outputs = crosscoder.origin.outputs or crosscoder.origin.inputs
    parts = rows.detach().double().split([site.width for site in outputs], -1)
    return [torch.cat([p for p, site in zip(parts, outputs, strict=True) if site.model == m], -1) for m in (0, 1)]
