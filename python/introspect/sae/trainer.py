"""One dictionary being trained on rows of activations."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from .. import _C
from .dictionary import SAE

TrainerMetrics = _C.TrainerMetrics


class Trainer(_C.Trainer):
    """One dictionary being trained on rows of activations; it knows no model and no text.

        trainer = introspect.sae.Trainer(576, objective="topk", d_sae=4608, k=32, lr=4e-4)
        for x in batches:                      # [rows, d_in]
            metrics = trainer.step(x)          # .loss .l0 .explained_variance ...
        sae = trainer.dictionary()

    Gradients are worked out by hand, from the features that are active; Adam is torch's. The same batches, options and
    threads give the same bits, also from a checkpoint on.

    Args:
        d_in: width of the rows.
        d_out: of the rows that a transcoder writes; d_in if not given.
        origin: what they are rows of. Several outputs make a crosscoder: sites side by side, and the norm of a decoder
            row is the sum of those at each site.
        start: weights to start from, by name, feature by feature: what ``weights()`` gives.
        device: of the weights.
        **options: those of TrainerOptions in sae/trainer.h, by name:

            objective: standard, gated, topk, abstopk, batchtopk, matryoshka_batchtopk, jumprelu, p_anneal or
                matching_pursuit ("topk").
            d_sae, float64 (False), seed (0).
            k (32), rank_by_decoder_norm (True), threshold_lr (0.01), matryoshka_widths ([]), matryoshka_aux (False),
                residual_threshold (0.01).
            l1_coefficient (1), l1_by_decoder_norm (True), lp (1), l0_coefficient (1), sparsity_warm_up_steps (0),
                sparsity_loss ("step", "tanh" or "quadratic"), bandwidth (0.05), init_threshold (0.01),
                ste_to_input (False), tanh_scale (4), target_l0, pre_act_coefficient (0), pre_act_of_all (False),
                gated_detach (False).
            p_end (0), anneal_start (15000), anneal_end (total_steps), anneal_updates (10), anneal_power (True).
            aux ("residual", "normalised" or "none"), aux_coefficient (1), k_aux (d_in / 2), dead_window (1000 steps),
                resample_every (0: never).
            input_norm ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm",
                "covariance_whitening"),
                subtract_b_dec (True), transcodes (False), skip (False),
                b_dec_start ("zero", "mean", "geometric_median"), b_enc_rate (0).
            decoder_norm (0.1), encoder_scale (1), unit_decoder (False), project_gradient (True).
            lr (3e-4), beta1 (0.9), beta2 (0.999), eps (1e-8), clip (1; 0: none), schedule ("constant",
                "cosineannealing"), warm_up_steps (0), decay_steps (0), lr_end (lr / 10), total_steps (0).

    Raises:
        ValueError: an option out of range, k larger than d_sae among them.
        ConfigError: an option that does not exist, or options that do not fit one another.
        ShapeError: start or the sites of origin have other shapes.

    Source: the equations stand in cpp/src/sae/training, one file an objective; defaults are SAELens 6's.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        origin: _C.DictionaryOrigin | None = None,
        start: dict[str, torch.Tensor] | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(
            json.dumps(options),
            d_in,
            d_out,
            origin=_C.DictionaryOrigin() if origin is None else origin,
            start=start,
            device=torch.device(device),
        )

    def dictionary(self) -> SAE:
        """The dictionary as it stands, in the form that infers.

        BatchTopK and Matryoshka become JumpReLU with one threshold, input scales are folded into the weights, and where
        features were ranked by decoder norm W_dec has rows of length 1.
        """
        return SAE.of(super().dictionary())

    @classmethod
    def load(cls, folder: str | os.PathLike | bytes, device: torch.device | str = "cpu") -> Trainer:
        """Go on with what ``save`` wrote: the same numbers, bit for bit on as many threads.

        Raises:
            IoError: the file is missing or damaged.
        """
        out = cls.__new__(cls)
        _C.Trainer.__init__(out, super().load(folder, torch.device(device)))
        return out


def anthropic_jumprelu(d_in: int, d_sae: int, total_steps: int) -> dict[str, Any]:
    """Options of Anthropic's JumpReLU of January 2025, for ``Trainer(d_in, **options)``.

    The tanh loss, gradients of thresholds into the encoder, a pull on all features below their threshold, l0 rising
    through the whole training, lr falling in the last fifth. Their threshold is e^t; here it is itself.
    """
    return _C.anthropic_jumprelu(d_in, d_sae, total_steps)
