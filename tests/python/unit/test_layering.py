"""The module order of the library: who may include whom, and that cpp/ knows nothing of Python."""

import re
from pathlib import Path

import pytest

CPP = Path(__file__).resolve().parents[3] / "cpp"

# A module includes itself, core, and what stands here. nn never sees models, and all reuse of work lives in engine.
# sae and circuits reach experiments through registries: of operators and of readouts.
_ON_MODELS = {"ops", "hooks", "cache", "models", "engine"}
_STEERING = {"io", "activations", "graph", *_ON_MODELS}
_ANALYSIS = {"statistics", "steering", *_STEERING}
MAY_INCLUDE: dict[str, set[str]] = {
    "core": set(),
    "io": set(),
    "text": {"io"},
    "ops": set(),
    "statistics": set(),
    "hooks": set(),
    "cache": set(),
    "nn": {"ops", "hooks", "cache"},
    "models": {"io", "text", "ops", "hooks", "cache", "nn"},
    "engine": {"ops", "hooks", "cache", "models"},
    "activations": {"io", *_ON_MODELS},
    "training": {"io", *_ON_MODELS},
    "graph": {"io", *_ON_MODELS},
    "steering": _STEERING,
    "analysis": _ANALYSIS,
    "sae": {"io", "activations", *_ON_MODELS},
    "circuits": {"analysis", "sae", *_ANALYSIS},
    "experiments": {"text", "nn", "analysis", *_ANALYSIS},
}
# Within a module: one file a thing.
FOLDERS = {"experiments/readouts", "sae/architectures", "sae/formats", "sae/training"}
GENERATED = {"export.h", "version.h"}  # by CMake, included as introspect/export.h
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks the order, in sources given as {path below cpp/: text}.

    A path is include/introspect/<module>/x.h or src/<module>/x.cpp; the umbrella include/introspect/introspect.h may
    include everything.
    """
    found = []
    for path, text in sources.items():
        folders = path.split("/")
        inside = folders[2:] if folders[0] == "include" else folders[1:]
        umbrella = inside == ["introspect.h"]
        module = inside[0]
        folder = "/".join(inside[:-1])
        if not umbrella and folder not in FOLDERS and folder not in MAY_INCLUDE:
            found.append(f"{path}: not in a folder of the module table")
            continue
        for included in INCLUDE.findall(text):
            if re.search(r"pybind11|Python\.h|torch/(extension|python)\.h|torch/csrc/(?!api/)", included):
                found.append(f"{path}: includes {included}, which belongs to Python")
            if included == "torch/torch.h":
                found.append(f"{path}: torch/torch.h costs 20 s in each compilation; torch/types.h has the tensors")
            if path.startswith("include/") and included.startswith(("nlohmann/", "pcre2", "sqlite3", "sentencepiece")):
                found.append(f"{path}: includes {included}, which users of the library need not have")
            used = included.removeprefix("introspect/")
            if umbrella or used == included or used in GENERATED:
                continue
            other = used.split("/")[0]
            if other not in {module, "core"} | MAY_INCLUDE[module]:
                found.append(f"{path}: {module} may not include {included}")
    return found


def test_the_library_follows_the_module_order_and_knows_nothing_of_python():
    files = [p for folder in ("include/introspect", "src") for p in sorted((CPP / folder).rglob("*")) if p.is_file()]
    sources = {p.relative_to(CPP).as_posix(): p.read_text() for p in files}
    assert len(sources) > 5
    assert violations(sources) == []


def test_the_umbrella_includes_every_public_header_in_the_order_of_the_modules():
    public = CPP / "include" / "introspect"
    headers = [f"introspect/{m}/{h.name}" for m in MAY_INCLUDE for h in sorted((public / m).glob("*.h"))]
    assert INCLUDE.findall((public / "introspect.h").read_text()) == [*headers, "introspect/version.h"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/graph/graph.cpp", '#include "introspect/introspect.h"'),
        ("src/ops/norm.cpp", '#include "introspect/models/model.h"'),
        ("src/nn/block.cpp", '#include "introspect/models/config.h"'),
        ("include/introspect/sae/sae.h", "#include <introspect/steering/train.h>"),
        ("src/core/error.cpp", "#  include <Python.h>"),
        ("src/core/error.cpp", "#include <torch/csrc/utils/pybind.h>"),
        ("include/introspect/ops/norm.h", "#include <torch/torch.h>"),
        ("src/ops/norm.cpp", "#include <torch/torch.h>"),
        ("include/introspect/io/gguf.h", "#include <nlohmann/json.hpp>"),
        ("src/misc/x.cpp", ""),
        ("src/stray.cpp", ""),
    ],
)
def test_a_break_of_the_order_is_found(path, text):
    assert len(violations({path: text})) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/nn/block.cpp", '#include "introspect/nn/block.h"\n#include "introspect/ops/norm.h"'),
        ("include/introspect/introspect.h", '#include "introspect/experiments/run.h"'),
        ("include/introspect/io/gguf.h", '#include <torch/types.h>\n#include "introspect/export.h"'),
        ("src/io/gguf.cpp", "#include <nlohmann/json.hpp>"),
    ],
)
def test_what_the_order_allows_is_not_flagged(path, text):
    assert violations({path: text}) == []


# Whose weights these are, or that make them.
OWN_BLOCKS = {"model.cpp", "new_model.cpp", "weight_reader.cpp", "whole_weights.cpp"}


def test_whoever_walks_a_models_blocks_asks_for_all_of_its_weights():
    """Model::weights has none where blocks stay in the files: a loop over them would do nothing, and say nothing."""
    walk = re.compile(r"\bw(eights)?_?\.blocks\b|\)\.blocks\b")
    folders = [CPP / "src", CPP.parent / "python" / "bindings", CPP.parent / "examples"]
    for path in sorted(path for folder in folders for path in folder.glob("**/*.cpp")):
        text = path.read_text()
        assert "weights().blocks" not in text, path
        if walk.search(text) and path.name not in OWN_BLOCKS:
            assert "whole_weights(" in text, path
