"""Training of cross-layer transcoders, on rows of activations or on a model's own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import _C
from .cross_layer_transcoder import CrossLayerTranscoder
from .streams import ActivationFile, ActivationStream, Texts, sites
from .training import default_options, stream_of

CHECKPOINT, STREAM = "step-{}", "stream.safetensors"


class CrossLayerTrainer(_C.CrossLayerTrainer):
    """A cross-layer transcoder being trained: one squared error, of all layers' outputs together.

        trainer = introspect.sae.CrossLayerTrainer(12, 768, objective="jumprelu", sparsity_loss="tanh", d_sae=4096)
        for x, y in batches:                   # [layers, rows, d_in], [layers, rows, d_out]
            metrics = trainer.step(x, y)       # .loss .l0 (of all layers together) .explained_variance ...
        clt = trainer.transcoder()

    Gradients are worked out by hand, layer by layer. The same batches, options and threads give the same bits, also
    from a checkpoint on.

    Args:
        n_layers: how many layers read and write.
        d_in: width of what they read.
        d_out: of what they write; d_in if not given.
        origin: n_layers sites in and out, in order.
        start: weights to start from: what ``weights()`` gives.
        device: of the weights.
        **options: those of ``Trainer``: objective standard, jumprelu, topk, abstopk or batchtopk (chosen within each
            layer), d_sae of a layer, k of a row and layer, skip, input_norm "none" or "expected_average_only_in" (one
            scale for each layer), and all that belongs to these. n_i is the length of all that a feature writes.

    Raises:
        ValueError: an option out of range.
        ConfigError: an option that does not exist or is not one of these.
        ShapeError: start or sites of other shapes.

    Source: Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html.
    """

    def __init__(
        self,
        n_layers: int,
        d_in: int,
        d_out: int | None = None,
        *,
        origin: _C.DictionaryOrigin | None = None,
        start: tuple[Sequence[Mapping[str, torch.Tensor]], torch.Tensor | None, torch.Tensor | None] | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(
            json.dumps(options),
            n_layers,
            d_in,
            d_in if d_out is None else d_out,
            origin=_C.DictionaryOrigin() if origin is None else origin,
            start=None if start is None else ([dict(layer) for layer in start[0]], *start[1:]),
            device=torch.device(device),
        )

    def transcoder(self) -> CrossLayerTranscoder:
        """The transcoder as it stands, in the form that infers: BatchTopK as JumpReLU, input scales folded."""
        return CrossLayerTranscoder.of(super().transcoder())

    @classmethod
    def load(  # type: ignore[override]  # a folder is a path, never bytes
        cls, folder: str | os.PathLike, device: torch.device | str = "cpu"
    ) -> CrossLayerTrainer:
        """Go on with what ``save`` wrote: the same numbers, bit for bit on as many threads.

        Raises:
            IoError: the file is missing or damaged.
        """
        out = cls.__new__(cls)
        _C.CrossLayerTrainer.__init__(out, super().load(folder, torch.device(device)))
        return out


def train_cross_layer(
    model: Any,
    texts: Texts | ActivationFile | ActivationStream,
    *,
    d_sae: int,
    architecture: str = "jumprelu",
    k: float = 32,
    hook: str = "hook_mlp_in",
    hook_out: str = "hook_mlp_out",
    training_tokens: int = 2_000_000,
    train_batch_size_tokens: int = 1024,
    held_out_tokens: int = 2048,
    seed: int = 0,
    checkpoint_path: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
    on_step: Callable[[_C.TrainerMetrics], None] | None = None,
    streaming: Mapping[str, Any] | None = None,
    **options: Any,
) -> CrossLayerTranscoder:
    """Train a cross-layer transcoder of all blocks of a model on its activations over texts.

        clt = introspect.CrossLayerTranscoder.train(model, [Path("corpus.jsonl")], d_sae=2048, k=16)

    Args:
        model: an introspect.Model.
        texts: see ``streams.token_stream``; or an ActivationFile or ActivationStream of all blocks' ``hook`` and
            ``hook_out``.
        d_sae: features of a layer.
        architecture: "jumprelu", "topk", "batchtopk", "abstopk" or "standard".
        k: features of a row and layer; of jumprelu the L0 of a layer that it is drawn to.
        hook: where each block is read: hook_mlp_in, hook_resid_mid, ln2.hook_normalized or mlp.hook_in.
        hook_out: where each block is written.
        training_tokens, train_batch_size_tokens: rows of the training, and of a step.
        held_out_tokens: rows at the beginning, on which lengths are measured and nothing is trained.
        checkpoint_path: a folder, from which a killed training goes on with ``resume``, to the same numbers: on
            activations of the same model, precision and kind of device; see ``train_many``.
        on_step: called with each step's TrainerMetrics.
        streaming: of ``train_many``: context_size, exclude_special_tokens, dtype and so on.
        **options: of ``CrossLayerTrainer``, in place of ``default_options``.

    Raises:
        HookError: a hook that the model does not have.
        ConfigError, ValueError: as CrossLayerTrainer; texts that end before the training.
        IoError: a checkpoint where resume is false, one that is damaged, or one on other activations.
        Error: a loss that is not finite, or all features dead.
    """
    steps = training_tokens // train_batch_size_tokens
    if steps < 1:
        raise ValueError(
            f"train_cross_layer: training_tokens must fill a batch of {train_batch_size_tokens}, got {training_tokens}"
        )
    n_layers = model.cfg.n_layers
    reads, writes = ([f"blocks.{i}.{point}" for i in range(n_layers)] for point in (hook, hook_out))
    stream, known = stream_of(
        model,
        texts,
        sites([*reads, *writes]),
        train_batch_size_tokens=train_batch_size_tokens,
        seed=seed,
        **dict(streaming or {}),
    )
    places = {name: i for i, (name, _) in enumerate(stream.sites)}
    missing = [name for name in (*reads, *writes) if name not in places]
    if missing:
        raise _C.ConfigError(f"train_cross_layer: the activations must have all blocks' hooks; they lack {missing[0]}")
    d_in, d_out = stream.widths[places[reads[0]]], stream.widths[places[writes[0]]]
    names = ("model_name", "model_hash", "context_size", "prepend_bos")
    origin = _C.DictionaryOrigin(
        inputs=[_C.DictionarySite(name, d_in) for name in reads],
        outputs=[_C.DictionarySite(name, d_out) for name in writes],
        **{name: known[name] for name in names if name in known},
    )
    asked = default_options(architecture, d_in, d_sae, steps, k) | {"seed": seed} | options
    trainer = CrossLayerTrainer(n_layers, d_in, d_out, origin=origin, **asked)

    def rows(batch: list[torch.Tensor], of: list[str]) -> torch.Tensor:
        return torch.stack([batch[places[name]] for name in of])

    folder = None if checkpoint_path is None else Path(checkpoint_path)
    found = None if folder is None else _latest(folder)
    if found is not None:
        if not resume:
            raise _C.IoError(f"train_cross_layer: {folder}: holds a checkpoint; resume goes on from it")
        stream.check_state(found / STREAM)
        loaded = CrossLayerTrainer.load(found)
        if loaded.options != trainer.options or any(
            getattr(loaded.origin, which) != getattr(origin, which) for which in ("inputs", "outputs")
        ):
            raise _C.ConfigError(f"train_cross_layer: {found}: must have the options and sites that are asked for")
        trainer = loaded
    held_out = stream.hold_out(held_out_tokens)
    if found is not None:
        stream.restore(found / STREAM)
    elif held_out:
        trainer.measure(rows(held_out, reads), rows(held_out, writes))
    while trainer.steps < steps:
        batch = stream.next_batch()
        if not batch:
            raise ValueError(
                f"train_cross_layer: the stream must have {steps} batches, and ended after {trainer.steps}"
            )
        metrics = trainer.step(rows(batch, reads), rows(batch, writes))
        if on_step is not None:
            on_step(metrics)
        if folder is not None and (trainer.steps % checkpoint_every == 0 or trainer.steps == steps):
            _keep(trainer, stream, folder)
    return trainer.transcoder()


def _latest(folder: Path) -> Path | None:
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return max(steps, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _keep(trainer: CrossLayerTrainer, stream: ActivationStream, folder: Path) -> None:
    """A checkpoint that appears whole or not at all; those before it go once it is there."""
    target = folder / CHECKPOINT.format(trainer.steps)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        trainer.save(partial)
        stream.save(partial / STREAM)
        os.replace(partial, target)
    except OSError as error:
        raise _C.IoError(f"train_cross_layer: {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
