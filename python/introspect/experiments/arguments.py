"""Arguments of experiments in every form that people give them, and errors that say what is wanted."""

from __future__ import annotations

import contextlib
import difflib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .. import _C
from ..arguments import native_model
from ..steering.training import ControlVector
from ..tables import MISSING
from . import doses
from .store import Store

PROTOCOLS = ("top_of_mind", "no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report")
"""The article's conversations."""

MORE_PROTOCOLS = (
    "lens_no_info",
    "lens_with_info",
    "lens_inaccurate_location",
    "lens_quarter_strength",
    "lens_content_report",
    "finetune_no_info",
    "finetune_with_info",
    "finetune_content_report",
    "anthropic_style",
    "priming_content_report",
    "paraphrases",
    "localisation",
)
"""Made from them, or after the replication; each says in ``source`` what it is."""

UNITS = ("absolute", "residual")
Block = int | float
LayerRange = tuple[Block, Block]
Layers = Block | LayerRange | Sequence[Block | LayerRange]
Numbers = float | Sequence[float]
Strengths = Numbers | str | Sequence[str]
Texts = str | Sequence[str]


@contextlib.contextmanager
def lens_path(lens: Any) -> Iterator[Any]:
    """A lens as readouts take one: a ``Lens`` stands in a file for as long as the experiment runs."""
    if not isinstance(lens, _C.Lens):
        yield lens
    elif lens.kind == "logit":
        yield True
    else:
        with tempfile.TemporaryDirectory() as folder:
            lens.save(path := os.path.join(folder, "lens.safetensors"))
            yield path


def load_protocol(source: str | os.PathLike | _C.Protocol) -> _C.Protocol:
    """An experiment's turns, injected messages and questions.

    Args:
        source: a shipped name (``PROTOCOLS`` and ``MORE_PROTOCOLS`` of introspect.experiments.run) or a JSON file of
            the format that ``introspect.Protocol`` describes. A protocol is returned as it is.

    Raises:
        IoError: no such file.
        ConfigError: a mistake in it, with its place.
        TypeError: something else.
    """
    if isinstance(source, _C.Protocol):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "load_protocol: a shipped name, a file or a Protocol is wanted (of a dictionary: "
            f"Protocol.parse(json.dumps(it))), got {_kind(source)}"
        )
    path = Path(source)
    if os.fspath(source) in PROTOCOLS + MORE_PROTOCOLS or path.is_file():
        return _C.Protocol.load(source)  # which tells a name from a path
    what = "it is a folder" if path.is_dir() else f"neither a file nor one of {', '.join(PROTOCOLS + MORE_PROTOCOLS)}"
    near = difflib.get_close_matches(str(source), PROTOCOLS + MORE_PROTOCOLS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise _C.IoError(f"load_protocol: {os.fspath(source)!r}: {what}{hint}")


class Arguments:
    """The arguments of one call, in the native module's form.

    Args:
        who: the function that was called, for its errors.
    """

    def __init__(self, who: str) -> None:
        self.who = who

    def fail(self, name: str, wanted: str, got: Any, error: type[Exception] = TypeError) -> Any:
        raise error(f"{self.who}: {name} must be {wanted}, got {_kind(got)}")

    def engine(self, model: Any, name: str = "model") -> Any:
        if name != "model" and not isinstance(getattr(model, "native", None), _C.Model):
            self.fail(name, "an introspect.Model", model)
        return native_model(model, self.who, name)

    def protocol(self, given: Any) -> _C.Protocol:
        """A Protocol, of itself, a shipped name or a file."""
        if not isinstance(given, str | os.PathLike | _C.Protocol):
            self.fail("protocol", "a Protocol, a shipped protocol's name or a file", given)
        return load_protocol(given)

    def protocols(self, given: Any) -> list[_C.Protocol]:
        if isinstance(given, str | os.PathLike | _C.Protocol):
            given = [given]
        if not isinstance(given, Iterable) or isinstance(given, Mapping):
            self.fail("protocols", "a list of Protocols, shipped names or files", given)
        return [self.protocol(one) for one in given]

    def vectors(self, given: Any, name: str = "vectors") -> list[tuple[str, ControlVector]]:
        wanted = 'a dictionary {concept: ControlVector}, such as {"cat": vector}'
        if not isinstance(given, Mapping):
            self.fail(name, wanted, given)
        for concept, vector in given.items():
            self.concept(name, concept)
            self.vector(f"{name}[{concept!r}]", vector)
        return list(given.items())

    def vector(self, name: str, vector: Any) -> ControlVector:
        if not isinstance(vector, ControlVector):
            self.fail(name, "a ControlVector (of tensors: ControlVector(model_type, {layer: direction}))", vector)
        return vector

    def concept(self, name: str, concept: Any) -> str:
        if not isinstance(concept, str):
            self.fail(name, "of concepts named by text", concept)
        if concept in MISSING:
            raise ValueError(
                f"{self.who}: {name} must not name a concept {concept!r}: programs that read tables take that for a "
                "missing value. Another name will do, such as 'the word " + (concept or "...") + "'"
            )
        return concept

    def null_vectors(self, given: Any) -> dict[str, list[ControlVector]]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.fail("null_vectors", "a dictionary {concept: list of ControlVectors}", given)
        return {
            concept: [
                self.vector(f"null_vectors[{concept!r}]", one)
                for one in (
                    [more] if isinstance(more, ControlVector) else self.items(f"null_vectors[{concept!r}]", more)
                )
            ]
            for concept, more in given.items()
        }

    def groups(self, given: Any) -> list[tuple[str, list[str]]] | None:
        if given is None:
            return None
        if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
            self.fail("groups", 'a dictionary {name: questions}, such as {"factual_yes": ["Is ice cold?"]}', given)
        return [(name, self.texts(f"groups[{name!r}]", texts)) for name, texts in given.items()]

    def null_factors(self, given: Any) -> dict[str, list[float]]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.fail("null_factors", "a dictionary {concept: list of numbers}", given)
        return {concept: self.numbers(f"null_factors[{concept!r}]", factors) for concept, factors in given.items()}

    def models(self, given: Any) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.fail("models", "a dictionary {name: model}", given)
        return {str(name): self.engine(model, f"models[{name!r}]") for name, model in given.items()}

    def items(self, name: str, given: Any) -> list[Any]:
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
            self.fail(name, "a list", given)
        return list(given)

    def texts(self, name: str, given: Any) -> list[str]:
        """A text alone is a list of one, not of its characters."""
        listed = [given] if isinstance(given, str) else self.items(name, given)
        for one in listed:
            if not isinstance(one, str):
                self.fail(name, "a text or a list of texts", one)
        return listed

    def number(self, name: str, given: Any) -> float:
        given = _scalar(given)
        if not isinstance(given, Real) or isinstance(given, bool):
            self.fail(name, "a number", given)
        return float(given)

    def numbers(self, name: str, given: Any) -> list[float]:
        given = _scalar(given)
        if isinstance(given, Real):
            return [self.number(name, given)]
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
            self.fail(name, "a number or a list of numbers", given)
        return [self.number(name, one) for one in given]

    def strengths(self, name: str, given: Any) -> list[float] | list[str]:
        """Numbers, or the texts of doses: one or a list of either."""
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, Sequence) or not any(isinstance(one, str) for one in listed):
            return self.numbers(name, given)
        if not all(isinstance(one, str) for one in listed):
            self.fail(name, "numbers or doses, not some of each", tuple(listed), ValueError)
        return [doses.check_target(one, self.who, name) for one in listed]

    def whole(self, name: str, given: Any, *, least: int | None = None) -> int:
        given = _scalar(given)
        if not isinstance(given, Integral) or isinstance(given, bool):
            self.fail(name, "a whole number", given)
        number = int(given)
        if least is not None and number < least:
            self.fail(name, f"{least} or more", number, ValueError)
        if not -(2**63) <= number < 2**63:
            self.fail(name, "below 2**63", number, ValueError)
        return number

    def unit(self, given: Any) -> str | None:
        if given is not None and given not in UNITS:
            self.fail("strength_unit", "absolute or residual", given, ValueError)
        return given

    def callback(self, given: Any) -> Any:
        if given is not None and not callable(given) and not isinstance(given, bool):
            self.fail("progress", "a function of (what, done, total), or False for nothing", given)
        return given

    def readouts(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """{name: parameter}, of the arguments with names of their own and of ``readouts``."""
        found: dict[str, Any] = {name: bool(options[name]) for name in ("attention", "divergence")}
        lens = options["lens"]
        if not isinstance(lens, bool | str | os.PathLike):
            self.fail("lens", "True, a Lens or the path of one", lens)
        found["lens"] = lens if isinstance(lens, bool) else os.fspath(lens)
        found["top_k"] = self.whole("top_k", options["top_k"], least=0)
        found["continuations"] = self.texts("continuations", options["continuations"])
        more = {} if options["readouts"] is None else options["readouts"]
        if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
            self.fail("readouts", 'a dictionary {name: parameter}, such as {"lens": True}', more)
        return found | dict(more)

    def pairs(self, name: str, given: Any) -> list[tuple[float, float]]:
        """One pair of numbers, or a list of pairs."""
        listed = self.items(name, given)
        if len(listed) == 2 and all(isinstance(_scalar(one), Real) for one in listed):
            listed = [listed]
        out = []
        for one in listed:
            pair = list(one) if isinstance(one, Iterable) and not isinstance(one, str | bytes) else [one]
            if len(pair) != 2:
                self.fail(name, "pairs (first, last)", one)
            out.append((self.number(name, pair[0]), self.number(name, pair[1])))
        return out

    def store(self, given: Any, plan: bool = False) -> Any:
        """A Store, or None; for a plan, which writes nothing, one that is only read."""
        if given is None or isinstance(given, _C.Store):
            return given
        if not isinstance(given, str | os.PathLike):
            self.fail("store", "a file or a Store", given)
        if plan:
            return Store(given, read_only=True) if Path(given).exists() else None
        return Store(given)

    def layers(self, given: Any) -> list[tuple[float, float, bool]]:
        """(first, last, whether they are fractions of the depth) of each range.

        A number is a block by itself, a tuple of two numbers is a range, and a list holds any of them.
        """
        wanted = (
            "a block (14), a range ((8, 16) with both ends, or fractions of the depth (0.33, 0.66)) or a list of them "
            "([(8, 16), (20, 24)])"
        )
        given = _scalar(given)
        if isinstance(given, Real) or (isinstance(given, tuple) and _is_range(given)):
            given = [given]
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
            self.fail("layers", wanted, given)
        listed = [_scalar(one) for one in given]
        if isinstance(given, list) and _is_range(listed):
            first, last = listed
            raise ValueError(
                f"{self.who}: layers must be {wanted}; [{first}, {last}] may be either: write ({first}, {last}) for "
                f"the range, or [({first}, {first}), ({last}, {last})] for two blocks"
            )
        return [self._range(one, wanted) for one in listed]

    def _range(self, one: Any, wanted: str) -> tuple[float, float, bool]:
        if isinstance(one, Real) and not isinstance(one, bool):
            one = (one, one)
        pair = [_scalar(end) for end in one] if isinstance(one, Iterable) and not isinstance(one, str | bytes) else []
        if len(pair) != 2 or not all(isinstance(end, Real) and not isinstance(end, bool) for end in pair):
            self.fail("layers", wanted, one)
        return float(pair[0]), float(pair[1]), not all(isinstance(end, Integral) for end in pair)

    def controls(self, protocol: _C.Protocol, given: Any) -> tuple[_C.Protocol, str | None]:
        """The protocol with the conversation that its controls are asked in, and its name (None: the default one)."""
        if given is None or given in protocol.control_conversations:
            return protocol, given
        if not isinstance(given, str | os.PathLike | _C.Protocol):
            self.fail("controls", '"own", a protocol or its name', given)
        try:
            other = load_protocol(given)
        except _C.IoError as error:
            names = ", ".join(map(repr, protocol.control_conversations))
            raise ValueError(
                f"{self.who}: controls must be {names}, a shipped protocol's name or a protocol's file: {error}"
            ) from None
        return protocol.with_controls_in(other), other.name


def _is_range(pair: Sequence[Any]) -> bool:
    return len(pair) == 2 and all(isinstance(_scalar(end), Real) for end in pair)


def _scalar(value: Any) -> Any:
    """The Python number that a tensor or array of one element without dimensions is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _kind(value: Any) -> str:
    """What a value is, for messages: small ones are shown."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    if shape is not None:
        return f"a {name} of shape {list(shape)}"
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return repr(value)
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
