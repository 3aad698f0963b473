"""Readouts: what is read of an experiment besides the log-odds, by name, and readouts of one's own in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

CORE = ("log_odds", "p_yes", "p_no", "mass")  # what every reading holds
PLOTS = {"tokens": "identified", "lens": "lens", "attention": "attention", "answers": "localised"}
"""Of the library's readouts the functions of ``plots`` that draw them; in ``plots.interactive`` with "_drawing"."""
SHOWN = {*PLOTS, "text"}  # fields that results and plots have functions for

Named = TypeVar("Named")


@dataclass(frozen=True)
class ReadoutInputs:
    """What a readout gets of one reading: float32 tensors on the CPU.

    ``inputs["residuals"]`` is what ``needs`` names: "residuals" [n_layers, d_model], "attention" [n_layers, n_heads], a
    point of the blocks such as "hook_mlp_out" or "attn.hook_z" [n_layers, ...], and the same of the unsteered run after
    "unsteered_". What is of the unsteered run is None in that run itself.

    Attributes:
        logits: [d_vocab] at the read position; None for a readout that reads the text.
        unsteered_logits: [d_vocab] of the unsteered run, where ``needs`` names them.
        parameter: what the readout was asked for with: ``True``, a number, a list, a dictionary.
        is_own_question: False of control questions.
        text: that was sampled, for a readout with ``reads_text``.
    """

    logits: torch.Tensor | None
    unsteered_logits: torch.Tensor | None
    parameter: Any
    is_own_question: bool
    text: str
    tensors: Mapping[str, torch.Tensor | None] = field(default_factory=dict)

    def __getitem__(self, name: str) -> torch.Tensor | None:
        return self.tensors[name]


@dataclass(frozen=True)
class View:
    """How what a readout has read is shown, where it is not as its kind is by default.

    Args:
        columns: (value without injection or None, value) -> columns of ``Result.to_pandas``.
        plot: a result -> its figure, or None.
    """

    columns: Callable[[Any, Any], Mapping[str, Any]] | None = None
    plot: Callable[[Any], Figure | None] | None = None


VIEWS: dict[str, View] = {}
"""By field, of readouts that were registered here."""


def register_readout(readout: Named) -> Named:
    """Make a readout known to protocols, ``run_experiment(readouts=...)``, results, stores and tables.

    It can stand before a class as a decorator.

    A readout is an object (of a class that is given, one is made without arguments) with

        name: the name under a protocol's "readouts", and of its field in readings, columns and tables.
        needs: names of tensors, see ``ReadoutInputs``; none: the logits alone.
        read(inputs): a number, a text, or tensors, lists and dictionaries of them. Called for every reading, from one
            thread, with ``ReadoutInputs``.

    and, where it has them,

        check_parameter(parameter): raises ValueError for a parameter that cannot be. Without it, True or False.
        check(value): raises ValueError for a value from a file that cannot be one of ``read``.
        columns(base, injected): columns of ``Result.to_pandas``. Without it numbers and texts are columns of the
            readout's name (and with "_base" after it), and lists are in ``Result.readout_to_pandas``.
        plot(result): a figure for reports. Without it a list of one number a layer is drawn by layer.
        version: a number that rises when what ``read`` gives changes, so that stores are not asked for old values.
        own_question_only: True: control questions are left out.
        reads_text: True: ``read`` is called with the sampled text, and without logits.

    One of the same name that was registered before is replaced.

    Raises:
        ConfigError: a name that the library has.
        HookError: a point that does not exist.
        TypeError: no name, or nothing that reads.
    """
    from .. import _C  # here, because it loads torch

    made: Any = readout() if isinstance(readout, type) else readout
    name, read = getattr(made, "name", None), getattr(made, "read", None)
    if not isinstance(name, str) or not callable(read):
        raise TypeError(f"register_readout: a readout must have a text name and a function read, got {made!r}")
    needs = tuple(getattr(made, "needs", ()))

    def call(
        parameter: Any, logits: Any, unsteered_logits: Any, tensors: list[Any], is_own_question: bool, text: str
    ) -> Any:
        named = dict(zip((one for one in needs if one != "unsteered_logits"), tensors, strict=True))
        return read(ReadoutInputs(logits, unsteered_logits, parameter, is_own_question, text, named))

    _C.register_readout(
        name,
        needs=list(needs),
        read=call,
        check_parameter=_problem_of(getattr(made, "check_parameter", None)),
        check=_problem_of(getattr(made, "check", None)),
        version=int(getattr(made, "version", 1)),
        own_question_only=bool(getattr(made, "own_question_only", False)),
        reads_text=bool(getattr(made, "reads_text", False)),
    )
    VIEWS[name] = View(getattr(made, "columns", None), getattr(made, "plot", None))
    return readout


def _problem_of(check: Callable[[Any], Any] | None) -> Callable[[Any], str] | None:
    """The check as a function that says what is wrong."""
    if check is None:
        return None

    def problem(value: Any) -> str:
        try:
            check(value)
        except ValueError as error:
            return str(error) or "cannot be that"
        return ""

    return problem


def columns(base: Mapping[str, Any], injected: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row for everything that readouts have read of it and that fits into a cell."""
    found: dict[str, Any] = {}
    for name, value in injected.items():
        view = VIEWS.get(name, View())
        if view.columns is not None:
            found |= view.columns(base.get(name), value)
        elif name not in CORE and name not in SHOWN and not isinstance(value, list | dict):
            if name in base:
                found[f"{name}_base"] = base[name]
            found[name] = value
    return found


def fields_by_layer(result: Any) -> list[str]:
    """The fields of a Result, beyond those with plots of their own, that hold one number a layer."""
    n_layers = result.model["n_layers"]
    found: dict[str, None] = {}
    for row in result.rows:
        for name, value in row["injected"].items():
            if name in SHOWN or not isinstance(value, list) or len(value) != n_layers:
                continue
            if all(one is None or isinstance(one, int | float) for one in value) and name != "continuations":
                found[name] = None
    return list(found)
