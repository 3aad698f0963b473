"""Chat templates: the native formats where one is recognised, Jinja in a sandbox for every other."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import _C

if TYPE_CHECKING:
    import jinja2

    from . import chat_sandbox


def load_chat_template(path: str | os.PathLike) -> _C.ChatTemplate | None:
    """The chat template in a Hugging Face folder or a .gguf file, or None.

    Raises:
        IoError: a file is broken.
    """
    source = _C.ChatSource.find(path)
    return None if source is None else chat_template(source.jinja, special_tokens=source.special_tokens)


PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if loop.index0 %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""Turns as plain text ("User: ...", "Assistant: ..."), for base models, which know no format: the template "plain"."""


def is_template_path(given: str | os.PathLike) -> bool:
    """Whether what names a chat template is a file or folder that is there: no template's text and no format's name."""
    text = os.fspath(given)
    is_name = text == "plain" or text in _C.ChatTemplate.names()
    return not is_name and not _is_template(text) and (os.path.isfile(text) or os.path.isdir(text))


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text or "\n" in text


def given_chat_template(
    given: str | os.PathLike | _C.ChatTemplate, path: str | os.PathLike | None = None
) -> _C.ChatTemplate:
    """The chat template that a user names for a model.

    Args:
        given: the text of a Jinja template, a file that holds one, a folder or .gguf file that has one, the name of a
            native format ("chatml"), "plain" (see PLAIN), or a ChatTemplate.
        path: the model's folder or .gguf file, whose special tokens the template may use.

    Raises:
        ConfigError: neither a template nor the name of one.
        IoError: a file is broken.
    """
    if isinstance(given, _C.ChatTemplate):
        return given
    text = os.fspath(given)
    if text in _C.ChatTemplate.names():
        return _C.ChatTemplate.named(text)
    if text == "plain":
        text = PLAIN
    elif is_template_path(text):
        file = Path(text)
        if file.is_dir() or file.suffix == ".gguf":
            if (found := load_chat_template(file)) is None:
                raise _C.ConfigError(f"chat_template: {text} has no chat template")
            return found
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _C.IoError(f"chat_template: {file} cannot be read: {error}") from error
    elif not _is_template(text):
        raise _C.ConfigError(
            "chat_template must be the text of a template, a file, a folder or .gguf file with one, or one of "
            f"plain, {', '.join(_C.ChatTemplate.names())}, got {text[:200]!r}"
        )
    tokens = {} if path is None else _C.ChatSource.special_tokens_of(path)
    return chat_template(text, special_tokens=tokens)


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

    One rendering is capped, and ends in a ConfigError beyond: at a million steps (turns of loops, calls, filters), 10 s
    of processor time, 16 million characters of output or of any text on the way, lists of a million entries, ranges of
    100,000, and at indents, widths and repetitions that could exceed these.
    """

    @functools.cache
    def compiled() -> tuple[chat_sandbox.Sandbox, jinja2.Template]:
        from . import chat_sandbox

        environment = chat_sandbox.Sandbox()
        return environment, environment.from_string(source)

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            environment, template = compiled()
            return environment.render(
                template,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(special_tokens or {}),
            )
        except Exception as error:  # whatever the template's own expressions raise
            raise _C.ConfigError(f"chat template: {type(error).__name__}: {error}") from error

    return _C.ChatTemplate("jinja", render)
