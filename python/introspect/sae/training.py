"""From texts to trained dictionaries: ``SAE.train``, and several dictionaries on one stream."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .dictionary import SAE
from .streams import (
    ActivationFile,
    ActivationStream,
    Hooks,
    Texts,
    models_of,
    origin_notes,
    sites,
    source_options,
    token_stream,
)

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

TrainingRecord = _C.TrainingRecord

PACKING = frozenset(token_stream.__kwdefaults__ or ()) - {"repeat"}  # options of how texts are packed
GAO_LR, GAO_WIDTH = 2e-4, 2**14  # 2406.04093: lr falls with the root of the width


@dataclass(frozen=True)
class Training:
    """Trained dictionaries and how they came about.

    Attributes:
        dictionaries: in the order in which they were asked for.
        records: TrainingRecord, every few steps; those with ``held_out`` are evaluations.
        names: of the dictionaries, for tables.
    """

    dictionaries: list[SAE]
    records: list[TrainingRecord]
    names: list[str]

    def to_pandas(self) -> pandas.DataFrame:
        """One line a dictionary and record: figures of the batch, and held_out_* where there was an evaluation."""
        import pandas as pd

        rows = []
        for record in self.records:
            for i, name in enumerate(self.names):
                row: dict[str, Any] = {"dictionary": name, "steps": record.step, "tokens": record.rows}
                if record.trained:
                    row |= {k: v for k, v in record.trained[i].to_dict().items() if k not in ("step", "rows")}
                if record.held_out:
                    row |= {f"held_out_{k}": v for k, v in record.held_out[i].items()}
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, figure: str = "explained_variance") -> matplotlib.figure.Figure:
        """A held-out figure against tokens, a line a dictionary."""
        import matplotlib.pyplot as plt

        picture, axes = plt.subplots(layout="constrained")
        for i, name in enumerate(self.names):
            seen = [r for r in self.records if r.held_out and figure in r.held_out[i]]
            axes.plot([r.rows for r in seen], [r.held_out[i][figure] for r in seen], marker=".", label=name)
        axes.set_xlabel("tokens")
        axes.set_ylabel(f"{figure.replace('_', ' ')} on held-out tokens")
        axes.legend()
        return picture

    def __repr__(self) -> str:
        last = next((r for r in reversed(self.records) if r.held_out), None)
        of = "" if last is None else ", " + "; ".join(_figures(h) for h in last.held_out)
        return f"Training({', '.join(self.names)}{of})"


def _figures(held_out: Mapping[str, float]) -> str:
    return f"explained variance {held_out.get('explained_variance', float('nan')):.3f}, L0 {held_out.get('l0', 0):.1f}"


def default_options(architecture: str, d_in: int, d_sae: int, steps: int, k: float) -> dict[str, Any]:
    """Trainer options that work without tuning: inputs of length sqrt(d_in) on average, lr by width, unit decoder rows.

    Args:
        architecture: an objective of ``Trainer``.
        d_in: width of the rows.
        d_sae: features.
        steps: of the training.
        k: features of a row; of jumprelu and the others with a penalty the L0 that is aimed at, where they can.
    """
    out: dict[str, Any] = {
        "objective": architecture,
        "d_sae": d_sae,
        "input_norm": "expected_average_only_in",
        "b_dec_start": "mean",
        "lr": GAO_LR * (GAO_WIDTH / d_sae) ** 0.5,
        "warm_up_steps": min(1000, steps // 20),
        "decay_steps": steps // 5,
        "total_steps": steps,
        "dead_window": max(20, min(1000, steps // 10)),
    }
    if architecture in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk"):
        chosen = {"k": k, "decoder_norm": 1.0, "unit_decoder": True, "rank_by_decoder_norm": False}
        aux = {"aux": "normalised", "aux_coefficient": 1 / 32}
        widths = {}
        if architecture == "matryoshka_batchtopk":
            widths = {"matryoshka_widths": sorted({max(1, d_sae // n) for n in (16, 8, 4, 2)})}
        return out | chosen | aux | widths
    if architecture == "jumprelu":
        return out | {
            "sparsity_loss": "quadratic",
            "target_l0": k,
            "sparsity_warm_up_steps": steps // 4,
            "decoder_norm": 1.0,
            "bandwidth": 0.5,
            # About where some k pre-activations are above it: they are normal, and half as wide as without b_dec.
            "init_threshold": max(0.1, NormalDist(0, 0.5).inv_cdf(1 - min(k / d_sae, 0.5))),
        }
    if architecture == "matching_pursuit":
        return out | {"k": k}
    return out | {"l1_coefficient": 5.0, "sparsity_warm_up_steps": steps // 4}


def train(
    model: Any,
    texts: Texts | ActivationFile | ActivationStream,
    *,
    hook: str | Sequence[str],
    architecture: str = "topk",
    d_sae: int | None = None,
    k: float = 32,
    **options: Any,
) -> SAE:
    """Train a sparse autoencoder, a transcoder or a crosscoder on a model's activations over texts.

        sae = introspect.SAE.train(model, [Path("corpus.jsonl")], hook="blocks.15.hook_resid_post", d_sae=4608, k=32)

    Args:
        model: an introspect.Model; None with activations of a file or stream.
        texts: see ``streams.token_stream``; or an ActivationFile (``streams.write_activations``), or an
            ActivationStream.
        hook: where it reads; several hooks, side by side, make a crosscoder.
        architecture: "topk", "batchtopk", "jumprelu", "standard", "gated", "abstopk", "matryoshka_batchtopk",
            "p_anneal" or "matching_pursuit".
        d_sae: features; None: eight times the width.
        k: features of a row; of jumprelu the L0 that it is drawn to.
        **options: those of ``train_many``, and those of ``Trainer``, which stand in place of ``default_options``;
            ``hook_out`` is where a transcoder writes.

    Returns:
        The trained dictionary, in the form that infers.

    Raises:
        As train_many.
    """
    mine = {"hook": hook, "architecture": architecture, "d_sae": d_sae, "k": k}
    shared = {name: options.pop(name) for name in list(options) if name in _SHARED}
    return train_many(model, texts, [mine | options], **shared).dictionaries[0]


def train_many(
    model: Any,
    texts: Texts | ActivationFile | ActivationStream,
    dictionaries: Sequence[Mapping[str, Any]],
    *,
    training_tokens: int = 2_000_000,
    train_batch_size_tokens: int = 4096,
    exclude_special_tokens: bool | Sequence[int] = True,
    max_norm_multiple: float | None = 10.0,
    seqpos_slice: tuple[int | None, ...] = (None,),
    buffer_tokens: int | None = None,
    activations_mixing_fraction: float = 0.5,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    held_out_tokens: int | None = None,
    evaluate_every: int | None = None,
    record_every: int = 10,
    evaluate: Callable[[SAE], Mapping[str, float]] | None = None,
    on_record: Callable[[TrainingRecord], None] | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    memory_budget: int = 1 << 30,
    progress: Any = None,
    **packing: Any,
) -> Training:
    """Train several dictionaries on one stream of activations: one pass of the model for all of them.

    Texts are read again from their beginning when they are at their end. Rows of special tokens and of attention sinks
    are left out, because their norms, hundreds of times those of others, would be all that is learned.

    Args:
        model: an introspect.Model (several of one vocabulary for crosscoders between them); None with activations.
        texts: see ``train``.
        dictionaries: {"hook", "d_sae", "architecture", "k", "hook_out", and Trainer's options} each; with
            "defaults": False these have Trainer's own defaults, SAELens's, and not those of ``default_options``.
        training_tokens: rows of training, over as many passes as they need.
        train_batch_size_tokens: rows of a step.
        exclude_special_tokens, max_norm_multiple, seqpos_slice: see ``streams.write_activations``; for a file, what it
            was written with holds.
        buffer_tokens: rows that are mixed; None: 16 batches. Its memory is their width times four bytes each.
        activations_mixing_fraction: share of the buffer that stays when it is served; 0: rows in order.
        dtype: of rows; None: float32, or float64 of a float64 model.
        seed: of first weights and mixing.
        held_out_tokens: rows at the beginning that are only evaluated on; None: a tenth, at most 8,192.
        evaluate_every, checkpoint_every: steps; None: a twentieth of the training.
        record_every: steps between records.
        evaluate: called with each dictionary at each evaluation; returns more figures by name.
        on_record: called with each TrainingRecord.
        checkpoint_path: a folder, from which a killed training goes on with ``resume``, to the same numbers.
        resume: go on from the checkpoint, if there is one: on the same texts, or the same rows of a file, read by the
            same model (``model.native.hash``) in the same precision (``model.native.precision``) on the same kind of
            device, with the same options and as many rows held out. Checkpoints of versions that did not keep this are
            refused.
        memory_budget: bytes of one pass's activations.
        progress: called with (what, done, total).
        packing: context_size, prepend_bos, sequence_separator_token, disable_concat_sequences, is_dataset_tokenized: of
            ``streams.token_stream``; activations that are there already are packed as they were.

    Returns:
        Training: .dictionaries, .records, .to_pandas(), .plot().

    Raises:
        HookError: a hook that the model does not have.
        ShapeError: contexts longer than the model's.
        ConfigError: an option that does not exist, or options that do not fit one another or a checkpoint.
        ValueError: options out of range; texts that fill no context, or no more than is held out.
        IoError: files that cannot be read or written; a checkpoint where resume is false, or on other activations.
        Error: a loss that is not finite, or all features dead; it names the last good checkpoint.
    """
    steps = training_tokens // train_batch_size_tokens
    if steps < 1:
        raise ValueError(
            f"train: training_tokens must fill a batch of {train_batch_size_tokens}, got {training_tokens}"
        )
    if not dictionaries:
        raise ValueError("train: at least one dictionary is needed, got none")
    wanted = [_Wanted.of(dictionary) for dictionary in dictionaries]
    every = sites([site for one in wanted for site in (*one.inputs, *one.outputs)])
    stream, origin = stream_of(
        model,
        texts,
        every,
        train_batch_size_tokens=train_batch_size_tokens,
        exclude_special_tokens=exclude_special_tokens,
        max_norm_multiple=max_norm_multiple,
        seqpos_slice=seqpos_slice,
        buffer_tokens=buffer_tokens,
        activations_mixing_fraction=activations_mixing_fraction,
        dtype=dtype,
        seed=seed,
        memory_budget=memory_budget,
        **packing,
    )
    widths = dict(zip(stream.sites, stream.widths, strict=True))
    evaluations = max(1, steps // 20)
    trained, records = _C.train_dictionaries(
        stream,
        [one.native(widths, steps, seed) for one in wanted],
        **{
            name: origin[name] for name in ("model_name", "model_hash", "context_size", "prepend_bos") if name in origin
        },
        notes=json.dumps(
            {
                "training_tokens": training_tokens,
                "train_batch_size_tokens": train_batch_size_tokens,
                "exclude_special_tokens": exclude_special_tokens,
                "max_norm_multiple": max_norm_multiple,
            }
        ),
        steps=steps,
        held_out_rows=min(8192, training_tokens // 10) if held_out_tokens is None else held_out_tokens,
        evaluate_every=evaluations if evaluate_every is None else evaluate_every,
        record_every=record_every,
        folder="" if checkpoint_path is None else Path(checkpoint_path),
        checkpoint_every=evaluations if checkpoint_every is None else checkpoint_every,
        resume=resume,
        on_record=on_record,
        evaluate=None if evaluate is None else lambda _, dictionary: dict(evaluate(SAE.of(dictionary))),
        progress=progress,
    )
    return Training([SAE.of(dictionary) for dictionary in trained], records, _names(wanted))


def stream_of(
    model: Any,
    texts: Texts | ActivationFile | ActivationStream,
    every: list[tuple[str, int]],
    *,
    train_batch_size_tokens: int,
    exclude_special_tokens: bool | Sequence[int] = True,
    max_norm_multiple: float | None = 10.0,
    seqpos_slice: tuple[int | None, ...] = (None,),
    buffer_tokens: int | None = None,
    activations_mixing_fraction: float = 0.5,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    memory_budget: int = 1 << 30,
    **packing: Any,
) -> tuple[ActivationStream, dict[str, Any]]:
    """Batches of activations at sites ``every``, and what is known of where they come from; see ``train_many``."""
    if unknown := packing.keys() - PACKING:
        raise TypeError(f"train: there is no option {', '.join(sorted(unknown))}")
    mixing: dict[str, Any] = {
        "batch_rows": train_batch_size_tokens,
        "buffer_rows": 16 * train_batch_size_tokens if buffer_tokens is None else buffer_tokens,
        "mixing": activations_mixing_fraction,
        "seed": seed,
    }
    if isinstance(texts, ActivationStream):
        return texts, {}
    if isinstance(texts, ActivationFile):
        return ActivationStream.of_file(texts, repeat=True, **mixing), json.loads(texts.notes)
    models = models_of(model)
    tokens = token_stream(models[0], texts, repeat=True, **packing)
    read = source_options(models[0], exclude_special_tokens, max_norm_multiple, seqpos_slice, dtype, memory_budget)
    stream = ActivationStream.of_model(models, tokens, every, **read, **mixing)
    return stream, json.loads(origin_notes(models[0], tokens))


_SHARED = PACKING.union(train_many.__kwdefaults__ or ())


@dataclass(frozen=True)
class _Wanted:
    """One dictionary as it was asked for."""

    inputs: list[tuple[str, int]]
    outputs: list[tuple[str, int]]
    architecture: str
    d_sae: int | None
    k: float
    tuned: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> _Wanted:
        options = dict(asked)
        hook = options.pop("hook", None)
        if hook is None:
            raise TypeError('train: a dictionary needs "hook", the name of the place that it reads')
        out: Hooks | None = options.pop("hook_out", None)
        return cls(
            sites(hook),
            [] if out is None else sites(out),
            options.pop("architecture", "topk"),
            options.pop("d_sae", None),
            options.pop("k", 32),
            options.pop("defaults", True),
            options,
        )

    def native(self, widths: Mapping[tuple[str, int], int], steps: int, seed: int) -> tuple[str, list, list]:
        d_in = sum(widths[site] for site in self.inputs if site in widths)
        d_sae = 8 * d_in if self.d_sae is None else self.d_sae
        options: dict[str, Any] = {"objective": self.architecture, "d_sae": d_sae, "k": self.k, "total_steps": steps}
        if self.tuned:
            options = default_options(self.architecture, d_in, d_sae, steps, self.k)
        options["seed"] = seed
        if self.outputs:
            options |= {"transcodes": True, "subtract_b_dec": False}
        return json.dumps(options | self.options), self.inputs, self.outputs


def _names(wanted: Sequence[_Wanted]) -> list[str]:
    """What tells dictionaries apart in a table."""
    names = [f"{one.architecture} {one.k:g} at {'+'.join(hook for hook, _ in one.inputs)}" for one in wanted]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
