"""Chat templates: the native formats where one is recognised, Jinja in a sandbox for every other."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import _C

if TYPE_CHECKING:
    import jinja2


def load_chat_template(path: str | os.PathLike) -> _C.ChatTemplate | None:
    """The chat template in a Hugging Face folder or a .gguf file, or None.

    Raises:
        IoError: a file is broken.
    """
    source = _C.ChatSource.find(path)
    return None if source is None else chat_template(source.jinja, special_tokens=source.special_tokens)


def given_chat_template(given: str | os.PathLike | _C.ChatTemplate, path: str | os.PathLike) -> _C.ChatTemplate:
    """The chat template that somebody names for a model whose files have none, or another one.

    Args:
        given: a template, the name of a native format (``ChatTemplate.names()``), a file that holds Jinja, or Jinja.
        path: the model's folder or file; its tokenizer knows the special tokens that templates write.

    Raises:
        ConfigError: neither a name, a file nor Jinja; or the files hold no tokenizer.
        IoError: a file is broken.
    """
    if isinstance(given, _C.ChatTemplate):
        return given
    text = os.fspath(given)
    if text in _C.ChatTemplate.names():
        return _C.ChatTemplate.named(text)
    if Path(text).is_file():
        text = _text_of(Path(text))
    elif "{" not in text:
        names = ", ".join(_C.ChatTemplate.names())
        raise _C.ConfigError(f"chat_template: neither a file, Jinja nor one of {names}: {text}")
    tokenizer = _C.Tokenizer.load(path)
    ids = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    return chat_template(
        text, special_tokens={name: tokenizer.id_to_token(id) for name, id in ids.items() if id is not None}
    )


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _C.ConfigError(f"chat_template: {file} is not UTF-8 text") from None


def chat_template(source: str, *, special_tokens: Mapping[str, str] | None = None) -> _C.ChatTemplate:
    """The chat template with this Jinja source.

    Args:
        source: a template as in tokenizer_config.json. The known ones become native formats.
        special_tokens: ``bos_token``, ``eos_token`` and others the template may use.
    """
    tokens = dict(special_tokens or {})
    try:
        return _C.ChatTemplate.from_jinja(source, bos=tokens.get("bos_token", ""), eos=tokens.get("eos_token", ""))
    except _C.ConfigError:
        return jinja_chat_template(source, special_tokens=tokens)


def jinja_chat_template(source: str, *, special_tokens: Mapping[str, str] | None = None) -> _C.ChatTemplate:
    """The chat template with this Jinja source, rendered by Jinja whether the format is known or not.

    It runs in a sandbox whose objects cannot be changed, with what transformers gives to templates: ``messages``,
    ``add_generation_prompt``, the special tokens, ``raise_exception``, ``strftime_now`` and ``tojson``. It is compiled
    at its first use, so that a model whose template is broken can still be loaded.
    """

    @functools.cache
    def compiled() -> jinja2.Template:
        return _environment().from_string(source)

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return compiled().render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(special_tokens or {}),
            )
        except Exception as error:  # whatever the template's own expressions raise
            raise _C.ConfigError(f"chat template: {type(error).__name__}: {error}") from error

    return _C.ChatTemplate("jinja", render)


def _environment() -> jinja2.Environment:
    """Where templates run, as transformers sets it up."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the assistant's text for training; here it is just rendered."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        def _render(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:  # Jinja's own filter escapes what matters in HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
