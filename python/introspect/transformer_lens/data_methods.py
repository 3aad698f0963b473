"""Texts like those a model was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from .datasets import get_dataset

# Architecture -> the short name of a data set near to what its models were trained on, as in TransformerLens.
_DATASETS = {"GPT2LMHeadModel": "openwebtext", "GPTNeoXForCausalLM": "pile"}


class DataMethods:
    """A HookedTransformer's sample of its training texts, in ``dataset``, which may be set to any other."""

    dataset: Any

    def load_sample_training_dataset(self: Any, **kwargs: Any) -> Any:
        """Fetches ten thousand texts near to the training data into ``dataset``, and gives them back.

        Raises:
            ValueError: no data set is known for this model: set ``model.dataset`` to one with a "text" column.
            ConfigError, IoError: as ``utils.get_dataset``.
        """
        architecture = self.cfg.original_architecture
        if architecture not in _DATASETS:
            raise ValueError(
                f"load_sample_training_dataset: no data set is known for {architecture}; set model.dataset to one that "
                "has texts under 'text'"
            )
        self.dataset = get_dataset(_DATASETS[architecture], **kwargs)
        return self.dataset

    def sample_datapoint(
        self: Any, tokenize: bool = False, prepend_bos: bool | None = None, padding_side: Any = None
    ) -> Any:
        """A text of ``dataset`` at random (numpy's generator), or its tokens [1, pos] if ``tokenize``.

        Raises:
            ValueError, ConfigError, IoError: as ``load_sample_training_dataset``, where there is no ``dataset`` yet.
        """
        if self.dataset is None:
            self.load_sample_training_dataset()
        text = self.dataset[np.random.randint(0, len(self.dataset))]["text"]
        return self.to_tokens(text, prepend_bos=prepend_bos, padding_side=padding_side) if tokenize else text
