"""The command line: arguments, exit codes, interruption, and each command on a real model."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import synthetic
import typer
from typer.testing import CliRunner

from introspect.arguments import layer_range
from introspect.cli import common
from introspect.cli.app import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def vector_file(tmp_path):
    path = tmp_path / "cat.gguf"
    path.write_bytes(b"not read before the arguments are understood")
    return path


def test_help_loads_neither_torch_nor_plots():
    code = (
        "import sys, typer.testing; from introspect.cli.app import app; "
        "result = typer.testing.CliRunner().invoke(app, ['run', '--help']); assert result.exit_code == 0; "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_version():
    import introspect

    assert invoke("--version").stdout == f"introspect {introspect.__version__}\n"


CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(consumer NONE)
find_package(introspect CONFIG REQUIRED PATHS ${CMAKE_PREFIX_PATH} NO_DEFAULT_PATH)
message(STATUS "found ${introspect_DIR}")
"""


def test_cmake_finds_the_package_at_the_prefix_of_this_install(tmp_path):
    prefix = Path(invoke("--cmake-prefix").stdout.strip())
    (found,) = prefix.glob("lib*/cmake/introspect/introspect-config.cmake")
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on the path")
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0 and f"found {found.parent}" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("info",),
        ("generate", "m"),
        ("generate", "m", "text", "--layers", "1-2"),
        ("generate", "m", "text", "--fraction", "0.1"),
        ("generate", "m", "text", "--vector", "VECTOR", "--strength", "1", "--fraction", "0.1"),
        ("generate", "m", "text", "--samples", "2"),
        ("generate", "m", "text", "-n", "0", "--temperature", "1"),
        ("train", "m", "-o", "cat.gguf"),
        ("train", "m", "--concept", "cat", "--word", "cat", "-o", "cat.gguf"),
        ("train", "m", "--concept", "", "-o", "cat.gguf"),
        ("train", "m", "--positive", "Be glad.", "-o", "cat.gguf"),
        ("train", "m", "--positive", "Be glad.", "--negative", "Be sad.", "--template", "{concept}", "-o", "x.gguf"),
        ("train", "m", "--concept", "cat", "--template", "About cats.", "-o", "cat.gguf"),
        ("train", "m", "--word", "cat", "--template", "About {concept}.", "-o", "cat.gguf"),
        ("train", "m", "--word", "cat", "--method", "lat", "-o", "cat.gguf"),
        ("train", "m", "--concept", "cat", "--baseline", "VECTOR", "-o", "cat.gguf"),
        ("generate", "m", "text", "--vector", "nowhere.gguf"),
        ("generate", "m", "text", "--max-new-tokens", "0"),
        ("generate", "m", "text", "--dtype", "int8"),
        ("train", "m", "--concept", "cat"),
        ("train", "m", "--concept", "cat", "-o", "cat.bin"),
        ("train", "m", "--concept", "cat", "-o", "/nowhere/cat.gguf"),
        ("train", "m", "--concept", "cat", "-o", "cat.gguf", "--method", "magic"),
        ("run", "m", "no_info", "-o", "out"),
        ("run", "m", "no_info", "-o", "out", "--vector", "nowhere.gguf"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--vector", "VECTOR"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--strength", "20", "--fraction", "0.1"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--strength", "nan"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--layers", "x"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--nulls", "-1"),
        ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR", "--questions", "nowhere.txt"),
        ("report", "nowhere"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(arguments, vector_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = invoke(*(vector_file if argument == "VECTOR" else argument for argument in arguments))
    assert result.exit_code == 2, result.output
    assert sorted(tmp_path.iterdir()) == before


RUN = ("run", "m", "no_info", "-o", "out", "--vector", "VECTOR")


@pytest.mark.parametrize(
    "arguments",
    [
        (*RUN, "--seed", "9" * 23),
        (*RUN, "--seed", "-1"),
        (*RUN, "--nulls", "9" * 23),
        (*RUN, "--strength", "1e400"),
        (*RUN, "--strength", "9" * 5000),
        (*RUN, "--layers", "9" * 5000),
        (*RUN, "--layers", "0.5-" + "9" * 400),
        (*RUN, "--device", "\udcff"),
        (*RUN, "--questions", "\udcff"),
        ("sweep", *RUN[1:], "--step", "9" * 23, "--layers", "1"),
        ("sweep", *RUN[1:], "--all-ranges", "--max-width", "9" * 400),
        ("run", "m", "no_info", "-o", "out\0put", "--vector", "VECTOR"),
        ("run", "\udcff", "no_info", "-o", "out", "--vector", "VECTOR"),
        ("run", "m", "\udcff", "-o", "out", "--vector", "VECTOR"),
        ("run", "m", "no_info", "-o", "out", "--vector", "\udcff=VECTOR"),
        ("train", "m", "--concept", "\udcff", "-o", "x.gguf"),
        ("store", "info", "VECTOR"),
        ("store", "export", "VECTOR", "-o", "x.csv"),
        ("store", "merge", "VECTOR", "VECTOR"),
    ],
)
def test_no_argument_gives_a_traceback(arguments, vector_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*(str(argument).replace("VECTOR", str(vector_file)) for argument in arguments))
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 1:
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("introspect: ")


@pytest.mark.parametrize("option", [("--fraction", "0.1,0.2"), ("--strength", "1,2"), ("--layers", "1-2,3-4")])
def test_several_values_in_a_run_name_the_sweep(option, vector_file):
    result = invoke(*(vector_file if argument == "VECTOR" else argument for argument in RUN), *option)
    assert result.exit_code == 2 and "introspect sweep" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8-16", (8, 16)), ("8", (8, 8)), ("0.33-0.66", (0.33, 0.66)), ("0.0-1.0", (0.0, 1.0))],
)
def test_layers_are_understood(text, expected):
    layers = common.parse_layers(text)
    assert tuple(layers) == expected
    assert [type(end) for end in layers] == [type(end) for end in expected]


@pytest.mark.parametrize("text", ["", "x", "5-3", "-1", "0.5-1.5", "0.3-16", "1-2-3", "nan-nan", "0.1-inf"])
def test_other_layers_are_not(text):
    with pytest.raises(typer.BadParameter):
        common.parse_layers(text)


def test_fractions_name_the_articles_blocks():
    layers = common.Layers(21 / 64, 42 / 64)
    assert layer_range(layers, 64, "--layers") == (21, 42)
    assert layer_range(layers, 24, "--layers") == (8, 16)
    assert layer_range(common.Layers(0.0, 1.0), 24, "--layers") == (0, 23)


def test_a_failure_is_one_line_and_1(tmp_path):
    for arguments in (("info", tmp_path / "no.gguf"), ("pull", "no-such-model"), ("report", tmp_path)):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("introspect: ")
        assert result.stdout == ""


def options():
    """(command, option) of every whole number that a command takes."""
    groups = [((), app), *(((group.name,), group.typer_instance) for group in app.registered_groups)]
    for path, group in groups:
        for command in group.registered_commands:
            hints = get_type_hints(command.callback, include_extras=True)
            for name, hint in hints.items():
                kind, *details = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
                if details and int in (kind, *get_args(kind)):
                    named = [text for text in details[0].param_decls or () if text.startswith("--")]
                    command_name = command.name or command.callback.__name__
                    yield (*path, command_name), (named or [f"--{name.replace('_', '-')}"])[0]


def test_there_are_whole_numbers_to_try():
    assert {("generate", "--max-new-tokens"), ("run", "--nulls"), ("sweep", "--step")} <= {
        (command[-1], option) for command, option in options()
    }


@pytest.mark.parametrize(("command", "option"), list(options()), ids=str)
def test_whole_numbers_beyond_all_bounds_are_wrong_usage(command, option):
    result = invoke(*command, option, "9" * 25)
    assert result.exit_code == 2 and option in result.stderr, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("text", ["9" * 25, f"1-{'9' * 25}"])
def test_layers_beyond_all_bounds_are_not_understood(text):
    with pytest.raises(typer.BadParameter):
        common.parse_layers(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "m", b"\xff"),
        ("generate", b"no-model-\xff", "text"),
        ("generate", "m", "text", "--system", b"\xff"),
        ("train", "m", "--concept", b"\xff", "-o", "cat.gguf"),
        ("train", "m", "--concept", "cat", "--template", b"\xff{concept}", "-o", "cat.gguf"),
        ("run", "m", b"\xff", "-o", "out", "--vector", "cat.gguf"),
        ("pull", b"\xff"),
    ],
)
def test_arguments_that_are_no_text_are_wrong_usage(arguments, tmp_path):
    command = [sys.executable, "-m", "introspect", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr and b"UTF-8" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_whatever_fails_ends_with_one_line(capsys):
    @common.guarded
    def command():
        raise KeyError("tokens")

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_pull_without_a_name_fetches_nothing_and_lists_the_names(monkeypatch):
    monkeypatch.setattr("introspect.hub.pull", lambda *args, **options: pytest.fail("it fetched"))
    result = invoke("pull")
    assert result.exit_code == 0
    assert result.stdout == invoke("pull", "--list").stdout and "491 MB" in result.stdout


def test_pull_lists_the_short_names():
    models = json.loads(invoke("pull", "--list", "--json").stdout)
    assert {"qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"} <= {model["name"] for model in models}
    assert "the default" in invoke("pull", "--list").stdout


def test_report_prints_and_writes(tmp_path):
    (tmp_path / "with_info.json").write_text(json.dumps(synthetic.detection()))
    result = invoke("report", tmp_path)
    assert result.exit_code == 0
    assert "inside the random band" in result.stdout
    assert (tmp_path / "report.html").exists() and (tmp_path / "with_info.png").exists()
    statistics = json.loads(invoke("report", tmp_path, "--json").stdout)
    assert statistics == json.loads((tmp_path / "report.json").read_text())


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "with_info.json").write_text('{"schema": 1, "rows"')
    result = invoke("report", tmp_path)
    assert result.exit_code == 1 and "with_info.json" in result.stderr


@pytest.mark.parametrize(
    "work",
    [
        "while True: time.sleep(0.01)",  # between instructions of Python
        "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1 << 30)",  # minutes in native code that lets other threads run
    ],
)
def test_ctrl_c_ends_a_command_within_a_second(work):
    code = (
        "import hashlib, time; from introspect.cli.common import guarded\n"
        f"def command():\n  print('started', flush=True)\n  {work}\n"
        "import typer; typer.run(guarded(command))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - sent < 1.0
    assert process.returncode == 130
    assert stderr.strip() == "introspect: interrupted; what was finished is kept"


@pytest.fixture(scope="module")
def trained(smollm2, tmp_path_factory):
    """A vector of a dozen pairs."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "suffixes.txt").write_text("That game\nI can see\nHmm, this\nWho is\nUgh,\nAlthough\n")
    result = invoke(
        "train", smollm2, "--concept", "cat", "-o", folder / "cat.gguf", "--suffixes", folder / "suffixes.txt"
    )
    assert result.exit_code == 0, result.output
    return folder / "cat.gguf"


def test_info_says_what_the_model_is(smollm2):
    facts = json.loads(invoke("info", smollm2, "--json").stdout)
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
    assert (facts["n_layers"], facts["d_model"], facts["n_heads"], facts["n_key_value_heads"]) == (30, 576, 9, 3)
    assert facts["d_vocab"] == 49152 and facts["parameters"] == 134515008
    assert facts["dtype"] == "float32"  # as in every other command
    assert facts["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 4
    assert "134.5 million" in invoke("info", smollm2).stdout


def test_generate_streams_the_same_text_as_json(smollm2):
    arguments = ("generate", smollm2, "The capital of France is", "--max-new-tokens", "8")
    text = json.loads(invoke(*arguments, "--json").stdout)["text"]
    assert "Paris" in text
    assert invoke(*arguments).stdout == text + "\n"


def test_generate_steers(smollm2, trained):
    arguments = ("generate", smollm2, "Hello", "--chat", "--max-new-tokens", "12")
    plain = invoke(*arguments).stdout
    assert invoke(*arguments, "--vector", trained, "--strength", "0", "--layers", "10-20").stdout == plain
    assert invoke(*arguments, "--vector", trained, "--strength", "50", "--layers", "10-20").stdout != plain


def test_generate_refuses_layers_the_model_does_not_have(smollm2, trained):
    result = invoke("generate", smollm2, "Hello", "--vector", trained, "--layers", "10-200")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


def test_generate_with_a_system_message_and_several_samples(smollm2):
    arguments = ("generate", smollm2, "Say something.", "--system", "You are a pirate.", "--max-new-tokens", "6")
    asked = json.loads(invoke(*arguments, "--json").stdout)
    assert asked["prompt"].index("You are a pirate.") < asked["prompt"].index("Say something.")
    assert asked["samples"] == [asked["text"]]
    drawn = json.loads(invoke(*arguments, "-n", "3", "--temperature", "1", "--seed", "7", "--json").stdout)["samples"]
    assert len(drawn) == 3 and len(set(drawn)) > 1
    shown = invoke(*arguments, "-n", "3", "--temperature", "1", "--seed", "7").stdout
    assert [shown.count(text) > 0 for text in drawn] == [True] * 3 and "--- 3 of 3" in shown


def test_generate_takes_a_chat_template(smollm2, tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}<<{{ m.content }}>>{% endfor %}")
    arguments = ("generate", smollm2, "Hello", "--chat", "--max-new-tokens", "1", "--json")
    asked = json.loads(invoke(*arguments, "--chat-template", tmp_path / "own.jinja").stdout)
    assert asked["prompt"] == "<<Hello>>"
    assert (
        "<|im_start|>user\nHello<|im_end|>"
        in json.loads(invoke(*arguments, "--chat-template", "chatml").stdout)["prompt"]
    )
    wrong = invoke(*arguments, "--chat-template", "no-such-format")
    assert wrong.exit_code == 1 and "chatml" in wrong.stderr


def test_generate_steers_by_a_fraction_of_the_residual_norm(smollm2, trained):
    arguments = ("generate", smollm2, "Hello", "--chat", "--max-new-tokens", "12", "--layers", "10-20")
    plain = invoke(*arguments[:-2]).stdout
    result = invoke(*arguments, "--vector", trained, "--fraction", "0")
    if "unit='residual'" in result.stderr:
        pytest.skip("steer() does not know unit='residual' yet")
    assert result.stdout == plain
    assert invoke(*arguments, "--vector", trained, "--fraction", "0.5").stdout != plain


def cells(folder):
    with sqlite3.connect(f"file:{folder / 'cells.sqlite'}?mode=ro", uri=True) as database:
        tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
        return sum(database.execute(f"select count(*) from {name}").fetchone()[0] for (name,) in tables)


def test_run_and_report(smollm2, trained, tmp_path):
    out = tmp_path / "out"
    arguments = ("run", smollm2, "no_info", "content_report", "--vector", trained, "-o", out)
    arguments += ("--questions", "own", "--nulls", "2", "--fraction", "0.05")
    first = invoke(*arguments, "--json")
    assert first.exit_code == 0, first.output
    listed = json.loads(first.stdout)["protocols"]
    assert [p["protocol"]["name"] for p in listed] == ["no_info", "content_report"]
    assert listed[0]["detections"][0]["shift"]["of"] == 3
    assert listed[0]["detections"][0]["first_layer"] == 10 and listed[0]["detections"][0]["last_layer"] == 20
    assert listed[1]["identifications"][0]["token"] == "cat"
    finished = cells(out)
    assert invoke(*arguments, "--json").stdout == first.stdout
    assert cells(out) == finished
    assert invoke("report", out).exit_code == 0
    assert (out / "report.html").exists()


def test_an_interrupted_run_keeps_its_cells(smollm2, trained, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "introspect", "run", smollm2, "no_info", "--vector", f"cat={trained}", "-o", out]
    command += ["--questions", "own", "--nulls", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not ((out / "cells.sqlite").exists() and cells(out) >= 2):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
            assert time.monotonic() - sent < 1.5  # a second, and the process's own end
        finally:
            process.kill()
    assert process.returncode == 130
    announced, *_, last = stderr.strip().splitlines()
    assert announced.startswith("introspect: 502 readings")
    assert last.startswith("introspect: interrupted; what was finished is kept. The same command goes on")
    assert cells(out) >= 2
    assert [path.name for path in out.glob("*.json*")] == ["run.json"]
