"""TransformerLens's helpers for files, devices, attributes and defaults."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .. import _C


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str = ".",
    cache_dir: str | None = None,
    force_is_torch: bool = False,
    **kwargs: Any,
) -> Any:
    """A file of a Hugging Face repository: what a .json holds, the tensors of a .pth, else the file's local path.

    Args:
        repo_name: "owner/name".
        subfolder: where in the repository.
        cache_dir: None is huggingface_hub's own.
        force_is_torch: the file holds tensors, whatever its name. Nothing but tensors is unpickled.
        kwargs: those of ``huggingface_hub.hf_hub_download`` that it takes; others are passed over.

    Raises:
        ConfigError: huggingface_hub is not installed.
        IoError: the file could not be fetched or read.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise _C.ConfigError(
            "download_file_from_hf: this needs huggingface_hub: pip install huggingface_hub"
        ) from error
    options = select_compatible_kwargs(kwargs, hf_hub_download)
    where = None if subfolder == "." else subfolder
    try:
        path = hf_hub_download(repo_id=repo_name, filename=file_name, subfolder=where, cache_dir=cache_dir, **options)
        if path.endswith(".pth") or force_is_torch:
            return torch.load(path, map_location="cpu", weights_only=True)
        if path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                return json.load(file)
    except Exception as error:  # whatever the hub's client raises without a network, or a damaged file
        raise _C.IoError(f"download_file_from_hf: {repo_name}/{file_name}: {error}") from error
    return path


def select_compatible_kwargs(kwargs_dict: Mapping[str, Any], callable: Callable) -> dict[str, Any]:
    """Those arguments by name that a function takes."""
    parameters = inspect.signature(callable).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(kwargs_dict)
    named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in kwargs_dict.items() if name in named}


def get_device() -> torch.device:
    """The device models are loaded to unless told otherwise: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def print_gpu_mem(step_name: str = "") -> None:
    """Prints how much of the GPU's memory torch has taken, in GiB; 0 without a GPU."""
    taken = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print(f"{step_name} ~ {taken / 2**30:.2f} GiB allocated on GPU.")


def is_library_available(name: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def filter_dict_by_prefix(dictionary: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with "prefix.", without it."""
    start = prefix if prefix.endswith(".") else prefix + "."
    return {name.removeprefix(start): value for name, value in dictionary.items() if name.startswith(start)}


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """``obj.a.b`` for "a.b"."""
    for name in attr_str.split("."):
        obj = getattr(obj, name)
    return obj


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Sets ``obj.a.b`` for "a.b"."""
    *outer, last = attr_str.split(".")
    for name in outer:
        obj = getattr(obj, name)
    setattr(obj, last, value)


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """The second if it is given, else the first."""
    return default_flag if override is None else override


@contextlib.contextmanager
def LocallyOverridenDefaults(model: Any, **overrides: Any) -> Iterator[None]:
    """Other defaults of a model inside a ``with`` block: ``prepend_bos`` and ``padding_side``; None changes nothing.

    Raises:
        ValueError: another default, or a value that it does not take.
    """
    places = {"prepend_bos": (model.cfg, "default_prepend_bos"), "padding_side": (model.tokenizer, "padding_side")}
    values: dict[str, tuple] = {"prepend_bos": (True, False), "padding_side": ("left", "right")}
    for name, value in overrides.items():
        if name not in places or value not in (None, *values[name]):
            raise ValueError(
                "LocallyOverridenDefaults: prepend_bos (True, False) and padding_side ('left', 'right') can be set, "
                f"got {name}={value!r}"
            )
    chosen = [(*places[name], value) for name, value in overrides.items() if value is not None]
    chosen = [(owner, attribute, value) for owner, attribute, value in chosen if owner is not None]
    before = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in chosen]
    try:
        for owner, attribute, value in chosen:
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)


def check_structure(t1: torch.Tensor, t2: torch.Tensor, *, verbose: bool = False) -> None:
    """Prints whether neighbouring rows, and neighbouring columns, of two matrices compare the same way.

    Raises:
        ShapeError: not two matrices of one shape.
    """
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise _C.ShapeError(f"check_structure: two matrices of one shape are required, got {t1.shape} and {t2.shape}")
    unlike = {}
    for what, a, b in (("row", t1, t2), ("column", t1.T, t2.T)):
        same = ((a[:-1] >= a[1:]) == (b[:-1] >= b[1:])).all(dim=1)
        unlike[what] = (~same).nonzero().flatten().tolist()
        if verbose:
            for place in unlike[what]:
                print(f"{what}s {place} and {place + 1}: {a[place] >= a[place + 1]} against {b[place] >= b[place + 1]}")
    named = [f"{what} mismatch: {places}" for what, places in unlike.items() if places]
    print("; ".join(named) if named else "PASSED")
