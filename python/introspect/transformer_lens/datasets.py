"""Texts to run models on, from the Hugging Face hub, and their tokens in rows of one length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _C

if TYPE_CHECKING:
    from datasets import Dataset

# TransformerLens's short names of data sets of ten thousand texts (c4_code: twenty).
DATASETS = {
    "openwebtext": "stas/openwebtext-10k",
    "owt": "stas/openwebtext-10k",
    "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k",
    "code": "NeelNanda/code-10k",
    "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k",
    "c4-code": "NeelNanda/c4-code-20k",
    "wiki": "NeelNanda/wiki-10k",
}


def get_dataset(dataset_name: str, **kwargs: Any) -> Dataset:
    """A small data set of texts under a short name, read with the ``datasets`` package.

    Args:
        dataset_name: "openwebtext", "pile", "c4", "code", "c4_code" or "wiki".
        kwargs: those of ``datasets.load_dataset``, such as ``cache_dir``.

    Raises:
        ValueError: another name; ``datasets.load_dataset`` reads others.
        ConfigError: the ``datasets`` package is not installed.
        IoError: the data set could not be fetched.
    """
    if dataset_name not in DATASETS:
        raise ValueError(
            f"get_dataset: the name must be one of {', '.join(DATASETS)}, got {dataset_name!r}; "
            "datasets.load_dataset reads others"
        )
    return load("get_dataset", DATASETS[dataset_name], split="train", **kwargs)


def load(who: str, *names: str, **options: Any) -> Dataset:
    """``datasets.load_dataset``, or an error of ours that says what is missing."""
    try:
        import datasets
    except ImportError as error:
        raise _C.ConfigError(f"{who}: this needs the datasets package: pip install datasets") from error
    try:
        return datasets.load_dataset(*names, **options)
    except Exception as error:  # whatever the hub's client raises without a network
        raise _C.IoError(f"{who}: {' '.join(names)} could not be fetched: {error}") from error


def keep_single_column(dataset: Dataset, col_name: str) -> Dataset:
    """A data set without its other columns."""
    return dataset.remove_columns([name for name in dataset.features if name != col_name])


def tokenize_and_concatenate(
    dataset: Dataset,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int = 10,
) -> Dataset:
    """The tokens of all texts in one row, EOS between two texts, cut into rows of ``max_length``.

    Texts are tokenized one by one, so that no token spans two of them; a rest too short for a row is dropped, unless it
    is all there is: it is then filled up with pad tokens.

    Args:
        dataset: of the ``datasets`` package, or a list of texts or of {column_name: text}.
        tokenizer: a transformers tokenizer, or a model's; with BOS and EOS tokens.
        streaming: the data set is read as it is fetched.
        max_length: of a row, BOS included.
        column_name: where the texts are.
        add_bos_token: every row begins with BOS.
        num_proc: processes of ``datasets``; one where the tokenizer is the native one.

    Returns:
        A data set with the column "tokens", int64 [max_length] in each row (a list of {"tokens": tensor} for a list).

    Raises:
        ConfigError: a tokenizer without an EOS token, or BOS where it is asked for.
        ValueError: max_length below 2 with BOS, below 1 without.
    """
    who = "tokenize_and_concatenate"
    width = max_length - 1 if add_bos_token else max_length
    if width < 1:
        raise ValueError(f"{who}: max_length must leave room for a token, got {max_length}")
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None or (add_bos_token and bos is None):
        raise _C.ConfigError(f"{who}: the tokenizer has no {'EOS' if eos is None else 'BOS'} token")
    pad = getattr(tokenizer, "pad_token_id", None)

    def rows_of(texts: list[str]) -> np.ndarray:
        ids: list[int] = []
        for n, text in enumerate(texts):
            ids += ([eos] if n else []) + list(tokenizer.encode(text, add_special_tokens=False))
        if 0 < len(ids) < width:
            ids += [eos if pad is None else pad] * (width - len(ids))
        rows = np.array(ids[: len(ids) // width * width], dtype=np.int64).reshape(-1, width)
        return np.concatenate([np.full((len(rows), 1), bos), rows], axis=1) if add_bos_token else rows

    if isinstance(dataset, list):
        import torch

        texts = [one if isinstance(one, str) else one[column_name] for one in dataset]
        return [{"tokens": torch.from_numpy(row)} for row in rows_of(texts)]  # type: ignore[return-value]
    native = isinstance(getattr(tokenizer, "native", tokenizer), _C.Tokenizer)  # which no other process can be given
    options: dict[str, Any] = {} if streaming else {"num_proc": None if native else num_proc}
    tokens = keep_single_column(dataset, column_name).map(
        lambda batch: {"tokens": rows_of(batch[column_name])}, batched=True, remove_columns=[column_name], **options
    )
    return tokens.with_format("torch") if streaming else tokens.with_format("torch", columns=["tokens"])
