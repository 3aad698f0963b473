"""Read, change and differentiate activations: which heads move a name to the end of a sentence?

python examples/python/hooks.py [--model NAME] [--show 5]
"""

import argparse

import torch

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--show", type=int, default=5, help="how many heads are shown")
parser.add_argument("--suffixes", type=int, help="not used here")
args = parser.parse_args()

model = introspect.HookedTransformer.from_pretrained(args.model, device="cpu")
clean = model.to_tokens("After John and Mary went to the store, John gave a bottle of milk to")
corrupted = model.to_tokens("After John and Mary went to the store, Mary gave a bottle of milk to")
mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")


def difference(logits: torch.Tensor) -> torch.Tensor:
    """How much more the model expects Mary than John, in nats of log-odds."""
    return logits[0, -1, mary] - logits[0, -1, john]


def is_z(name: str) -> bool:
    """What each head reads from the tokens it attends to."""
    return name.endswith("attn.hook_z")


# Reading: a cache of the points that are asked for.
logits, clean_cache = model.run_with_cache(clean, names_filter=is_z)
print(f"clean:     {difference(logits).item():+.2f}")
logits, corrupted_cache = model.run_with_cache(corrupted, names_filter=is_z)
base = difference(logits).item()
print(f"corrupted: {base:+.2f}")

# Gradients: one backward pass estimates what patching each head would do.
gradients = {}
with model.hooks(bwd_hooks=[(is_z, lambda gradient, hook: gradients.update({hook.name: gradient}))]):
    difference(model(corrupted)).backward()
estimates = torch.stack(
    [((clean_cache[name] - corrupted_cache[name]) * gradients[name])[0].sum(dim=(0, 2)) for name in clean_cache]
)

# Changing: patch the heads that seem to matter most.
print("head      estimated  patched")
for place in estimates.flatten().abs().topk(args.show).indices.tolist():
    layer, head = divmod(place, model.cfg.n_heads)

    def patch(z: torch.Tensor, hook: introspect.HookPoint, head: int = head) -> None:
        """Puts the clean prompt's values in for one head; what is written in place counts."""
        z[:, :, head] = clean_cache[hook.name][:, :, head]

    logits = model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", patch)])
    print(f"L{layer:02}H{head:02}  {estimates[layer, head].item():+9.2f}  {difference(logits).item() - base:+7.2f}")
