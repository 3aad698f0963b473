"""LoRA training against peft and torch: gradients, steps of Adam, and files both ways."""

import json

import peft
import pytest
import torch
from adapters import random_peft
from reference import exact_softmax
from safetensors.torch import load_file
from tiny import tiny_transformers

import introspect
from introspect import _C, FinetuneExample

FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3"]
STEPS, LR = 20, 0.01

# transformers computes RMS norms in float32 whatever the model's dtype, and so do we: numbers that agree to 1e-16
# before one are rounded apart to 1e-7 of their size after it. LayerNorms are float64 on both sides.
LAYER_NORMS = ["gpt2", "gpt_neox"]
PRODUCTS = {"gpt_neox": ["query_key_value", "dense"], "gpt2": ["c_attn", "mlp.c_proj"], "qwen2": ["q_proj", "up_proj"]}


def floor(name, exact=1e-9, rounded=2e-6):
    return {"rtol": 0, "atol": exact if name in LAYER_NORMS else rounded}


@pytest.fixture
def examples(rng):
    """Prompts of different lengths, two with a common beginning, three of them injected, one in two blocks."""
    u, v = torch.randn(2, 48, generator=rng, dtype=torch.float64)
    return [
        FinetuneExample([5, 6, 7, 8, 9], [10, 11]),
        FinetuneExample([5, 6, 7, 12], [14], {1: u}, (1, 3)),
        FinetuneExample([5, 6, 7, 12], [15, 16], {1: u}, (1, 3)),
        FinetuneExample([15, 16, 17, 18], [19, 20, 21], {0: u, 2: 2 * v}, (0, 4)),
        FinetuneExample([], [30, 31, 32]),
    ]


def blocks_of(theirs):
    base = theirs.base_model.model
    inner = getattr(base, "model", None) or getattr(base, "transformer", None) or base.gpt_neox
    return inner.layers if hasattr(inner, "layers") else inner.h


def peft_loss(theirs, examples):
    """Mean cross-entropy of all targets, one example after the other, directions added by hooks on the blocks."""
    losses = []
    for example in examples:

        def adder(direction, span=example.span):
            def add(module, inputs, output):
                shifted = (output[0] if isinstance(output, tuple) else output).clone()
                shifted[:, span[0] : span[1]] += direction.to(shifted.dtype)
                return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

            return add

        handles = [blocks_of(theirs)[i].register_forward_hook(adder(v)) for i, v in example.added.items()]
        ids = [*example.prompt, *example.target]
        with exact_softmax():
            log_probs = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        for handle in handles:
            handle.remove()
        n = len(example.target) - (not example.prompt)
        losses += [-log_probs[len(ids) - 1 - n + i, token] for i, token in enumerate(ids[-n:])]
    return torch.stack(losses).mean()


def trainer(model, adapter, examples, **options):
    encoded = [
        _C.LoraExample(e.prompt, e.target, added=e.added, first=e.span[0], last=e.span[1] or 0) for e in examples
    ]
    return _C.LoraTrainer(model.native, adapter, encoded, **{"steps": STEPS, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_pefts(name, tmp_path, examples):
    theirs = random_peft(name, tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    ours = trainer(model, introspect.Adapter.load(tmp_path / "adapter"), examples)
    loss, gradients = ours.gradients(list(range(len(examples))))
    expected = peft_loss(theirs, examples)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=floor(name)["atol"])
    parameters = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(gradients) == len(parameters)
    for key, gradient in gradients.items():
        module, matrix = key.rsplit(".", 1)
        theirs_gradient = parameters[f"base_model.model.{module}.{matrix}.default.weight"]
        torch.testing.assert_close(gradient, theirs_gradient, **floor(name))
    assert max(g.abs().max() for g in gradients.values()) > 1e-3


@pytest.mark.parametrize(("name", "layers"), [("gpt_neox", [2]), ("gpt2", [1, 2]), ("qwen2", [1, 2])])
def test_blocks_below_the_trained_ones_change_no_gradient(name, layers, tmp_path, examples):
    """They run once without a graph, with what is injected there; with no room for residuals they run in each step."""
    theirs = random_peft(name, tmp_path, layers_to_transform=layers, target_modules=PRODUCTS[name])
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    kept, run_again = trainer(model, adapter, examples), trainer(model, adapter, examples, memory_budget=1)
    assert kept.cost.first_layer == layers[0]
    assert (kept.cost.keeps_residuals, run_again.cost.keeps_residuals) == (True, False)
    peft_loss(theirs, examples).backward()
    parameters = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    for ours in (kept, run_again):
        _, gradients = ours.gradients(list(range(len(examples))))
        for key, gradient in gradients.items():
            module, matrix = key.rsplit(".", 1)
            expected = parameters[f"base_model.model.{module}.{matrix}.default.weight"]
            torch.testing.assert_close(gradient, expected, **floor(name))


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gpt_neox"])
def test_twenty_steps_are_those_of_torchs_adam_on_peft(name, tmp_path, examples):
    theirs = random_peft(name, tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    start = introspect.Adapter.load(tmp_path / "adapter")
    losses, expected_losses = [], []
    ours = introspect.train_lora(
        model, examples, steps=STEPS, lr=LR, batch_size=len(examples), start=start,
        on_step=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = peft_loss(theirs, examples)
        expected_losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    # Adam divides a gradient by its own size: the rounding of the smallest ones, 1e-16, is held against eps = 1e-8.
    close = floor(name, exact=1e-6, rounded=1e-4)
    torch.testing.assert_close(losses, expected_losses, **close)
    assert losses[-1] < 0.9 * losses[0]
    theirs.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    expected = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    ours.save(tmp_path / "ours")
    saved = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value, **close)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gpt2", "gpt_neox", "phi3"])
def test_peft_reads_what_was_trained_here(name, tmp_path, examples, rng):
    base = tiny_transformers(name)
    base.save_pretrained(tmp_path / "base")
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    adapter = introspect.train_lora(model, examples, steps=3, lr=0.02, rank=3, alpha=5, layers=[1, 2], seed=4)
    adapter.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base.double(), tmp_path / "adapter", autocast_adapter_dtype=False).eval()
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    with torch.no_grad(), exact_softmax():
        expected = theirs(tokens).logits
    with model.adapted(adapter):
        torch.testing.assert_close(model(tokens), expected, **floor(name, rounded=2e-5))
    assert (model(tokens) - expected).abs().max() > 1e-2
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.layers_to_transform) == (3, 5, [1, 2])
    assert introspect.Adapter.load(tmp_path / "adapter").hash == adapter.hash


@pytest.mark.parametrize("options", [{}, {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}])
def test_a_file_of_peft_is_written_again_as_it_was(options, tmp_path):
    random_peft("llama", tmp_path, **options)
    introspect.Adapter.load(tmp_path / "adapter").save(tmp_path / "again")
    first, again = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    configs = [json.loads((tmp_path / folder / "adapter_config.json").read_text()) for folder in ("adapter", "again")]
    assert configs[0] == configs[1]


def test_matrices_start_as_pefts_do(tmp_path):
    """A uniform within 1 / sqrt(in), as kaiming_uniform_ with a = sqrt(5) gives, and B zero."""
    tiny_transformers("llama").save_pretrained(tmp_path / "base")
    model = introspect.load_model(tmp_path / "base")
    introspect.Adapter.create(model.native, rank=64, targets=["down_proj"]).save(tmp_path / "ours")
    theirs = peft.get_peft_model(tiny_transformers("llama"), peft.LoraConfig(r=64, target_modules=["down_proj"]))
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.shape == theirs[key].shape
        if "lora_B" in key:
            assert not value.any()
            continue
        bound = 52**-0.5  # d_mlp
        assert value.abs().max() <= bound
        assert value.abs().max() > 0.99 * bound
        # The standard deviation of 3,328 uniform values: its own error is 1%.
        assert value.std().item() == pytest.approx(theirs[key].std().item(), rel=0.04)
