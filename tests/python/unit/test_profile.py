"""Costs by stage: FLOPs and bytes are those of hand arithmetic, times add up to the call's."""

import json
import time

import pytest
import torch
from tiny import CONFIG, write_tiny
from typer.testing import CliRunner

import introspect
from introspect import ops, profiling
from introspect.cli.app import app

B, T = 2, 7
D, M, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
LAYERS, H, G = CONFIG["num_hidden_layers"], CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
K = D // H
N = B * T


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), "LlamaForCausalLM")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request, folder):
    return introspect.load_model(folder, dtype=request.param)


def costs_of(call):
    with torch.no_grad():
        return ops.costs_by_stage(call)


def tokens():
    return torch.arange(N).view(B, T)


def test_flops_and_bytes_are_those_of_hand_arithmetic(model):
    e = 4 if model.native.dtype == torch.float32 else 2  # bytes of a number
    costs = costs_of(lambda: model(tokens()))
    pairs = B * H * T * (T + 1) // 2  # a query and a key that it sees
    want_flops = {
        "QKV": LAYERS * 2 * N * D * (H + 2 * G) * K,
        "attention": LAYERS * pairs * 4 * K,
        "output": LAYERS * 2 * N * H * K * D,
        "MLP products": LAYERS * 2 * N * 3 * D * M,
        "unembedding": 2 * N * D * V,
    }
    want_bytes = {
        "embedding": 2 * N * D * e,
        "norms": (2 * LAYERS + 1) * 2 * N * D * e,
        "QKV": LAYERS * (D * (H + 2 * G) * K + N * D + N * (H + 2 * G) * K) * e,
        "rotary": LAYERS * 2 * N * (H + G) * K * e,
        "attention": LAYERS * 2 * N * (H + G) * K * e,
        "output": LAYERS * (H * K * D + N * H * K + N * D) * e,
        "MLP products": LAYERS * (3 * D * M + 2 * N * D + 3 * N * M) * e,
        "activation": LAYERS * 3 * N * M * e,
        "residual": LAYERS * 2 * 3 * N * D * e,
        "unembedding": (V * D + N * D + N * V) * e,
    }
    assert {stage: cost["flops"] for stage, cost in costs.items() if cost["flops"]} == want_flops
    assert {stage: cost["bytes"] for stage, cost in costs.items() if cost["bytes"]} == want_bytes
    assert costs["norms"]["calls"] == 2 * LAYERS + 1
    assert costs["MLP products"]["calls"] == 2 * LAYERS
    assert costs["hooks"]["calls"] == 0


def test_a_readout_and_a_decode_step_are_counted(model):
    costs = costs_of(lambda: model(tokens(), logits_at="last"))
    assert costs["readout"]["flops"] == 2 * B * D * V
    assert costs["unembedding"]["calls"] == 0
    step = {s.stage: s for s in profiling.profile_decode(model, 9, repeats=1).stages}
    assert step["attention"].flops == LAYERS * 10 * H * 4 * K  # one query sees the nine keys and its own
    assert step["QKV"].flops == LAYERS * 2 * D * (H + 2 * G) * K


def test_hooks_have_a_stage_of_their_own(model):
    costs = costs_of(lambda: model.run_with_cache(tokens(), names_filter=["blocks.1.hook_resid_post"]))
    assert costs["hooks"]["calls"] == 1


def test_times_add_up_to_the_call(model):
    start = time.perf_counter()
    costs = costs_of(lambda: [model(tokens()) for _ in range(20)])
    wall = time.perf_counter() - start
    total = sum(cost["seconds"] for cost in costs.values())
    # Outside is one call from Python; where the machine is busy, another process may run in it.
    assert 0.5 * wall < total <= wall


def test_nothing_is_counted_for_passes_outside(model):
    model(tokens())
    costs = costs_of(lambda: time.sleep(0.01))
    assert sum(cost["calls"] for cost in costs.values()) == 0
    assert costs["other"]["seconds"] >= 0.01


def test_an_error_reaches_the_caller_and_ends_the_count(model):
    with pytest.raises(IndexError, match="token ids"):
        ops.costs_by_stage(lambda: model(torch.tensor([[V]])))
    assert costs_of(lambda: model(tokens()))["embedding"]["calls"] == 1


def test_shares_follow_from_the_rates():
    rates = profiling.MachineRates(flops=100.0, bytes=10.0)
    stages = [profiling.StageProfile("QKV", 4.0, 1, 200.0, 5.0), profiling.StageProfile("norms", 2.0, 1, 0.0, 10.0)]
    out = profiling.PassProfile("forward 1x1", stages).to_dict(rates)
    assert out["seconds"] == 6.0 and out["flops"] == 200.0
    assert [row["floor_seconds"] for row in out["stages"]] == [2.0, 1.0]
    assert [row["share_of_floor"] for row in out["stages"]] == [0.5, 0.5]


def test_the_command_prints_a_table_and_json(folder):
    arguments = ["profile", str(folder), "--tokens", "1x4", "--tokens", "2x8", "--decode", "--repeats", "1"]
    text = CliRunner().invoke(app, arguments)
    assert text.exit_code == 0, text.output
    assert "forward 2x8" in text.output and "decode after" in text.output and "MLP products" in text.output
    facts = json.loads(CliRunner().invoke(app, [*arguments, "--dtype", "bfloat16", "--json"]).stdout)
    assert [each["pass"] for each in facts["passes"]] == ["forward 1x4", "forward 2x8", "decode after 16"]
    assert facts["bfloat16_products"] in ops.bfloat16_products_here()
    assert facts["flops_per_second"] > 0 and facts["bytes_per_second"] > 0


@pytest.mark.parametrize("text", ["4", "0x4", "4x", "1x999", "ax4"])
def test_shapes_that_are_none_are_wrong_usage(folder, text):
    result = CliRunner().invoke(app, ["profile", str(folder), "--tokens", text])
    assert result.exit_code == 2
