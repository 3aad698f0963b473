"""Files of results that are damaged: one line that names the file and the place, from every command that reads them."""

import copy
import json

import pytest
import synthetic
from typer.testing import CliRunner

from introspect.cli.app import app
from introspect.experiments.result_fields import MORE_OF_ROW
from introspect.experiments.results import Result


def first_rows(make):
    return lambda: (data := make()) | {"rows": data["rows"][:3]}


KINDS = {kind: first_rows(getattr(synthetic, kind)) for kind in ("detection", "content", "sample")}


def places(value, path=()):
    """The path of every field in a result, of its first two rows."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


NEEDED = [
    (kind, path)
    for kind, make in KINDS.items()
    for path in places(make())
    if path[-1] not in ("tokens", "text", 0, 1, "introspect", "torch")
]


def damaged(kind, path, value=None, remove=False):
    data = copy.deepcopy(KINDS[kind]())
    at = data
    for key in path[:-1]:
        at = at[key]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("kind", "path"), NEEDED, ids=lambda value: value if isinstance(value, str) else ".".join(map(str, value))
)
def test_a_missing_field_and_one_of_another_kind_are_errors_that_name_them(kind, path):
    without = [] if path[-1] in MORE_OF_ROW else [damaged(kind, path, remove=True)]
    for data in (*without, damaged(kind, path, value={"x": [True]})):
        with pytest.raises(ValueError, match=f"(?s){path[-1]}"):
            Result.from_json(json.dumps(data))


@pytest.mark.parametrize("value", [None, [], [{}], [{"token": 3}], "x", [{"token": "a"}] * 4])
def test_tokens_that_are_missing_or_too_few_are_refused(value):
    with pytest.raises(ValueError, match="tokens"):
        Result.from_json(json.dumps(damaged("content", ("rows", 0, "injected", "tokens"), value)))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", "null", '{"schema": 1}', "[" * 5000, '{"schema": 1, "rows": [3]}']
)
def test_report_ends_with_one_line_that_names_the_file(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "x.json" in done.stderr


def test_what_the_library_writes_is_whole():
    for make in KINDS.values():
        Result.from_json(Result(make()).to_json())
