"""Training LoRA adapters on examples, with directions injected into their prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import _C
from .arguments import listed, native_model
from .finetuning import FinetuneExample, encode_example
from .model import Model
from .progress import Progress, close, shown


def train_lora(
    model: Model,
    examples: Sequence[FinetuneExample],
    *,
    steps: int,
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    lr: float = 1e-3,
    lr_end: float = 0.0,
    batch_size: int = 8,
    clip: float = 1.0,
    seed: int = 0,
    start: _C.Adapter | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 50,
    memory_budget: int = 2 << 30,
    on_step: Callable[[int, float], None] | None = None,
    progress: Progress | bool | None = None,
) -> _C.Adapter:
    """A LoRA adapter (Hu et al. 2021, arXiv:2106.09685) that makes a model give the examples' answers.

    ``model.adapted(adapter)`` switches it on, and ``adapter.save(folder)`` writes it as peft does. The model's own
    weights stay as they are. The loss is the mean cross-entropy of the targets' tokens; Adam (Kingma & Ba 2015,
    arXiv:1412.6980) with a rate that falls in a line. The examples of a batch are one token tree, so that equal
    beginnings with equal injections run once; blocks below the lowest that is trained run once for all steps. Equal
    arguments and threads give the same adapter, bit for bit.

    Args:
        model: of any dtype; the adapter is float32 (float64 for a float64 model).
        examples: taken in random order, each once before any comes again; those that stand one after another with
            one injection stay together, and share its work. Directions are added while the prompt's span runs, in
            training as in experiments.
        steps: batches.
        rank, alpha: what is added to a product is alpha / rank B A x, A [rank, in] and B [out, rank]. None: 8 and 16.
        targets: the products, by the ends of their modules' names: ("q_proj", "v_proj"), "mlp.c_proj"; None: every
            product of a block.
        layers: blocks that are trained; None: all. Blocks below the lowest cost next to nothing.
        lr, lr_end: of the first step, and what the line from it comes to after the last.
        batch_size: examples in a step.
        clip: the longest gradient of all matrices together; 0: any.
        seed: of the matrices A and of the order.
        start: an adapter to go on from, whose rank, alpha, targets and layers stay as they are.
        checkpoint: a file that training is kept in every ``checkpoint_every`` steps, and goes on from if it is there
            and of the same model (``model.native.hash``), precision (``model.native.precision``) and kind of device,
            start, examples and options. Files of versions that did not keep precision and device are refused.
        memory_budget: bytes for activations, and as many for residuals of the blocks below. Batches beyond it run in
            pieces, with the same gradient.
        on_step: called with (step, loss).
        progress: called with (what, done, total). None: bars on a terminal, a line in a notebook; False: nothing.

    Raises:
        ConfigError: a target that no module is called (with the nearest names), a model whose family or weights cannot
            take an adapter, a start of another model, a checkpoint of another training, or text without a tokenizer.
        ValueError: no examples, an example with nothing to learn, a span outside its prompt, a direction that is not
            finite, rank 0, or other options out of range; a rank, alpha, targets or layers beside a start.
        ShapeError: an example longer than n_ctx, or a direction of another width.
        IndexError: a token or block that the model does not have.
        Error: a loss that is not finite: training stops before that step, and the checkpoint holds the last good one.
        IoError: a checkpoint that is damaged or cannot be written.
    """
    trainer = _trainer(
        model, examples, steps=steps, rank=rank, alpha=alpha, targets=targets, layers=layers, lr=lr, lr_end=lr_end,
        batch_size=batch_size, clip=clip, seed=seed, start=start, memory_budget=memory_budget,
    )  # fmt: skip
    if checkpoint_every < 1:
        raise ValueError(f"train_lora: checkpoint_every must be 1 or more, got {checkpoint_every}")
    path = Path(checkpoint) if checkpoint is not None else None
    if path and path.exists():
        trainer.resume(path)
    tell = shown(progress)
    saved = trainer.steps
    try:
        while trainer.steps < steps:
            done = trainer.step(progress=tell)
            if on_step:
                on_step(done.step, done.loss)
            if path and trainer.steps - saved >= checkpoint_every:
                trainer.save(path)
                saved = trainer.steps
    finally:  # a step that failed left the matrices as they were
        if path and trainer.steps > saved:
            trainer.save(path)
        close(tell)
    return trainer.adapter()


class ExampleScores(NamedTuple):
    """How a model answers examples."""

    losses: torch.Tensor
    """[n] float64: mean cross-entropy of each example's target tokens, in nats"""
    greedy: torch.Tensor
    """[n] bool: greedy decoding after the prompt gives the target"""


def score_examples(
    model: Model,
    examples: Sequence[FinetuneExample],
    *,
    memory_budget: int = 1 << 30,
    progress: Progress | bool | None = None,
) -> ExampleScores:
    """How well a model gives the examples' answers, with the directions injected as in training.

    Args:
        model: inside ``adapted`` with its adapter.
        memory_budget: bytes for activations.
        progress: called with (what, done, total). None: bars on a terminal, a line in a notebook; False: nothing.

    Raises:
        ConfigError, ValueError, ShapeError, IndexError: what ``train_lora`` refuses in examples.
        Error: logits that are not finite.
    """
    native = native_model(model, "score_examples")
    encoded = _encoded(model, examples, "score_examples")
    tell = shown(progress)
    try:
        return ExampleScores(*_C.score_examples(native, encoded, memory_budget=memory_budget, progress=tell))
    finally:
        close(tell)


def _trainer(
    model: Model,
    examples: Sequence[FinetuneExample],
    *,
    rank: int | None,
    alpha: float | None,
    targets: str | Sequence[str] | None,
    layers: int | Sequence[int] | None,
    seed: int,
    start: _C.Adapter | None,
    **options,
) -> _C.LoraTrainer:
    native = native_model(model, "train_lora")
    given = {"rank": rank, "alpha": alpha, "targets": targets, "layers": layers}
    if start is not None and any(value is not None for value in given.values()):
        name = next(name for name, value in given.items() if value is not None)
        raise ValueError(f"train_lora: start has a rank, alpha, targets and layers of its own; leave out {name}")
    if start is None:
        start = _C.Adapter.create(
            native,
            rank=8 if rank is None else rank,
            alpha=16.0 if alpha is None else alpha,
            targets=_chosen(targets, str, "targets"),
            layers=_chosen(layers, int, "layers"),
            seed=seed,
        )
    return _C.LoraTrainer(native, start, _encoded(model, examples, "train_lora"), seed=seed, **options)


def _encoded(model: Model, examples: Sequence[FinetuneExample], who: str) -> list[_C.LoraExample]:
    out = []
    for i, example in enumerate(examples):
        row = encode_example(model, example, i, who)
        added: dict[Any, torch.Tensor] = dict(row.added)
        out.append(_C.LoraExample(row.prompt, row.target, added=added, first=row.span[0], last=row.span[1]))
    return out


def _chosen(given, kind: type, name: str) -> list:
    """One, or a list that is not empty; an empty list for None, by which native functions mean all."""
    if given is None:
        return []
    chosen = [given] if isinstance(given, kind) else listed(given, name, "train_lora")
    if not chosen:
        raise ValueError(f"train_lora: {name} must hold one at least (None is all of them), got an empty list")
    return chosen
