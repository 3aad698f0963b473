"""What is wrong with the arguments of a native function, in words; the bindings ask when a call fits no signature.

``explain`` looks at the types in the function's own signature, finds the first argument that does not fit and names it.
"""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_INT64 = range(-(2**63), 2**63)
_NUMBERS = {"SupportsInt": "int", "SupportsIndex": "int", "SupportsFloat": "float", "int": "int", "float": "float"}
_PLURALS = {"Sequence": "list", "list": "list", "Iterable": "list", "set": "set", "Mapping": "dict", "dict": "dict"}
# What a caller probably meant by a value of the wrong type, by the words for the right one and the value's type.
_VECTOR = "introspect.ControlVector(model_type, {layer: direction}) makes one"
_MEANT = {
    ("ControlVector", "Tensor"): _VECTOR,
    ("ControlVector", "ndarray"): _VECTOR,
    ("ControlVector", "dict"): _VECTOR,
    ("Protocol", "str"): "introspect.load_protocol takes a name or a path",
    ("Tensor", "list"): "torch.tensor makes one of a list",
    ("Tensor", "ndarray"): "torch.from_numpy makes one of an array",
    ("Tensor", "str"): "model.to_tokens makes tokens of a text",
    ("Model", "str"): "introspect.load_model takes a name or a path",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a signature."""

    name: str
    annotation: ast.expr | None
    default: str | None  # as the signature prints it
    keyword_only: bool

    def __str__(self) -> str:
        return self.name if self.default is None else f"{self.name}={self.default}"


def explain(name: str, signatures: list[str], positional: list, named: dict[str, Any], is_method: bool) -> str:
    """Why a call fits none of the signatures: "Intervention(): rows must be a list of int or None, got str; ..."."""
    overloads = [_parameters(text)[1 if is_method else 0 :] for text in signatures]
    faults = [_fault(parameters, positional, named) for parameters in overloads]
    nearest = max(range(len(faults)), key=lambda i: faults[i][0])
    signature = f"{name}({', '.join(_listed(overloads[nearest]))})"
    return f"{name}(): {faults[nearest][1]}; its signature is {signature}"


def _fault(parameters: Sequence[Parameter], positional: list, named: dict[str, Any]) -> tuple[int, str]:
    """How far a call gets with a signature (below 0: names that it does not have), and what is wrong."""
    by_name = {p.name: p for p in parameters}
    in_order = [p for p in parameters if not p.keyword_only and not p.name.startswith("*")]
    takes_rest = any(p.name.startswith("*") and p.name != "*" for p in parameters)
    if (unknown := [key for key in named if key not in by_name]) and not takes_rest:
        near = difflib.get_close_matches(unknown[0], by_name, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return -len(unknown), f"there is no argument {unknown[0]!r}{hint}"
    if len(positional) > len(in_order) and not takes_rest:
        behind = [p.name for p in parameters if p.keyword_only and p.name not in named]
        hint = f" ({', '.join(behind)} by name only)" if behind else ""
        return 1, f"at most {len(in_order)} arguments go by position, got {len(positional)}{hint}"
    given = list(zip(in_order, positional, strict=False))
    if twice := [p.name for p, _ in given if p.name in named]:
        return 1, f"argument {twice[0]!r} is given twice"
    given += [(by_name[key], value) for key, value in named.items() if key in by_name]
    present = {p.name for p, _ in given}
    missing = [p.name for p in parameters if p.default is None and p.name not in present and not p.name.startswith("*")]
    if missing:
        return 2, f"argument {missing[0]!r} is missing"
    for fits, (parameter, value) in enumerate(given):
        if (got := _unfit(value, parameter.annotation)) is not None:
            wanted = _words(parameter.annotation)
            meant = _MEANT.get((wanted.split(" or ")[0].removeprefix("a list of "), type(value).__name__))
            if wanted.startswith("Model") and hasattr(value, "native"):
                meant = "its .native is what is wanted"
            hint = f": {meant}" if meant else ""
            return 3 + fits, f"argument {parameter.name!r} must be {wanted}, got {got}{hint}"
    return 3 + len(given), "an argument has a value that its type cannot hold"


def _listed(parameters: Sequence[Parameter]) -> Iterator[str]:
    star = False
    for p in parameters:
        if p.keyword_only and not star:
            star = True
            yield "*"
        yield str(p)


def _parameters(signature: str) -> list[Parameter]:
    """The parameters of "(self: introspect._C.KVCache, length: int, *, name: str = 'x') -> None"."""
    inside = signature[signature.index("(") + 1 : _closing(signature)]
    parameters = []
    keyword_only = False
    for part in _split(inside, ","):
        if part in ("*", "/"):
            keyword_only = keyword_only or part == "*"
            continue
        declared, *default = _split(part, "=")
        name, *annotation = _split(declared, ":")
        parameters.append(Parameter(name, _parsed(annotation), default[0] if default else None, keyword_only))
    return parameters


def _parsed(annotation: list[str]) -> ast.expr | None:
    try:
        return ast.parse(annotation[0], mode="eval").body if annotation else None
    except SyntaxError:  # a C++ type that has no Python name
        return None


def _closing(text: str) -> int:
    depth = 0
    for i, (character, quoted) in enumerate(_unquoted(text)):
        depth += 0 if quoted else (character in "([{") - (character in ")]}")
        if depth == 0 and character == ")":
            return i
    return len(text)


def _split(text: str, at: str) -> list[str]:
    """Parts of a text between ``at``, unless it stands in brackets or quotes."""
    parts, depth = [""], 0
    for character, quoted in _unquoted(text):
        depth += 0 if quoted else (character in "([{<") - (character in ")]}>")
        if character == at and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _unquoted(text: str) -> Iterator[tuple[str, bool]]:
    """Each character, and whether it stands within quotes."""
    quote = ""
    for character in text:
        yield character, bool(quote)
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character


# Types


def _alternatives(node: ast.expr | None) -> list[ast.expr | None]:
    if isinstance(node, ast.BinOp):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    return "None" if isinstance(node, ast.Constant) and node.value is None else ""


def _inner(node: ast.expr | None) -> list[ast.expr | None]:
    if not isinstance(node, ast.Subscript):
        return []
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _words(node: ast.expr | None) -> str:
    """A type as one would say it: "a list of int or None"."""
    said: list[str] = []
    for one in _alternatives(node):
        name, inner = _name(one), _inner(one)
        if name in ("PathLike", "bytes") and _name(node) != "bytes":
            words = "a path"
        elif name == "str" and "a path" in said:
            continue
        elif name in _NUMBERS:
            words = "float" if "float" in said else _NUMBERS[name]
        elif name in _PLURALS:
            of = [_words(i) for i in inner]
            words = f"a {_PLURALS[name]}" + (f" of {' to '.join(of)}" if of else "")
        elif name in ("tuple", "Tuple"):
            words = f"({', '.join(_words(i) for i in inner)})"
        elif name == "Callable":
            words = "a function"
        else:
            words = name or "a value of another type"
        if words not in said:
            said.append(words)
    if "None" in said:
        said = [*[words for words in said if words != "None"], "None"]
    return " or ".join(said)


def _unfit(value: Any, node: ast.expr | None) -> str | None:
    """What came instead of a type; None if the value fits, or if nothing is known of the type."""
    faults = []
    for one in _alternatives(node):
        fault = _unfit_one(value, one)
        if fault is None:
            return None
        faults.append(fault)
    return max(faults, key=len)  # the one that says where inside a list it lies


def _unfit_one(value: Any, node: ast.expr | None) -> str | None:
    name, inner = _name(node), _inner(node)
    kind = "None" if value is None else type(value).__name__
    if name in _NUMBERS:
        return _unfit_number(value, name, kind)
    if name in _CHECKS:
        return None if _CHECKS[name](value) else kind
    if name in ("Sequence", "list", "Iterable", "set", "tuple"):
        if isinstance(value, str | bytes | Mapping) or not (
            hasattr(value, "__iter__") or hasattr(value, "__getitem__")
        ):
            return kind
        values = list(value) if hasattr(value, "__len__") else []
        if name == "tuple" and inner and len(values) != len(inner):
            return f"{kind} of {len(values)}"
        for i, one in enumerate(values):
            if (fault := _unfit(one, inner[i if name == "tuple" else 0] if inner else None)) is not None:
                return f"{fault} in place {i} of a {kind}"
        return None
    if name in ("Mapping", "dict"):
        if not isinstance(value, Mapping):
            return kind
        for key, one in value.items():
            if inner and (fault := _unfit(key, inner[0])) is not None:
                return f"a dict with a key of type {fault}"
            if len(inner) > 1 and (fault := _unfit(one, inner[1])) is not None:
                return f"{fault} for {key!r} of a dict"
        return None
    if name in ("", "Any", "object"):
        return None
    native = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "introspect._C"
    modules = ("introspect._C",) if native else (base.__module__ for base in type(value).__mro__)
    names = {(base.__module__, base.__name__) for base in type(value).__mro__}
    return None if any((module, name) in names for module in modules) else kind


def _unfit_number(value: Any, name: str, kind: str) -> str | None:
    if name in ("SupportsFloat", "float"):
        return None if hasattr(value, "__float__") or hasattr(value, "__index__") else kind
    if isinstance(value, float) or not (hasattr(value, "__index__") or hasattr(value, "__int__")):
        return kind
    return None if not isinstance(value, int) or value in _INT64 else f"{kind} of more than 64 bits"


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "str": lambda value: isinstance(value, str),
    "bytes": lambda value: isinstance(value, bytes),
    "bool": lambda value: isinstance(value, bool),
    "PathLike": lambda value: isinstance(value, os.PathLike),
    "Callable": callable,
    "device": lambda value: type(value).__name__ in ("device", "str", "int"),
}
