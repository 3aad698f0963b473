"""Why a head attends where it does, and which heads carry an edge of an attribution graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .._C import GraphNode, QkPart
from ..analysis.prompts import one_prompt
from ..arguments import native_model
from .transcoders import transcoder_arguments

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class QkAttribution:
    """A head's score for one query and key, as a sum over pairs of parts of the stream at the two positions.

    ``terms`` [query parts, key parts] sum to ``score``, which is before the softmax and before a soft cap.
    """

    native: _C.QkAttribution

    @property
    def query_parts(self) -> list[QkPart]:
        return self.native.query_parts

    @property
    def key_parts(self) -> list[QkPart]:
        return self.native.key_parts

    @property
    def terms(self) -> torch.Tensor:
        return self.native.terms

    @property
    def score(self) -> float:
        return self.native.score

    @property
    def pattern(self) -> float:
        """The head's attention from query to key."""
        return self.native.pattern

    @property
    def soft_cap(self) -> float:
        """Of the model, which caps the score afterwards; 0: none."""
        return self.native.soft_cap

    def to_pandas(self, n: int = 20) -> pd.DataFrame:
        """The n pairs of largest |term|, largest first: query and key kind, layer, feature, and the term."""
        import pandas as pd

        flat = self.terms.double().flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        columns = self.terms.shape[1]
        rows = []
        for place in order:
            q, k = self.query_parts[place // columns], self.key_parts[place % columns]
            rows.append(
                {
                    "query_kind": q.kind,
                    "query_layer": q.layer,
                    "query_feature": q.feature,
                    "query_site": q.site,
                    "key_kind": k.kind,
                    "key_layer": k.layer,
                    "key_feature": k.feature,
                    "key_site": k.site,
                    "term": flat[place].item(),
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        n = self.native
        return (
            f"QkAttribution(layer={n.layer}, head={n.head}, query={n.query}, key={n.key}, score={n.score:.3f}, "
            f"pattern={n.pattern:.3f})"
        )


@dataclass(frozen=True)
class HeadLoadings:
    """How much of an edge goes through each head of each layer on its way, and how much past attention.

    ``heads`` [layers, heads] and ``past_attention`` [layers]: the parts of one layer sum to ``edge`` (of a cross-layer
    feature, to what it wrote below that layer); those of different layers do not add.
    """

    layers: list[int]
    heads: torch.Tensor
    past_attention: torch.Tensor
    edge: float

    def to_pandas(self) -> pd.DataFrame:
        """One row a layer and head: layer, head (None past attention), loading."""
        import pandas as pd

        rows = [
            {"layer": layer, "head": head, "loading": value}
            for layer, values, past in zip(self.layers, self.heads.tolist(), self.past_attention.tolist(), strict=True)
            for head, value in [*enumerate(values), (None, past)]
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "loading"]).astype({"head": "Int64"})


def qk_attribution(
    model: Any,
    prompt: Any,
    *,
    layer: int,
    head: int,
    query: int,
    key: int,
    transcoders: Any = None,
    saes: Sequence[Any] = (),
    input: str | None = None,
    mask_first: bool = True,
) -> QkAttribution:
    """Why a head attends from one position to another.

    With the scales of the norms held fixed (also those of queries and keys) a score is bilinear in what stands at the
    two positions: features of transcoders below, their errors, what each layer's attention wrote, the token and biases.
    Works under grouped keys, rotations and norms of queries and keys; of a model with a soft cap, the score before it.

    Args:
        query, key: positions of the prompt; negative from its end.
        transcoders, saes: as of ``attribute``; without any, MLPs are errors as a whole. Of an SAE of the
            stream and what is below it there are its parts alone.

    Raises:
        IndexError: a layer, head or position that is not there.
        ValueError: a key that the query does not see.

    Source: transformer-circuits.pub/2025/attention-qk.
    """
    native = native_model(model, "qk_attribution")
    ids = one_prompt(model, prompt, "qk_attribution")
    query, key = (len(ids) + p if p < 0 else p for p in (query, key))
    return QkAttribution(
        _C.qk_attribution(
            native,
            torch.tensor(ids),
            layer,
            head,
            query,
            key,
            mask_first=mask_first,
            **transcoder_arguments({} if transcoders is None else transcoders, input, "qk_attribution", saes),
        )
    )


def head_loadings(
    model: Any,
    prompt: Any,
    transcoders: Any,
    source: GraphNode,
    target: GraphNode,
    *,
    saes: Sequence[Any] = (),
    input: str | None = None,
    mask_first: bool = True,
) -> HeadLoadings:
    """Which heads carry an edge of a graph of the same model, prompt and transcoders.

    Args:
        source: a feature, error or token of the graph.
        target: a feature, or a next token.

    Raises:
        ValueError: nodes of other kinds, or a feature that is not active.
    """
    native = native_model(model, "head_loadings")
    ids = one_prompt(model, prompt, "head_loadings")
    found = _C.head_loadings(
        native,
        torch.tensor(ids),
        source,
        target,
        mask_first=mask_first,
        **transcoder_arguments({} if transcoders is None else transcoders, input, "head_loadings", saes),
    )
    return HeadLoadings(found.layers, found.heads, found.past_attention, found.edge)
