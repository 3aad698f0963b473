"""Quantised weights used as stored, beside llama.cpp and the dense model: decode, prefill, hooks, memory, logits.

    python tests/benchmarks/quantised.py MODEL.gguf [--peer PYTHON] [--dtype float32] [--threads 2] [--repeats 5]

PYTHON is that of an environment with llama-cpp-python; without one only our side is timed. All sides take turns.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from measure import SMOLLM2, take_turns, timed

import introspect
from introspect import _C

PROMPT, NEW, PREFILL = 16, 24, 512

PEER = """
import sys, time
import llama_cpp
from llama_cpp import Llama
defaults = llama_cpp.llama_model_default_params
def plain():  # its tiles of int8 are an illegal instruction under some hypervisors
    params = defaults()
    params.use_extra_bufts = len(sys.argv) > 6 and sys.argv[6] == "extra"
    return params
llama_cpp.llama_model_default_params = plain
llama_cpp.llama_cpp.llama_model_default_params = plain
path, threads, n_prompt, new, prefill = sys.argv[1], *map(int, sys.argv[2:6])
model = Llama(path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
ids = [(37 * i) % 30000 + 10 for i in range(prefill)]
print("ready", flush=True)
for line in sys.stdin:
    model.reset()
    model.eval(ids[:n_prompt]) if line == "decode\\n" else None
    start = time.perf_counter()
    if line == "decode\\n":
        for token in ids[n_prompt : n_prompt + new]:
            model.eval([token])
    else:
        model.eval(ids)
    print(1e3 * (time.perf_counter() - start), flush=True)
"""


class Peer:
    """llama.cpp in a process of its own, which times what it is told to do."""

    def __init__(self, python: str, path: Path, threads: int) -> None:
        arguments = [python, "-c", PEER, str(path), str(threads), str(PROMPT), str(NEW), str(PREFILL)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.process.stdout.readline()

    def side(self, what: str):
        def run() -> float:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())

        return run


def tokens(n: int) -> torch.Tensor:
    return torch.tensor([[(37 * i) % 30000 + 10 for i in range(n)]])


def decode(model, hooks_of=lambda: None):
    """Tokens one at a time after a prompt, the last position's logits of each, with the hooks that are made for it."""
    ids = tokens(PROMPT + NEW)

    def run() -> float:
        cache = model.native.make_cache(1)
        model.native.forward(ids[:, :PROMPT], cache=cache, logits_at="none")

        def steps():
            for i in range(PROMPT, PROMPT + NEW):
                model.native.forward(ids[:, i : i + 1], cache=cache, hooks=hooks_of(), logits_at="last")

        return timed(steps)()

    return run


def prefill(model):
    """A text's last logits."""
    ids = tokens(PREFILL)
    return timed(lambda: model.native.forward(ids, cache=model.native.make_cache(1), logits_at="last"))


def steering(model):
    """A vector in the upper half of the blocks."""
    hooks = model.native.make_hooks()
    generator = torch.Generator().manual_seed(0)
    layers = range(model.cfg.n_layers // 2, model.cfg.n_layers)
    directions = {layer: torch.randn(model.cfg.d_model, generator=generator) for layer in layers}
    hooks.add_intervention(introspect.Intervention(directions, strength=0.5))
    return lambda: hooks


def residuals(model):
    """Every block's residual, cached."""

    def hooks_of():
        hooks, kept = model.native.make_hooks(), _C.ActivationCache()
        for layer in range(model.cfg.n_layers):
            hooks.record(f"blocks.{layer}.hook_resid_post", kept)
        return hooks

    return hooks_of


def logits(model) -> torch.Tensor:
    """Of a prompt and of tokens after it, one at a time."""
    cache = model.native.make_cache(1)
    parts = tokens(PROMPT + NEW).split([PROMPT] + [1] * NEW, dim=1)
    return torch.cat([model.native.forward(ids, cache=cache) for ids in parts], 1)


MEMORY = """
import os, sys
from pathlib import Path
import torch, introspect
def rss(key): return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) << 10
torch.set_num_threads(2)
introspect.ops.rms_norm(torch.ones(4), torch.ones(4), eps=1e-6); torch.ones(64, 64) @ torch.ones(64, 64)
before = rss("VmRSS")
model = introspect.load_model(sys.argv[1], dtype=sys.argv[2], weights=sys.argv[3])
with torch.no_grad(): model.native.forward(torch.arange(10, 42)[None], logits_at="last")
print((rss("VmHWM") - before) / os.path.getsize(sys.argv[1]))
"""


def memory(path: Path, dtype: str, weights: str) -> float:
    """The most memory of loading and a short pass, over the process's own before it, by the file's size."""
    out = subprocess.run([sys.executable, "-c", MEMORY, str(path), dtype, weights], capture_output=True, text=True)
    return float(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--peer", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)

    size = options.model.stat().st_size
    stored = introspect.load_model(options.model, dtype=options.dtype, weights="as stored")
    dense = introspect.load_model(options.model, dtype=options.dtype, weights="dense")
    print(f"{options.model.name}: {size / 1e6:.0f} MB, {options.dtype}, {options.threads} threads")
    sides = {
        "as stored": (decode(stored), prefill(stored)),
        "dense": (decode(dense), prefill(dense)),
        "as stored, steered": (decode(stored, steering(stored)), None),
        "as stored, residuals cached": (decode(stored, residuals(stored)), None),
    }
    if options.peer:
        peer = Peer(options.peer, options.model, options.threads)
        sides["llama.cpp"] = (peer.side("decode"), peer.side("prefill"))
    for i, (what, per) in enumerate((("decode, ms a token", NEW), (f"prefill of {PREFILL}, ms", 1))):
        here = {name: calls[i] for name, calls in sides.items() if calls[i]}
        times = take_turns(options.repeats, *here.values(), pause=0.05)
        print(what)
        for name, time in zip(here, times, strict=True):
            shares = f"  {time.best / times[-1].best:5.2f} of {list(here)[-1]}'s" if name != list(here)[-1] else ""
            rate = f"  {size * NEW / time.best / 1e6:6.1f} GB/s of the file" if i == 0 else ""
            print(f"  {name:<28} {time.best / per:8.2f} (median {time.median / per:8.2f}){shares}{rate}")
    difference = (logits(stored) - logits(dense)).abs().max().item()
    print(f"logits of {PROMPT + NEW} tokens, largest difference from the dense model's: {difference:.1e}")
    for weights in ("as stored", "dense"):
        print(
            f"memory of loading and a pass, {weights}: {memory(options.model, options.dtype, weights):.2f} of the file"
        )


if __name__ == "__main__":
    main()
