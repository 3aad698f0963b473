"""Activations from text: contexts of documents, rows of a model at several places, files of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from .. import _C
from ..arguments import native_model
from ..ray_cluster import RayWorkers

ActivationFile = _C.ActivationFile
ActivationStream = _C.ActivationStream
TokenStream = _C.TokenStream

Texts = TokenStream | os.PathLike | Iterable[Any] | Callable[[], Iterable[Any]] | torch.Tensor
Separator = int | Literal["bos", "eos"] | None
Hooks = str | Sequence[str | tuple[str, int]]

_FORMS = (
    "texts must be a list of texts or of lists of token ids, a pathlib.Path (or several) of .txt or .jsonl files, an "
    "iterable of documents, a function that returns one, or a TokenStream"
)


def token_stream(
    model: Any,
    texts: Texts,
    *,
    context_size: int = 128,
    prepend_bos: bool = True,
    sequence_separator_token: Separator = "bos",
    disable_concat_sequences: bool = False,
    is_dataset_tokenized: bool = False,
    repeat: bool = False,
) -> TokenStream:
    """Documents packed into contexts exactly as SAELens packs them.

    Documents follow one another with a separator between them, cut into rows of ``context_size`` that begin with BOS;
    a row begun at the end is dropped.

    Args:
        model: whose tokenizer is used; one without (or None) for token ids.
        texts: a list of texts or of lists of token ids (a tensor of rows, too); a pathlib.Path, or several, of .txt or
            .jsonl files (rows with "text", "tokens" or "input_ids"), read as they are needed; an iterable of documents
            or of such rows, such as a dataset; a function that returns one, which can be read again; a TokenStream.
        context_size: tokens of a row.
        prepend_bos: rows begin with the tokenizer's BOS, or EOS where it has none, as in TransformerLens.
        sequence_separator_token: between the documents of a row: "bos", "eos", an id or None.
        disable_concat_sequences: every document is a row, cut; shorter ones are dropped.
        is_dataset_tokenized: documents are rows of token ids already; they are cut to ``context_size``.
        repeat: the first document follows the last one.

    Raises:
        TypeError: texts of another form.
        ValueError: a context that holds no token of a text. Texts that fill none: when the stream is read.
        ConfigError: text, or a special token, without a tokenizer.
        IoError: files that cannot be read.

    Source: SAELens's tokenization_and_batching.concat_and_batch_sequences.
    """
    if isinstance(texts, TokenStream):
        return texts
    native = None if model is None else native_model(model, "token_stream")
    options: dict[str, Any] = {
        "context": context_size,
        "bos": _special(native, "bos") if prepend_bos and not is_dataset_tokenized else None,
        "separator": None if is_dataset_tokenized else _special(native, sequence_separator_token),
        "concatenate": not disable_concat_sequences,
        "packed": is_dataset_tokenized,
        "repeat": repeat,
    }
    if isinstance(texts, os.PathLike):
        texts = [texts]
    if isinstance(texts, torch.Tensor):
        texts = texts.tolist()
    if isinstance(texts, list | tuple) and texts:
        if all(isinstance(text, str) for text in texts):
            return TokenStream.of_texts(_with_tokenizer(native), list(texts), **options)
        if all(isinstance(text, os.PathLike) for text in texts):
            if native is None:
                raise _C.ConfigError("token_stream: files need a model, whose tokenizer reads them")
            return TokenStream.of_files(native, [Path(path) for path in texts], **options)
        return TokenStream.of_tokens([_ids(native, text) for text in texts], **options)
    if isinstance(texts, str | bytes | Mapping) or not (callable(texts) or isinstance(texts, Iterable)):
        raise TypeError(f"token_stream: {_FORMS}; got {texts!r:.200}")
    return TokenStream.of_function(_reader(native, texts), "", **options)


def _special(native: _C.Model | None, token: Separator) -> int | None:
    if token is None or (isinstance(token, int) and not isinstance(token, bool)):
        return token
    if token not in ("bos", "eos"):
        raise ValueError(f'token_stream: a special token is "bos", "eos", an id or None, got {token!r}')
    tokenizer = _tokenizer(native)
    if tokenizer is None:
        raise _C.ConfigError(
            "token_stream: prepend_bos and sequence_separator_token need a tokenizer; "
            "without one give False and None (or an id)"
        )
    return tokenizer.eos_token_id if token == "eos" or tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _tokenizer(native: _C.Model | None) -> _C.Tokenizer | None:
    return native.tokenizer if native is not None and native.has_tokenizer else None


def _with_tokenizer(native: _C.Model | None) -> _C.Model:
    if native is None or not native.has_tokenizer:
        raise _C.ConfigError("token_stream: texts need a model with a tokenizer")
    return native


def _ids(native: _C.Model | None, document: Any) -> list[int]:
    """One document of any form as token ids."""
    if isinstance(document, Mapping):
        for key in ("tokens", "input_ids", "text", "problem"):
            if key in document:
                return _ids(native, document[key])
        raise ValueError(f'token_stream: a row must have "text", "tokens" or "input_ids", got {list(document)}')
    if isinstance(document, str):
        return _with_tokenizer(native).tokenizer.encode(document, add_special_tokens=False)
    if isinstance(document, torch.Tensor):
        document = document.tolist()
    if not isinstance(document, Iterable):
        raise TypeError(f"token_stream: a document is a text or token ids, got {document!r:.200}")
    return [int(token) for token in document]


def _reader(native: _C.Model | None, texts: Any) -> Callable[[int], Iterator[list[int]]]:
    opened = False

    def read(first: int) -> Iterator[list[int]]:
        nonlocal opened
        documents = iter(texts() if callable(texts) else texts)
        if opened and documents is texts:
            raise ValueError(
                "token_stream: an iterator is read only once, and it is needed again; give a list, or a function that "
                "returns a new iterator"
            )
        opened = True
        return (_ids(native, document) for document in islice(documents, first, None))

    return read


def special_tokens(model: Any) -> list[int]:
    """The ids of a model's special tokens: BOS, EOS and the like; none without a tokenizer."""
    tokenizer = _tokenizer(native_model(model, "special_tokens"))
    return [] if tokenizer is None else [i for i in range(len(tokenizer)) if tokenizer.is_special(i)]


def sites(hooks: Hooks) -> list[tuple[str, int]]:
    """(hook name, number of the model) each, without doubles."""
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    return list(dict.fromkeys((name, 0) if isinstance(name, str) else (name[0], int(name[1])) for name in names))


def source_options(
    model: Any,
    exclude_special_tokens: bool | Sequence[int],
    max_norm_multiple: float | None,
    seqpos_slice: tuple[int | None, ...],
    dtype: torch.dtype | str | None,
    memory_budget: int,
) -> dict[str, Any]:
    """What TokenStreams are read with, in the native functions' names."""
    first = slice(*seqpos_slice)
    excluded = special_tokens(model) if exclude_special_tokens is True else exclude_special_tokens or []
    if dtype is None:
        dtype = torch.float64 if native_model(model, "activations").dtype == torch.float64 else torch.float32
    return {
        "first_position": first.start,
        "end_position": first.stop,
        "position_step": 1 if first.step is None else first.step,
        "exclude_tokens": [int(token) for token in excluded],
        "max_norm_multiple": 0.0 if max_norm_multiple is None else float(max_norm_multiple),
        "dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        "memory_budget": memory_budget,
    }


def models_of(model: Any) -> list[_C.Model]:
    """One model, or several for crosscoders between them."""
    several = list(model) if isinstance(model, list | tuple) else [model]
    return [native_model(one, "activations") for one in several]


def write_activations(
    model: Any,
    texts: Texts,
    path: str | os.PathLike,
    *,
    hooks: Hooks,
    tokens: int = 0,
    dtype: torch.dtype | str | None = torch.bfloat16,
    exclude_special_tokens: bool | Sequence[int] = True,
    max_norm_multiple: float | None = 10.0,
    seqpos_slice: tuple[int | None, ...] = (None,),
    resume: bool = False,
    memory_budget: int = 1 << 30,
    progress: Any = None,
    ray: str | RayWorkers | None = None,
    **packing: Any,
) -> ActivationFile:
    """Write the activations of texts at some places, so that many dictionaries are trained from one pass over them.

    Rows of one token are 2 bytes times the width of all places in bfloat16, the default. What a killed run has written
    stays readable; ``resume`` goes on there to the same bytes.

    Args:
        model: an introspect.Model, or several of one vocabulary.
        texts: see ``token_stream``, which takes ``packing``.
        path: a folder, made if it is not there.
        hooks: hook names ("blocks.15.hook_resid_post"), or (name, number of the model).
        tokens: rows to write; 0: to the texts' end.
        dtype: bfloat16, float32 or float64.
        exclude_special_tokens: drop the rows of special tokens, or of these ids.
        max_norm_multiple: drop rows longer than so many times the median of their pass; None: none.
        seqpos_slice: positions of each context that are read.
        resume: go on with a broken-off run; one that was finished is only opened. Texts, the model
            (``model.native.hash``), its precision (``model.native.precision``), kind of device, hooks and all options
            that change rows must be those that it was begun with. Folders of versions that did not keep this are not
            gone on with; finished ones are opened if what they tell (model, hooks, dtype, rows) is the same.
        memory_budget: bytes of one pass's activations.
        progress: called with (what, done, total).
        ray: read on the workers of a Ray cluster, each with the model, as ``run_experiment`` has it; the same bytes.

    Raises:
        HookError: a hook that the model does not have.
        ShapeError: contexts longer than the model's.
        ValueError: texts that fill no context, options out of range.
        IoError: activations are there already, with ``resume`` of another source or number of rows, or the disk is
            full. A folder that is refused stays as it is.
    """
    models = models_of(model)
    options = source_options(models[0], exclude_special_tokens, max_norm_multiple, seqpos_slice, dtype, memory_budget)
    stream = token_stream(models[0], texts, **packing)
    shared: dict[str, Any] = {
        "rows": tokens,
        "resume": resume,
        "notes": origin_notes(models[0], stream),
        "progress": progress,
        **options,
    }
    if ray is not None:
        from . import ray_activations

        return ray_activations.write(model, stream, sites(hooks), Path(path), ray, **shared)
    return _C.write_activations(models, stream, sites(hooks), Path(path), **shared)


def origin_notes(model: _C.Model, stream: TokenStream) -> str:
    """Where rows come from, as JSON: what a dictionary that is trained on them says of itself."""
    import json

    return json.dumps(
        {
            "model_name": model.cfg.model_name,
            "model_hash": model.hash,
            "context_size": stream.context,
            "prepend_bos": stream.bos is not None,
        }
    )
