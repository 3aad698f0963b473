"""What the library does with a model, a function for each path: what another device gives is compared with the CPU's.

A work takes a float64 model of `tiny_chat.write_tiny_chat` or one of its kind, and gives a tensor, or a list or
dictionary of them. Which numbers are right is the matter of other tests.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from dictionaries import dictionary_at

import introspect
from introspect import analysis, circuits
from introspect.analysis import patch_grid

WORKS: dict[str, Callable[[introspect.Model], Any]] = {}
IDS = [40, 41, 7, 52, 53, 54, 9, 11, 12, 3]
OTHER = [40, 41, 8, 52, 53, 54, 9, 11, 2, 3]
TOKENS = torch.tensor([IDS, OTHER])
METRIC = introspect.LogitDifference(5, 6)


def work(function):
    WORKS[function.__name__] = function
    return function


def direction(model, seed=0) -> torch.Tensor:
    return torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steering(model, **span) -> introspect.Intervention:
    return introspect.Intervention({0: direction(model), 1: direction(model, 1)}, strength=4.0, **span)


def leaves(found: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a result, by a name, on the CPU."""
    if isinstance(found, torch.Tensor):
        yield name, found.detach().cpu()
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(found, list | tuple):
        for i, value in enumerate(found):
            yield from leaves(value, f"{name}[{i}]")
    else:
        yield name, torch.tensor(found)


# Passes


@work
def logits(model):
    mask = torch.ones(TOKENS.shape, dtype=torch.bool)
    mask[1, :3] = False
    return [
        model(TOKENS),
        model(TOKENS, attention_mask=mask),
        model(TOKENS, logits_at="last", attention_mask=mask),
        model.native.forward(
            TOKENS, logits_at="positions", positions=torch.tensor([1, 4]), vocab_ids=torch.tensor([5, 6])
        ),
    ]


@work
def every_activation(model):
    return dict(model.run_with_cache(TOKENS)[1])


@work
def callbacks(model):
    def halve(x, hook):
        return x / 2

    def write(x, hook):
        x[:, 2] = 0.0

    hooks = [("blocks.1.attn.hook_pattern", halve), ("blocks.0.hook_mlp_out", write)]
    return model.run_with_hooks(TOKENS, fwd_hooks=hooks)


@work
def gradients(model):
    seen = {}

    def keep(gradient, hook):
        seen[hook.name] = gradient

    names = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.2.hook_mlp_out"]
    with model.hooks(bwd_hooks=[(names, keep)]):
        model(TOKENS)[:, -1, 5].sum().backward()
    return seen


@work
def interventions(model):
    zeros = torch.zeros(model.cfg.d_model, dtype=torch.float64)
    kinds = {
        "add": steering(model, first_position=2, last_position=6),
        "scattered": steering(model, positions=[1, 4, 7], rows=[1]),
        "ablate": introspect.Intervention({1: direction(model)}, op="ablate"),
        "replace": introspect.Intervention({1: zeros}, op="replace"),
        "heads": introspect.Intervention({1: torch.ones(8, dtype=torch.float64)}, point="attn.hook_z", heads=[0, 2]),
    }
    out = {}
    for name, intervention in kinds.items():
        hooks = model.native.make_hooks()
        hooks.add_intervention(intervention)
        out[name] = model.native.forward(TOKENS, hooks=hooks)
    return out


@work
def steered_text(model):
    vector = introspect.ControlVector("qwen2", {0: direction(model).float(), 1: direction(model, 1).float()})
    with model.steer(vector, strength=3.0, layers=(0, 1)):
        text = model.generate("Is it", max_new_tokens=5, temperature=0.0)
        return [model(TOKENS), list(text.encode())]


@work
def drawn_text(model):
    prompts = [IDS, OTHER[:6]]
    return [
        model.native.generate(prompts, max_new_tokens=6, temperature=0.0),
        model.native.generate(prompts, max_new_tokens=6, temperature=1.0, top_k=20, seed=3, padding_side="right"),
    ]


@work
def static_text(model):
    """Steps that a device replays where it can, steered and not, and passes in their place."""
    hooks = model.native.make_hooks()
    hooks.add_intervention(steering(model))
    return {
        step: [
            model.native.generate([IDS, OTHER[:6]], max_new_tokens=24, stop_at_eos=False, step=step),
            model.native.generate([IDS], max_new_tokens=24, temperature=1.0, seed=3, hooks=hooks, step=step),
        ]
        for step in ("plain", "static")
    }


@work
def caches(model):
    """Forks, splices, rows and files of keys and values."""
    whole, other = model.native.make_cache(), model.native.make_cache()
    first, second = TOKENS[:1], TOKENS[1:]
    model(first, cache=whole)
    model(second, cache=other)
    fork = whole.fork()
    fork.truncate(6)
    mixed = whole.splice(2, 5, other)
    rows = introspect.KVCache.concat_rows([whole, other]).select_rows([1, 0])
    made = {"fork": fork, "mixed": mixed, "few": whole.select_positions([0, 3, 4]), "slice": whole.slice(1, 7)}
    devices = {weight.device for _, weight in model.native.named_weights()}
    with tempfile.TemporaryDirectory() as folder:
        mixed.save(Path(folder) / "cache.safetensors", model_hash=model.hash)
        read = introspect.KVCache.load(Path(folder) / "cache.safetensors", model_hash=model.hash, device=model.device)
    made["read"] = read if len(devices) == 1 else mixed.fork()  # a file is read to one device
    out = {name: model(first[:, :3], cache=cache) for name, cache in made.items()}
    return out | {"rows": model(TOKENS[:, :3], cache=rows)}


# Planned work


@work
def graph(model):
    g = introspect.Graph()
    root = g.segment(model, IDS[:4])
    plain = g.segment(model, IDS[4:8], root)
    changed = g.segment(model, IDS[4:8], root, [steering(model)])
    inside = g.segment(
        model, IDS[4:8], root, [introspect.Intervention({1: direction(model)}, point="hook_mlp_out", positions=[0, 2])]
    )
    heads = g.segment(
        model,
        IDS[4:8],
        root,
        [introspect.Intervention({1: torch.ones(8, dtype=torch.float64)}, point="attn.hook_z", heads=[1])],
    )
    spliced = g.splice(plain, 4, 6, changed)
    ends = [g.segment(model, IDS[8:], node) for node in (plain, changed, inside, heads, spliced)]
    for end in ends:
        g.read(end, positions=[0, -1])
        g.read(end, point="hook_attn_out", layers=[1])
        g.read_attention(end, keys=(2, 7))
    g.read_cache(ends[1])
    *reads, cache = g.run()
    return [*reads, [cache.keys(layer) for layer in range(model.cfg.n_layers)]]


@work
def trie(model):
    sequences = [IDS, OTHER, IDS[:5], [*IDS[:6], 1, 2]]
    made = introspect.TokenTrie(sequences)
    every = list(range(len(made)))
    last = model.cfg.n_layers - 1
    return [
        introspect.run_trie(model.native, made, nodes=every, layers=[0, last]),
        introspect.run_trie(model.native, made, nodes=every, layers=[1, last], memory_budget=1 << 18),
        introspect.run_trie(
            model.native, made, nodes=list(made.ends), layers=[last], last_layer_after_norm=True
        ),
    ]  # fmt: skip


@work
def control_vector(model):
    pairs = introspect.concept_pairs(model, "cat", ["a", "ab", "b c", "cat"])
    return introspect.ControlVector.train(model, pairs).directions


@work
def experiment(model):
    vectors = {
        name: introspect.ControlVector("qwen2", {layer: direction(model, seed + layer).float() for layer in (1, 2)})
        for name, seed in (("cat", 3), ("bread", 5))
    }
    result = introspect.run_experiment(
        model, introspect.load_protocol("no_info"), vectors=vectors, strengths=[2.0], layers=[(1, 2)], nulls=1,
        questions=["Is it so?"],
    )  # fmt: skip
    table = result.to_pandas()
    return {name: torch.tensor(table[name].to_numpy()) for name in ("log_odds_base", "log_odds", "p_yes")}


@work
def patches(model):
    points = ["resid_pre", "z", "pattern"]
    grids = patch_grid(model, IDS, OTHER, points=points, metric=METRIC)
    return [torch.as_tensor(grids[point].values) for point in points]


# Readings


@work
def lens(model):
    read = analysis.logit_lens(model, TOKENS[:1], top_k=3, targets=[5, 6])
    return {"top": read.top_log_probs, **{str(key): value for key, value in read.log_probs.items()}}


@work
def attribution(model):
    made = analysis.direct_logit_attribution(model, IDS, 5, 6)
    return torch.as_tensor(made.values)


@work
def edges(model):
    scores = circuits.edge_attribution(model, TOKENS[:1], TOKENS[1:], METRIC, method="eap-ig", ig_steps=2)
    return torch.tensor(scores.to_pandas().score.to_list())


# Dictionaries and training


@work
def dictionary(model):
    sae = dictionary_at("blocks.1.hook_resid_post", model.cfg.d_model, "topk")
    hooked = introspect.HookedTransformer(model)
    with hooked.saes(saes=[sae]):
        return [hooked(TOKENS), hooked.run_with_cache(TOKENS)[1]["blocks.1.hook_resid_post.hook_sae_acts_post"]]


@work
def adapter(model):
    examples = [
        introspect.FinetuneExample("ab" * (i + 1), " yes" if i % 2 else " no", {1: direction(model, i)}, (0, 1))
        for i in range(4)
    ]
    losses: list[float] = []
    made = introspect.train_lora(
        model, examples, steps=3, on_step=lambda step, loss: losses.append(loss), progress=False
    )
    with model.adapted(made):
        return [losses, model(TOKENS)]


def all_works() -> list[str]:
    return list(WORKS)


def run(name: str, model: introspect.Model) -> dict[str, torch.Tensor]:
    return dict(leaves(WORKS[name](model)))
