"""Every block of README.md, pasted in its order in an empty folder, as a newcomer does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SLOW

FENCES = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEFAULT, SMALLEST = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"
FOOD = re.compile(  # whole words: "created" is not about eating
    r"\b(breads?|foods?|meals?|bak(e|ed|ing)|cook(ed|ing)?|eat(ing)?|ate|dough|flour|breakfast|lunch|dinner|coffee|"
    r"kitchen|toast|recipes?|soup|cheese|delicious)\b",
    re.I,
)
# Fewer questions and random vectors, for minutes instead of half an hour; with INTROSPECT_SLOW all of them are run too.
SMALLER = {
    "layers=[(8, 16)])": "layers=[(8, 16)], questions=[], nulls=2)",
    "--layers 8-16 -o": "--layers 8-16 --questions own --nulls 2 -o",
    "--step 4 --nulls 3": "--step 9 --nulls 1",
}

SHELL = """\
import contextlib, io, sys
names = {"__name__": "__main__"}
def paste(number, block):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(block, f"block {number} of README.md", "exec"), names)
    print(f"==== {number}", shown.getvalue(), sep="\\n", flush=True)
"""


def blocks(language):
    return [text for kind, text in FENCES.findall((ROOT / "README.md").read_text()) if kind == language]


def sized(text, model):
    """A block with this model in the place of README's."""
    for one, other in SMALLER.items() if model == SMALLEST else ():
        text = text.replace(one, other)
    return text.replace(DEFAULT, model)


def in_folder(arguments, folder, **options):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=1200, **options
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module", params=[SMALLEST, DEFAULT] if SLOW else [SMALLEST])
def model(request, smollm2, qwen05):
    """The smallest model stands in for README's, which runs too where slow tests do."""
    return request.param


@pytest.fixture(scope="module")
def shown(model, tmp_path_factory):
    """What each Python block prints, and the empty folder they were pasted in."""
    folder = tmp_path_factory.mktemp("empty")
    pasted = "".join(f"paste({i}, {sized(text, model)!r})\n" for i, text in enumerate(blocks("python")))
    printed = in_folder([sys.executable, "-c", SHELL + pasted], folder)
    return re.split(r"^==== \d+\n", printed, flags=re.MULTILINE)[1:], folder


def test_each_python_block_shows_something(shown):
    printed, folder = shown
    assert len(printed) == len(blocks("python"))
    assert all(text.strip() for text in printed)
    assert (folder / "no_info.json").stat().st_size > 1000


def test_the_steering_demo_shows_an_unsteered_text_and_three_steered_ones(model, shown):
    plain, *steered = re.split(r"^steered:", shown[0][0], flags=re.MULTILINE)
    assert len(steered) == 3 and min(len(text.split()) for text in (plain, *steered)) > 3
    assert plain.removeprefix("plain:").split() not in [text.split() for text in steered]
    if model == DEFAULT:  # what is in README holds for this model, whose block and strength these are
        assert sum(bool(FOOD.search(text)) for text in steered) >= 2, steered


def test_the_experiment_says_what_came_out(shown):
    (said,) = (text for text in shown[0] if "no_info" in text)
    assert re.match(r"no_info on \S+: (YES|NO|UNCLEAR)\n", said)


def test_the_command_line_s_blocks_run(model, tmp_path):
    start, commands = blocks("bash")
    assert "source .venv/bin/activate" in start  # quickstart.sh builds everything: not in a test
    assert (ROOT / "examples" / "quickstart.sh").exists()
    in_folder(["bash", "-euc", sized(commands, model)], tmp_path, stdin=subprocess.DEVNULL)
    assert (tmp_path / "noticed" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "readings.csv").read_text().count("\n") > 10


def test_what_is_made_smaller_stands_in_the_blocks():
    text = "".join(blocks("python") + blocks("bash"))
    assert all(text.count(one) >= 1 for one in SMALLER)


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link
