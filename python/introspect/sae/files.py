"""Dictionaries from files of any format, from the hub by SAELens's names, and back into files.

What is read is native; ``introspect.SAE.load`` and its like make an SAE, Transcoder or Crosscoder of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .. import _C
from ..hub.dictionaries import find_release, pull_dictionary

FORMATS = ("saelens", "circuit_tracer")


def formats() -> dict[str, str]:
    """Formats that are read, and what a file or folder of each holds."""
    return dict(one.split(": ", 1) for one in _C.dictionary_formats())


def load(
    path: str | os.PathLike,
    *,
    format: str = "",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    layer: int | None = None,
    k: int | None = None,
    input_scale: float | None = None,
    origin: _C.DictionaryOrigin | None = None,
) -> _C.Dictionary:
    """Read a dictionary from its file or folder. Nothing in it is executed.

    Args:
        path: what one of ``formats()`` says.
        format: its name; found out if not given.
        dtype: that of the stored decoder if not given.
        layer: of a folder with a file for each layer.
        k: of top-k files that do not say it.
        input_scale: of files whose inputs were scaled by a number that they do not say.
        origin: stands where the file says nothing.

    Raises:
        IoError: a file is missing or damaged, or its tensors fit no dictionary.
        ConfigError: an unknown format, architecture or activation, or a number that is missing.
    """
    return _C.load_dictionary(
        os.fspath(path),
        format=format,
        dtype=_dtype(dtype),
        device=torch.device(device),
        layer=layer,
        k=k,
        input_scale=input_scale,
        origin=origin,
    )


def load_layers(path: str | os.PathLike, **options: Any) -> dict[int, _C.Dictionary]:
    """The transcoders of a folder with a file for each layer, such as circuit-tracer's, by layer.

    Args:
        options: of ``load``.

    Raises:
        ConfigError: the folder holds no such files.
    """
    layers = _C.dictionary_layers(os.fspath(path))
    if not layers:
        raise _C.ConfigError(f"load_layers: {os.fspath(path)} holds no files of layers, layer_0.safetensors and so on")
    return {layer: load(path, layer=layer, **options) for layer in layers}


def from_pretrained(
    release: str | os.PathLike,
    sae_id: str | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> _C.Dictionary:
    """Read a published dictionary, fetched from the hub and checked first if it is not here.

    Args:
        release: a name of SAELens's list (the families in share/sae_releases.json), a repository "owner/name", a path.
        sae_id: in the release, or the path of a folder or file in the repository; none of a path.
        options: of ``load``.

    Raises:
        ConfigError: neither a release nor a repository, or no such id.
        IoError: the hub did not deliver, or the files are damaged.
    """
    if sae_id is None and Path(release).exists():
        return load(release, device=device, dtype=dtype, **options)
    name, sae_id = os.fspath(release), sae_id or ""
    published = find_release(name, sae_id)
    loaded = load(pull_dictionary(published), device=device, dtype=dtype, **options)
    return loaded.with_origin(_with_release(loaded, name, sae_id, published.known))


def load_cross_layer(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    origin: _C.DictionaryOrigin | None = None,
) -> _C.CrossLayerTranscoder:
    """Read a cross-layer transcoder from its folder: circuit-tracer's, or Gemma Scope 2's.

    Args:
        path: the folder, with W_enc_0.safetensors and so on, or params_layer_0.safetensors and so on.
        origin: stands where the files say nothing.

    Raises:
        IoError: a file is missing or damaged.
        ConfigError: the folder holds no such files.
    """
    return _C.load_cross_layer_transcoder(
        os.fspath(path), dtype=_dtype(dtype), device=torch.device(device), origin=origin
    )


def cross_layer_from_pretrained(
    release: str | os.PathLike, sae_id: str | None = None, **options: Any
) -> _C.CrossLayerTranscoder:
    """Read a published cross-layer transcoder: of a repository and a folder in it, or a path. See from_pretrained."""
    if sae_id is None and Path(release).exists():
        return load_cross_layer(release, **options)
    return load_cross_layer(pull_dictionary(find_release(os.fspath(release), sae_id or "")), **options)


def save_cross_layer(transcoder: _C.CrossLayerTranscoder, path: str | os.PathLike) -> Path:
    """Write a cross-layer transcoder as circuit-tracer has it, into a folder that is made if it is not there.

    Raises:
        ConfigError: the format cannot hold it: a skip, or another activation than relu and jumprelu.
        IoError: it cannot be written.
    """
    _C.save_cross_layer_transcoder(transcoder, os.fspath(path))
    return Path(path)


def save(dictionary: _C.Dictionary, path: str | os.PathLike, *, format: str = "saelens") -> Path:
    """Write a dictionary, each file whole or not at all.

    Args:
        path: a folder: of its own for "saelens" (which SAELens 6 reads), of a transcoder for each layer for
            "circuit_tracer". It is made if it is not there.

    Raises:
        ValueError: another format.
        ConfigError: the format cannot hold it, or the folder is of another model or other hook points.
        IoError: it cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"save: format must be one of {', '.join(FORMATS)}, got {format!r}")
    _C.save_dictionary(dictionary, os.fspath(path), format=format)
    return Path(path)


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    if not isinstance(given, str):
        return given
    found = getattr(torch, given.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be float32, bfloat16, float16 or float64, got {given!r}")
    return found


def _with_release(dictionary: _C.Dictionary, release: str, sae_id: str, known: dict[str, Any]) -> _C.DictionaryOrigin:
    """What the files say, and what is known of the release beside them."""
    own = dictionary.origin
    sites = [_C.DictionarySite(known["hook_name"], dictionary.d_in)] if "hook_name" in known else []
    return _C.DictionaryOrigin(
        inputs=own.inputs or sites,
        outputs=own.outputs or sites,
        model_name=own.model_name or known.get("model_name", ""),
        model_hash=own.model_hash,
        release=release,
        sae_id=sae_id,
        context_size=own.context_size,
        prepend_bos=own.prepend_bos,
        centers_writing_weights=own.centers_writing_weights or known.get("centers_writing_weights", False),
        masks_bos=own.masks_bos,
        notes=own.notes,
    )
