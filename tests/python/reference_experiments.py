"""What an experiment graph must give, computed without a plan and twice over: with our model, and with transformers.

Each node is run from scratch over its whole sequence, in which the keys and values before its own tokens are replaced
by those that its parent's run made, and its changes are hooks that write the formulas out. Nothing is shared, forked or
skipped. `OurReference` does this with hooks on an introspect.Model, `TheirReference` with hooks on the modules of a
transformers model; the nodes are those of graphs.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from graphs import PATTERN_POINTS, Change, Graph, Segment, Sizes, Splice
from reference import exact_softmax
from transformers import DynamicCache

STREAM = ("hook_resid_pre", "hook_resid_post")


@dataclass
class State:
    """A node after its run: n tokens of its own, T down to its end."""

    tokens: list[int]  # T
    past: dict[str, torch.Tensor]  # what stands for keys and values, by hook point or module; positions on axis 1
    keys: torch.Tensor  # [layer, group, T, d_head], after RoPE
    values: torch.Tensor
    residuals: torch.Tensor | None = None  # [layer + 1, n, d_model]: before each layer, and after the last one
    logits: torch.Tensor | None = None  # [n, d_vocab]
    activations: dict[str, torch.Tensor] = field(default_factory=dict)  # our points: [layer, n, ...]
    patterns: torch.Tensor | None = None  # ours: [layer, head, n, T]


def changed(x: torch.Tensor, change: Change, v: torch.Tensor | None, start: int, n: int) -> torch.Tensor:
    """x [1, T, (head,) W] after a change of a segment of n tokens that begins at position `start`.

    Scores and patterns are [1, head, T, key].
    """
    if change.point in PATTERN_POINTS:
        by_query = dataclasses.replace(change, point="attn.hook_z")
        return changed(x.transpose(1, 2), by_query, v, start, n).transpose(1, 2)
    places = list(change.positions or range(n))
    index = [start + p for p in places]
    y = x.clone()
    part, s = y[:, index], change.strength
    some = part if change.heads is None else part[:, :, list(change.heads)]
    if v is not None and len(change.shape) == 2:
        v = v[:, places]  # a stored activation of the segment's tokens
    if change.op == "add":
        new = some + s * v
    elif change.op == "ablate":
        u = v / v.norm()
        new = some - s * (some @ u)[..., None] * u
    elif change.op == "project_out":
        rows = v.reshape(-1, v.shape[-1])
        new = some - s * (some @ torch.linalg.pinv(rows) @ rows)
    elif change.op == "interpolate":
        new = (1 - s) * some + s * v
    elif change.op == "scale":
        new = s * some
    elif change.op == "zero":
        new = torch.zeros_like(some)
    elif change.op == "mean of x":
        new = some.mean(1, keepdim=True).expand_as(some)
    else:  # replace, mean
        new = v.expand_as(some)
    if change.heads is None:
        part = new
    else:
        part[:, :, list(change.heads)] = new
    y[:, index] = part
    return y


class Reference:
    """The walk over the nodes; how one sequence is run is a subclass's."""

    def __init__(self, graph: Graph, models: list, sizes: Sizes) -> None:
        self.graph, self.models, self.sizes = graph, models, sizes
        self.states: dict[int, State] = {}  # asked for before

    def state(self, node: int) -> State:
        if node not in self.states:
            which = self.graph.nodes[node]
            if isinstance(which, Splice):
                self.states[node] = self.splice(self.state(which.target), self.state(which.source), which)
            else:
                self.states[node] = self.run(which, None if which.parent is None else self.state(which.parent))
        return self.states[node]

    @staticmethod
    def splice(target: State, source: State, which: Splice) -> State:
        def spliced(into: torch.Tensor, of: torch.Tensor, axis: int) -> torch.Tensor:
            span = torch.arange(which.first, which.last)
            return into.index_copy(axis, span, of.index_select(axis, span))

        past = {name: spliced(x, source.past[name], 1) for name, x in target.past.items()}
        return State(
            target.tokens, past, spliced(target.keys, source.keys, 2), spliced(target.values, source.values, 2)
        )

    def run(self, segment: Segment, before: State | None) -> State:
        raise NotImplementedError


class OurReference(Reference):
    """Hooks on an introspect.Model: keys after RoPE and values are replaced."""

    def run(self, segment: Segment, before: State | None) -> State:
        model = self.models[segment.model]
        tokens = [*(before.tokens if before else []), *segment.tokens]
        start, n, n_layers = len(tokens) - len(segment.tokens), len(segment.tokens), self.sizes.n_layers
        key = "attn.hook_rot_k" if "blocks.0.attn.hook_rot_k" in model.hook_names else "attn.hook_k"
        hooks: list[tuple[str, Callable]] = []
        seen: dict[str, torch.Tensor] = {}

        def replace_past(x, hook):
            x = x.clone()
            x[:, :start] = before.past[past[hook.name]]
            return x

        def record(x, hook):
            seen[hook.name] = x.clone()

        def change_hook(change, v):
            return lambda x, hook: changed(x, change, v, start, n)

        # The segment before may have run in a model that rotates no keys.
        past = {
            f"blocks.{layer}.{point}": f"{layer}.{what}"
            for layer in range(n_layers)
            for point, what in ((key, "keys"), ("attn.hook_v", "values"))
        }
        if before:
            hooks += [(name, replace_past) for name in past]
        for change in segment.changes:
            for layer in change.layers:
                v = change.operand(layer, self.sizes)
                hooks.append((f"blocks.{layer}.{change.point}", change_hook(change, v)))
        points = dict.fromkeys([key, "attn.hook_v", "attn.hook_pattern", *STREAM, *self.sizes.read_points])
        hooks += [(f"blocks.{layer}.{point}", record) for point in points for layer in range(n_layers)]
        logits = model.run_with_hooks(torch.tensor([tokens]), hooks)

        def layers(point):
            return torch.stack([seen[f"blocks.{layer}.{point}"][0] for layer in range(n_layers)])

        activations = {point: layers(point)[:, start:] for point in (*STREAM, *self.sizes.read_points)}
        residuals = torch.cat([activations["hook_resid_pre"], activations["hook_resid_post"][-1:]])
        return State(
            tokens,
            {what: seen[name] for name, what in past.items()},
            layers(key).transpose(1, 2),
            layers("attn.hook_v").transpose(1, 2),
            residuals,
            logits[0, start:],
            activations,
            layers("attn.hook_pattern")[:, :, start:],
        )


class TheirReference(Reference):
    """Hooks on the modules of a transformers model in float64: what the keys and values are made of is replaced."""

    def run(self, segment: Segment, before: State | None) -> State:
        model = self.models[segment.model]
        tokens = [*(before.tokens if before else []), *segment.tokens]
        start, n = len(tokens) - len(segment.tokens), len(segment.tokens)
        past: dict[str, torch.Tensor] = {}
        stream: list[torch.Tensor] = []

        def replace_past(name: str, position_axis: int):
            def hook(module, args, output):
                output = output.transpose(1, position_axis).clone()
                if before:
                    output[:, :start] = before.past[name]
                past[name] = output
                return output.transpose(1, position_axis)

            return hook

        with contextlib.ExitStack() as stack:

            def on_output(module, hook):
                stack.callback(module.register_forward_hook(hook).remove)

            for layer, block in enumerate(blocks(model)):
                for name, module, axis in key_value_modules(block):
                    on_output(module, replace_past(f"{layer}.{name}", axis))
            for change in segment.changes:
                for layer in change.layers:
                    v = change.operand(layer, self.sizes)
                    self.install(stack, blocks(model)[layer], change, v, start, n)
            for block in blocks(model):  # after the changes, so that what is recorded has them
                handle = block.register_forward_pre_hook(lambda module, args: stream.append(args[0][0, start:]))
                stack.callback(handle.remove)
            on_output(blocks(model)[-1], lambda module, args, output: stream.append(first(output)[0, start:]))
            stack.enter_context(torch.no_grad())
            stack.enter_context(exact_softmax())
            cache = DynamicCache()
            logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits
        keys, values = (torch.stack([getattr(x, kind)[0] for x in cache.layers]) for kind in ("keys", "values"))
        return State(tokens, past, keys, values, torch.stack(stream), logits[0, start:])

    def install(self, stack, block, change: Change, v, start: int, n: int) -> None:
        def edit(x):
            if change.point == "attn.hook_z":
                heads = x.unflatten(-1, (self.sizes.n_heads, self.sizes.d_head))
                return changed(heads, change, v, start, n).flatten(-2)
            return changed(x, change, v, start, n)

        def after(module, args, output):
            return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

        def before(module, args):
            return (edit(args[0]), *args[1:])

        module, at_input = point_module(block, change.point)
        handle = module.register_forward_pre_hook(before) if at_input else module.register_forward_hook(after)
        stack.callback(handle.remove)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    for path in ("model.layers", "transformer.h", "gpt_neox.layers"):
        with contextlib.suppress(AttributeError):
            return model.get_submodule(path)
    raise ValueError(f"where are the layers of {type(model).__name__}?")


def attention(block: torch.nn.Module) -> torch.nn.Module:
    return next(m for name, m in block.named_children() if name in ("self_attn", "attn", "attention"))


def key_value_modules(block: torch.nn.Module) -> list[tuple[str, torch.nn.Module, int]]:
    """(name, module, position axis of its output): the last ones before RoPE that keys and values come from.

    Fused projections make queries too, which nobody reads before the segment's own tokens.
    """
    parts = dict(attention(block).named_children())
    for fused in ("c_attn", "query_key_value", "qkv_proj"):
        if fused in parts:
            return [("kv", parts[fused], 1)]
    if "k_norm" in parts:
        # Qwen3 norms keys as [batch, pos, head, d_head], Gemma 3 as [batch, head, pos, d_head].
        axis = 2 if type(block).__name__.startswith("Gemma") else 1
        return [("k", parts["k_norm"], axis), ("v", parts["v_proj"], 1)]
    return [("k", parts["k_proj"], 1), ("v", parts["v_proj"], 1)]


def point_module(block: torch.nn.Module, point: str) -> tuple[torch.nn.Module, bool]:
    """The module at whose output, or (True) input, a hook point is."""
    parts = dict(block.named_children())
    gemma = "post_feedforward_layernorm" in parts  # its outputs are normed once more before they are added
    if point in ("hook_resid_pre", "hook_resid_post"):
        return block, point == "hook_resid_pre"
    if point == "hook_attn_out":
        return (parts["post_attention_layernorm"] if gemma else attention(block)), False
    if point == "hook_mlp_out":
        return (parts["post_feedforward_layernorm"] if gemma else parts["mlp"]), False
    out = next(m for name, m in attention(block).named_children() if name in ("o_proj", "c_proj", "dense"))
    return out, True
