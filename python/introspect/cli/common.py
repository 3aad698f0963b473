"""What commands share: options, how failures end, and how Ctrl-C does."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..experiments.results import finite
from . import holding

FAILED, INTERRUPTED = 1, 130
GRACE = 0.6  # seconds that native code gets to notice Ctrl-C
LONGEST = 2000  # characters of an error's line


class Dtype(str, Enum):
    """Of weights and activations. What is read out is float32 with every one of them."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Layers(NamedTuple):
    """Blocks, both ends included: numbers from 0, or fractions of the depth."""

    first: int | float
    last: int | float


def parse_layers(text: str) -> Layers:
    """ "8-16", "8" or "0.33-0.66"."""
    first, dash, last = text.partition("-")
    try:
        number = float if "." in text else int
        layers = Layers(number(first), number(last if dash else first))
    except ValueError:
        raise typer.BadParameter(f"layers are A-B with block numbers or fractions of the depth, got {text!r}") from None
    if max(layers) > MOST:
        raise typer.BadParameter(f"no model has so many blocks, got {text!r}")
    if layers.first > layers.last:
        raise typer.BadParameter(f"the first layer comes first, got {text!r}")
    if isinstance(layers.last, float) and not layers.last <= 1.0:
        raise typer.BadParameter(f"fractions of the depth are between 0.0 and 1.0, got {text!r}")
    return layers


def parse_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"it must be a finite number, got {text!r}")
    return number


def parse_strength(text: str) -> float | str:
    """A number, or a dose: "kl=0.5", "sd=2", "coherent"."""
    if not text[:1].isalpha() or text in ("nan", "inf"):
        return parse_number(text)
    from ..experiments.doses import check_target  # here, because it loads torch

    try:
        return check_target(text, "--strength", "it")
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("--strength: ")) from None


def one(parse: Callable[[str], Any], name: str) -> Callable[[str], Any]:
    """The parser of an option that takes one value at a time."""

    @functools.wraps(parse)
    def only(text: str) -> Any:
        if "," in text:
            raise typer.BadParameter(f"it takes one value; for several of them: introspect sweep {name} {text}")
        return parse(text)

    return only


MOST = 2**31 - 1  # of counts
MOST_SEED = 2**63 - 1

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A short name (introspect pull --list), HF folder, .gguf or hub id.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="Of weights and activations; bfloat16 takes half the memory.")]
DeviceOption = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps.")]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="F",
        help="A file with the chat template in Jinja, or a format's name (chatml, ...; plain for base models).",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of everything that is drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def print_json(value: Any) -> None:
    typer.echo(json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A line for the person at the terminal, broken between words; what a program reads goes to standard output."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    typer.echo(text, err=True)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """End a failed command with one line and exit code 1, one used wrongly with 2, an interrupted one with 130.

    A command with a ``DtypeOption`` loads a model, and gets the options of how its weights are held (``holding``).

    INTROSPECT_TRACEBACK=1 shows where an error came from instead. A kind of error that is not meant to reach a user
    says that.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            check_text(options)
            with _ends_on_interrupt(), holding.taken_from(options):
                command(*args, **options)
        except BrokenPipeError:  # the reader of our output has gone, as in `introspect generate ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            note(f"introspect: {_interrupted}")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            is_usage = hasattr(error, "exit_code") or isinstance(error, typer.Abort)  # typer shows these itself
            if is_usage or os.environ.get("INTROSPECT_TRACEBACK"):
                raise
            note(f"introspect: {describe(error)}")
            raise typer.Exit(FAILED) from None

    holding.add_options(run, command, DtypeOption)
    return run


_interrupted = "interrupted; what was finished is kept"
EXPECTED = (ImportError, IndexError, MemoryError, OSError, RuntimeError, ValueError)


def describe(error: BaseException) -> str:
    """One line: what failed, and the file if there is one."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return where + error.strerror
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EXPECTED):
        return line
    return f"{type(error).__name__}: {line} (a fault of introspect's; INTROSPECT_TRACEBACK=1 shows where)"


def resumable(folder: Path) -> None:
    """From here on Ctrl-C leaves a run in a folder that can go on."""
    global _interrupted
    _interrupted = (
        f"interrupted; what was finished is kept. The same command goes on; introspect report {folder} shows it so far"
    )


def check_text(options: Mapping[str, Any]) -> None:
    """Refuse arguments that are no text: bytes that the locale cannot decode. Names of files that are there may be so.

    Raises:
        BadParameter: naming the option.
    """
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not _is_text(text) and not os.path.exists(text):
                shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
                raise typer.BadParameter(f"{name} must be text in UTF-8, got {shown!r}")


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _ends_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process while native code runs, too.

    Python raises KeyboardInterrupt only between its own instructions. A thread therefore watches for the signal itself
    and ends the process if that has not happened after a moment. What is finished is on disk by then: readings are
    committed as they are finished, at least every ten seconds; files are renamed when they are complete.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    finished = threading.Event()

    def watch() -> None:
        while byte := os.read(read_end, 1):
            if byte[0] == signal.SIGINT and not finished.wait(GRACE):
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                os.write(2, f"\r{show_cursor}introspect: {_interrupted}\n".encode(errors="replace"))
                os._exit(INTERRUPTED)

    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(previous)
        os.close(write_end)
        watcher.join()
        os.close(read_end)


def load_model(source: str, dtype: Dtype, device: str, chat_template: str | None = None):
    """introspect.load_model with a progress bar."""
    import introspect

    from .. import hub
    from ..progress import step_bars

    hub.resolve(source)  # with its own progress bar, where it has to be fetched
    with step_bars() as step:
        return introspect.load_model(
            source,
            dtype=dtype.value,
            device=device,
            progress=step,
            chat_template=chat_template,
            **holding.chosen(),
        )


def output_file(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Check, before any work, that a file of a kind we write can be put there."""
    if path.suffix not in suffixes:
        raise typer.BadParameter(f"the output must end in {' or '.join(suffixes)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path
