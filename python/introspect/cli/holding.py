"""How a command holds the weights of the model that it loads: --weights and --keep-blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Annotated, Any

import typer


class Weights(str, Enum):
    """As ``load_model`` has them, in one word each."""

    dense = "dense"
    as_stored = "as-stored"


_OPTIONS: dict[str, Any] = {
    "weights": Annotated[
        Weights | None,
        typer.Option(
            "--weights",
            help="Of a .gguf file: dense, or as-stored in its quantised blocks, which take no more memory than the "
            "file. Left out: as-stored where dense ones would take 8 GiB or more.",
        ),
    ],
    "keep_blocks": Annotated[
        bool | None,
        typer.Option(
            "--keep-blocks/--no-keep-blocks",
            help="Blocks in memory, or read from the files in each pass. Left out: in memory if they fit.",
        ),
    ],
}
_chosen: ContextVar[Mapping[str, Any]] = ContextVar("_chosen")


def add_options(run: Callable[..., None], command: Callable[..., None], of_models: Any) -> None:
    """Give ``run`` the parameters of ``command`` and, where one of these is ``of_models``, the options."""
    signature = inspect.signature(command, eval_str=True)
    if any(parameter.annotation == of_models for parameter in signature.parameters.values()):
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in _OPTIONS.items()
        ]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer reads
            parameters=[*signature.parameters.values(), *added]
        )


@contextmanager
def taken_from(options: dict[str, Any]) -> Iterator[None]:
    """Take the options out of a command's; meanwhile ``chosen`` tells them."""
    token = _chosen.set({name: options.pop(name) for name in _OPTIONS if name in options})
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> dict[str, Any]:
    """Arguments of ``load_model``: those of the command that runs."""
    held = dict(_chosen.get({}))
    if held.get("weights"):
        held["weights"] = held["weights"].value.replace("-", " ")
    return held
