"""How good a dictionary is: reconstruction, sparsity, and the loss of the model with the dictionary in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .contexts import Contexts, check_dictionary, contexts_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCALARS = (
    "explained_variance",
    "explained_variance_legacy",
    "fraction_of_variance_explained",
    "mse",
    "cosine",
    "l2_norm_in",
    "l2_norm_out",
    "l2_ratio",
    "relative_reconstruction_bias",
    "l0",
    "l1",
    "dead_share",
)
SPLICED = ("ce", "ce_spliced", "ce_zero", "ce_score", "kl_spliced", "kl_zero", "kl_score")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        reconstruction: at the dictionary's output: ``explained_variance``, ``l0``, ``density`` [d_sae] and others.
        splice: the model's losses with the dictionary in it: ``ce``, ``ce_spliced``, ``ce_zero``, ``ce_score``,
            ``kl_score``; None unless asked for.
        d_sae: features.
        architecture: of the dictionary.
        hook_name: where it reads; of a crosscoder the first.
        hook_name_out: where it writes.
        model_name: of the model it was measured in.
        contexts: how many were read.
    """

    reconstruction: _C.ReconstructionFigures
    splice: _C.SpliceFigures | None
    d_sae: int
    architecture: str
    hook_name: str
    hook_name_out: str
    model_name: str
    contexts: int

    def to_dict(self) -> dict[str, float]:
        """Every number by its name."""
        found = {"tokens": float(self.reconstruction.rows)}
        found |= {name: getattr(self.reconstruction, name) for name in SCALARS}
        if self.splice is not None:
            found |= {name: getattr(self.splice, name) for name in SPLICED}
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """One row, a column for each number."""
        import pandas

        return pandas.DataFrame([{"model": self.model_name, "hook": self.hook_name, **self.to_dict()}])

    def to_saelens(self) -> dict[str, dict[str, float]]:
        """The same under the names of SAELens's run_evals."""
        r, s = self.reconstruction, self.splice
        found: dict[str, dict[str, float]] = {}
        if s is not None:
            found["model_behavior_preservation"] = {
                "kl_div_score": s.kl_score,
                "kl_div_with_ablation": s.kl_zero,
                "kl_div_with_sae": s.kl_spliced,
            }
            found["model_performance_preservation"] = {
                "ce_loss_score": s.ce_score,
                "ce_loss_with_ablation": s.ce_zero,
                "ce_loss_with_sae": s.ce_spliced,
                "ce_loss_without_sae": s.ce,
            }
        return {
            **found,
            "reconstruction_quality": {
                "explained_variance": r.explained_variance,
                "explained_variance_legacy": r.explained_variance_legacy,
                "mse": r.mse,
                "cossim": r.cosine,
            },
            "shrinkage": {
                "l2_norm_in": r.l2_norm_in,
                "l2_norm_out": r.l2_norm_out,
                "l2_ratio": r.l2_ratio,
                "relative_reconstruction_bias": r.relative_reconstruction_bias,
            },
            "sparsity": {"l0": r.l0, "l1": r.l1},
        }

    def plot(self) -> Figure:
        """A histogram of log10 density, dead features aside."""
        from ..plots.features import density_histogram

        return density_histogram(self.reconstruction.density, tokens=self.reconstruction.rows)

    def sentences(self) -> list[str]:
        """What the numbers say, in words."""
        r, s = self.reconstruction, self.splice
        written = "" if self.hook_name_out == self.hook_name else f", writing {self.hook_name_out}"
        found = [
            f"{self.architecture} dictionary of {self.d_sae:,} features at {self.hook_name}{written} of "
            f"{self.model_name}, on {r.rows:,} tokens of {self.contexts:,} contexts.",
            f"It explains {r.explained_variance:.1%} of the variance with {r.l0:.1f} features a token; "
            f"{r.dead_share:.1%} of the features were never active.",
        ]
        if s is not None:
            found.append(
                f"The model loses {s.ce:.3f} nats a token, {s.ce_spliced:.3f} with the dictionary in it and "
                f"{s.ce_zero:.3f} with zeros there: {s.ce_score:.1%} of the loss is recovered, and {s.kl_score:.1%} of "
                f"the divergence."
            )
        return found

    def __repr__(self) -> str:
        scored = "" if self.splice is None else f", ce_score={self.splice.ce_score:.4f}"
        r = self.reconstruction
        return (
            f"Evaluation(explained_variance={r.explained_variance:.4f}, l0={r.l0:.2f}, dead_share={r.dead_share:.3f}"
            f"{scored}, {r.rows} tokens)"
        )


def evaluate(
    model: Any,
    sae: _C.Dictionary,
    texts: Contexts | torch.Tensor | str | Sequence[str],
    *,
    spliced: bool = True,
    context_size: int | None = None,
    special_tokens: bool | Sequence[int] = True,
    batch_tokens: int = 2048,
    progress: Any = None,
) -> Evaluation:
    """A dictionary at its place in a model: how well it reconstructs, and what the model loses with it there.

    A transcoder is compared with what stands at its output, its skip included (SAELens compares with its input).
    Explained variance is 1 - E|r|^2 / (E|y|^2 - |E y|^2); the other formulas in use are beside it under names of their
    own. ``ce_score`` is (zero - spliced) / (zero - model) of the loss, ``kl_score`` the same of KL(model || changed).

    Args:
        texts: texts or tokens that it was not trained on: see ``contexts_of``.
        spliced: False leaves out the losses, and with them every pass above the dictionary.
        context_size, special_tokens: see ``contexts_of``.
        batch_tokens: of a pass.
        progress: called with (what, done, total).

    Raises:
        ConfigError: a dictionary of another model, of no known place, or that reads two models.
        HookError, ShapeError: a place that the model does not have, or of another width.
        ValueError: no tokens to read.
    """
    check_dictionary("evaluate", model, sae)
    contexts = contexts_of(model, texts, sae, context_size=context_size, special_tokens=special_tokens, who="evaluate")
    found = _C.evaluate_dictionary(
        model,
        sae,
        contexts.tokens,
        **contexts.arguments,
        spliced=spliced,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    native = getattr(model, "native", model)
    inputs, outputs = sae.origin.inputs, sae.origin.outputs or sae.origin.inputs
    return Evaluation(
        found.reconstruction,
        found.splice,
        sae.d_sae,
        sae.architecture,
        inputs[0].hook_name,
        outputs[0].hook_name,
        native.cfg.model_name,
        len(contexts),
    )
