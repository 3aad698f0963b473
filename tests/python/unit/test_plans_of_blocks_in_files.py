"""Plans of models whose blocks stay in their files: bytes and passes, beside the files and what is read of them."""

import json
import math
import struct
from pathlib import Path

import gguf
import pytest
import torch
from quantised import write_quantised
from safetensors import safe_open
from tiny import write_tiny
from tiny_chat import random_vectors, write_tiny_chat

import introspect

TURNS = [
    {"role": "user", "content": "A thought."},
    {"role": "assistant", "content": "{ }"},
    {"role": "user", "content": "$QUESTION"},
    {"role": "assistant", "content": "The answer is"},
]
QUESTIONS = ["Is ice hot?", "Do fish swim?"]


def protocol():
    own = [*TURNS[:2], {"role": "user", "content": "Noticed it?"}, TURNS[3]]
    controls = {"turns": TURNS, "injected": [0, 1], "questions": QUESTIONS}
    text = json.dumps({"name": "mine", "turns": own, "injected": [0, 1], "controls": controls})
    return introspect.Protocol.parse(text)


def experiment(model, **options):
    options = {"vectors": random_vectors((1, 2, 3)), "strengths": [2.0], "nulls": 2, "layers": (1, 2), **options}
    return introspect.run_experiment(model, protocol(), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32}
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return write_quantised(path, "qwen2", ("Q4_K", "Q6_K", "F16", "Q4_K"), **sizes)


@pytest.fixture
def streamed(folder):
    return introspect.load_model(folder, dtype=torch.float64, keep_blocks=False)


def least_budget(plan):
    """A budget that holds little more than one reading."""
    for kib in range(16, 4096, 16):
        try:
            plan(kib << 10)
            return kib << 10
        except ValueError:
            pass
    raise AssertionError("no budget will do")


def in_blocks(sizes):
    """{name: bytes} of a file's tensors, summed by block."""
    out = {}
    for name, n_bytes in sizes.items():
        if parts := [part for part in name.split(".") if part.isdigit()]:
            out[int(parts[0])] = out.get(int(parts[0]), 0) + n_bytes
    return [out[layer] for layer in sorted(out)]


def test_a_block_takes_what_its_tensors_take_in_the_file(folder, quantised, streamed):
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        wanted = in_blocks({name: file.get_tensor(name).nbytes for name in names})
    assert [streamed.native.bytes_read(layer) for layer in range(4)] == wanted
    wanted = in_blocks({str(tensor.name): int(tensor.n_bytes) for tensor in gguf.GGUFReader(quantised).tensors})
    for weights in ("as stored", "dense"):
        left = introspect.load_model(quantised, weights=weights, keep_blocks=False)
        assert [left.native.bytes_read(layer) for layer in range(left.cfg.n_layers)] == wanted
    kept = introspect.load_model(quantised, weights="as stored")
    assert kept.native.keeps_blocks and kept.native.bytes_read(0) == 0 and kept.native.n_block_reads == 0


@pytest.mark.parametrize("weights", ["as stored", "dense"])
def test_a_graph_reads_the_blocks_that_its_plan_says(quantised, weights, rng):
    model = introspect.load_model(quantised, weights=weights, keep_blocks=False)
    n, of_block = model.cfg.n_layers, [model.native.bytes_read(layer) for layer in range(model.cfg.n_layers)]
    direction = torch.randn(256, generator=rng)
    graph = introspect.Graph()
    start = graph.segment(model, [3, 4, 5, 6])
    for token in range(20, 60):
        steered = graph.segment(model, [7, 8], start, [introspect.Intervention({1: direction}, strength=token / 9)])
        graph.read(graph.segment(model, [token] * 5, steered), layers=[n - 2])  # the last block is not needed
    once = graph.plan()
    assert (once.n_passes, once.blocks_read, once.bytes_read) == (1, n - 1, sum(of_block[: n - 1]))
    budget = least_budget(lambda budget: graph.plan(memory_budget=budget))
    several = graph.plan(memory_budget=budget)
    assert several.n_passes > 1 and several.blocks_read == several.n_passes * once.blocks_read
    for options, plan in (({}, once), ({"memory_budget": budget}, several)):
        before = model.native.n_block_reads
        graph.run(**options)
        assert model.native.n_block_reads - before == plan.blocks_read
        assert plan.bytes_read % once.bytes_read == 0 and plan.bytes_read == plan.n_passes * once.bytes_read


def test_an_experiment_is_one_pass_over_the_file(streamed, monkeypatch):
    monkeypatch.setattr("introspect.experiments.run.PASS_SECONDS", 1e-6)  # in memory: passes of one reading
    plan = experiment(streamed, plan=True)
    of_file = sum(streamed.native.bytes_read(layer) for layer in range(4))
    assert (plan.passes, plan.bytes_read) == (1, of_file)
    assert str(plan).endswith(f"; {of_file / 1e6:,.0f} MB read from files in 1 pass over the weights")
    before = streamed.native.n_block_reads  # the plan timed some
    result = experiment(streamed)
    assert streamed.native.n_block_reads - before == 4 and len(result.rows) == 3 * 2 * 3


def test_norms_that_are_not_known_take_a_pass_before(streamed):
    plan = experiment(streamed, strengths=None, plan=True)
    before = streamed.native.n_block_reads
    experiment(streamed, strengths=None, dose=False)
    assert plan.passes == 2
    read = streamed.native.n_block_reads - before
    assert plan.bytes_read == read * streamed.native.bytes_read(0)  # blocks of one size


def test_a_budget_that_takes_several_passes_is_planned_as_such(streamed):
    whole = experiment(streamed)
    budget = least_budget(lambda budget: experiment(streamed, plan=True, memory_budget=budget))
    plan = experiment(streamed, plan=True, memory_budget=budget)
    assert plan.passes > 1
    before = streamed.native.n_block_reads
    parts = experiment(streamed, memory_budget=budget)
    assert plan.bytes_read == (streamed.native.n_block_reads - before) * streamed.native.bytes_read(0)
    a, b = (result.to_pandas()["log_odds"].to_numpy() for result in (parts, whole))
    assert a == pytest.approx(b, abs=1e-9)


@pytest.mark.parametrize("strengths", [[2.0], None])
def test_the_experiment_is_the_one_of_the_model_in_memory_bit_for_bit(folder, strengths):
    for dtype in (torch.float32, torch.bfloat16):
        kept, left = (introspect.load_model(folder, dtype=dtype, keep_blocks=keep) for keep in (True, False))
        results = [experiment(model, strengths=strengths) for model in (kept, left)]
        assert results[0].rows == results[1].rows


def test_a_model_in_memory_reads_no_files(folder):
    kept = introspect.load_model(folder)
    plan = experiment(kept, plan=True)
    assert plan.bytes_read == 0 and "pass" not in str(plan)


def bytes_in_memory(path, weights):
    """What the tensors of a file take in float32, by their sizes there."""
    if path.is_dir():
        with safe_open(path / "model.safetensors", "pt") as file:
            return sum(4 * file.get_tensor(name).numel() for name in list(file.keys()))
    held = {"F32"} if weights == "as stored" else {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    return sum(
        4 * int(tensor.n_elements) if tensor.tensor_type.name in held else int(tensor.n_bytes)
        for tensor in gguf.GGUFReader(path).tensors
    )


@pytest.mark.parametrize("weights", [None, "dense", "as stored"])
def test_a_model_that_would_not_fit_stays_in_its_files_unless_told_otherwise(folder, quantised, weights):
    for path in (folder, quantised) if weights is None else (quantised,):
        size = bytes_in_memory(path, weights)

        def keeps(path=path, **options):
            return introspect._C.Model.load(path, weights=weights, **options).keeps_blocks

        assert keeps(memory_budget=size) and not keeps(memory_budget=size - 1)
        assert keeps(memory_budget=0, keep_blocks=True) and not keeps(memory_budget=size, keep_blocks=False)
        assert weights == "as stored" or keeps(memory_budget=0, device=torch.device("fenced"))
        assert introspect.load_model(path, weights=weights).native.keeps_blocks


def test_a_model_of_twice_the_memory_is_left_in_its_file(tmp_path):
    """Its matrices are a hole in the file, which takes no room on the disk."""
    try:
        memory = Path("/proc/meminfo").read_text().splitlines()[0]
    except OSError:
        pytest.skip("needs Linux's /proc/meminfo")
    layers, d, narrow = 8, 32, 48  # 48 is the MLP's width and nothing else's
    wide = 2 * (int(memory.split()[1]) << 10) // (layers * 3 * d * 4)
    folder = write_tiny(tmp_path, "LlamaForCausalLM", num_hidden_layers=layers, intermediate_size=narrow)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": wide}))
    header, end = {}, 0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in list(file.keys()):
            shape = [wide if size == narrow else size for size in file.get_slice(name).get_shape()]
            n_bytes = 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + n_bytes]}
            end += n_bytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    model = introspect.load_model(folder)
    assert not model.native.keeps_blocks and model.native.nbytes < 1e6
    assert model.native.bytes_read(0) > 2 * 3 * d * wide
