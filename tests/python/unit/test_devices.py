"""Blocks on several devices. The second device that every torch has is "meta", which knows shapes and no numbers."""

import pytest
import torch
from tiny import tiny_transformers, write_tiny

import introspect

TOKENS = torch.tensor([[5, 6, 7, 8]])


def seen_on_the_way(model):
    """The activations of a pass, which ends where numbers are asked for that a block on "meta" does not have."""
    seen, hooks = introspect._C.ActivationCache(), model.native.make_hooks()
    for name in model.hook_names:
        hooks.record(name, seen)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model.native.forward(TOKENS, hooks=hooks)
    return seen.to_dict()


def test_blocks_and_what_they_compute_live_where_they_are_put(tmp_path):
    plain = introspect.load_model(write_tiny(tmp_path))
    _, expected = plain.run_with_cache(TOKENS)
    model = introspect.load_model(tmp_path, device_map={2: "meta"})
    devices = {name: weight.device.type for name, weight in model.native.named_weights()}
    assert {name for name, device in devices.items() if device == "meta"} == {n for n in devices if "blocks.2." in n}
    assert model.device.type == "cpu"
    seen = seen_on_the_way(model)
    assert {name for name in seen if "blocks.2." in name} == {name for name in expected if "blocks.2." in name}
    for name, activation in seen.items():
        assert activation.shape == expected[name].shape, name
        if "blocks.2." in name:
            assert activation.device.type == "meta", name
        else:
            assert torch.equal(activation, expected[name]), name


def test_a_model_whose_blocks_stay_in_files_reads_them_to_their_devices(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path), device_map={2: "meta"}, keep_blocks=False)
    seen = seen_on_the_way(model)
    assert seen["blocks.1.hook_resid_post"].device.type == "cpu"
    assert seen["blocks.2.hook_resid_post"].device.type == "meta"


def test_a_pass_that_stops_before_another_device_never_touches_it(tmp_path):
    plain = introspect.load_model(write_tiny(tmp_path))
    model = introspect.load_model(tmp_path, device_map={2: "meta"})
    cache = model.native.make_cache(stop_at_layer=2)
    ours = model.native.forward(TOKENS, cache=cache, stop_at_layer=2)
    torch.testing.assert_close(ours, plain.native.forward(TOKENS, stop_at_layer=2), rtol=0, atol=0)
    assert cache.n_layers == 2


def test_a_cache_has_the_devices_of_its_layers(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path), device_map={1: "meta"})
    cache = model.native.make_cache()
    assert [cache.keys(layer).device.type for layer in range(3)] == ["cpu", "meta", "cpu"]
    rows = torch.randn(1, 2, 4, 8)  # [batch, key heads, positions, d_head] of write_tiny
    for layer in range(3):
        with pytest.raises(introspect.ShapeError, match="keys must be"):
            cache.append(layer, rows.to("cpu" if layer == 1 else "meta"), rows)
        cache.append(layer, *(2 * [rows.to(cache.keys(layer).device)]))
    cache.commit(4)
    others = [cache.fork(), cache.slice(1, 3), cache.select_positions([0, 2]), cache.select_rows([0]),
              introspect.KVCache.concat_rows([cache, cache]), cache.splice(1, 3, cache.slice(0, 3))]  # fmt: skip
    for other in others:
        assert [other.keys(layer).device.type for layer in range(3)] == ["cpu", "meta", "cpu"]
        assert [other.values(layer).device.type for layer in range(3)] == ["cpu", "meta", "cpu"]
    assert torch.equal(cache.select_positions([0, 2]).keys(0), rows[:, :, [0, 2]])


def test_a_device_for_a_block_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(introspect.ConfigError, match="a device is given for block 3, and blocks are 0 to 2"):
        introspect.load_model(write_tiny(tmp_path), device_map={3: "cpu"})
    with pytest.raises(introspect.ConfigError, match="device_map= goes with files"):
        introspect.load_model(tiny_transformers("llama"), device_map={0: "cpu"})


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
