"""TransformerLens's ``loading``: official names of models and what else they go by.

Official here is what can be loaded: the hub ids behind TransformerLens's short names that this library runs, and the
names of ``introspect pull --list``.
"""

from __future__ import annotations

from typing import Any

from ..data import model_registry
from ..hub import pretrained
from . import left_out

_LEFT_OUT = {
    "convert_hf_model_config": "HookedTransformer.from_pretrained(path).cfg has a checkpoint's config",
    "convert_neel_model_config": "models of one's own formats are not read",
    "get_pretrained_model_config": "HookedTransformer.from_pretrained(name).cfg has it",
    "get_pretrained_state_dict": "HookedTransformer.from_pretrained(name).state_dict() has it",
    "get_checkpoint_labels": "checkpoints in the middle of training are not loaded by name; a folder of one can be",
    "get_num_params_of_pretrained": "HookedTransformer.from_pretrained(name).cfg.n_params has it",
    "NON_HF_HOSTED_MODEL_NAMES": "weights come from the hub, a folder or a .gguf file",
    "STANFORD_CRFM_CHECKPOINTS": "checkpoints in the middle of training are not loaded by name",
    "PYTHIA_CHECKPOINTS": "checkpoints in the middle of training are not loaded by name",
}

_NAMES = {**{name.lower(): name for name in model_registry()}, **pretrained.aliases()}
_NAMES |= {official.lower(): official for official in _NAMES.values()}

OFFICIAL_MODEL_NAMES: list[str] = sorted(set(_NAMES.values()))
MODEL_ALIASES: dict[str, list[str]] = {
    official: sorted(name for name, other in _NAMES.items() if other == official and name != official.lower())
    for official in OFFICIAL_MODEL_NAMES
}
DEFAULT_MODEL_ALIASES: list[str] = [aliases[0] if aliases else name for name, aliases in MODEL_ALIASES.items()]


def make_model_alias_map() -> dict[str, str]:
    """Every name in small letters, and the official one."""
    return dict(_NAMES)


def get_official_model_name(model_name: str) -> str:
    """The official name of a model under any of its names, whatever their case.

    Raises:
        ValueError: not a name that is known here.
    """
    if model_name.lower() in _NAMES:
        return _NAMES[model_name.lower()]
    raise ValueError(
        f"get_official_model_name: {model_name!r} is none of the {len(OFFICIAL_MODEL_NAMES)} names in "
        "OFFICIAL_MODEL_NAMES, nor another name of one"
    )


def __getattr__(name: str) -> Any:
    left_out.raise_missing(__name__, name, _LEFT_OUT)
