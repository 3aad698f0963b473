"""Cross-layer transcoders: features of a layer that write to it and to all layers above."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from .. import _C
from .dictionary import SAE, Device, as_target


class CrossLayerTranscoder(_C.CrossLayerTranscoder):
    """What goes into the MLPs of L layers, as features, and what leaves them, as what these write.

    f_l = act(x_l W_enc_l + b_enc_l); y_t = sum over l <= t of f_l W_dec_{l -> t} + b_dec_t (+ W_skip_t x_t).

    A value: nothing changes it. Two are equal if they compute the same.

    Args:
        W_enc: one a layer, [d_in, d_sae].
        W_dec: one a layer, [d_sae, L - l, d_out]: what the features of layer l write to layers l to L - 1.
        b_enc: one a layer, [d_sae]; None is zero.
        b_dec: one a layer, [d_out], or [L, d_out]; None is zero.
        architecture: of every layer; see SAE.
        k: features of a row and layer, of architectures that choose.
        threshold: of jumprelu, one a layer, [d_sae].
        W_skip: one a layer, [d_out, d_in]; None is none.
        rescale_acts_by_decoder_norm: as SAE's; the norms are of all that a feature writes.
        hook_names: where each layer is read.
        hook_names_out: where each layer is written; None: there too.
        model_name: of the model that it was trained on.
        origin: all that is known of that, in place of the three above.

    Raises:
        ShapeError, ConfigError: what does not fit.
        ValueError: numbers that are not finite, or out of range.

    Source: Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html.
    """

    def __init__(
        self,
        W_enc: Sequence[torch.Tensor],
        W_dec: Sequence[torch.Tensor],
        b_enc: Sequence[torch.Tensor] | torch.Tensor | None = None,
        b_dec: Sequence[torch.Tensor] | torch.Tensor | None = None,
        *,
        architecture: str = "standard",
        k: float = 0,
        threshold: Sequence[torch.Tensor] | torch.Tensor | None = None,
        W_skip: Sequence[torch.Tensor] | torch.Tensor | None = None,
        rescale_acts_by_decoder_norm: bool = False,
        hook_names: Sequence[str] | None = None,
        hook_names_out: Sequence[str] | None = None,
        model_name: str = "",
        origin: _C.DictionaryOrigin | None = None,
    ) -> None:
        n_layers = len(W_enc)
        for what, values in (("W_dec", W_dec), ("b_enc", b_enc), ("threshold", threshold)):
            if values is not None and len(values) != n_layers:
                raise _C.ShapeError(f"CrossLayerTranscoder: {what} must be of {n_layers} layers, got {len(values)}")
        layers = [
            SAE(
                W_enc[layer],
                W_dec[layer].flatten(1),
                None if b_enc is None else b_enc[layer],
                architecture=architecture,
                k=k,
                threshold=None if threshold is None else threshold[layer],
                apply_b_dec_to_input=False,
                rescale_acts_by_decoder_norm=rescale_acts_by_decoder_norm,
            )
            for layer in range(n_layers)
        ]
        if origin is None:
            names = list(hook_names or [])
            names_out = names if hook_names_out is None else list(hook_names_out)
            width, width_out = W_enc[0].shape[0], W_dec[-1].shape[-1]
            origin = _C.DictionaryOrigin(
                inputs=[_C.DictionarySite(name, width) for name in names],
                outputs=[_C.DictionarySite(name, width_out) for name in names_out],
                model_name=model_name,
            )
        super().__init__(layers, _stacked(b_dec), _stacked(W_skip), origin=origin)

    @classmethod
    def of(cls, transcoder: _C.CrossLayerTranscoder) -> CrossLayerTranscoder:
        """A native one as this."""
        out = cls.__new__(cls)
        _C.CrossLayerTranscoder.__init__(out, transcoder)
        return out

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> CrossLayerTranscoder:
        """One of any format, from its folder: see ``introspect.sae.files``."""
        from . import files

        return cls.of(files.load_cross_layer(path, **options))

    @classmethod
    def from_pretrained(
        cls, release: str | os.PathLike, sae_id: str | None = None, **options: Any
    ) -> CrossLayerTranscoder:
        """A published one, or one at a path: see ``introspect.sae.files``."""
        from . import files

        return cls.of(files.cross_layer_from_pretrained(release, sae_id, **options))

    @classmethod
    def train(cls, model: Any, texts: Any, **options: Any) -> CrossLayerTranscoder:
        """One of all blocks of a model, trained on its activations over texts: see ``sae.train_cross_layer``."""
        from .cross_layer_trainer import train_cross_layer

        return train_cross_layer(model, texts, **options)

    def save(self, path: str | os.PathLike, **options: Any) -> None:
        """Writes a folder that circuit-tracer reads: see ``introspect.sae.files``."""
        from . import files

        files.save_cross_layer(self, path, **options)

    def layer(self, layer: int) -> SAE:
        """The features of one layer; what they write to it and those above stands side by side in its W_dec."""
        return SAE.of(self.layers[layer])

    def to(self, target: torch.dtype | Device) -> CrossLayerTranscoder:
        """The same in another dtype ("bfloat16", torch.bfloat16) or on another device ("cuda")."""
        return CrossLayerTranscoder.of(super().to(as_target(target)))

    def fold_W_dec_norm(self) -> CrossLayerTranscoder:
        """The same function where all that a feature writes, to every layer together, has length 1."""
        return CrossLayerTranscoder.of(super().fold_decoder_norm())

    def __copy__(self) -> CrossLayerTranscoder:
        return self

    def __deepcopy__(self, memo: dict) -> CrossLayerTranscoder:
        return self

    def __repr__(self) -> str:
        parts = [repr(self.layers[0].architecture), f"{self.n_layers} layers", f"d_in={self.d_in}"]
        if self.d_out != self.d_in:
            parts.append(f"d_out={self.d_out}")
        parts += [f"d_sae={self.d_sae}", str(self.dtype).removeprefix("torch.")]
        if self.origin.model_name:
            parts.append(self.origin.model_name)
        return f"CrossLayerTranscoder({', '.join(parts)})"


def _stacked(values: Sequence[torch.Tensor] | torch.Tensor | None) -> torch.Tensor | None:
    return values if values is None or isinstance(values, torch.Tensor) else torch.stack(list(values))
