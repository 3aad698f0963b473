"""Where the time of a forward pass and of a decode step goes, by kind of operation.

    python tests/benchmarks/profile_forward.py [GGUF] [--dtype float32] [--ops 12]

Torch's profiler counts each operation's own time; what it does not see (kernels of ours, hooks, and the code between
operations) is the rest of the wall time. Its own cost lies mostly on small operations, so the wall time without it is
printed too. For single functions instead: ``perf record -g python tests/benchmarks/profile_forward.py``.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from forward import random_tokens
from measure import SMOLLM2, take_turns, timed
from torch.profiler import ProfilerActivity, profile

import introspect

REPEATS = 20
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "_mkl_linear", "addmv", "mv", "addmv_", "dot"}
COPIES = {"copy_", "cat", "clone", "contiguous", "_to_copy", "fill_", "zero_", "index_copy_", "slice_backward"}
NORM_ONLY = {"rsqrt", "mean", "pow", "sqrt", "native_layer_norm", "rms_norm", "_fused_rms_norm"}
POINTWISE = {"mul", "add", "sub", "div", "mul_", "add_", "div_", "sub_", "neg", "silu", "silu_", "gelu", "tanh"}
LOOKUPS = {
    "index",
    "index_select",
    "embedding",
    "gather",
    "arange",
    "cos",
    "sin",
    "where",
    "masked_fill",
    "masked_fill_",
}
VIEWS = {
    "view",
    "transpose",
    "slice",
    "as_strided",
    "expand",
    "reshape",
    "unsqueeze",
    "squeeze",
    "select",
    "narrow",
    "t",
}
VIEWS |= {"permute", "split", "split_with_sizes", "chunk", "unflatten", "flatten", "_unsafe_view", "_reshape_alias"}
VIEWS |= {"empty", "empty_strided", "empty_like", "resize_", "detach", "alias", "unbind", "set_"}


def kind(op: str, shapes: list, model: introspect.Model) -> str:
    """What part of a decoder an operation belongs to, judged by its name and the shapes it works on."""
    name, cfg = op.removeprefix("aten::"), model.cfg
    sizes = [tuple(shape) for shape in shapes if shape]
    last = {shape[-1] for shape in sizes}
    if name in PRODUCTS:
        return "matrix products"
    if "scaled_dot_product" in name or "softmax" in name:
        return "attention"
    if name in NORM_ONLY or (name in POINTWISE and 1 in last and cfg.d_model in last):
        return "norms"
    if name in POINTWISE and last & {cfg.d_head, cfg.d_head // 2}:
        return "rotary"
    if name in POINTWISE and cfg.d_mlp in last:
        return "MLP, elementwise"
    if name in POINTWISE:
        return "norms and residual, elementwise"
    if name in COPIES:
        return "copies"
    if name in LOOKUPS:
        return "lookups and masks"
    return "views and allocation" if name in VIEWS else "other operations"


def breakdown(title: str, call: Callable[[], object], model: introspect.Model, n_ops: int) -> None:
    """Print the shares of one kind of pass, and the operations that take most."""
    (plain,) = take_turns(REPEATS, timed(call))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        profiled = sum(timed(call)() for _ in range(REPEATS)) / REPEATS
    kinds, ops, counts = Counter(), Counter(), Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        own = event.self_cpu_time_total / REPEATS / 1e3
        kinds[kind(event.key, event.input_shapes, model)] += own
        ops[event.key] += own
        counts[event.key] += event.count / REPEATS
    kinds["outside torch's operations"] = max(0.0, profiled - sum(kinds.values()))
    print(f"\n{title}: {plain.median:.2f} ms (best {plain.best:.2f}), {profiled:.2f} ms on average under the profiler")
    for name, own in kinds.most_common():
        print(f"  {name:34}{own:9.3f} ms{own / profiled:7.1%}")
    print(f"  {'operation':34}{'own time':>12}{'calls':>8}")
    for name, own in ops.most_common(n_ops):
        print(f"  {name:34}{own:9.3f} ms{counts[name]:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ops", type=int, default=12, help="how many operations to list")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    model = introspect.load_model(args.gguf, dtype=args.dtype)
    cache = model.native.make_cache(1)
    model(random_tokens(1, 64), cache=cache, logits_at="none")

    def decode() -> None:
        model(torch.tensor([[17]]), cache=cache, logits_at="last")
        cache.truncate(64)

    print(f"{args.gguf.name}, {args.dtype}, {torch.get_num_threads()} threads")
    passes = {
        "forward 1x16, all logits": lambda: model(random_tokens(1, 16)),
        "forward 4x128, all logits": lambda: model(random_tokens(4, 128)),
        "run_with_cache 4x128, everything": lambda: model.run_with_cache(random_tokens(4, 128)),
        "decode step after 64": decode,
    }
    for title, call in passes.items():
        breakdown(title, call, model, args.ops)


if __name__ == "__main__":
    main()
