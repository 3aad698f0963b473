"""``introspect patch``: the grid of the function, as a table, JSON, a picture and a page."""

import json

import pytest
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.analysis import patch_grid
from introspect.cli.app import app

CLEAN, CORRUPTED = "my dog eats bread and", "my dot eats bread and"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"))


def run(*arguments, folder):
    options = ["--right", " cat", "--wrong", " bread", *map(str, arguments)]
    return CliRunner().invoke(app, ["patch", str(folder), CLEAN, CORRUPTED, *options])


def test_json_is_what_patch_grid_gives(folder):
    result = run("--point", "resid_pre", "--point", "z", "--noising", "--json", folder=folder)
    facts = json.loads(result.stdout)
    model = introspect.load_model(folder)
    metric = introspect.LogitDifference(" cat", " bread")
    grid = patch_grid(model, CLEAN, CORRUPTED, ["z"], metric=metric, direction="noising")
    found = facts["points"]["attn.hook_z"]
    assert set(facts["points"]) == {"hook_resid_pre", "attn.hook_z"}
    assert found["axes"] == ["layer", "position", "head"]
    assert found["values"] == pytest.approx(grid.values[0].numpy(), abs=1e-5)
    assert (found["clean"], found["corrupted"]) == pytest.approx((float(grid.clean), float(grid.corrupted)), abs=1e-5)
    assert facts["hash"] == model.hash


def test_files_are_a_picture_a_table_and_a_page_that_needs_no_other(folder, tmp_path):
    names = [tmp_path / name for name in ("grid.png", "grid.csv", "grid.html")]
    result = run(*[part for name in names for part in ("-o", name)], "--top", 2, folder=folder)
    assert result.exit_code == 0, result.output
    assert names[0].read_bytes().startswith(b"\x89PNG")
    assert names[1].read_text().splitlines()[0] == "point,layer,position,value,normalised"
    page = names[2].read_text()
    assert CLEAN in page and "data:image/png;base64," in page and "http" not in page
    assert "The logit difference is" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--wrong", " eats"), 1, "an answer must be one token"),
        (("--point", "resid_prey"), 1, "resid_pre"),
        (("-o", "grid.txt"), 2, ".png"),
    ],
)
def test_what_cannot_be_meant_ends_with_one_line(folder, arguments, code, message):
    result = run(*arguments, folder=folder)
    assert result.exit_code == code
    assert message in result.output
