"""Texts like those a model was trained on, in ``model.dataset``, which may be set to any other."""

from __future__ import annotations

from typing import Any

import numpy as np

from .datasets import get_dataset
from .lens_model import LensModel, Side
from .text import to_tokens

# Architecture -> the short name of a data set near to what its models were trained on, as in TransformerLens.
_DATASETS = {"GPT2LMHeadModel": "openwebtext", "GPTNeoXForCausalLM": "pile"}


def load_sample_training_dataset(model: LensModel, **kwargs: Any) -> Any:
    """Fetches ten thousand texts near to the training data into ``dataset``, and gives them back.

    Raises:
        ValueError: no data set is known for this model: set ``model.dataset`` to one with a "text" column.
        ConfigError, IoError: as ``utils.get_dataset``.
    """
    architecture = model.cfg.original_architecture
    if architecture not in _DATASETS:
        raise ValueError(
            f"load_sample_training_dataset: no data set is known for {architecture}; set model.dataset to one that "
            "has texts under 'text'"
        )
    model.dataset = get_dataset(_DATASETS[architecture], **kwargs)
    return model.dataset


def sample_datapoint(
    model: LensModel, tokenize: bool = False, prepend_bos: bool | None = None, padding_side: Side | None = None
) -> Any:
    """A text of ``dataset`` at random (numpy's generator), or its tokens [1, pos] if ``tokenize``.

    Raises:
        ValueError, ConfigError, IoError: as ``load_sample_training_dataset``, where there is no ``dataset`` yet.
    """
    if model.dataset is None:
        load_sample_training_dataset(model)
    text = model.dataset[np.random.randint(0, len(model.dataset))]["text"]
    return to_tokens(model, text, prepend_bos=prepend_bos, padding_side=padding_side) if tokenize else text
