"""Hooked transformers, control vectors and KV-cache experiments, natively on LibTorch."""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from ._api import __version__ as __version__

# Modules that work without torch: dir lists them beside the names of _api.
_LIGHT = {"cli", "data", "hub", "plots", "progress", "report", "tables"}

# What most scripts begin with, by its module: it comes without the analyses, experiments and studies and their memory.
_FIRST = {"Model": "model", "load_model": "model"}


def __getattr__(name: str):
    """Load torch and the compiled library at the first use of a name, so that ``introspect --help`` needs neither."""
    if _find_spec(f"{__name__}.{name}"):  # not by way of _api: each module can be the first one that is imported
        return _import_module(f"{__name__}.{name}")
    if name.startswith("_") and name not in {"__all__", "__version__"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import_module(f"{__name__}._compiled")
    api = _import_module(f"{__name__}.{_FIRST.get(name, '_api')}")
    if not hasattr(api, name):
        from .transformer_lens import left_out

        left_out.raise_missing(__name__, name, left_out.PACKAGE, api.__all__)
    value = getattr(api, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_LIGHT, *__getattr__("__all__")})
