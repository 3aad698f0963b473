"""Where a model's own chat templates run: Jinja in a sandbox, bounded in time, memory and output.

Imported when the first template is compiled, so that Jinja need not be there before.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 1_000_000  # characters of a template
MAX_SIZE = 16_000_000  # characters of a text, and of all texts in a list or dict
MAX_ENTRIES = 1_000_000  # of a list or dict, those of lists and dicts in it included
MAX_PRODUCT = 100_000_000  # of the sizes an operation multiplies: a width and a number of lines
MAX_BITS = 1_000_000  # of an integer
MAX_STEPS = 1_000_000  # turns of a loop, calls, filters and operators of one rendering
MAX_SECONDS = 10.0  # of processor time, of one rendering

# What can make a result as large as the product of two arguments: methods of str, bytes and int, and filters.
_MULTIPLIERS = frozenset(["ljust", "rjust", "center", "zfill", "expandtabs", "join", "translate", "to_bytes"])
_MULTIPLYING_FILTERS = frozenset(["center", "indent", "wordwrap", "batch", "slice", "tojson", "join"])
_LOOPING_FILTERS = frozenset(["map", "select", "reject", "selectattr", "rejectattr"])
# Filters that write texts of lists and dicts, and those that build new ones.
_WRITING_FILTERS = frozenset(
    ["string", "pprint", "tojson", "join", "format", "replace", "urlencode", "xmlattr", "safe", "escape", "e"]
)
_BUILDING_FILTERS = frozenset(
    ["list", "batch", "slice", "groupby", "sort", "unique", "dictsort", "sum", "default", "d"]
)


class TemplateTooLarge(Exception):
    """A template asked for more than the sandbox allows."""


def _size(value: Any) -> int:
    """Characters and entries of a value, those of values that stand in it several times counted each time."""
    if type(value) is str and len(value) <= MAX_SIZE:
        return len(value) + 1
    characters = entries = 0
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, (str, bytes)):
            characters += len(one)
            entries += 1
        elif isinstance(one, dict):
            todo.extend(one)
            todo.extend(one.values())
            entries += 1
        elif isinstance(one, (list, tuple, set, frozenset)):
            todo.extend(one)
            entries += 1
        elif isinstance(one, range):
            entries += len(one) + 1
        elif isinstance(one, Namespace):
            todo.append(object.__getattribute__(one, "_Namespace__attrs"))
        else:
            entries += 1
        if characters > MAX_SIZE:
            raise TemplateTooLarge(f"texts of more than {MAX_SIZE:,} characters")
        if entries + len(todo) > MAX_ENTRIES:
            raise TemplateTooLarge(f"a list or dict of more than {MAX_ENTRIES:,} entries")
    return characters + entries


def _factor(value: Any) -> int:
    return abs(value) if isinstance(value, int) else _size(value)


def _check_product(values: Iterable[Any]) -> None:
    """Refuses an operation whose result may be as large as its two largest arguments' product."""
    largest = sorted((_factor(value) for value in values), reverse=True)[:2]
    if len(largest) == 2 and largest[0] * max(largest[1], 1) > MAX_PRODUCT:
        raise TemplateTooLarge(f"an operation that multiplies {largest[0]:,} by {largest[1]:,}")


def _check_format(text: Any, arguments: Any, mark: str) -> None:
    """Refuses a format that writes large arguments often, and widths of more than four digits or computed ones."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str):
        return
    if mark == "%" and re.search(r"%[^a-zA-Z%]*?(\d{5}|\*)", text):
        raise TemplateTooLarge("a format with a width of more than 9,999")
    if text.count(mark) * _size(arguments) > MAX_PRODUCT:
        raise TemplateTooLarge(f"a format that writes {text.count(mark):,} times")


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    known = isinstance(text, (str, bytes)) and isinstance(old, type(text)) and isinstance(new, type(text))
    if known and len(text) + text.count(old) * len(new) > 2 * MAX_SIZE:
        raise TemplateTooLarge(f"a text of more than {MAX_SIZE:,} characters")


class _Work:
    """What one rendering has used up."""

    def __init__(self) -> None:
        self.steps = 0
        self._start = time.thread_time()  # of this thread, so that a busy machine refuses nothing
        self._next_look = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateTooLarge(f"more than {MAX_STEPS:,} steps")
        if (now := time.monotonic()) > self._next_look:
            self._next_look = now + 0.1
            if time.thread_time() - self._start > MAX_SECONDS:
                raise TemplateTooLarge(f"more than {MAX_SECONDS:g} s of processor time")


class _Loop:
    """An iterable that counts what is taken from it."""

    def __init__(self, environment: Sandbox, iterable: Iterable[Any]) -> None:
        self._environment, self._iterable = environment, iterable

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._environment.step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # a TypeError where it has none, as without this class


class _Instrument(NodeTransformer):
    """Has loops counted, and what is built from several values measured."""

    def _through(self, name: str, node: nodes.Node) -> nodes.Expr:
        return nodes.Call(nodes.EnvironmentAttribute(name), [node], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._through("count_loop", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return self._through("join_texts", parts)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._through("measured", node) if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._through("measured", node) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._through("measured", node) if node.items and node.ctx == "load" else node


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{5}", format_spec):
            raise TemplateTooLarge("a format with a width of more than 9,999")
        return super().format_field(value, format_spec)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, with bounds.

    Objects cannot be changed. One rendering makes at most a million steps (turns of a loop, calls, filters, operators)
    in 10 s of processor time and writes at most 16 million characters; no text on the way is longer, no list or dict
    has more than a million entries, and ``range`` has Jinja's 100,000. What multiplies (repeating, padding, indenting,
    replacing, ``tojson(indent=)``) is refused before it is done where the result could have 100 million characters. A
    template has at most a million. Anything beyond is a TemplateTooLarge.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=self.measured,
        )
        self._local = threading.local()
        self.concat = self._concat  # type: ignore[method-assign,assignment]  # blocks, macros and the whole
        self.filters["tojson"] = self._to_json
        self.filters = {name: self._bounded_filter(name, filter) for name, filter in self.filters.items()}
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def render(self, template: jinja2.Template, **variables: Any) -> str:
        """The template's text. Raises whatever the template raises, and TemplateTooLarge."""
        self._local.work = _Work()
        try:
            return template.render(**variables)
        finally:
            self._local.work = None

    def from_string(self, source: Any, *args: Any, **options: Any) -> jinja2.Template:
        if isinstance(source, str) and len(source) > MAX_SOURCE:
            raise TemplateTooLarge(f"a template of more than {MAX_SOURCE:,} characters, got {len(source):,}")
        return super().from_string(source, *args, **options)

    def step(self) -> None:
        """Counts a step of the rendering in this thread; none while a template is compiled."""
        if work := getattr(self._local, "work", None):
            work.step()

    # What the instrumented templates call

    def count_loop(self, iterable: Any) -> Any:
        return _Loop(self, iterable)

    def measured(self, value: Any) -> Any:
        _size(value)
        return value

    def join_texts(self, parts: list[Any]) -> str:
        self.measured(parts)
        return self._concat(map(str, parts))

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:  # Jinja's own filter escapes what matters in HTML
        style: Any = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        if indent is None:
            return json.dumps(value, **style)
        return self._concat(json.JSONEncoder(**style).iterencode(value))

    # What Jinja calls

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        counted = _Instrument().visit(source).set_environment(self)
        return super()._generate(counted, *args, **options)  # type: ignore[arg-type]  # a Template still

    def _concat(self, parts: Iterable[str]) -> str:
        kept, size = [], 0
        for part in parts:
            size += len(part)
            self.step()
            if size > MAX_SIZE:
                raise TemplateTooLarge(f"a text of more than {MAX_SIZE:,} characters")
            kept.append(part)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.step()
        if isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}.get(operator, 0)
            if bits > MAX_BITS:
                raise TemplateTooLarge(f"an integer of more than {MAX_BITS:,} bits")
        elif operator == "*":
            _check_product((left, right))
        elif operator == "%":
            _check_format(left, right, "%")
        return self.measured(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        receiver = getattr(called, "__self__", None)
        if receiver is self:
            return called(*args)  # without the loop's variables, which Jinja hands over beside them
        self.step()
        name = getattr(called, "__name__", None)
        builds = isinstance(receiver, (str, bytes, int)) or isinstance(called, type)  # not macros, list.index, dict.get
        if builds:
            self.measured((receiver, args, kwargs))
        if name in _MULTIPLIERS:
            _check_product((1 if receiver is None else receiver, *args, *kwargs.values()))
        if name == "replace":
            _check_replace(receiver, *args)
        result = super().call(context, called, *args, **kwargs)
        return self._counted(result, builds)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"

        @functools.wraps(value)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            _check_format(text, (args, kwargs), "{")
            if is_map:
                (kwargs,), args = args, ()
            return self.measured(_Formatter(self).vformat(text, args, kwargs))

        return wrapper

    def _counted(self, value: Any, measured: bool) -> Any:
        if isinstance(value, types.GeneratorType):
            return iter(_Loop(self, value))
        return self.measured(value) if measured or isinstance(value, str) else value

    def _bounded_filter(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if getattr(filter, "jinja_pass_arg", None) else 0  # after the context or environment

        @functools.wraps(filter)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.step()
            given = (*args[first:], *kwargs.values())
            if name in _WRITING_FILTERS:
                self.measured(given)
            if name in _MULTIPLYING_FILTERS:
                _check_product((*given, 2))
            elif name == "format":
                _check_format(given[0], given[1:], "%")
            elif name == "replace":
                _check_replace(str(given[0]), *given[1:])
            elif name == "sum" and len(given) > 1 and not isinstance(given[-1], (int, float)):
                _check_product((given[0], given[0]))
            if name in _LOOPING_FILTERS and len(args) > first:
                args = (*args[:first], _Loop(self, args[first]), *args[first + 1 :])
            return self._counted(filter(*args, **kwargs), name in _BUILDING_FILTERS)

        return bounded
