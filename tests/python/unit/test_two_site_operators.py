"""Operators of several operands, and those that read one point and write another, against hooks written by hand."""

import copy
import pickle

import pytest
import torch
from tiny import write_tiny

import introspect

FLOOR = {"rtol": 1e-9, "atol": 1e-9}  # float64 on both sides
T, F = 6, 5
MLP_IN, MLP_OUT = "blocks.{}.hook_mlp_in", "blocks.{}.hook_mlp_out"


def check_shapes(operands, width, source_width):
    if operands["W_enc"].shape[1] != source_width or operands["W_dec"].shape[0] != width:
        raise introspect.ShapeError(f"transcode: needs widths {source_width} and {width}")


def transcode(x, operands, strength, *, source):
    return x + strength * torch.relu(source @ operands["W_enc"].T) @ operands["W_dec"].T


@pytest.fixture(scope="module", autouse=True)
def operators():
    if "tests.transcode" not in introspect.operator_names():
        introspect.register_operator(
            "tests.transcode",
            transcode,
            operand={"W_enc": "required", "W_dec": "required"},
            reads_source=True,
            check=check_shapes,
        )
        introspect.register_operator(
            "tests.affine",
            lambda x, operands, strength: torch.lerp(x, x @ operands["W"].T + operands["b"], strength),
            operand={"W": "required", "b": "required"},
            check=lambda operands, width, source_width: operands["W"].view(width, width),
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


@pytest.fixture
def tokens(model, rng):
    return torch.randint(0, model.cfg.d_vocab, (2, T), generator=rng)


@pytest.fixture
def operands(model, rng):
    d = model.cfg.d_model
    return {
        "W_enc": torch.randn(F, d, generator=rng, dtype=torch.float64),
        "W_dec": torch.randn(d, F, generator=rng, dtype=torch.float64),
    }


def by_hand(model, tokens, operands, read, write, strength):
    """Logits with a hook that keeps one point's activation, and one that adds to another's."""
    kept = {}

    def keep(x, hook):
        kept["x"] = x.clone()

    def add(x, hook):
        return x + strength * torch.relu(kept["x"] @ operands["W_enc"].T) @ operands["W_dec"].T

    return model.run_with_hooks(tokens, fwd_hooks=[(read, keep), (write, add)])


@pytest.mark.parametrize(("source_layer", "layer"), [(None, 1), (0, 1), (1, 1)])
def test_a_transcoder_is_what_two_hooks_do(model, tokens, operands, source_layer, layer):
    intervention = introspect.Intervention(
        {layer: operands},
        op="tests.transcode",
        point="hook_mlp_out",
        source="hook_mlp_in",
        source_layer=source_layer,
        strength=1.5,
    )
    hooks = model.native.make_hooks()
    hooks.add_intervention(intervention)
    read = layer if source_layer is None else source_layer
    expected = by_hand(model, tokens, operands, MLP_IN.format(read), MLP_OUT.format(layer), 1.5)
    torch.testing.assert_close(model.native.forward(tokens, hooks=hooks), expected.to(torch.float64), **FLOOR)
    assert not torch.allclose(expected, model(tokens))


def test_a_graph_reads_what_single_passes_read(model, tokens, operands):
    d = model.cfg.d_model
    ids = tokens[0].tolist()
    cross = introspect.Intervention(
        {1: operands},
        op="tests.transcode",
        point="hook_mlp_out",
        source="hook_mlp_in",
        source_layer=0,
        positions=[1, 3],
    )
    affine = introspect.Intervention(
        {0: {"W": torch.eye(d, dtype=torch.float64) * 0.5, "b": torch.ones(d, dtype=torch.float64)}},
        op="tests.affine",
        point="hook_resid_mid",
    )
    name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    graph, reads, expected = introspect.Graph(), [], []
    for interventions in ([], [cross], [affine], [affine, cross]):
        node = graph.segment(model, ids, interventions=interventions)
        reads.append(graph.read(node, positions=list(range(T)), layers=[model.cfg.n_layers - 1]))
        hooks, cache = model.native.make_hooks(), introspect._C.ActivationCache()
        for intervention in interventions:
            hooks.add_intervention(intervention)
        hooks.record(name, cache)
        model.native.forward(tokens[:1], hooks=hooks)
        expected.append(cache[name][0])
    for got, wanted in zip(graph.run(), expected, strict=True):
        torch.testing.assert_close(got[:, 0], wanted, **FLOOR)
    assert not torch.allclose(expected[0], expected[1])


def test_named_operands_and_a_source_survive_json_pickle_and_copies(operands):
    given = introspect.Intervention(
        {0: operands, 1: operands}, op="tests.transcode", point="hook_mlp_out", source="hook_mlp_in", source_layer=0
    )
    for same in (
        introspect.Intervention.from_json(*given.to_json()),
        pickle.loads(pickle.dumps(given)),
        copy.deepcopy(given),
    ):
        assert (same.source, same.source_layer, same.op) == ("hook_mlp_in", 0, "tests.transcode")
        assert {layer: sorted(value) for layer, value in same.values.items()} == {
            0: ["W_dec", "W_enc"],
            1: ["W_dec", "W_enc"],
        }
        assert torch.equal(same.values[1]["W_enc"], operands["W_enc"])
    json, table = given.to_json()
    assert len(table) == 2  # each tensor once, by its content
    with pytest.raises(introspect.ConfigError, match="not in the table"):
        introspect.Intervention.from_json(json, {})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"source": "hook_mlp_out", "point": "hook_mlp_in"}, introspect.HookError, "must come before"),
        ({"source": None}, ValueError, "needs a source"),
        ({"source": "attn.hook_pattern"}, introspect.HookError, "patterns"),
        ({"source_layer": 7}, introspect.HookError, "layer 7"),
        ({"source": "attn.hook_q"}, introspect.ShapeError, "needs widths"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_runs(model, operands, changes, error, match):
    options = {"op": "tests.transcode", "point": "hook_mlp_out", "source": "hook_mlp_in", **changes}
    with pytest.raises(error, match=match):
        model.native.make_hooks().add_intervention(introspect.Intervention({1: operands}, **options))


def test_operands_of_other_names_need_a_check():
    with pytest.raises(ValueError, match="check="):
        introspect.register_operator("tests.unchecked", transcode, operand={"W": "required"})
