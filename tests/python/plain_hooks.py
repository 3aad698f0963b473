"""transformers models with plain PyTorch hooks: where heads write, what they read, and runs that change either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from reference import exact_softmax

Change = Callable[[torch.Tensor], torch.Tensor | None]
Place = tuple[torch.nn.Module, str, slice]  # a module, "in" or "out", and a part of the last dimension


class PlainHooks:
    """The parts of a tiny model of any of the families of `tiny.ARCHITECTURES` that patching reads and writes."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        self.model, self.name, self.cfg = model, name, model.config
        self.layers = {
            "gpt2": lambda: model.transformer.h,
            "gpt_neox": lambda: model.gpt_neox.layers,
        }.get(name, lambda: model.model.layers)()
        self.n_heads = self.cfg.num_attention_heads
        self.n_groups = getattr(self.cfg, "num_key_value_heads", None) or self.n_heads
        self.d_head = getattr(self.cfg, "head_dim", None) or self.cfg.hidden_size // self.n_heads

    def reader(self, kind: str, layer: int, head: int) -> Place:
        """The queries, keys or values of a head, or of a group."""
        block, K = self.layers[layer], self.d_head
        if self.name == "gpt2":
            first = "qkv".index(kind) * self.n_heads + head
            return block.attn.c_attn, "out", slice(first * K, (first + 1) * K)
        if self.name == "gpt_neox":  # queries, keys and values head by head
            first = 3 * head + "qkv".index(kind)
            return block.attention.query_key_value, "out", slice(first * K, (first + 1) * K)
        return getattr(block.self_attn, f"{kind}_proj"), "out", slice(head * K, (head + 1) * K)

    def z(self, layer: int, head: int | None = None) -> Place:
        """What heads write, before the output projection."""
        block = self.layers[layer]
        module = {"gpt2": lambda: block.attn.c_proj, "gpt_neox": lambda: block.attention.dense}.get(
            self.name, lambda: block.self_attn.o_proj
        )()
        return module, "in", slice(None) if head is None else slice(head * self.d_head, (head + 1) * self.d_head)

    def mlp_out(self, layer: int) -> Place:
        block = self.layers[layer]
        after = self.name.startswith(("gemma", "olmo"))
        return (block.post_feedforward_layernorm if after else block.mlp), "out", slice(None)

    def mlp_in(self, layer: int) -> Place:
        block = self.layers[layer]
        if self.name.startswith("olmo"):
            return block.mlp, "in", slice(None)
        names = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
        return next(getattr(block, name) for name in names if hasattr(block, name)), "in", slice(None)

    def resid_pre(self, layer: int) -> Place:
        return self.layers[layer], "in", slice(None)

    def final(self) -> Place:
        model = self.model
        norm = {"gpt2": lambda: model.transformer.ln_f, "gpt_neox": lambda: model.gpt_neox.final_layer_norm}.get(
            self.name, lambda: model.model.norm
        )()
        return norm, "in", slice(None)

    def run(self, tokens: torch.Tensor, changes: Sequence[tuple[Place, Change]]) -> torch.Tensor:
        """Logits under hooks, which see a part of an input or output in their order and may return another one."""
        with ExitStack() as stack:
            stack.enter_context(exact_softmax())
            for place, change in changes:
                stack.callback(_register(place, change).remove)
            return self.model(tokens, use_cache=False).logits

    def record(self, tokens: torch.Tensor, places: dict) -> dict:
        """Copies of the activations at places, by key."""
        out: dict = {}
        with torch.no_grad():
            self.run(
                tokens, [(place, lambda x, key=key: out.update({key: x.clone()})) for key, place in places.items()]
            )
        return out


def _register(place: Place, change: Change):
    module, where, part = place

    def changed(x: torch.Tensor) -> torch.Tensor | None:
        new = change(x[..., part])
        if new is None:
            return None
        if part == slice(None):
            return new
        return torch.cat([x[..., : part.start], new, x[..., part.stop :]], -1)

    def before(_, args):
        new = changed(args[0])
        return None if new is None else (new, *args[1:])

    def after(_, args, output):
        return changed(output)

    return module.register_forward_pre_hook(before) if where == "in" else module.register_forward_hook(after)
