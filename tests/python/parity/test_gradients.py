"""Gradients of a metric in every architecture: against torch autograd through transformers, and finite differences."""

import pytest
import torch
from reference import exact_softmax
from tiny import ARCHITECTURES, tiny_transformers, write_tiny_transformers

import introspect

T = 12


def metric(logits: torch.Tensor) -> torch.Tensor:
    """A smooth function of all logits: mean log-probability of token 7 over positions and rows."""
    return logits.log_softmax(-1)[..., 7].mean()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_every_residual_equal_autograd_through_transformers(name, tmp_path, rng):
    theirs = tiny_transformers(name)
    model = introspect.HookedTransformer.from_pretrained_no_processing(
        write_tiny_transformers(tmp_path, name), dtype=torch.float64
    )
    tokens = torch.randint(3, 101, (2, T), generator=rng)
    with exact_softmax():
        out = theirs(tokens, output_hidden_states=True)
    hidden = out.hidden_states[:-1]  # the last is after the final norm
    expected = torch.autograd.grad(metric(out.logits), hidden)

    residuals = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    grads = {}
    with model.hooks(bwd_hooks=[(residuals, lambda grad, hook: grads.__setitem__(hook.name, grad.detach()))]):
        metric(model(tokens)).backward()
    for point, gradient in zip(residuals, expected, strict=True):
        # RMS norms are float32 on both sides, LayerNorms float64.
        floor = 1e-9 if model.cfg.normalization_type.startswith("LN") else 1e-5
        torch.testing.assert_close(grads[point], gradient, rtol=0, atol=floor * gradient.abs().max().item() + 1e-12)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    "point", ["hook_resid_pre", "attn.hook_q", "attn.hook_pattern", "attn.hook_z", "attn.hook_result", "mlp.hook_pre"]
)
def test_gradients_equal_finite_differences(name, point, tmp_path, rng):
    """In the families whose norms are float64, where a central difference has nine digits."""
    model = introspect.load_model(write_tiny_transformers(tmp_path, name), dtype=torch.float64)
    tokens = torch.randint(3, 101, (1, T), generator=rng)
    site = f"blocks.1.{point}"
    grads = {}
    with model.hooks(bwd_hooks=[(site, lambda grad, hook: grads.__setitem__(hook.name, grad.detach()))]):
        metric(model(tokens)).backward()
    direction = torch.randn(grads[site].shape, generator=rng, dtype=torch.float64)

    def moved(step: float) -> float:
        return metric(model.run_with_hooks(tokens, [(site, lambda x, hook: x + step * direction)])).item()

    step = 1e-5
    difference = (moved(step) - moved(-step)) / (2 * step)
    # truncation of order step^2 and rounding of order 1e-16 / step
    torch.testing.assert_close((grads[site] * direction).sum().item(), difference, rtol=1e-6, atol=1e-9)


def test_gradients_of_weights_when_asked_for(tmp_path, rng):
    theirs = tiny_transformers("llama")
    model = introspect.HookedTransformer.from_pretrained_no_processing(
        write_tiny_transformers(tmp_path, "llama"), dtype=torch.float64
    )
    tokens = torch.randint(3, 101, (2, T), generator=rng)
    with exact_softmax():
        metric(theirs(tokens).logits).backward()
    assert not model(tokens).requires_grad  # nothing asked for: no graph
    weights = dict(model.native.named_weights())
    for weight in weights.values():
        weight.requires_grad_()
    metric(model(tokens)).backward()
    for layer, block in enumerate(theirs.model.layers):
        rows = [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
        pairs = {
            "attn.W_QKV": torch.cat([part.weight.grad for part in rows]),
            "attn.W_O": block.self_attn.o_proj.weight.grad,
            "mlp.W_in": torch.cat([block.mlp.gate_proj.weight.grad, block.mlp.up_proj.weight.grad]),
            "mlp.W_out": block.mlp.down_proj.weight.grad,
            "ln1.w": block.input_layernorm.weight.grad,
        }
        for name, expected in pairs.items():
            got = weights[f"blocks.{layer}.{name}"].grad
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
