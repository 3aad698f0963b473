"""Evaluations under TransformerLens's names: indirect objects, induction, and the loss on known data sets.

``model`` is a HookedTransformer everywhere, with any tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .. import _C
from . import datasets
from .hooked_transformer import HookedTransformer

TEXT = (
    "The bridge over the river was closed in the spring, because the ice had damaged two of its piers. Engineers from "
    "the city measured the cracks, wrote a report and asked for money to repair them before the summer, when most "
    "visitors come to the old town on the other side."
)


def sanity_check(model: HookedTransformer) -> torch.Tensor:
    """The loss on a paragraph of plain English: below 5 for a language model that works, above 7 for a broken one."""
    with torch.no_grad():
        return model(TEXT, return_type="loss")


@torch.no_grad()
def induction_loss(
    model: HookedTransformer,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: torch.device | str | None = None,
    *,
    seed: int | None = None,
) -> torch.Tensor:
    """The loss on the second half of random tokens that are repeated once: low in a model that has induction heads.

    The loss that guessing gives is log(number of tokens drawn from). Tokens are drawn with torch's generator from 100
    to 20,000 as in TransformerLens, and from the whole vocabulary where it is smaller.

    Args:
        tokenizer: whose BOS is used; None is the model's.
        subseq_len: length of a half; at most half of the model's context.
        prepend_bos: the first token is BOS instead; None is ``cfg.default_prepend_bos``.
        device: None is the model's.
        seed: of the tokens; None goes on with torch's generator.

    Raises:
        ShapeError: two halves do not fit into the model's context.
        ConfigError: BOS is asked for, and the tokenizer has none.
    """
    cfg = model.cfg
    if 2 * subseq_len > cfg.n_ctx:
        raise _C.ShapeError(f"induction_loss: two halves of {subseq_len} do not fit into n_ctx = {cfg.n_ctx}")
    first, last = (100, 20000) if cfg.d_vocab >= 20000 else (0, cfg.d_vocab)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    half = torch.randint(first, last, (batch_size, subseq_len), generator=generator)
    tokens = half.repeat(1, 2).to(cfg.device if device is None else device)
    if cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
        bos = getattr(model.tokenizer if tokenizer is None else tokenizer, "bos_token_id", None)
        if bos is None:
            raise _C.ConfigError("induction_loss: prepend_bos needs a tokenizer with a BOS token")
        tokens[:, 0] = bos
    loss = model(tokens, return_type="loss", loss_per_token=True)
    return loss[:, subseq_len + 1 :].mean()


class IOIDataset(Dataset):
    """Sentences that end with the indirect object: "John and Mary went ... Mary handed the milk to John".

    An entry has "prompt", the tokens of the whole sentence, and "IO" and "S", those of both names as they stand at its
    end.

    Args:
        tokenizer: of the model: anything with ``encode`` and ``bos_token_id``.
        templates: with [A] (the indirect object, and last word), [B] (the subject) and [NOUN] for nouns by that name.
        names: to draw two of for each sentence.
        nouns: by the name they have in a template.
        num_samples: how many sentences.
        symmetric: each sentence is followed by the one with the names exchanged.
        prepend_bos: the prompt begins with BOS.
        seed: of what is drawn. (TransformerLens seeds every sentence alike, so that all are the same.)

    Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        *,
        seed: int = 42,
    ) -> None:
        self.tokenizer = tokenizer
        self.prepend_bos = prepend_bos
        self.templates = list(templates or self.get_default_templates())
        self.names = list(names or self.get_default_names())
        self.nouns = self.get_default_nouns() if nouns is None else nouns
        if len(set(self.names)) < 2:
            raise ValueError(f"IOIDataset: at least two names are required, got {self.names}")
        self._random = random.Random(seed)
        self.samples: list[dict[str, str]] = []
        while len(self.samples) < num_samples:
            self.samples += self.get_sample(symmetric=symmetric)[: num_samples - len(self.samples)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        sample = self.samples[idx]
        prompt = self._encode(sample["text"])
        bos = getattr(self.tokenizer, "bos_token_id", None)
        if self.prepend_bos:
            if bos is None:
                raise _C.ConfigError("IOIDataset: prepend_bos needs a tokenizer with a BOS token")
            prompt = [bos, *prompt]
        return {
            "prompt": torch.tensor(prompt),
            "IO": torch.tensor(self._encode(sample["IO"])),
            "S": torch.tensor(self._encode(sample["S"])),
        }

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """One sentence, or a pair with the names exchanged: "text", and "IO" and "S" with the space before them."""
        text = self._random.choice(self.templates)
        for kind, choices in self.nouns.items():
            text = text.replace(f"[{kind}]", self._random.choice(choices))
        one, other = self._random.sample(sorted(set(self.names)), 2)
        pairs = [(one, other), (other, one)] if symmetric else [(one, other)]
        return [{"text": text.replace("[A]", a).replace("[B]", b), "IO": " " + a, "S": " " + b} for a, b in pairs]

    @staticmethod
    def get_default_names() -> list[str]:
        """The two names of TransformerLens's dataset."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """Two sentences, each of which names [B] second to last and [A] last."""
        return [
            "[A] and [B] walked to the [LOCATION] in order to get [OBJECT]. [B] passed the [OBJECT] to [A]",
            "Later, [B] and [A] met at the [LOCATION]. [B] offered the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """Places and things."""
        return {"LOCATION": ["shop", "market", "station"], "OBJECT": ["bread", "milk", "coffee"]}


@torch.no_grad()
def ioi_eval(
    model: HookedTransformer,
    dataset: Iterable | None = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
) -> dict[str, float]:
    """How a model tells the indirect object from the subject at the end of a sentence.

    At the first token in which the two names differ, the logit of the indirect object's is compared with the subject's.

    Args:
        dataset: of {"prompt", "IO", "S"}, as IOIDataset has them; the prompt ends with the IO tokens. None makes one.
        num_samples: of the dataset that is made.
        tokenizer: None is the model's.
        symmetric: the dataset that is made is.

    Returns:
        "Logit Difference": the mean over the sentences, in nats; "Accuracy": the share in which it is positive.

    Raises:
        ValueError: names of which one begins with the other, or no sentences.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if dataset is None:
        bos = getattr(tokenizer, "bos_token_id", None) is not None
        dataset = IOIDataset(  # type: ignore[assignment]
            tokenizer, num_samples=num_samples, symmetric=symmetric, prepend_bos=bos
        )
    differences: list[float] = []
    batches: Any = DataLoader(dataset, batch_size=batch_size, collate_fn=list)  # type: ignore[arg-type]
    for batch in batches:
        width = max(len(sample["prompt"]) for sample in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, sample in enumerate(batch):
            tokens[row, : len(sample["prompt"])] = sample["prompt"]
            mask[row, : len(sample["prompt"])] = True
        logits = model(tokens, return_type="logits", attention_mask=mask)
        for row, sample in enumerate(batch):
            io, s = sample["IO"].tolist(), sample["S"].tolist()
            place = next((n for n, (a, b) in enumerate(zip(io, s, strict=False)) if a != b), None)
            if place is None:
                raise ValueError(f"ioi_eval: the tokens of one name begin with the other's: {io} and {s}")
            scores = logits[row, len(sample["prompt"]) - len(io) + place - 1]
            differences.append(float(scores[io[place]] - scores[s[place]]))
    if not differences:
        raise ValueError("ioi_eval: the dataset is empty")
    right = sum(difference > 0 for difference in differences)
    return {"Logit Difference": sum(differences) / len(differences), "Accuracy": right / len(differences)}


# Data sets of the hub: name -> (arguments of datasets.load_dataset, the column that has the text)
_CORPORA = {
    "wiki": (("wikitext", "wikitext-2-v1"), "text"),
    "owt": (("stas/openwebtext-10k",), "text"),
    "pile": (("NeelNanda/pile-10k",), "text"),
    "code": (("codeparrot/codeparrot-valid-v2-near-dedup",), "content"),
}
DATASET_NAMES = list(_CORPORA)


def _loader(name: str, tokenizer: Any, batch_size: int) -> DataLoader:
    source, column = _CORPORA[name]
    texts = datasets.load(f"make_{name}_data_loader", *source, split="train")
    tokens = datasets.tokenize_and_concatenate(texts, tokenizer, column_name=column)
    return DataLoader(tokens, batch_size=batch_size, shuffle=True, drop_last=True)  # type: ignore[arg-type]


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader:
    """Rows of 1,024 tokens of Wikitext 2's training set, shuffled. Raises ConfigError and IoError as get_dataset."""
    return _loader("wiki", tokenizer, batch_size)


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader:
    """The same of ten thousand texts of OpenWebText."""
    return _loader("owt", tokenizer, batch_size)


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader:
    """The same of ten thousand texts of The Pile."""
    return _loader("pile", tokenizer, batch_size)


def make_code_data_loader(tokenizer: Any, batch_size: int = 8) -> DataLoader:
    """The same of CodeParrot's Python files."""
    return _loader("code", tokenizer, batch_size)


DATASET_LOADERS = [make_wiki_data_loader, make_owt_data_loader, make_pile_data_loader, make_code_data_loader]


@torch.no_grad()
def evaluate_on_dataset(
    model: HookedTransformer, data_loader: Iterable, truncate: int = 100, device: torch.device | str | None = None
) -> float:
    """The mean loss on the first batches of {"tokens": int64 [batch, pos]}.

    Args:
        truncate: how many batches at most.
        device: None is the model's.

    Raises:
        ValueError: there is no batch.
    """
    losses: list[float] = []
    for batch in data_loader:
        if len(losses) == truncate:
            break
        tokens = batch["tokens"].to(model.cfg.device if device is None else device)
        losses.append(float(model(tokens, return_type="loss")))
    if not losses:
        raise ValueError("evaluate_on_dataset: there is no batch")
    return sum(losses) / len(losses)


def evaluate(
    model: HookedTransformer, truncate: int = 100, batch_size: int = 8, tokenizer: Any = None
) -> dict[str, float]:
    """The losses on four data sets of the hub, "wiki_loss" and so on; printed as they are known.

    Raises:
        ConfigError: the ``datasets`` package is not installed.
        IoError: a data set could not be fetched.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    losses = {}
    for name in DATASET_NAMES:
        loss = evaluate_on_dataset(model, _loader(name, tokenizer, batch_size), truncate)
        print(f"{name}: {loss}")
        losses[f"{name}_loss"] = loss
    return losses
