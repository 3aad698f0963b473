"""Generation by a static step against a pass for each token: the same tokens, whatever the architecture, the padding or
what is steered. Devices that replay such a step: test_any_device.py."""

import pytest
import torch
from tiny import ARCHITECTURES, MIXTURES, write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect

PROMPTS = [[40, 41, 7, 52, 53, 54, 9, 11, 12, 3], [40, 41, 8, 52, 53], [9]]
NEW = 14


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    return introspect.load_model(write_tiny_chat(folder / "chat"), dtype=torch.float64)


def generated(model, step, prompts=PROMPTS, interventions=(), hooks=None, **options):
    if hooks is None:
        hooks = model.native.make_hooks()
        for intervention in interventions:
            hooks.add_intervention(intervention)
    options = {"max_new_tokens": NEW, "stop_at_eos": False, **options}
    return model.native.generate(prompts, hooks=hooks, step=step, **options)


def assert_alike(model, **options):
    """Greedy tokens, and drawn ones, which show differences of less than the least gap between two tokens."""
    for how in ({}, {"temperature": 1.0, "seed": 5}):
        plain = generated(model, "plain", **how, **options)
        assert generated(model, "static", **how, **options) == plain
    return plain


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MIXTURES])
def test_every_architecture_goes_on_as_by_passes(tmp_path, name):
    folder = write_tiny_transformers(tmp_path / "model", name)
    model = introspect.load_model(folder)
    assert_alike(model, prompts=PROMPTS[:1])
    for side in ("left", "right"):
        assert_alike(model, padding_side=side)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_refused(tmp_path, name):
    model = introspect.load_model(write_tiny_transformers(tmp_path / "model", name))
    with pytest.raises(introspect.ConfigError, match="its experts are chosen by the host"):
        generated(model, "static")


def test_more_positions_are_read_when_they_are_outgrown(tmp_path):
    model = introspect.load_model(write_tiny(tmp_path / "long", max_position_embeddings=640, num_hidden_layers=2))
    prompt = torch.randint(3, 90, (240,), generator=torch.Generator().manual_seed(0)).tolist()
    plain, static = (generated(model, step, [prompt], max_new_tokens=300) for step in ("plain", "static"))
    assert static == plain  # 256 positions are read, then 512, then all 576


def direction(model, seed=0):
    return torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def added(model, **how):
    return introspect.Intervention({0: direction(model), 1: direction(model, 1)}, strength=4.0, **how)


ALIKE = {
    "added everywhere": {},
    "from the prompt on": {"first_position": 10},
    "in the prompt": {"last_position": 10},
    "at places of the prompt": {"positions": [1, 4, 7]},
    "in the prompt by phase": {"text": introspect.TextFilter(phase="prompt")},
    "new tokens by phase": {"text": introspect.TextFilter(phase="generation")},
    "one row": {"rows": [1]},
    "not at padding": {"text": introspect.TextFilter(skip_padding=True)},
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_acts_alike_at_every_new_token_is_steered(model, name, side):
    how = added(model, **ALIKE[name])
    steered = assert_alike(model, interventions=[how], padding_side=side)
    assert steered != generated(model, "plain", temperature=1.0, seed=5, padding_side=side)


OPERATORS = {
    "ablate": {}, "norm_preserving_add": {"strength": 3.0}, "multiply": {}, "interpolate": {"strength": 0.5},
    "project_to": {"parameters": {"target": 4.0}}, "clamp": {"parameters": {"low": -1.0, "high": 1.0}},
    "rotate": {"parameters": {"angle": 40.0}}, "angular": {"parameters": {"angle": 40.0}},
    "adaptive_angular": {"parameters": {"angle": 40.0}},
}  # fmt: skip


@pytest.mark.parametrize("op", OPERATORS)
def test_operators_act_in_a_static_step(model, op):
    assert_alike(model, interventions=[introspect.Intervention({1: direction(model)}, op=op, **OPERATORS[op])])


def test_heads_embeddings_and_the_order_of_interventions_are_kept(model):
    head = torch.ones(8, dtype=torch.float64)
    interventions = [
        introspect.Intervention({1: head}, point="attn.hook_z", heads=[1, 2], op="replace"),
        introspect.Intervention({-1: direction(model, 3)}, point="hook_embed"),
        introspect.Intervention({1: direction(model, 4)}, strength=5.0),
        introspect.Intervention({1: direction(model, 5)}, op="ablate"),
        introspect.Intervention({1: direction(model, 6)}, strength=5.0),
    ]
    assert_alike(model, interventions=interventions)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"first_position": 12}, "acts at some of the new positions"),
        ({"positions": [3, 15]}, "acts at some of the new positions"),
        ({"rows": [0, 2]}, "rows or heads that are no range"),
        ({"text": introspect.TextFilter(tokens=[3])}, "depends on the tokens"),
        ({"op": "project_out"}, "may wait for the device"),
        ({"point": "ln_final.hook_normalized"}, "after the last block"),
    ],
)
def test_what_acts_unlike_is_refused_and_runs_by_passes_by_itself(model, how, message):
    layers = [-1] if "point" in how else [0]
    change = introspect.Intervention({layer: direction(model) for layer in layers}, **how)
    with pytest.raises(introspect.ConfigError, match=message):
        generated(model, "static", interventions=[change])
    assert generated(model, "auto", interventions=[change]) == generated(model, "plain", interventions=[change])


def test_what_the_host_sees_is_refused(model):
    hooks = model.native.make_hooks()
    hooks.add("blocks.0.hook_resid_post", lambda x, hook: None)
    with pytest.raises(introspect.ConfigError, match="other than interventions"):
        generated(model, "static", hooks=hooks)


def test_blocks_in_their_files_and_unknown_words_are_refused(tmp_path):
    folder = write_tiny_chat(tmp_path / "chat")
    with pytest.raises(introspect.ConfigError, match="its blocks stay in their files"):
        generated(introspect.load_model(folder, keep_blocks=False), "static")
    with pytest.raises(ValueError, match="auto, plain or static, got"):
        generated(introspect.load_model(folder), "graph")
