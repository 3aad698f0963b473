# A notebook of cells as people wrote them for TransformerLens 2: caches, attention patterns, ablation, activation
# patching, attribution patching, circuits. Only the next line names the library; with `import transformer_lens` in its
# place the same cells run there. `results` holds what both must agree on.

# %%
import introspect as transformer_lens  # isort: skip

# %%
import os
from functools import partial

import torch

from_name = os.environ.get("DEMO_MODEL", "smollm2-135m-instruct")
model = transformer_lens.HookedTransformer.from_pretrained(
    from_name,
    fold_ln=True,
    center_unembed=True,
    center_writing_weights=False,
    fold_value_biases=True,
    device="cpu",
    dtype="float32",
)
model.eval()
utils = transformer_lens.utils
results = {}

# %% The model's own view of a text
text = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy"
tokens = model.to_tokens(text)
print(model.to_str_tokens(text))
logits, loss = model(tokens, return_type="both")
results["loss"] = loss.item()
results["accuracy"] = utils.lm_accuracy(logits, tokens).item()
results["loss_per_token"] = model(tokens, return_type="loss", loss_per_token=True).detach()
print(model.to_string(logits[0, -1].argmax()))

# %% Attention patterns of every layer, and the heads that look at the previous token
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
patterns = torch.stack([cache["pattern", layer, "attn"] for layer in range(model.cfg.n_layers)])
previous_token_score = patterns.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)
results["previous_token_score"] = previous_token_score
layer, head = divmod(previous_token_score.argmax().item(), model.cfg.n_heads)
print(f"the most previous-token head is {model.all_head_labels()[layer * model.cfg.n_heads + head]}")

# %% Induction heads, found with a hook on all patterns and a text of random tokens that is said twice
torch.manual_seed(0)
once = torch.randint(1000, 20000, (2, 20))
repeated = torch.cat([torch.full((2, 1), model.tokenizer.bos_token_id), once, once], dim=-1)
induction_score = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)


def induction_hook(pattern, hook):
    stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - once.shape[1])
    induction_score[hook.layer()] = stripe.mean(dim=(0, -1)).detach()


with torch.no_grad():
    model.run_with_hooks(
        repeated, return_type=None, fwd_hooks=[(lambda name: name.endswith("pattern"), induction_hook)]
    )
results["induction_score"] = induction_score

# %% Ablating the best induction head at its values
layer, head = divmod(induction_score.argmax().item(), model.cfg.n_heads)


def ablate_head(z, hook, head):
    z[:, :, head, :] = 0.0
    return z


with torch.no_grad():
    before = model(repeated, return_type="loss")
    after = model.run_with_hooks(
        repeated,
        return_type="loss",
        fwd_hooks=[(utils.get_act_name("z", layer), partial(ablate_head, head=head))],
    )
results["ablation"] = torch.stack([before, after])
print(f"without L{layer}H{head} the loss is {after:.3f}, not {before:.3f}")

# %% A prompt in which a name must be moved, and one in which the other name must
clean_prompt = "After John and Mary went to the store, John gave a bottle of milk to"
corrupted_prompt = "After John and Mary went to the store, Mary gave a bottle of milk to"
mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
clean, corrupted = model.to_tokens(clean_prompt), model.to_tokens(corrupted_prompt)
changed = model.get_token_position(" Mary", corrupted_prompt, mode="last")


def logit_diff(logits):
    return (logits[:, -1, mary] - logits[:, -1, john]).mean()


with torch.no_grad():
    clean_logits, clean_cache = model.run_with_cache(clean)
    corrupted_diff = logit_diff(model(corrupted))
clean_diff = logit_diff(clean_logits)
results["logit_diff"] = torch.stack([clean_diff, corrupted_diff])


def metric(logits):
    return (logit_diff(logits) - corrupted_diff) / (clean_diff - corrupted_diff)


# %% Activation patching of the residual stream, by layer and position
def patch_position(resid_pre, hook, position):
    resid_pre[:, position, :] = clean_cache[hook.name][:, position, :]
    return resid_pre


layers = range(0, model.cfg.n_layers, 6)
patching = torch.zeros(len(layers), clean.shape[-1])
with torch.no_grad():
    for row, layer in enumerate(layers):
        for position in range(clean.shape[-1]):
            hook_fn = partial(patch_position, position=position)
            patched = model.run_with_hooks(corrupted, fwd_hooks=[(utils.get_act_name("resid_pre", layer), hook_fn)])
            patching[row, position] = metric(patched)
results["patching"] = patching
print(f"the first layer's patch at position {changed} restores {patching[0, changed]:.2f}")

# %% Attribution patching: every head and position from one forward and one backward pass
model.reset_hooks()
activations, gradients = {}, {}


def wanted(name):
    return name.endswith(("hook_z", "hook_resid_pre"))


def keep_activation(activation, hook):
    activations[hook.name] = activation.detach()


def keep_gradient(gradient, hook):
    gradients[hook.name] = gradient.detach()


model.add_hook(wanted, keep_activation, "fwd")
model.add_hook(wanted, keep_gradient, "bwd")
value = metric(model(corrupted))
value.backward()
model.reset_hooks()
corrupted_cache = transformer_lens.ActivationCache(activations, model)
gradient_cache = transformer_lens.ActivationCache(gradients, model)


def attribution(name, layer):
    difference = clean_cache[name, layer] - corrupted_cache[name, layer]
    return (difference * gradient_cache[name, layer]).sum(-1)


results["attribution_resid"] = torch.stack([attribution("resid_pre", i)[0] for i in range(model.cfg.n_layers)])
results["attribution_heads"] = torch.stack([attribution("z", i).sum((0, 1)) for i in range(model.cfg.n_layers)])

# %% Direct logit attribution: what each layer has said for the right name so far
directions = model.tokens_to_residual_directions(torch.tensor([mary, john]))
residuals, labels = clean_cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
scaled = clean_cache.apply_ln_to_stack(residuals, layer=-1, pos_slice=-1)
results["logit_lens"] = scaled @ (directions[0] - directions[1])
print(labels[-1], results["logit_lens"][-1].item())

# %% Gradients in the cache, a cache of the keys before a text, and stopping early
loss, cache = model.run_with_cache(
    clean, names_filter=lambda name: name.endswith("resid_post"), return_type="loss", incl_bwd=True
)
results["gradient_norms"] = torch.stack(
    [cache[utils.get_act_name("resid_post", i) + "_grad"].norm() for i in range(model.cfg.n_layers)]
)
past = transformer_lens.HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
with torch.no_grad():
    model(clean[:, :8], past_kv_cache=past)
    past.freeze()
    results["continued"] = model(clean[:, 8:], past_kv_cache=past)[0, -1]
    results["stopped"] = model(clean, stop_at_layer=3)[0, -1]

# %% Weights: what heads of the first two layers copy, and how they compose
OV = model.OV[:2]
eigenvalues = OV.eigenvalues
results["copying_score"] = (eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)).detach()
results["OV_norms"] = OV.norm().detach()
results["QK_singular_values"] = model.QK[0].S.detach()

# %% And it still speaks
completion = model.generate(clean_prompt, max_new_tokens=10, do_sample=False, verbose=False)
results["completion"] = completion
print(completion)
