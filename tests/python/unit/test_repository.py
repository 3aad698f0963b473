"""What must hold of the files themselves."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.parametrize(
    ("folder", "lists"),
    [
        ("cpp/src", "cpp/CMakeLists.txt"),
        ("python/bindings", "python/bindings/CMakeLists.txt"),
        ("tests/cpp", "tests/cpp/CMakeLists.txt"),
        ("examples/cpp", "examples/cpp/CMakeLists.txt"),
    ],
)
def test_every_source_is_built(folder, lists):
    base = (ROOT / lists).parent
    words = set(re.findall(r"[\w/]+", (ROOT / lists).read_text()))
    sources = {path.relative_to(base).with_suffix("").as_posix() for path in (ROOT / folder).rglob("*.cpp")}
    assert sources - words == set()


def test_every_public_header_is_guarded():
    headers = sorted((ROOT / "cpp/include").rglob("*.h"))
    assert [path.name for path in headers if not path.read_text().startswith("#pragma once\n")] == []
