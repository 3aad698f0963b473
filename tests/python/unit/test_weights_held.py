"""How weights are held belongs to a reading: it is told of every model, and in the keys of stores where it matters."""

import graph_sets
import numpy as np
import pytest
import torch
from looped import protocol
from quantised import write_quantised_chat
from tiny_chat import random_vectors, write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.experiments.runs import model_facts, protocol_facts, unfinished
from introspect.ray_cluster import facts_of, loading_of

SIXTEEN = [torch.bfloat16, torch.float16]
WIDE = [torch.float32, torch.float64]
ENCODINGS = {  # matrices of a file in turn; the embedding comes first
    "all": ("Q4_1", "Q8_0"),
    "all but the embeddings": ("F32", *["Q4_1"] * 50),
}


@pytest.fixture(scope="module", params=ENCODINGS)
def path(request, tmp_path_factory):
    return write_quantised_chat(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ENCODINGS[request.param])


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_quantised_chat(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ENCODINGS["all"])


def load(path, dtype, weights, **options):
    return introspect.load_model(path, dtype=dtype, weights=weights, **options)


def run(model, store=None, **options):
    given = {"strengths": [2.0], "layers": [(1, 2)], "nulls": 1, "questions": [], **options}
    return introspect.run_experiment(model, protocol(), vectors=random_vectors(), store=store, progress=False, **given)


def keys(store):
    return {row["key"] for row in introspect.Store(store).rows()}


def odds(result):
    return result.to_pandas()[["log_odds_base", "log_odds"]].to_numpy()


@pytest.mark.parametrize("keep", [True, False])
def test_it_is_told_of_every_model(path, tmp_path, keep):
    for dtype in SIXTEEN + WIDE:
        name = str(dtype).removeprefix("torch.")
        dense, stored = (load(path, dtype, how, keep_blocks=keep).native for how in ("dense", "as stored"))
        assert (dense.weights_held, stored.weights_held) == ("dense", "as stored")
        assert dense.precision == name
        assert stored.precision == (f"{name}, weights as stored" if dtype in SIXTEEN else name)
    folder = introspect.load_model(write_tiny_chat(tmp_path / "model"), keep_blocks=keep).native
    assert (folder.weights_held, folder.precision) == ("dense", "float32")


def test_an_adapter_on_top_changes_nothing_of_it(path):
    kept, left = (load(path, torch.bfloat16, "as stored", keep_blocks=keep) for keep in (True, False))
    trainable = load(path, torch.float32, "as stored")
    adapter = introspect.train_lora(trainable, [introspect.FinetuneExample([5], [6])], steps=1)
    before = left.native.n_block_reads
    for model in (kept, left):
        with model.adapted(adapter):
            assert model.native.weights_held == "as stored"
    assert left.native.n_block_reads == before  # and no block is read for it


def test_workers_are_told_it_of_blocks_in_files_too(path):
    for how in ("dense", "as stored"):
        left = load(path, torch.float32, how, keep_blocks=False)
        assert facts_of(left)["weights"] == loading_of(left, {})["weights"] == how


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("first", ["dense", "as stored"])
def test_a_store_begun_one_way_and_continued_the_other_mixes_nothing(chat, tmp_path, dtype, first):
    ways = [first, "as stored" if first == "dense" else "dense"]
    models = [load(chat, dtype, how) for how in ways]
    fresh = [run(model) for model in models]
    assert not np.array_equal(odds(fresh[0]), odds(fresh[1]))  # a readout's rows are rounded only where they are dense
    store = tmp_path / "cells.sqlite"
    continued = [run(model, store) for model in models]
    for alone, one, model in zip(fresh, continued, models, strict=True):
        assert np.array_equal(odds(alone), odds(one))
        assert one.model["dtype"] == model_facts(model)["dtype"] == model.native.precision
        settings = {**one.settings, "controls": "own"}
        assert len(unfinished(store, model_facts(model), protocol_facts(protocol()), settings).rows) == len(one.rows)
    assert set(introspect.Store(store).to_pandas()["dtype"]) == {model.native.precision for model in models}
    before = keys(store)
    again = [run(model, store) for model in models]
    assert keys(store) == before
    assert all(np.array_equal(odds(a), odds(b)) for a, b in zip(fresh, again, strict=True))
    with pytest.raises(ValueError, match="the model's dtype is"):
        continued[0].merged(continued[1])


@pytest.mark.parametrize("dtype", WIDE)
def test_wide_numbers_are_the_same_both_ways_and_so_are_their_keys(path, tmp_path, dtype):
    dense, stored = (load(path, dtype, how) for how in ("dense", "as stored"))
    store = tmp_path / "cells.sqlite"
    expected, got = odds(run(dense)), odds(run(stored, store))
    # Products that are not ours sum in another order.
    floor = (
        0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else {torch.float32: 2e-4, torch.float64: 1e-9}[dtype]
    )
    assert np.abs(expected - got).max() <= floor
    before = keys(store)
    assert np.array_equal(odds(run(dense, store)), got) and keys(store) == before


def test_blocks_in_files_have_the_keys_of_blocks_in_memory(path, tmp_path):
    kept, left = (load(path, torch.bfloat16, "as stored", keep_blocks=keep) for keep in (True, False))
    store = tmp_path / "cells.sqlite"
    expected = odds(run(kept, store))
    before, reads = keys(store), left.native.n_block_reads
    assert np.array_equal(odds(run(left, store)), expected)
    assert keys(store) == before and left.native.n_block_reads == reads


def test_doses_are_kept_apart_too(chat, tmp_path):
    store = tmp_path / "cells.sqlite"
    for how in ("dense", "as stored"):
        run(load(chat, torch.bfloat16, how), store, nulls=0, strengths=[0.1], strength_unit="residual", dose=True)
    doses = [row for row in introspect.Store(store).rows() if row["kind"] == "dose"]
    assert {row["dtype"] for row in doses} == {"bfloat16", "bfloat16, weights as stored"}
    assert len({row["key"] for row in doses}) == len(doses) == 2 * len(random_vectors())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_of_an_attribution_graph_are_kept_apart_too(chat, tmp_path, dtype):
    dense, stored = (load(chat, dtype, how) for how in ("dense", "as stored"))
    tokens, transcoders = graph_sets.tokens_of(dense).tolist(), graph_sets.per_layer(dense)

    def attribute(model):
        return introspect.circuits.attribute(model, tokens, transcoders, resume=tmp_path / "rows", progress=False)

    graph = attribute(dense)
    if dtype == torch.float32:
        assert attribute(stored).n_edges == graph.n_edges
    else:
        with pytest.raises(introspect.IoError, match="rows of another graph"):
            attribute(stored)


def test_a_second_model_that_writes_the_text_counts_too(chat, tmp_path):
    """Both models are of one dtype; how the other's weights are held is its own."""
    model, other = (load(chat, torch.bfloat16, how) for how in ("dense", "as stored"))
    given = protocol(inject={"by": "model", "model": "other"})
    store = tmp_path / "cells.sqlite"
    counts = []
    for second in (model, other, model, other):
        introspect.run_experiment(model, given, vectors={}, models={"other": second}, store=store, progress=False)
        counts.append(len(keys(store)))
    assert counts[0] < counts[1] == counts[3]


def command(path, output, *options):
    vector = output.parent / "cat.safetensors"
    random_vectors()["cat"].save(vector)
    (output.parent / "mine.json").write_text(protocol().to_json())
    given = ["run", path, output.parent / "mine.json", "--vector", f"cat={vector}", "-o", output, "--strength", "2"]
    given += ["--layers", "1-2", "--nulls", "0", "--dtype", "bfloat16", *options]
    return CliRunner().invoke(app, list(map(str, given)))


def test_a_folder_of_results_takes_only_runs_of_the_same_way(chat, tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        out = command(chat, output, "--weights", "as-stored")
        assert out.exit_code == 0, out.output
    out = command(chat, output, "--weights", "dense")
    assert out.exit_code == 1 and "the model's dtype is" in " ".join(out.output.split())
    out = command(chat, output, "--weights", "as-stored", "--dtype", "float32")
    assert out.exit_code == 1 and "the model's dtype is" in " ".join(out.output.split())
