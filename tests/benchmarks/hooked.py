"""The hooked transformer against transformers and TransformerLens 3's HookedTransformer, all in one run, in float32.

    python tests/benchmarks/hooked.py [GGUF] [--repeats 11] [--json FILE]

One prompt shape a row: a forward pass with all logits, run_with_cache of every point, the price of reading only the
residuals, the peak memory of a cache, and a decode step. The sides take turns; a ratio is theirs / ours, of best times.
The floor is the time that torch.mm or oneDNN, whichever is quicker here, takes for the pass's own matrix products one
after another, and attention's operations at that rate; its share of a time says what is left to gain. HookedTransformer
runs in the environment of peers/environment.py, and its columns are empty where that was not made.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from forward import SHAPES, decode_step, random_tokens, transformers_model
from measure import SMOLLM2, matrix_products, peak_bytes, take_turns, timed
from peers.client import Peer
from peers.environment import TRANSFORMER_LENS
from transformers import PreTrainedModel
from transformers.utils import logging

import introspect

PAUSE = 0.05  # seconds
MB = 1e6


def write_folder(theirs: PreTrainedModel, folder: Path) -> Path:
    """The model as a Hugging Face folder that HookedTransformer can be made from."""
    theirs.save_pretrained(folder)
    return folder


def residuals(name: str) -> bool:
    return name.endswith("hook_resid_post")


def every_weight(theirs: torch.nn.Module) -> list[torch.Tensor]:
    """What a pass multiplies by: the blocks' matrices and the unembedding."""
    blocks = [p for p in theirs.model.layers.parameters() if p.dim() == 2]
    return [*blocks, theirs.lm_head.weight]


class Benchmark:
    """Both sides of the comparison, loaded, and the figures taken so far."""

    def __init__(self, gguf: Path, peer: Peer | None, repeats: int) -> None:
        self.gguf, self.peer, self.repeats = gguf, peer, repeats
        self.ours, self.theirs = introspect.load_model(gguf), transformers_model(gguf)
        self.weights = every_weight(self.theirs)
        self.figures: dict[str, dict[str, float]] = {}
        if peer:
            with tempfile.TemporaryDirectory(prefix="hooked") as folder:
                peer.load(write_folder(self.theirs, Path(folder)))

    def peers(self, method: str, tokens: torch.Tensor) -> list:
        """HookedTransformer as a side, if it is there."""
        return [lambda: self.peer.milliseconds(method, tokens)[0]] if self.peer else []

    def row(self, title: str, **figures: float) -> None:
        self.figures[title] = figures

    def forward(self, batch: int, length: int) -> None:
        """Times of a plain pass and of a cache of everything, and the floor of both."""
        tokens, cfg = random_tokens(batch, length), self.ours.cfg
        products = min(times.best for times in take_turns(5, *matrix_products(self.weights, batch * length)))
        plain, other, *hooked = take_turns(
            self.repeats,
            timed(lambda: self.ours(tokens)),
            timed(lambda: self.theirs(tokens, use_cache=False)),
            *self.peers("forward", tokens),
            pause=PAUSE,
        )
        everything, *hooked_cache = take_turns(
            self.repeats,
            timed(lambda: self.ours.run_with_cache(tokens)),
            *self.peers("run_with_cache", tokens),
            pause=PAUSE,
        )
        products_flop = 2 * batch * length * sum(w.numel() for w in self.weights)
        attention_flop = 4 * batch * length**2 * cfg.n_heads * cfg.d_head * cfg.n_layers
        gigaflops = products_flop / products / 1e6
        floor = products + attention_flop / gigaflops / 1e6
        for title, mine, others in (
            (f"forward {batch}x{length}", plain, {"transformers": other} | dict(zip(["hooked"], hooked, strict=False))),
            (f"run_with_cache {batch}x{length}", everything, dict(zip(["hooked"], hooked_cache, strict=False))),
        ):
            self.row(
                title,
                introspect=mine.best,
                introspect_median=mine.median,
                **{name: times.best for name, times in others.items()},
                **{f"{name}_median": times.median for name, times in others.items()},
                **{f"{name}_ratio": times.best / mine.best for name, times in others.items()},
                floor=floor,
                share_of_floor=floor / mine.best,
                gemm_gigaflops=gigaflops,
            )

    def reading_residuals(self, batch: int, length: int) -> None:
        """What a cache of the residuals costs over the plain pass, of medians."""
        tokens = random_tokens(batch, length)
        plain, cached = take_turns(
            3 * self.repeats,
            timed(lambda: self.ours(tokens)),
            timed(lambda: self.ours.run_with_cache(tokens, residuals)),
        )
        overhead = 100 * (cached.median / plain.median - 1)
        self.row(f"residuals {batch}x{length}", plain=plain.median, cached=cached.median, percent=overhead)

    def decode(self) -> None:
        """One step with 64 tokens in the cache, in both dtypes."""
        for dtype in (torch.float32, torch.bfloat16):
            ours, theirs = self.ours, self.theirs
            if dtype != torch.float32:
                ours, theirs = introspect.load_model(self.gguf, dtype=dtype), transformers_model(self.gguf, dtype)
            mine, other = decode_step(ours, theirs, 3 * self.repeats)
            self.row(
                f"decode {str(dtype).removeprefix('torch.')}",
                introspect=mine.best,
                introspect_median=mine.median,
                transformers=other.best,
                transformers_median=other.median,
                transformers_ratio=other.best / mine.best,
            )

    def memory(self, batch: int, length: int, what: str) -> None:
        """The rise of resident memory during one run_with_cache, in a process of its own."""
        child = [sys.executable, __file__, str(self.gguf), "--memory", what, str(batch), str(length)]
        out = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        self.row(f"memory {what} {batch}x{length}", **json.loads(out.splitlines()[-1]))


def measure_memory(gguf: Path, what: str, batch: int, length: int) -> dict[str, float]:
    """Peak of run_with_cache, and what it may be: the cached bytes, the logits and a tenth of the model; in MB."""
    model, tokens = introspect.load_model(gguf), random_tokens(batch, length)
    names = residuals if what == "residuals" else None
    peak, (logits, cache) = peak_bytes(lambda: model.run_with_cache(tokens, names))
    cached = {(x.data_ptr(), x.shape): x.nbytes for x in (cache[name] for name in cache)}  # names may share a tensor
    bound = sum(cached.values()) + logits.nbytes + model.native.nbytes / 10
    return {
        "peak": peak / MB,
        "cached": sum(cached.values()) / MB,
        "logits": logits.nbytes / MB,
        "model": model.native.nbytes / MB,
        "bound": bound / MB,
    }


def print_table(benchmark: Benchmark) -> None:
    def ms(value: float | None) -> str:
        return f"{value:9.1f} ms" if value is not None else f"{'-':>12}"

    def ratio(value: float | None) -> str:
        return f"{value:7.2f}" if value is not None else f"{'-':>7}"

    print(f"\n{benchmark.gguf.name}, {torch.get_num_threads()} threads, best times; a ratio is theirs / ours")
    print(
        f"{'':24}{'introspect':>12}{'transformers':>13}{'ratio':>7}{'HookedTr.':>12}{'ratio':>7}{'floor':>12}{'share':>7}"
    )
    for title, row in benchmark.figures.items():
        if "introspect" in row:
            print(
                f"{title:24}{ms(row['introspect'])}{ms(row.get('transformers')):>13}"
                f"{ratio(row.get('transformers_ratio'))}{ms(row.get('hooked'))}{ratio(row.get('hooked_ratio'))}"
                f"{ms(row.get('floor'))}"
                + (f"{row['share_of_floor']:6.0%} at {row['gemm_gigaflops']:.0f} GFLOP/s" if "floor" in row else "")
            )
    print("\nonly the residuals cached, medians")
    for title, row in benchmark.figures.items():
        if "percent" in row:
            print(f"{title:24}{ms(row['cached'])} against {ms(row['plain'])} plain: {row['percent']:+.1f}%")
    print("\npeak memory of run_with_cache over the loaded model")
    for title, row in benchmark.figures.items():
        if "peak" in row:
            print(
                f"{title:24}{row['peak']:9.1f} MB, bound {row['bound']:.1f} MB = cached {row['cached']:.1f} + logits "
                f"{row['logits']:.1f} + a tenth of the model {row['model']:.1f}: {row['peak'] / row['bound']:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write every figure, medians too")
    parser.add_argument("--memory", nargs=3, metavar=("WHAT", "BATCH", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    if args.memory:
        what, batch, length = args.memory
        print(json.dumps(measure_memory(args.gguf, what, int(batch), int(length))))
        return
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(torch.get_num_threads())) if TRANSFORMER_LENS.python() else None
        benchmark = Benchmark(args.gguf, peer, args.repeats)
        for shape in SHAPES:
            benchmark.forward(*shape)
        for shape in SHAPES:
            benchmark.reading_residuals(*shape)
        benchmark.decode()
        for shape in SHAPES:
            benchmark.memory(*shape, "everything")
            benchmark.memory(*shape, "residuals")
    print_table(benchmark)
    if args.json:
        args.json.write_text(json.dumps(benchmark.figures, indent=1))


if __name__ == "__main__":
    main()
