"""What every node of a decoder writes, and a metric's gradient there, in transformers: the other side of attribution.

Norms are float64 throughout, so that identities can be asked for to nine digits.
"""

import torch
from reference import exact_softmax
from tiny import ARCHITECTURES


def eps_of(norm):
    return getattr(norm, "eps", None) or norm.variance_epsilon


def weight_of(norm):
    """What a norm multiplies by; Gemma's 1 + weight is float32 in every dtype."""
    weight = norm.weight.detach()
    return (1 + weight.float()).double() if type(norm).__name__.startswith("Gemma") else weight


def exact_norms(model):
    """transformers' RMS norms in float64 of a float64 model, which they round to float32."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            weight, eps = weight_of(module), eps_of(module)

            def forward(x, weight=weight, eps=eps):
                return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight

            module.forward = forward
    return model


def transformers_parts(model, name):
    """What each layer's attention and MLP are called, and the norms after them, in transformers."""
    family = ARCHITECTURES[name][0]
    if family == "GPT2":
        return [(b.attn.c_proj, b.attn, b.mlp, None) for b in model.transformer.h], model.transformer.wte
    if family == "GPTNeoX":
        return [(b.attention.dense, b.attention, b.mlp, None) for b in model.gpt_neox.layers], model.gpt_neox.embed_in
    after = family.startswith(("Gemma", "Olmo"))  # norms of what layers write
    layers = model.model.layers
    return [
        (
            b.self_attn.o_proj,
            b.post_attention_layernorm if after else b.self_attn,
            b.post_feedforward_layernorm if after else b.mlp,
            b.post_attention_layernorm if after else None,
        )
        for b in layers
    ], model.model.embed_tokens


def transformers_outputs(model, name, tokens, metric=None):
    """What every sender writes in transformers, in the order of Circuit.senders, and the metric's gradient at each."""
    parts, embedding = transformers_parts(model, name)
    kept, handles = {}, []

    def keep(key, value):
        if metric is not None and value.requires_grad:
            value.retain_grad()
        kept[key] = value

    def output_of(module, key):
        first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
        handles.append(module.register_forward_hook(lambda _, __, out: keep(key, first(out))))

    output_of(embedding, "input")
    for layer, (project, attention, mlp, _) in enumerate(parts):
        handles.append(project.register_forward_pre_hook(lambda _, args, i=layer: keep(f"z{i}", args[0])))
        output_of(project, f"raw{layer}")
        output_of(attention, f"a{layer}")
        output_of(mlp, f"m{layer}")
    with exact_softmax():
        value = metric(model(tokens).logits) if metric is not None else model(tokens)
    for handle in handles:
        handle.remove()
    if metric is not None:
        value.sum().backward()
    gradient = lambda key: kept[key].grad if metric is not None else None  # noqa: E731
    outputs, gradients = [kept["input"].detach()], [gradient("input")]
    heads = model.config.num_attention_heads
    for layer, (project, _, _, norm) in enumerate(parts):
        weight = project.weight if isinstance(project, torch.nn.Linear) else project.weight.T  # [D, H K]
        for z, W in zip(kept[f"z{layer}"].chunk(heads, -1), weight.chunk(heads, 1), strict=True):
            out = (z @ W.T).detach()
            if norm is not None:  # with the scale of the whole
                raw = kept[f"raw{layer}"].detach()
                out = out * (raw.pow(2).mean(-1, keepdim=True) + eps_of(norm)).rsqrt() * weight_of(norm)
            outputs.append(out)
            gradients.append(gradient(f"a{layer}"))
        outputs.append(kept[f"m{layer}"].detach())
        gradients.append(gradient(f"m{layer}"))
    return outputs, gradients
