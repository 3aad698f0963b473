"""An MLP that runs as one kernel is the MLP of three steps, and goes step by step where somebody looks inside."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_tiny

import introspect

M = 64  # whole blocks of 32, without which there is no kernel
INSIDE = ["hook_pre", "hook_pre_linear", "hook_post"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), "LlamaForCausalLM", intermediate_size=M)


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder, dtype="bfloat16")


@pytest.fixture
def tokens():
    return torch.randint(0, 101, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("point", INSIDE)
def test_whoever_reads_inside_changes_no_bit(model, tokens, point):
    want = model(tokens)
    names = [f"blocks.{layer}.mlp.{point}" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    assert torch.equal(logits, want)
    assert all(cache[name].shape == (2, 17, M) for name in names)


def test_what_is_read_inside_makes_what_the_step_writes(model, folder, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.1.mlp.hook_post"])
    _, outside = model.run_with_cache(tokens, names_filter=["blocks.1.hook_mlp_out"])
    post = cache["blocks.1.mlp.hook_post"].double()
    down = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    want = post @ down.to(torch.bfloat16).double().T
    assert ((outside["blocks.1.hook_mlp_out"].double() - want).abs() <= want.abs() / 256 + 1e-5).all()


@pytest.mark.parametrize("point", INSIDE)
def test_a_change_inside_arrives(model, tokens, point):
    def zero(x, hook):
        return torch.zeros_like(x)

    inside = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.mlp.{point}", zero)])
    outside = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", zero)])
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, model(tokens))


def test_rows_of_a_batch_are_single_rows(model, tokens):
    assert torch.equal(model(tokens), torch.cat([model(row[None]) for row in tokens]))


def test_gradients_go_step_by_step(model, tokens):
    x = []

    def watch(value, hook):
        x.append(value.detach().requires_grad_())
        return x[-1]

    with torch.enable_grad():
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_in", watch)]).sum().backward()
    assert x[0].grad is not None and x[0].grad.abs().sum() > 0
