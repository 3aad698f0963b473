"""The engine under the names of repeng 0.4.0, for programs that change their import and nothing else.

    from introspect.repeng import ControlModel, ControlVector, DatasetEntry

A model is an ``introspect.Model``, a path or name that ``introspect.load_model`` takes, or a transformers model in
memory, which is copied once. Conventions are repeng's: directions are trained for the layers n_layers - 1 down to 1 and
the last is read after the final norm; "pca_diff", the default method, centres the differences; directions are numpy
arrays by layer; every token that is not padding is steered.

What is other than there: the principal component is exact and the same every time; texts that begin alike are run once,
so that ``batch_size`` changes no result; the wrapped model itself is not changed; and there are neither "umap" nor
``train_with_sae``.
"""

from . import control, extract
from .control import ControlModel
from .extract import ControlVector, DatasetEntry

__all__ = ["ControlModel", "ControlVector", "DatasetEntry", "control", "extract"]
