"""One introspection experiment as the article's program runs it, on transformers and repeng.

Every message is prefilled as a step of its own, once in a base cache and once in one whose injected steps run under
repeng's ControlModel, and nothing is kept from one experiment to the next. This is the peer of experiments.py.
"""

import torch
from repeng import ControlModel, ControlVector
from transformers import DynamicCache, PreTrainedModel

Step = tuple[list[int], bool]  # token ids of one message, whether it is injected


def prefill(model: PreTrainedModel | ControlModel, ids: list[int], cache: DynamicCache, **options):
    with torch.no_grad():
        return model(torch.tensor([ids]), past_key_values=cache, use_cache=True, **options)


def experiment(
    model: PreTrainedModel, steps: list[Step], vector: ControlVector, strength: float, layers: list[int], lens: bool
) -> dict[str, torch.Tensor]:
    """Logits [d_vocab] after the last step, "base" and "injected"; with ``lens`` [layer, d_vocab] after every layer."""
    base_kv, injected_kv = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for index, (ids, injected) in enumerate(steps):
        options = {"output_hidden_states": lens and index == len(steps) - 1}
        base = prefill(model, ids, base_kv, **options)
        if injected:
            control = ControlModel(model, layers)
            control.set_control(vector, strength)
            out = prefill(control, ids, injected_kv, **options)
            control.reset()
            control.unwrap()
        else:
            out = prefill(model, ids, injected_kv, **options)
    if not lens:
        return {"base": base.logits[0, -1], "injected": out.logits[0, -1]}
    return {"base": through_the_layers(model, base), "injected": through_the_layers(model, out)}


def through_the_layers(model: PreTrainedModel, out) -> torch.Tensor:
    """The logit lens at the last position; transformers has applied the final norm to the last hidden state."""
    *before, last = out.hidden_states[1:]
    with torch.no_grad():
        rows = [model.lm_head(model.model.norm(hidden[0, -1])) for hidden in before]
        return torch.stack([*rows, model.lm_head(last[0, -1])])


def top_of_mind(
    model: PreTrainedModel, ids: list[int], vector: ControlVector, strength: float, layers: list[int], n_new: int
) -> dict[str, list[int]]:
    """Greedy continuations, "base" and "injected": the vector is on in the prompt and while the answer is generated."""

    def generate(which: PreTrainedModel | ControlModel) -> list[int]:
        tokens = torch.tensor([ids])
        out = which.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, do_sample=False)
        return out[0, len(ids) :].tolist()

    base = generate(model)
    control = ControlModel(model, layers)
    control.set_control(vector, strength)
    injected = generate(control)
    control.reset()
    control.unwrap()
    return {"base": base, "injected": injected}
