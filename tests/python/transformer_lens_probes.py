"""What is asked of a HookedTransformer, TransformerLens's or ours: each function returns a dict of tensors and labels.

slow/test_transformer_lens.py calls them on our model, and in the peers' environment on theirs. Nothing but torch is
imported, so that a difference can only come from the model.
"""

import torch

FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def every_point(model, tokens, flags=()):
    """All activations of one pass, with the flags of optional points set."""
    for flag in flags:
        getattr(model, f"set_{flag}")(True)
    logits, cache = model.run_with_cache(torch.tensor(tokens))
    for flag in flags:
        getattr(model, f"set_{flag}")(False)
    return {"logits": logits, **{name: cache[name] for name in cache}}


def gradients(model, tokens):
    """All activations and the gradient of the loss at every point."""
    loss, cache = model.run_with_cache(torch.tensor(tokens), incl_bwd=True, return_type="loss")
    return {"loss": loss, **{name: cache[name] for name in cache}}


def first_norms(model, tokens):
    """What a block's first norm is multiplied by on its way to queries, keys and values: [head, d_model, d_head]."""
    repeats = {"q": 1, "k": 1, "v": 1}
    if model.cfg.n_key_value_heads is not None:
        repeats["k"] = repeats["v"] = model.cfg.n_heads // model.cfg.n_key_value_heads
    weights = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}
    results = {f"{i} {x}": W[i, :: repeats[x]] for x, W in weights.items() for i in range(model.cfg.n_layers)}
    return results | {f"{i} w": block.ln1.w for i, block in enumerate(model.blocks)}


def forward_arguments(model, tokens, mask):
    """What forward returns for its arguments."""
    tokens, mask = torch.tensor(tokens), torch.tensor(mask)
    middle = model(tokens, stop_at_layer=2)
    logits, loss = model(tokens, return_type="both")
    return {
        "logits": logits,
        "loss": loss,
        "loss per token": model(tokens, return_type="loss", loss_per_token=True),
        "residual before block 2": middle,
        "residual before block 1, counted from the end": model(tokens, stop_at_layer=-2),
        "logits from block 2 on": model(middle, start_at_layer=2),
        "residual of block 1 alone": model(model(tokens, stop_at_layer=1), start_at_layer=1, stop_at_layer=2),
        "padded logits": model(tokens, attention_mask=mask)[mask.bool()],
        "loss_fn": model.loss_fn(logits, tokens),
        "nothing": repr(model(tokens, return_type=None)),
    }


def cache_methods(model, tokens, norms=True):
    """The decompositions of ActivationCache, with their labels; without norms, those of the residual stream itself."""
    model.set_use_attn_result(True)
    tokens = torch.tensor(tokens)
    _, cache = model.run_with_cache(tokens)
    model.set_use_attn_result(False)
    n_layers, results = model.cfg.n_layers, {}

    def keep(method, **options):
        if options.get("apply_ln") and not norms:
            return
        title = f"{method}({', '.join(f'{k}={v}' for k, v in options.items())})"
        value = getattr(cache, method)(**options)
        if isinstance(value, tuple):
            results[title], results[f"{title} labels"] = value[0], list(value[1])
        else:
            results[title] = value

    for options in (
        {},
        {"layer": 1},
        {"layer": -1, "incl_mid": True},
        {"incl_mid": True, "mlp_input": True, "layer": 1},
        {"apply_ln": True, "pos_slice": -1},
        {"pos_slice": (2, 5)},
    ):
        keep("accumulated_resid", return_labels=True, **options)
    for options in (
        {},
        {"layer": 2, "mlp_input": True},
        {"mode": "attn"},
        {"mode": "mlp", "incl_embeds": False},
        {"apply_ln": True, "pos_slice": -1},
    ):
        keep("decompose_resid", return_labels=True, **options)
    for options in (
        {},
        {"layer": 2, "incl_remainder": True},
        {"pos_slice": -1, "apply_ln": True, "incl_remainder": True},
    ):
        keep("stack_head_results", return_labels=True, **options)
    for options in (
        {"layer": 1},
        {"layer": n_layers, "neuron_slice": (3, 9), "incl_remainder": True, "pos_slice": -1},
        {"layer": -1, "apply_ln": True, "pos_slice": (1, 4)},
    ):
        keep("stack_neuron_results", return_labels=True, **options)
    for options in ({}, {"layer": 2, "expand_neurons": False}, {"apply_ln": True, "pos_slice": -1}):
        keep("get_full_resid_decomposition", return_labels=True, **options)
    for name in ("z", "pattern", "resid_post", "mlp_out"):
        keep("stack_activation", activation_name=name)

    if not norms:
        return results
    right, wrong = tokens[:, -1], tokens[:, 0]
    stack = cache.decompose_resid(pos_slice=-1)
    results["logit_attrs"] = cache.logit_attrs(stack, right, pos_slice=-1)
    results["logit_attrs, difference"] = cache.logit_attrs(stack, right, wrong, pos_slice=-1)
    results["logit_attrs, one token"] = cache.logit_attrs(cache.decompose_resid(), 7)
    results["apply_ln_to_stack"] = cache.apply_ln_to_stack(cache.decompose_resid(), layer=1, mlp_input=True)
    results["apply_ln_to_stack, recomputed"] = cache.apply_ln_to_stack(
        cache.accumulated_resid(), layer=n_layers, recompute_ln=True
    )
    return results


def cache_keys(model, tokens):
    """The ways of naming an entry, slices of positions and the batch dimension."""
    tokens = torch.tensor(tokens)
    _, cache = model.run_with_cache(tokens)
    results = {str(key): cache[key] for key in (("resid_post", 1), ("k", 2, "attn"), ("pattern", -1), "embed")}
    results |= {str(key): cache[key] for key in (("scale", 1, "ln1"), ("normalized", 0, "ln2"), ("post", 2))}
    results |= {key: cache[key] for key in ("scale0ln1", "q2", "attn1", "ln_final.hook_scale")}
    # TransformerLens cuts rotated queries and keys along their heads.
    for pos_slice in (-1, [1, 3], (2, 5)):
        _, sliced = model.run_with_cache(tokens, names_filter=lambda name: "rot_" not in name, pos_slice=pos_slice)
        results |= {f"{name} at {pos_slice}": sliced[name] for name in sliced}
    _, first = model.run_with_cache(tokens[:1], remove_batch_dim=True, names_filter="blocks.1.attn.hook_pattern")
    results |= {f"{name} without batch": first[name] for name in first}
    _, some = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_z"))
    return results | {"filtered": sorted(some)}


def hooks(model, tokens):
    """Passes in which hooks change something."""
    tokens = torch.tensor(tokens)
    _, other = model.run_with_cache(tokens.flip(1))
    seen = []

    def patch(activation, hook):
        activation[:, 3] = other[hook.name][:, 3]
        return activation

    def ablate(activation, hook):
        activation[:, :, 1] = 0.0
        return activation

    def uniform(activation, hook):
        return torch.ones_like(activation).tril() / torch.arange(1, activation.shape[-1] + 1)[:, None]

    def record(activation, hook):
        seen.append((hook.name, hook.layer()))

    def run(*pairs):
        return model.run_with_hooks(tokens, fwd_hooks=list(pairs))

    results = {
        "a residual patched": run(("blocks.1.hook_resid_pre", patch)),
        "a head ablated": run(("blocks.1.attn.hook_z", ablate)),
        "keys ablated": run(("blocks.2.attn.hook_k", ablate)),
        "patterns replaced": run((lambda name: name.endswith("hook_pattern"), uniform)),
        "the norm's scale frozen": run(("blocks.1.ln2.hook_scale", lambda x, hook: other[hook.name])),
        "neurons patched": run(("blocks.0.mlp.hook_post", patch)),
        "two hooks": run(("hook_embed", patch), ("blocks.2.attn.hook_v", ablate)),
    }
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: 0.5 * x)]):
        results["inside a context"] = model(tokens)
        with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: 2 * x)]):
            results["inside two"] = model(tokens)
    model.add_hook("blocks.1.hook_resid_post", record)
    results["after the contexts"] = model(tokens)
    model.reset_hooks()
    model(tokens)
    return results | {"seen": repr(seen)}


def generation(model, tokens, cached=True):
    """Greedy continuations, with the cache of keys and values or without."""
    options = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False, "verbose": False}
    options["use_past_kv_cache"] = cached
    tokens = torch.tensor(tokens)
    return {
        "a batch": model.generate(tokens, **options),
        "one row": model.generate(tokens[1:], **options),
        "a penalty that greedy choice leaves out": model.generate(tokens, freq_penalty=2.0, **options),
    }


def weights(model, tokens):
    """Weights under TransformerLens's names, and what is made of them."""
    names = ["W_E", "W_U", "b_U", *(f"{kind}_{part}" for kind in "Wb" for part in ("Q", "K", "V", "O", "in", "out"))]
    names += ["W_gate"] if model.cfg.gated_mlp else []
    results = {name: getattr(model, name) for name in names}
    for name in ("QK", "OV"):
        results[name] = getattr(model, name).AB
    for mode in "QKV":
        results[f"all_composition_scores({mode})"] = model.all_composition_scores(mode)
    results["all_head_labels"] = list(model.all_head_labels())
    results["tokens_to_residual_directions"] = model.tokens_to_residual_directions(torch.tensor(tokens))
    results["accumulated_bias"] = model.accumulated_bias(2)
    results["accumulated_bias, mlp input"] = model.accumulated_bias(1, mlp_input=True, include_mlp_biases=False)
    return results


def patching(model, tokens):
    """Every grid of the patching module, denoising, with a metric of all logits."""
    try:
        from introspect import patching as grids
    except ImportError:
        from transformer_lens import patching as grids
    clean = torch.tensor(tokens)
    corrupted = clean.clone()
    corrupted[:, 3:] = (corrupted[:, 3:] * 7 + 5) % 101
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return (logits[:, -1, 5] - logits[:, -1, 6]).mean() + logits[:, 4, 7].mean()

    names = [name for name in dir(grids) if name.startswith("get_act_patch_") and name not in SLOW_GRIDS]
    out = {}
    for name in names:
        try:
            out[name] = getattr(grids, name)(model, corrupted, cache, metric)
        except Exception as error:  # theirs under grouped queries
            out[name] = f"{type(error).__name__}"
    first = grids.make_df_from_ranges([2, 4], ["layer", "pos"])
    out["index_df"], rows = grids.generic_activation_patch(
        model, corrupted, cache, metric, grids.layer_pos_patch_setter, "resid_pre", index_df=first, return_index_df=True
    )
    out["rows"] = torch.tensor(rows.values)
    return out


# 3 x 6 x 9 x 9 passes.
SLOW_GRIDS = {"get_act_patch_attn_head_pattern_dest_src_pos"}
