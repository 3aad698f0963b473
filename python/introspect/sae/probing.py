"""Whether single features tell classes of texts apart: k-sparse probing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..analysis.probes import fit_probe
from .contexts import Contexts, contexts_of
from .diffing import Texts, text_features
from .features import read_inputs

if TYPE_CHECKING:
    import pandas


def mean_activations(model: Any, sae: _C.Dictionary, contexts: Contexts) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over each text's tokens: what the dictionary reads, [texts, d_in], and its features, [texts, d_sae].

    Raises:
        ValueError: a text without a token that is read.
    """
    f = text_features(model, sae, contexts)
    read = contexts.read()
    x = read_inputs(model, sae, contexts).double() * read[..., None]
    tokens = torch.zeros(len(f), dtype=torch.float64).index_add_(0, contexts.texts, read.sum(1).double())
    sums = torch.zeros(len(f), x.shape[-1], dtype=torch.float64).index_add_(0, contexts.texts, x.sum(1))
    return sums / tokens[:, None], f


@dataclass(frozen=True, eq=False)
class SparseProbing:
    """Accuracy on held-out texts of probes that see k features, beside one that sees the activation itself.

    Attributes:
        accuracy: {k: share of the test texts}.
        features: {k: which features}, those of the training texts' largest difference of means.
        dense_accuracy: of a probe of the mean activation, all its dimensions.
        majority: share of the test texts that are of the larger class.
        test: which texts were held out, bool [texts].
    """

    accuracy: dict[int, float]
    features: dict[int, tuple[int, ...]]
    dense_accuracy: float
    majority: float
    test: torch.Tensor

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each k, and one for the activation: probe, features, accuracy."""
        import pandas

        rows = [[f"k = {k}", list(self.features[k]), one] for k, one in self.accuracy.items()]
        rows.append(["activation", None, self.dense_accuracy])
        return pandas.DataFrame(rows, columns=["probe", "features", "accuracy"])


def sparse_probing(
    model: Any,
    sae: _C.Dictionary,
    texts: Texts,
    labels: Sequence[Hashable],
    *,
    ks: Sequence[int] = (1, 2, 5),
    test_share: float = 0.3,
    seed: int = 0,
) -> SparseProbing:
    """Logistic probes of the k features that differ most between two classes, in the mean over each text's tokens.

    Args:
        labels: of each text, of two classes.
        ks: how many features.
        test_share: of the texts, drawn at random, that features and probes do not see.

    Raises:
        ValueError: labels that are not of two classes, another number of labels than texts, or a k below 1.

    Source: Gurnee et al. 2023, 2305.01610; SAEBench (sparse probing).
    """
    classes = sorted(set(labels), key=str)
    contexts = contexts_of(model, texts, sae, who="sparse_probing")
    if len(classes) != 2 or len(labels) != contexts.n_texts or min(ks) < 1:
        raise ValueError(
            f"sparse_probing: every text must have a label of two classes and k be 1 or more, got {len(classes)} "
            f"classes, {len(labels)} labels for {contexts.n_texts} texts and k {list(ks)}"
        )
    y = torch.tensor([classes.index(one) for one in labels])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    test = torch.zeros(len(y), dtype=torch.bool)
    test[order[: max(int(len(y) * test_share), 1)]] = True
    x, f = mean_activations(model, sae, contexts)

    def accuracy(values: torch.Tensor) -> float:
        probe = fit_probe(values[~test], y[~test].tolist())
        return ((probe.scores(values[test]) > 0).long() == y[test]).double().mean().item()

    train, of = f[~test], y[~test]
    difference = (train[of == 1].mean(0) - train[of == 0].mean(0)).abs()
    best = difference.argsort(descending=True).tolist()
    chosen = {k: tuple(best[:k]) for k in ks}
    share = y[test].double().mean().item()
    return SparseProbing(
        {k: accuracy(f[:, list(ids)]) for k, ids in chosen.items()},
        chosen,
        accuracy(x),
        max(share, 1 - share),
        test,
    )
