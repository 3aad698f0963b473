"""One server of a small workspace for all tests of the explorer."""

import json

import pytest
import synthetic
import synthetic_graph
from explorer_server import running, write_dictionary
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.explorer import workspace


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    write_tiny_chat(folder / "model", n_layers=3)
    write_dictionary(folder / "sae")
    synthetic_graph.write(folder / "graph.json")
    random_vectors()["cat"].export_gguf(folder / "cat.gguf")
    run = folder / "run"
    run.mkdir()
    (run / "with_info.json").write_text(json.dumps(synthetic.detection()))
    (folder / "texts.txt").write_text("a cat ate bread\nno bread for a cat\nyes yes yes\n")
    return folder


@pytest.fixture(scope="session")
def lens(folder, model):
    """A trained lens; beside the folder, so that it is found by its option alone."""
    trained = introspect.analysis.TunedLens.regression(
        model, ["a cat ate bread", "no bread for a cat, yes", "yes no cat"]
    )
    trained.save(folder.parent / "lens.safetensors")
    return folder.parent / "lens.safetensors"


@pytest.fixture(scope="session")
def explorer(folder, lens):
    with running(workspace.find(str(folder), texts=folder / "texts.txt", lens=lens)) as one:
        yield one


@pytest.fixture(scope="session")
def model(folder):
    return introspect.load_model(folder / "model")
