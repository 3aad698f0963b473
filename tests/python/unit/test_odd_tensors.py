"""Tensors without elements in memory, or of another dtype, wherever one is handed in: the library's own errors."""

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import _C
from introspect.io import GgufWriter, open_tensors, save_safetensors

D = 32
TYPED = (introspect.ShapeError, introspect.HookError, introspect.ConfigError, ValueError, TypeError, IndexError)


def odd(x):
    """The same values as no plain tensor."""
    quantised = torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)
    sparse = x.to_sparse_csr() if x.dim() == 2 else x.to_sparse()
    return {"sparse": x.to_sparse(), "rows": sparse, "meta": x.to("meta"), "quantised": quantised,
            "nested": torch.nested.nested_tensor([x.float(), x.float()])}  # fmt: skip


KINDS = list(odd(torch.ones(2, 2)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    return introspect.HookedTransformer.from_pretrained(write_tiny(tmp_path_factory.mktemp("lens")))


@pytest.fixture
def tokens():
    return torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize("kind", KINDS)
def test_as_tokens_masks_and_positions(model, tokens, kind):
    forward = model.native.forward
    ids = torch.tensor([1, 2])
    calls = [
        lambda: forward(odd(tokens)[kind]),
        lambda: model(odd(tokens)[kind]),
        lambda: forward(tokens, attention_mask=odd(torch.ones(2, 3))[kind]),
        lambda: forward(tokens, vocab_ids=odd(ids)[kind]),
        lambda: model.native.readout(odd(torch.ones(2, D))[kind]),
        lambda: model.native.readout(torch.ones(2, D), vocab_ids=odd(ids)[kind]),
        lambda: forward(odd(torch.ones(2, 3, D))[kind], start_at_layer=1),
        lambda: forward(tokens, logits_at="positions", positions=odd(ids)[kind]),
    ]
    for call in calls:
        with pytest.raises(TYPED):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda forward, t: forward(t.int()),
        lambda forward, t: forward(t.float()),
        lambda forward, t: forward(t.bool()),
        lambda forward, t: forward(t.to(torch.complex64)),
        lambda forward, t: forward(t, attention_mask=torch.ones(2, 3)),
        lambda forward, t: forward(t, attention_mask=torch.zeros(2, 3, dtype=torch.complex64)),
        lambda forward, t: forward(t, vocab_ids=torch.ones(2)),
        lambda forward, t: forward(t, vocab_ids=torch.ones(1, 2, dtype=torch.long)),
        lambda forward, t: forward(t, logits_at="positions", positions=torch.tensor([0.5])),
        lambda forward, t: forward(torch.ones(2, 3, D, dtype=torch.long), start_at_layer=1),
        lambda forward, t: forward(torch.ones(2, 3, D, dtype=torch.complex64), start_at_layer=1),
    ],
    ids=range(11),
)
def test_another_dtype_is_a_shape_error(model, tokens, call):
    with pytest.raises(introspect.ShapeError):
        call(model.native.forward, tokens)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64, torch.uint8])
def test_residuals_of_another_dtype_are_a_shape_error(model, dtype):
    with pytest.raises(introspect.ShapeError, match="floating dtype"):
        model.native.readout(torch.ones(2, D, dtype=dtype))


def test_ids_beyond_the_vocabulary_are_an_index_error_everywhere(model, tokens):
    for where in ("all", "last"):
        for ids in ([101], [-1]):
            with pytest.raises(IndexError):
                model.native.forward(tokens, logits_at=where, vocab_ids=torch.tensor(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_as_what_a_hook_returns(model, lens, tokens, kind):
    name = "blocks.1.hook_resid_post"
    with pytest.raises(introspect.HookError, match=f"hook at '{name}' must return"):
        model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: odd(x)[kind])])
    with pytest.raises(introspect.HookError, match="must return"):
        lens.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: odd(x)[kind])])


@pytest.mark.parametrize(
    "wrap", [lambda x: (x,), lambda x: [x], lambda x: {"x": x}, lambda x: (x, x), lambda x: x.numpy()]
)
def test_a_hook_of_the_forward_pass_returns_a_tensor_or_nothing(model, lens, tokens, wrap):
    for interface in (model, lens):
        with pytest.raises(introspect.HookError, match="must return a tensor or None"):
            interface.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: wrap(x.detach()))])


def test_a_backward_hook_may_return_a_tuple_of_one(lens, tokens):
    seen = []

    def double(gradient, hook):
        seen.append(gradient.clone())
        return (2 * gradient,)

    with lens.hooks(bwd_hooks=[("blocks.1.hook_resid_post", double), ("blocks.0.hook_resid_post", double)]):
        lens(tokens).sum().backward()
    assert len(seen) == 2


@pytest.mark.parametrize("kind", [*KINDS, "int", "complex"])
def test_as_an_operand(model, tokens, kind):
    plain = torch.ones(1, D)
    operand = {"int": plain.long(), "complex": plain.to(torch.complex64)}.get(kind)
    operand = odd(plain)[kind] if operand is None else operand
    with pytest.raises(TYPED):
        hooks = model.native.make_hooks()
        hooks.add_intervention(introspect.Intervention({1: operand}))
    with pytest.raises(TYPED):
        introspect.Intervention({1: odd(plain)[kind] if kind in KINDS else operand.to_sparse()}).to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_direction_an_activation_or_a_weight(tmp_path, kind):
    plain, vector = torch.ones(3, D), torch.ones(D)
    calls = [
        lambda: introspect.ControlVector("qwen2", {1: odd(vector)[kind]}),
        lambda: introspect.direction_of_pairs(odd(plain)[kind], plain),
        lambda: introspect.direction_of_pairs(plain, odd(plain)[kind]),
        lambda: save_safetensors(tmp_path / "a", [("w", odd(plain)[kind])]),
        lambda: GgufWriter("test").add("w", odd(plain)[kind]),
    ]
    for call in calls:
        with pytest.raises(TYPED):
            call()
    save_safetensors(tmp_path / "a.safetensors", [("w", plain)])
    with pytest.raises(introspect.ShapeError):
        open_tensors(tmp_path / "a.safetensors").read_into("w", odd(plain)[kind])


def test_an_operator_that_returns_what_is_no_activation_is_told(model, tokens):
    names = iter(["odd_sparse", "odd_meta", "odd_int"])
    for change in (lambda x: x.to_sparse(), lambda x: x.to("meta"), lambda x: x.to(torch.complex64)):
        name = next(names)
        if name not in introspect.operator_names():
            introspect.register_operator(name, lambda x, v, strength, change=change: change(x))
        hooks = model.native.make_hooks()
        hooks.add_intervention(introspect.Intervention({1: torch.ones(D)}, op=name))
        with pytest.raises(introspect.HookError, match=name):
            model.native.forward(tokens, hooks=hooks)


def test_a_state_dict_may_not_hold_them(tmp_path):
    from safetensors.torch import load_file

    folder = write_tiny(tmp_path)
    state = load_file(folder / "model.safetensors")
    with pytest.raises(introspect.ShapeError):
        _C.Model.from_state_dict(
            (folder / "config.json").read_text(), state | {"lm_head.weight": state["lm_head.weight"].to_sparse()}
        )


# ---- files that change under a model whose blocks stay in them -----------------------------------------------------


@pytest.mark.parametrize("change", ["cut", "rewritten"])
def test_a_file_that_changes_under_its_model_is_an_io_error(tmp_path, tokens, change):
    folder = write_tiny(tmp_path)
    model = introspect.load_model(folder, keep_blocks=False)
    expected = model(tokens)
    path = folder / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2) if change == "cut" else file.write(b"\0")
    with pytest.raises(introspect.IoError, match=r"model\.safetensors: was changed while it was in use"):
        model(tokens)
    assert expected.isfinite().all()


def test_a_file_that_is_replaced_goes_on_being_read_as_it_was(tmp_path, tokens):
    folder = write_tiny(tmp_path / "a")
    model = introspect.load_model(folder, keep_blocks=False)
    expected = model(tokens)
    other = write_tiny(tmp_path / "b", seed=1)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert torch.equal(model(tokens), expected)
