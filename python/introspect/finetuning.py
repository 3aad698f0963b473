"""Training a copy of a model: on texts, and on answers that it should give while a direction is injected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from . import _C
from .arguments import listed, native_model
from .model import Model
from .progress import Progress, close, shown

IGNORED = -100  # cross_entropy's label for a position without a target


@dataclass(frozen=True)
class FinetuneExample:
    """What a model is trained to say.

    Attributes:
        prompt: text or token ids. Text is encoded as it is, without special tokens: chat templates write them.
        target: what is to follow. With an empty prompt, its first token is given and the rest is learned.
        added: {block: direction [d_model]}, added to the block's output while the prompt runs.
        span: [first, last) tokens of the prompt that they are added to; None for the last is the prompt's end.
    """

    prompt: str | Sequence[int]
    target: str | Sequence[int]
    added: Mapping[int, torch.Tensor] = field(default_factory=dict)
    span: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class EncodedExample:
    """An example as token ids; without a prompt, the target's first token is given and not learned."""

    prompt: list[int]
    target: list[int]
    added: Mapping[int, torch.Tensor]
    span: tuple[int, int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.target

    @property
    def n_targets(self) -> int:
        return len(self.target) - (not self.prompt)


def finetune(
    model: Model,
    examples: Sequence[FinetuneExample],
    *,
    steps: int,
    lr: float = 1e-4,
    batch_size: int = 8,
    weights: Callable[[str], bool] | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    progress: Progress | bool | None = None,
) -> Model:
    """A model after a few optimiser steps on examples; the one given stays as it is.

    The loss is the mean cross-entropy of the targets' tokens. Adam (Kingma & Ba 2015, arXiv:1412.6980) with a rate that
    falls linearly to zero and gradients clipped to a norm of 1. The same seed and threads give the same model.

    Args:
        model: in float32 or float64: smaller types would round the steps away.
        examples: taken in random order, each once before any comes again.
        steps: batches.
        lr: of the first step.
        weights: which of ``model.native.named_weights()`` are trained, by name; None is all. The others are shared
            with ``model``.
        seed: of the order.
        on_step: called with (step, loss).
        progress: called with (what, done, total), counted in steps. None: bars on a terminal, a line in a notebook;
            False: nothing.

    Raises:
        ConfigError: a model of another dtype, without a tokenizer for examples that are text, or with weights among
            those chosen that stay in quantised blocks.
        ValueError: no examples, steps or weights, an example with nothing to learn, or a span outside its prompt.
        ShapeError: an example longer than n_ctx, or a direction of another width.
        IndexError: a token or block that the model does not have.
    """
    native_model(model, "finetune")
    if model.dtype not in (torch.float32, torch.float64):
        raise _C.ConfigError(f"finetune: the model must be float32 or float64, got {model.dtype}")
    if not model.native.keeps_blocks:
        raise _C.ConfigError("finetune: the model's blocks stay in the files; load it with keep_blocks=True")
    if not examples or steps < 1 or batch_size < 1:
        raise ValueError(
            f"finetune: examples, steps and batch_size must be 1 or more, got {len(examples)}, {steps} and {batch_size}"
        )
    rows = [encode_example(model, example, i, "finetune") for i, example in enumerate(examples)]
    blocks = [name for name in model.native.quantised_weights() if weights is None or weights(name)]
    if blocks:
        raise _C.ConfigError(
            f"finetune: {len(blocks)} of the weights chosen are held in quantised blocks ({blocks[0]}), which cannot "
            "be trained: load the model with weights='dense', or train an adapter (train_lora)"
        )
    trained = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in model.native.named_weights(skip_quantised=True)
        if weights is None or weights(name)
    }
    if not trained:
        raise ValueError("finetune: no weight was chosen; model.native.named_weights() lists them")
    engine = model.native.with_weights(trained)
    optimizer = torch.optim.Adam(trained.values(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = torch.Generator().manual_seed(seed)
    order: list[int] = []
    tell = shown(progress)
    with torch.enable_grad():
        for step in range(steps):
            while len(order) < batch_size:
                order += torch.randperm(len(rows), generator=rng).tolist()
            batch, order = order[:batch_size], order[batch_size:]
            loss = _loss(engine, [rows[i] for i in batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            schedule.step()
            if on_step:
                on_step(step, loss.item())
            if tell:
                tell("finetune", step + 1, steps)
    close(tell)
    finished = {name: weight.detach() for name, weight in trained.items()}
    return Model(model.native.with_weights(finished), name=f"{model.name}, finetuned")


def encode_example(model: Model, example: FinetuneExample, i: int, who: str) -> EncodedExample:
    """An example in a model's tokens; ``i`` is its number and ``who`` the function that was called, for messages.

    Raises:
        TypeError: something else than an example.
        ConfigError: text for a model without a tokenizer.
        ValueError: nothing to learn, or a span outside the prompt.
        ShapeError: more tokens than n_ctx, or a direction of another width.
    """

    def ids(text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            return model.native.tokenizer.encode(text, add_special_tokens=False)
        return listed(text, f"examples[{i}] (text, or token ids)", who)

    if not isinstance(example, FinetuneExample):
        raise TypeError(f"{who}: examples[{i}] must be a FinetuneExample, got {type(example).__name__}")
    prompt, target = ids(example.prompt), ids(example.target)
    if len(target) - (not prompt) < 1:
        raise ValueError(f"{who}: examples[{i}] has no token to learn")
    if len(prompt) + len(target) > model.cfg.n_ctx:
        raise _C.ShapeError(
            f"{who}: examples[{i}] must fit into {model.cfg.n_ctx} positions, got {len(prompt) + len(target)}"
        )
    first, last = example.span
    last = len(prompt) if last is None else last
    if example.added and not 0 <= first < last <= len(prompt):
        raise ValueError(
            f"{who}: the span of examples[{i}] must lie in its prompt of {len(prompt)} tokens, got {example.span}"
        )
    for layer, direction in example.added.items():
        if direction.shape != (model.cfg.d_model,):
            raise _C.ShapeError(
                f"{who}: the direction of block {layer} of examples[{i}] must be [{model.cfg.d_model}], "
                f"got {list(direction.shape)}"
            )
    return EncodedExample(prompt, target, example.added, (first, last))


def _loss(engine: _C.Model, rows: Sequence[EncodedExample]) -> torch.Tensor:
    """Mean cross-entropy of the rows' targets; rows are padded on the left, so that targets end together."""
    length = max(len(row.ids) for row in rows)
    n_read = max(row.n_targets for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    labels = torch.full((len(rows), n_read), IGNORED)
    added = {
        layer: torch.zeros(len(rows), length, engine.cfg.d_model, dtype=engine.dtype)
        for row in rows
        for layer in row.added
    }
    for b, row in enumerate(rows):
        padding = length - len(row.ids)
        tokens[b, padding:] = torch.tensor(row.ids)
        real[b, padding:] = True
        labels[b, n_read - row.n_targets :] = tokens[b, length - row.n_targets :]
        first, last = (padding + position for position in row.span)
        for layer, direction in row.added.items():
            added[layer][b, first:last] = direction.detach().to("cpu", engine.dtype)
    hooks = engine.make_hooks()
    if added:
        hooks.add_intervention(_C.Intervention({layer: x.to(engine.device) for layer, x in added.items()}))
    logits = engine.forward(
        tokens,
        hooks=hooks,
        attention_mask=None if real.all() else real,
        logits_at="positions",
        positions=torch.arange(length - 1 - n_read, length - 1),
    )
    assert logits is not None  # None is for logits_at="none"
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten().to(logits.device), ignore_index=IGNORED
    )
