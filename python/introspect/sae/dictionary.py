"""Dictionaries: sparse autoencoders, transcoders and crosscoders, under SAELens's names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C

if TYPE_CHECKING:
    import pandas

Device = torch.device | str
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_target(target: torch.dtype | Device) -> torch.dtype | torch.device:
    """A dtype or device by its name or as it is."""
    return (_DTYPES.get(target) or torch.device(target)) if isinstance(target, str) else target


@dataclass(frozen=True)
class SAEMetadata:
    """Where a dictionary was trained, under SAELens's names; None: not known."""

    model_name: str | None
    hook_name: str | None
    hook_name_out: str | None
    context_size: int | None
    prepend_bos: bool | None
    release: str | None
    sae_id: str | None


@dataclass(frozen=True)
class SAEConfig:
    """What a dictionary computes, under SAELens's names."""

    architecture: str
    d_in: int
    d_out: int
    d_sae: int
    dtype: str
    device: str
    k: float | None
    apply_b_dec_to_input: bool
    normalize_activations: str
    rescale_acts_by_decoder_norm: bool
    reshape_activations: str
    metadata: SAEMetadata

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


class SparseFeatures(_C.SparseFeatures):
    """Features that are not 0, row by row.

    Attributes:
        offsets: int64 [N + 1]: row n has entries offsets[n] to offsets[n + 1].
        indices: int64 [entries], features, ascending within a row.
        values: [entries].
        d_sae: how many features there are.
    """

    def row(self, n: int) -> dict[int, float]:
        """{feature: value} of one row."""
        first, last = self.offsets[n].item(), self.offsets[n + 1].item()
        return dict(zip(self.indices[first:last].tolist(), self.values[first:last].tolist(), strict=True))

    def to_torch(self) -> torch.Tensor:
        """A torch tensor of layout sparse_csr, [N, d_sae]."""
        return torch.sparse_csr_tensor(self.offsets, self.indices, self.values, (len(self), self.d_sae))

    def to_pandas(self) -> pandas.DataFrame:
        """One line an entry: row, feature, value."""
        import pandas as pd

        rows = torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())
        return pd.DataFrame(
            {"row": rows.numpy(), "feature": self.indices.numpy(), "value": self.values.to(torch.float64).numpy()}
        )

    def __repr__(self) -> str:
        return f"SparseFeatures({len(self)} rows, {len(self.indices)} entries of {self.d_sae} features)"


class SAE(_C.Dictionary):
    """A sparse autoencoder: directions, more than there are dimensions, few of which make up each activation.

    A value: nothing changes it, and tensors handed out are its own, not to be changed in place. Two are equal if they
    compute the same (``hash``). bfloat16 and float16 dictionaries compute in float32 and round last.

    Args:
        W_enc: [d_in, d_sae]; of matching pursuit none.
        W_dec: [d_sae, d_out].
        b_enc: [d_sae]; None is zero.
        b_dec: [d_out]; None is zero.
        architecture: "standard", "gated", "topk", "abstopk", "batchtopk", "jumprelu", "matching_pursuit" or "groupmax".
        k: features of a row: of all architectures that choose.
        threshold: [d_sae], of jumprelu: in the space of pre-activations, not their logarithms.
        b_gate, b_mag, r_mag: [d_sae], of gated.
        W_skip: [d_out, d_in], of skip transcoders.
        relu: topk: False keeps those of the k largest that are below 0 (Qwen Scope).
        apply_b_dec_to_input: b_dec is taken off the input; None: if the widths are the same.
        rescale_acts_by_decoder_norm: features are times the norms of their decoder rows, and chosen so.
        normalize_activations: "none", "expected_average_only_in" (inputs times ``input_scale``),
            "constant_norm_rescale" or "layer_norm". Of whitened inputs: ``fold_activation_whitening``.
        input_scale: see there.
        layer_norm_eps: added to the standard deviation by "layer_norm".
        residual_threshold: matching pursuit ends where less is left.
        hook_name: where it reads, such as "blocks.3.hook_resid_post".
        hook_name_out: where it writes; None: there too.
        model_name: of the model that it was trained on.
        origin: all that is known of that, in place of the three above.

    Raises:
        ShapeError: tensors that do not fit one another.
        ConfigError: an unknown name; tensors that are missing or of another architecture.
        ValueError: weights that are not finite, negative thresholds, k out of range.
    """

    def __init__(
        self,
        W_enc: torch.Tensor | None = None,
        W_dec: torch.Tensor | None = None,
        b_enc: torch.Tensor | None = None,
        b_dec: torch.Tensor | None = None,
        *,
        architecture: str = "standard",
        k: float = 0,
        threshold: torch.Tensor | None = None,
        b_gate: torch.Tensor | None = None,
        b_mag: torch.Tensor | None = None,
        r_mag: torch.Tensor | None = None,
        W_skip: torch.Tensor | None = None,
        relu: bool = True,
        apply_b_dec_to_input: bool | None = None,
        rescale_acts_by_decoder_norm: bool = False,
        normalize_activations: str = "none",
        input_scale: float = 1.0,
        layer_norm_eps: float = 1e-5,
        residual_threshold: float = 1e-2,
        hook_name: str | None = None,
        hook_name_out: str | None = None,
        model_name: str = "",
        origin: _C.DictionaryOrigin | None = None,
    ) -> None:
        if W_dec is None:
            raise TypeError("SAE: W_dec is required")
        given = {
            "W_enc": W_enc if W_enc is None or W_enc.dim() != 2 else W_enc.mT,
            "W_dec": W_dec,
            "b_enc": b_enc,
            "b_dec": b_dec,
            "threshold": threshold,
            "b_gate": b_gate,
            "b_mag": b_mag,
            "r_mag": r_mag,
            "W_skip": W_skip,
        }
        weights = {name: tensor for name, tensor in given.items() if tensor is not None}
        d_in, d_out = (W_dec.shape[-1:] if W_enc is None else W_enc.shape)[0], W_dec.shape[-1]
        if origin is None:
            out = hook_name if hook_name_out is None else hook_name_out
            origin = _C.DictionaryOrigin(
                inputs=[] if hook_name is None else [_C.DictionarySite(hook_name, d_in)],
                outputs=[] if out is None else [_C.DictionarySite(out, d_out)],
                model_name=model_name,
            )
        super().__init__(
            architecture,
            weights,
            k=k,
            relu=relu,
            subtract_b_dec=d_in == d_out if apply_b_dec_to_input is None else apply_b_dec_to_input,
            rank_by_decoder_norm=rescale_acts_by_decoder_norm,
            input_norm=normalize_activations,
            input_scale=input_scale,
            layer_norm_eps=layer_norm_eps,
            residual_threshold=residual_threshold,
            origin=origin,
        )

    @classmethod
    def of(cls, dictionary: _C.Dictionary) -> SAE:
        """A native dictionary as an SAE, a Transcoder or a Crosscoder, by the sites that it reads and writes."""
        origin = dictionary.origin
        kind: type[SAE] = SAE
        if len(origin.inputs) > 1 or len(origin.outputs) > 1:
            kind = Crosscoder
        elif (
            dictionary.d_in != dictionary.d_out
            or dictionary.weight("W_skip") is not None
            or (origin.outputs and origin.inputs != origin.outputs)
        ):
            kind = Transcoder
        out = kind.__new__(kind)
        _C.Dictionary.__init__(out, dictionary)
        return out

    @classmethod
    def from_pretrained(cls, release: str | os.PathLike, sae_id: str | None = None, **options: Any) -> SAE:
        """A published dictionary by SAELens's names, or one at a path: see ``introspect.sae.files``."""
        from . import files

        if sae_id is None:
            return cls.load(release, **options)
        return SAE.of(files.from_pretrained(os.fspath(release), sae_id, **options))

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> SAE:
        """A dictionary of any format, from its file or folder: see ``introspect.sae.files``."""
        from . import files

        return SAE.of(files.load(path, **options))

    @classmethod
    def load_layers(cls, path: str | os.PathLike, **options: Any) -> dict[int, SAE]:
        """The dictionaries of a folder with a file for each layer, such as circuit-tracer's transcoders, by layer."""
        from . import files

        return {layer: SAE.of(one) for layer, one in files.load_layers(path, **options).items()}

    @classmethod
    def train(cls, model: Any, texts: Any, **options: Any) -> Any:
        """Trains on a model's activations: see ``introspect.sae.training``."""
        from . import training

        return training.train(model, texts, **options)

    def control_vector(self, features: Mapping[int, float], **options: Any) -> _C.ControlVector:
        """The weighted sum of features' directions as a vector of its layer: see ``introspect.sae.control_vector``."""
        from . import steering

        return steering.control_vector(self, features, **options)

    def save(self, path: str | os.PathLike, **options: Any) -> None:
        """Writes a folder that SAELens reads: see ``introspect.sae.files``."""
        from . import files

        files.save(self, path, **options)

    @property
    def W_enc(self) -> torch.Tensor:
        """[d_in, d_sae]; of matching pursuit W_dec's transpose."""
        weight = self.weight("W_enc")
        return (self.W_dec if weight is None else weight).mT

    @property
    def W_dec(self) -> torch.Tensor:
        """[d_sae, d_out]."""
        return self.weights["W_dec"]

    @property
    def b_enc(self) -> torch.Tensor:
        """[d_sae], zero if there is none."""
        return self._or_zeros("b_enc", self.d_sae)

    @property
    def b_dec(self) -> torch.Tensor:
        """[d_out], zero if there is none."""
        return self._or_zeros("b_dec", self.d_out)

    @property
    def threshold(self) -> torch.Tensor | None:
        """[d_sae] of jumprelu, else None."""
        return self.weight("threshold")

    @property
    def W_skip(self) -> torch.Tensor | None:
        """[d_out, d_in] of skip transcoders, else None."""
        return self.weight("W_skip")

    @property
    def cfg(self) -> SAEConfig:
        """What it computes and where it was trained, under SAELens's names."""
        origin, name = self.origin, self._hook_names
        return SAEConfig(
            architecture=self.architecture,
            d_in=self.d_in,
            d_out=self.d_out,
            d_sae=self.d_sae,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            k=self.k or None,
            apply_b_dec_to_input=self.subtract_b_dec,
            normalize_activations=self.input_norm,
            rescale_acts_by_decoder_norm=self.rank_by_decoder_norm,
            reshape_activations="hook_z" if self._reads_heads else "none",
            metadata=SAEMetadata(
                model_name=origin.model_name or None,
                hook_name=name[0],
                hook_name_out=name[1],
                context_size=origin.context_size,
                prepend_bos=origin.prepend_bos,
                release=origin.release or None,
                sae_id=origin.sae_id or None,
            ),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """decode(encode(x)): [.., d_out]; at a point with heads [.., head, d_head] as x is."""
        out = super().__call__(self._rows(x))
        return out.reshape(x.shape) if self._has_heads(x) else out

    def encode(self, x: torch.Tensor, features: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Features of x [.., d_in]: [.., d_sae], or [.., n] of the n ``features``, in their order.

        x may be [.., head, d_head] at a point with heads. Rows of a batchtopk dictionary are ranked together.

        Raises:
            ShapeError: x is not [.., d_in].
            IndexError: a feature that is not there.
        """
        if features is not None:
            features = torch.as_tensor(features, dtype=torch.int64).reshape(-1)
        return super().encode(self._rows(x), features)

    def encode_sparse(self, x: torch.Tensor) -> SparseFeatures:
        """The features of x [.., d_in] that are not 0, row after row, without a matrix [N, d_sae]; no gradients."""
        rows = self._rows(x)
        found = super().encode_sparse(rows.reshape(-1, rows.shape[-1]))
        return SparseFeatures(found.offsets, found.indices, found.values, found.d_sae)

    def decode(self, f: torch.Tensor | _C.SparseFeatures, x: torch.Tensor | None = None) -> torch.Tensor:
        """What features stand for: [.., d_out].

        Args:
            f: [.., d_sae], or SparseFeatures of N rows.
            x: what f is of, for a dictionary with ``needs_input``: one with a skip, or a norm of each input.

        Raises:
            ShapeError: f is not [.., d_sae].
            ValueError: x is needed.
        """
        if x is not None:
            x = self._rows(x)
            if isinstance(f, _C.SparseFeatures):
                x = x.reshape(-1, x.shape[-1])
        return super().decode(f, x)

    def to(self, target: torch.dtype | Device) -> SAE:
        """The same in another dtype ("bfloat16", torch.bfloat16) or on another device ("cuda")."""
        return SAE.of(super().to(as_target(target)))

    def fold_W_dec_norm(self) -> SAE:
        """The same function with decoder rows of length 1: features, thresholds and biases are times the norms.

        Raises:
            ConfigError: matching pursuit; a choice of the k largest that is not by norm already, and would be another.
        """
        return SAE.of(super().fold_decoder_norm())

    def fold_activation_norm_scaling_factor(self) -> SAE:
        """The same function of inputs that are not scaled: the scale of "expected_average_only_in" goes into weights.

        Raises:
            ConfigError: a norm of each input; matching pursuit.
        """
        return SAE.of(super().fold_input_scale())

    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> SAE:
        """The same features and reconstructions, of inputs as they are, of one that was trained on whitened ones.

        z = (x - mean) whitening_matrix is what this one reads, and x = z unwhitening_matrix + mean.

        Args:
            mean: [d_in].
            whitening_matrix, unwhitening_matrix: [d_in, d_in]; ``sae.whitening`` measures all three.

        Raises:
            ConfigError: matching pursuit, a transcoder, or one with an input norm.
            ShapeError: of another width.

        Source: arXiv:2511.13981, as SAELens 6.54 has it.
        """
        return SAE.of(super().fold_whitening(mean, whitening_matrix, unwhitening_matrix))

    def with_origin(self, origin: _C.DictionaryOrigin) -> SAE:
        """The same with another account of what it was trained on."""
        return SAE.of(super().with_origin(origin))

    def __copy__(self) -> SAE:
        return self

    def __deepcopy__(self, memo: dict) -> SAE:
        return self

    def __repr__(self) -> str:
        cfg = self.cfg
        width = f"d_in={self.d_in}" if self.d_in == self.d_out else f"d_in={self.d_in}, d_out={self.d_out}"
        parts = [repr(self.architecture), width, f"d_sae={self.d_sae}"]
        if self.k:
            parts.append(f"k={self.k:g}")
        parts.append(cfg.dtype)
        hooks = dict.fromkeys(name for name in self._hook_names if name)
        if hooks:
            parts.append(" -> ".join(hooks))
        if self.origin.model_name:
            parts.append(self.origin.model_name)
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def _hook_names(self) -> tuple[str | None, str | None]:
        inputs, outputs = self.origin.inputs, self.origin.outputs
        return (inputs[0].hook_name or None) if inputs else None, (outputs[0].hook_name or None) if outputs else None

    @property
    def _reads_heads(self) -> bool:
        return (self._hook_names[0] or "").endswith("hook_z")

    def _has_heads(self, x: torch.Tensor) -> bool:
        return (
            self._reads_heads
            and x.dim() > 1
            and x.shape[-1] != self.d_in
            and x.shape[-2] * x.shape[-1] == self.d_in == self.d_out
        )

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-2) if self._has_heads(x) else x

    def _or_zeros(self, name: str, size: int) -> torch.Tensor:
        weight = self.weight(name)
        return torch.zeros(size, dtype=self.dtype, device=self.device) if weight is None else weight


class Transcoder(SAE):
    """A dictionary that writes another point than it reads: what an MLP does, say. Arguments are SAE's."""


class Crosscoder(SAE):
    """A dictionary that reads and writes several sites side by side: layers, or models. Arguments are SAE's, with
    ``origin`` naming the sites in order (introspect.sae.DictionaryOrigin)."""

    def join(self, activations: Sequence[torch.Tensor]) -> torch.Tensor:
        """[.., d_in] of one activation [.., width] from each input site.

        Raises:
            ShapeError: not one of each site's width.
        """
        widths = [site.width for site in self.origin.inputs]
        if [one.shape[-1] for one in activations] != widths:
            raise _C.ShapeError(
                f"Crosscoder.join: activations must have widths {widths}, got {[tuple(a.shape) for a in activations]}"
            )
        return torch.cat(list(activations), -1)

    def split(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The part of y [.., d_out] that is each output site's: views [.., width]."""
        return y.split([site.width for site in self.origin.outputs], -1)

    @property
    def site_norms(self) -> torch.Tensor:
        """Length of each decoder row at each output site, [sites, d_sae], float32 or float64."""
        wide = self.W_dec if self.dtype == torch.float64 else self.W_dec.float()
        return torch.stack([part.norm(dim=-1) for part in self.split(wide)])
