"""Activations of texts, read on the workers of a Ray cluster into one folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import _C
from ..progress import close, shown
from ..ray_cluster import RayWorkers, pool

TASK_BYTES = 16 << 20
"""Of rows that a worker sends together, about."""


def write(
    model: Any,
    stream: _C.TokenStream,
    sites: list[tuple[str, int]],
    path: Path,
    given: RayWorkers | str,
    *,
    rows: int,
    resume: bool,
    notes: str,
    progress: Any,
    **options: Any,
) -> _C.ActivationFile:
    """``streams.write_activations`` on workers: the same passes, thus the same bytes.

    The driver packs the texts and writes; a worker is sent the contexts of whole passes. What is missing after the
    driver was killed is only what no worker had sent yet, or the last commit (a minute or 32,768 rows).

    Args:
        options: of ``source_options``.

    Raises:
        ConfigError: several models, or workers load another one.
        Exception: as ``streams.write_activations``, and what a worker has raised, of its type.
    """
    if isinstance(model, list | tuple):
        if len(model) != 1:
            raise _C.ConfigError(f"write_activations: ray= needs one model, which workers hold, got {len(model)}")
        model = model[0]
    started, widths = _C.activation_source([model.native], stream, sites, **options)
    writer = _C.ActivationWriter(path, sites, widths, options["dtype"], started, rows=rows, resume=resume, notes=notes)
    if writer.is_full:
        return writer.finish()
    at = json.loads(writer.source_state)
    per_pass = at["contexts_per_pass"]
    if type(per_pass) is not int or not 1 <= per_pass < 1 << 63:
        raise _C.IoError(f"write_activations: {path}: contexts_per_pass must be 1 or more, got {per_pass!r:.50}")
    pass_bytes = per_pass * stream.context * sum(widths) * options["dtype"].itemsize
    contexts_per_task = per_pass * max(1, TASK_BYTES // pass_bytes)
    states: list[str] = []  # after each task

    def tasks() -> Iterator[Callable[[], tuple]]:
        while len(contexts := stream.next(contexts_per_task)) > 0:
            states.append(json.dumps({**at, "tokens": stream.state()}))
            yield partial(tuple, [contexts, sites, {**options, "contexts_per_pass": per_pass}])

    before, show = stream.state(), shown(progress)
    try:
        stream.restore(at["tokens"])
        with pool("write_activations", given, model) as workers:
            for n, read in workers.results(read_rows, tasks(), in_order=True):
                writer.write(read, states[n])
                if show:
                    show("activations", writer.rows, rows)
                if writer.is_full:
                    break
        return writer.finish()
    except BaseException:
        writer.commit()
        raise
    finally:
        stream.restore(before)
        close(show)


def read_rows(
    model: Any, contexts: torch.Tensor, sites: list[tuple[str, int]], options: dict[str, Any]
) -> list[torch.Tensor]:
    """In a worker: the rows [N, width] of contexts [n, context] at each site."""
    tokens = _C.TokenStream.of_tokens(contexts.tolist(), context=contexts.shape[1], packed=True)
    with tempfile.TemporaryDirectory() as folder:
        file = _C.write_activations([model.native], tokens, sites, Path(folder) / "rows", **options)
        return [file.read(site, 0, file.rows).clone() for site in range(len(sites))]
