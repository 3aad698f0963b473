"""Steering under a condition acts in every function that runs the model, as the same steering with explicit rows does.

The rows are worked out here from the residuals of each prompt alone.
"""

import contextlib

import pytest
import torch

import introspect
from introspect import repeng
from introspect.generation import padded

D, LAYER, N_NEW = 32, 1, 4
PROMPTS = ["the cat", "a dog and", "yes", "some bread, no"]
GREEDY = {"max_new_tokens": N_NEW, "do_sample": False}
LENS = {**GREEDY, "stop_at_eos": False, "verbose": False}


@pytest.fixture(scope="module")
def prompts(model):
    return [model.to_tokens(text)[0].tolist() for text in PROMPTS]


@pytest.fixture(scope="module")
def vector():
    rng = torch.Generator().manual_seed(3)
    return introspect.ControlVector("qwen2", {layer: 4 * torch.randn(D, generator=rng) for layer in (0, 1, 2)})


@pytest.fixture(scope="module")
def conditional(model, prompts):
    """A condition, and the rows of which it holds: those whose mean residual points more along a direction."""
    direction = torch.randn(D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    point = f"blocks.{LAYER}.hook_resid_post"
    means = [model.run_with_cache(torch.tensor([ids]), [point])[1][point][0].mean(0) for ids in prompts]
    values = [float(mean @ direction / mean.norm() / direction.norm()) for mean in means]
    threshold = sum(sorted(values)[1:3]) / 2
    held = [row for row, value in enumerate(values) if value > threshold]
    assert len(held) == 2
    return introspect.Condition(direction, layer=LAYER, threshold=threshold), held


@contextlib.contextmanager
def controlled(model):
    control = repeng.ControlModel(model, [0])
    yield control
    control.unwrap()


def call(model, tokens, mask):
    return model(tokens, attention_mask=mask)


def call_with_cache(model, tokens, mask):
    cache = model.native.make_cache(len(tokens))
    first = model(tokens, attention_mask=mask, cache=cache, n_prompt=tokens.shape[1])
    return torch.cat([first, model(tokens[:, -1:], cache=cache, n_prompt=tokens.shape[1])], dim=1)


def run_with_cache(model, tokens, mask):
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.2.hook_resid_post"], attention_mask=mask)
    return cache["resid_post", -1]


def run_with_hooks(model, tokens, mask):
    return model.run_with_hooks(tokens, [("hook_embed", lambda x, hook: 2 * x)], attention_mask=mask)


def control_model_forward(model, tokens, mask):
    with controlled(model) as control:
        return control(tokens, attention_mask=mask).logits


def control_model_states(model, tokens, mask):
    with controlled(model) as control:
        return control(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-1]


def generate(model, tokens, mask):
    return model.generate(PROMPTS, max_new_tokens=N_NEW, stop_at_eos=False)


def control_model_generate(model, tokens, mask):
    with controlled(model) as control:
        rows = control.generate(tokens, attention_mask=mask, eos_token_id=10**6, pad_token_id=0, **GREEDY)
    return rows[:, tokens.shape[1] :].tolist()


def repeng_generate(model, tokens, mask):
    return repeng.generation.generate(model, PROMPTS, **GREEDY)


def lens_forward(model, tokens, mask):
    return model.forward(tokens, attention_mask=mask)


def lens_generate(model, tokens, mask, **options):
    return model.generate(PROMPTS, return_type="tokens", **options, **LENS)[:, -N_NEW:].tolist()


def lens_generate_in_steps(model, tokens, mask):
    return lens_generate(model, tokens, mask, freq_penalty=1e-9)


def lens_generate_without_cache(model, tokens, mask):
    return lens_generate(model, tokens, mask, use_past_kv_cache=False)


def lens_generate_stream(model, tokens, mask):
    texts = model.to_tokens(PROMPTS, padding_side="left")
    pieces = model.generate_stream(texts, padding_side="left", max_tokens_per_yield=2, **LENS)
    return torch.cat(list(pieces), dim=1)[:, -N_NEW:].tolist()


BOTH = [run_with_cache, control_model_forward, control_model_states, control_model_generate, repeng_generate]
ENTRIES = {
    "Model": [*BOTH, call, call_with_cache, run_with_hooks, generate],
    "HookedTransformer": [
        *BOTH, lens_forward, lens_generate, lens_generate_in_steps, lens_generate_without_cache, lens_generate_stream,
    ],
}  # fmt: skip


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("kind", "entry"),
    [pytest.param(kind, run, id=f"{kind}-{run.__name__}") for kind in ENTRIES for run in ENTRIES[kind]],
)
def test_a_condition_acts_wherever_the_model_is_run(model, prompts, vector, conditional, kind, entry):
    condition, held = conditional
    runner = model if kind == "Model" else introspect.HookedTransformer(model.native)
    tokens, mask = padded(prompts)
    plain = entry(runner, tokens, mask)
    with runner.steer(vector, condition=condition):
        under_condition = entry(runner, tokens, mask)
    with runner.steer(vector, rows=held):
        by_rows = entry(runner, tokens, mask)
    for row in range(len(prompts)):
        assert same(under_condition[row], by_rows[row])
        assert same(under_condition[row], plain[row]) == (row not in held), row


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_condition_acts_in_the_activations_that_repeng_trains_on(model, vector, conditional, kind):
    condition, held = conditional
    model = model if kind == "Model" else introspect.HookedTransformer(model)

    def hiddens(texts):
        return repeng.extract.batched_get_hiddens(model, None, texts, [0], batch_size=3)[0]

    plain = hiddens(PROMPTS)
    with model.steer(vector):
        steered = [hiddens([text])[0] for text in PROMPTS]
    with model.steer(vector, condition=condition):
        read = hiddens(PROMPTS)  # in batches of which each is sorted by length
    for row in range(len(PROMPTS)):
        expected = steered[row] if row in held else plain[row]
        torch.testing.assert_close(torch.tensor(read[row]), torch.tensor(expected), rtol=0, atol=1e-6)
