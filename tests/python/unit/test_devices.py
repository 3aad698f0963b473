"""Blocks on several devices. The second one is "fenced" (tests/cpp/device), whose memory the host may not touch."""

import fenced
import pytest
import torch
from tiny import tiny_transformers, write_tiny

import introspect

TOKENS = torch.tensor([[5, 6, 7, 8]])
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32: a device's kernels sum in another order than the CPU's

NO_NUMBERS = r"device must hold a model's numbers, .* got 'meta"


@pytest.fixture(scope="module", autouse=True)
def device():
    fenced.load()


@pytest.mark.parametrize("keep_blocks", [True, False])
def test_blocks_and_what_they_compute_live_where_they_are_put(tmp_path, keep_blocks):
    logits, expected = introspect.load_model(write_tiny(tmp_path)).run_with_cache(TOKENS)
    model = introspect.load_model(tmp_path, device_map={2: "fenced"}, keep_blocks=keep_blocks)
    assert model.device.type == "cpu"
    if keep_blocks:
        devices = {name: weight.device.type for name, weight in model.native.named_weights()}
        on_it = {name for name, device in devices.items() if device == "fenced"}
        assert on_it == {name for name in devices if "blocks.2." in name}
    got, seen = model.run_with_cache(TOKENS)
    assert got.device.type == "cpu"
    torch.testing.assert_close(got, logits, **ROUNDING)
    assert {name for name, _ in seen.items()} == {name for name, _ in expected.items()}
    for name, activation in seen.items():
        if "blocks.2." in name:
            assert activation.device.type == "fenced", name
        elif "blocks." in name:
            assert torch.equal(activation, expected[name]), name
        torch.testing.assert_close(activation.cpu(), expected[name], **ROUNDING, msg=name)


def test_a_pass_that_stops_before_another_device_never_touches_it(tmp_path):
    plain = introspect.load_model(write_tiny(tmp_path))
    model = introspect.load_model(tmp_path, device_map={2: "fenced"})
    fenced.take_events()
    cache = model.native.make_cache(stop_at_layer=2)
    ours = model.native.forward(TOKENS, cache=cache, stop_at_layer=2)
    assert fenced.take_events() == []
    torch.testing.assert_close(ours, plain.native.forward(TOKENS, stop_at_layer=2), rtol=0, atol=0)
    assert cache.n_layers == 2


def test_a_cache_has_the_devices_of_its_layers(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path), device_map={1: "fenced"})
    cache = model.native.make_cache()
    assert [cache.keys(layer).device.type for layer in range(3)] == ["cpu", "fenced", "cpu"]
    rows = torch.randn(1, 2, 4, 8)  # [batch, key heads, positions, d_head] of write_tiny
    for layer in range(3):
        with pytest.raises(introspect.ShapeError, match="keys must be"):
            cache.append(layer, rows.to("cpu" if layer == 1 else "fenced"), rows)
        cache.append(layer, *(2 * [rows.to(cache.keys(layer).device)]))
    cache.commit(4)
    others = [cache.fork(), cache.slice(1, 3), cache.select_positions([0, 2]), cache.select_rows([0]),
              introspect.KVCache.concat_rows([cache, cache]), cache.splice(1, 3, cache.slice(0, 3))]  # fmt: skip
    for other in others:
        assert [other.keys(layer).device.type for layer in range(3)] == ["cpu", "fenced", "cpu"]
        assert [other.values(layer).device.type for layer in range(3)] == ["cpu", "fenced", "cpu"]
    assert torch.equal(cache.select_positions([0, 2]).keys(0), rows[:, :, [0, 2]])


def test_a_device_for_a_block_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(introspect.ConfigError, match="a device is given for block 3, and blocks are 0 to 2"):
        introspect.load_model(write_tiny(tmp_path), device_map={3: "cpu"})
    with pytest.raises(introspect.ConfigError, match="device_map= goes with files"):
        introspect.load_model(tiny_transformers("llama"), device_map={0: "cpu"})


@pytest.mark.parametrize(
    "where",
    [
        {"device": "meta"},
        {"device": torch.device("meta", 0)},
        {"device": "meta", "keep_blocks": False},
        {"device_map": ["cpu", "meta"]},
        {"device_map": {0: "meta"}},
        {"device_map": {0: "meta"}, "keep_blocks": False},
    ],
)
def test_a_device_that_holds_no_numbers_is_refused(tmp_path, where):
    begun = []
    with pytest.raises(introspect.ConfigError, match=f"Model::load: {NO_NUMBERS}"):
        introspect.load_model(write_tiny(tmp_path), **where, progress=lambda *at: begun.append(at))
    assert begun == []


def test_nor_does_it_take_a_transformers_model_or_new_weights():
    with pytest.raises(introspect.ConfigError, match=f"Model::load: {NO_NUMBERS}"):
        introspect.load_model(tiny_transformers("llama"), device="meta")
    new = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_vocab": 10, "act_fn": "gelu", "device": "meta"}
    with pytest.raises(introspect.ConfigError, match=f"new_model: {NO_NUMBERS}"):
        introspect.HookedTransformer(new)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"0": "cpu"}, "goes by the numbers of blocks, got '0'"),
        ({True: "cpu"}, "goes by the numbers of blocks, got True"),
        ({1.0: "cpu"}, "goes by the numbers of blocks, got 1.0"),
        ({0: None}, "must name a device of torch's, .* got None"),
        ({-1: "cpu"}, "a device is given for block -1, and blocks are 0 to 2"),
        (["nonsense"], "must name a device of torch's, .* got 'nonsense'"),
        ([], "at least one device, got an empty list"),
        (5, "must be 'auto', a list of devices or {block: device}, got 5"),
        (torch.device("cpu"), "must be 'auto', a list of devices or {block: device}, got device"),
        ("cpu", "must be 'auto', a list of devices or {block: device}, got 'cpu'; device= takes one device"),
    ],
)
def test_maps_that_are_none_are_said(tmp_path, given, words):
    with pytest.raises(introspect.ConfigError, match=words):
        introspect.load_model(write_tiny(tmp_path), device_map=given)
