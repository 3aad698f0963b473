"""Small helpers under TransformerLens's names: ``from introspect import utils``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .hooks.names import get_act_name
from .hooks.slices import Slice, SliceInput
from .sampling import sample_logits
from .transformer_lens import left_out
from .transformer_lens.datasets import get_dataset, keep_single_column, tokenize_and_concatenate
from .transformer_lens.factored_matrix import FactoredMatrix, composition_scores
from .transformer_lens.helpers import (
    LocallyOverridenDefaults,
    check_structure,
    download_file_from_hf,
    filter_dict_by_prefix,
    get_device,
    get_nested_attr,
    is_library_available,
    override_or_use_default_value,
    print_gpu_mem,
    select_compatible_kwargs,
    set_nested_attr,
)
from .transformer_lens.hooked_transformer import HookedTransformer
from .transformer_lens.initialisation import fan_in_and_out as calc_fan_in_and_fan_out
from .transformer_lens.initialisation import (
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from .transformer_lens.losses import lm_accuracy, lm_cross_entropy_loss
from .transformer_lens.token_utils import (
    get_attention_mask,
    get_cumsum_along_dim,
    get_input_with_manually_prepended_bos,
    get_offset_position_ids,
    get_tokenizer_with_bos,
    get_tokens_with_bos_removed,
    repeat_along_head_dimension,
)

__all__ = [
    "ACTIVATION_FN_DICT",
    "SUPPORTED_ACTIVATIONS",
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "apply_softcap",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "composition_scores",
    "download_file_from_hf",
    "filter_dict_by_prefix",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_input_with_manually_prepended_bos",
    "get_matrix_corner",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokenizer_with_bos",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_library_available",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "sample_logits",
    "select_compatible_kwargs",
    "set_nested_attr",
    "solu",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]

USE_DEFAULT_VALUE = None  # an argument that is not given


def __getattr__(name: str) -> Any:
    left_out.raise_missing(__name__, name, left_out.UTILS, __all__)


def to_numpy(tensor: torch.Tensor | np.ndarray | Sequence | float) -> np.ndarray:
    """A numpy array of a tensor on any device (bfloat16 becomes float32), a list, a tuple or a number.

    Raises:
        TypeError: anything else.
    """
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(tensor, np.ndarray | list | tuple | int | float | bool):
        return np.asarray(tensor)
    raise TypeError(f"to_numpy: a tensor, array, list, tuple or number is required, got {type(tensor).__name__}")


def get_corner(tensor: torch.Tensor | FactoredMatrix, n: int = 3) -> torch.Tensor:
    """The first n entries along every dimension."""
    if isinstance(tensor, FactoredMatrix):
        return tensor.get_corner(n)
    return tensor[tuple(slice(n) for _ in tensor.shape)]


def remove_batch_dim(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its first dimension, if that is of size one."""
    return tensor.squeeze(0) if tensor.ndim and tensor.shape[0] == 1 else tensor


def transpose(tensor: torch.Tensor) -> torch.Tensor:
    """The last two dimensions exchanged."""
    return tensor.mT


def is_square(x: torch.Tensor) -> bool:
    """True for a matrix of as many rows as columns."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: torch.Tensor) -> bool:
    """True for a square matrix without entries above its diagonal."""
    return is_square(x) and torch.equal(x, x.tril())


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh approximation, as in GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return torch.nn.functional.gelu(x, approximate="tanh")


gelu_fast = gelu_new  # transformers writes the same approximation with another order of operations
gelu_pytorch_tanh = gelu_new
get_matrix_corner = get_corner


def solu(x: torch.Tensor) -> torch.Tensor:
    """x times its softmax over the last dimension; "solu_ln" norms that (Elhage et al. 2022, Softmax Linear Units)."""
    return x * x.softmax(dim=-1)


def apply_softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """c tanh(x / c), or x where there is no cap or one of 0 or less."""
    return cap * torch.tanh(x / cap) if cap is not None and cap > 0 else x


# Functions by the names of act_fn; ``HookedTransformer`` runs silu and the gelus.
ACTIVATION_FN_DICT = {
    "solu": solu,
    "solu_ln": solu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": torch.nn.functional.silu,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
}
SUPPORTED_ACTIVATIONS = ACTIVATION_FN_DICT


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: HookedTransformer,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Prints how a model does on a prompt: rank, logit and probability of the answer, and the likeliest tokens.

    Args:
        answer: of one or more tokens; of a list of answers the first tokens are compared.
        prepend_space_to_answer: unless it begins with one.
        print_details: the likeliest tokens, too.
        prepend_bos: to the prompt; None is the model's default.
        top_k: how many of the likeliest tokens are shown.
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else " " + text for text in answers]
    prompt_ids = model.to_tokens(prompt, prepend_bos=prepend_bos)
    answer_ids = [model.to_tokens(text, prepend_bos=False)[0] for text in answers]
    # Several answers are compared at the first token only; one is followed to its end.
    steps = [[ids[0] for ids in answer_ids]] if len(answers) > 1 else [[id] for id in answer_ids[0]]
    print("Tokenized prompt:", model.to_str_tokens(prompt_ids))
    print("Tokenized answer:", *[model.to_str_tokens(ids) for ids in answer_ids])
    full = torch.cat([prompt_ids[0], answer_ids[0].to(prompt_ids.device)])
    with torch.no_grad():
        logits = model(full[None])[0]
    ranks = []
    for step, ids in enumerate(steps):
        row = logits[prompt_ids.shape[1] - 1 + step]
        probs, order = row.softmax(-1), row.argsort(descending=True)
        for id in ids:
            rank = int((order == id).nonzero())
            text = model.to_single_str_token(int(id))
            ranks.append((text, rank))
            print(f"Rank: {rank:<8} Logit: {row[id]:5.2f} Prob: {probs[id]:6.2%} Token: |{text}|")
        for n, id in enumerate(order[:top_k].tolist() if print_details else []):
            text = model.to_single_str_token(id)
            print(f"Top {n}th token. Logit: {row[id]:5.2f} Prob: {probs[id]:6.2%} Token: |{text}|")
    print("Ranks of the answer tokens:", ranks)


_no_test: Any = test_prompt
_no_test.__test__ = False  # its name makes pytest take it for a test wherever it is imported
