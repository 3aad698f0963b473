"""Training control vectors against repeng 0.4.0, in one run: time and how far memory rises.

    python tests/benchmarks/peers/environment.py repeng     # once
    python tests/benchmarks/vectors.py [GGUF] [--repeats 3] [--peer-repeats 1] [--without-repeng]

One vector is 582 pairs, all layers but the first, pca_center. Both sides run the same tokens; repeng in a process of
its own, in turns with ours. "four concepts" is four vectors against one "anything", in one call; repeng's four are four
times its one. The last table is 582 pairs of random strings, which share nothing: against batches of equal lengths, run
plainly.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import introspect

sys.path.insert(0, str(Path(__file__).parent))
from measure import SMOLLM2, peak_bytes
from peers.repeng_client import Repeng

CONCEPTS = ("cat", "bread", "love", "ocean")
Pairs = list[tuple[str, str]]


def with_default_system(model: introspect.Model, concept: str, suffixes: list[str]) -> Pairs:
    """The pairs of concept_pairs in a chat without a system message, where a template puts its own."""

    def prompt(topic: str) -> str:
        message = {"role": "user", "content": f"Please talk about {topic}."}
        return model.apply_chat_template([message], add_generation_prompt=True)

    return [(prompt(concept) + suffix, prompt("anything") + suffix) for suffix in suffixes]


def train(model: introspect.Model, *datasets: Pairs) -> dict[str, introspect.ControlVector]:
    return introspect.ControlVector.train_many(model, {str(i): pairs for i, pairs in enumerate(datasets)})


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def plain_batches(model: introspect.Model, pairs: Pairs, batch_size: int = 64) -> dict[int, torch.Tensor]:
    """The same directions from batches sorted by length and padded on the left, nothing shared."""
    sequences = [model.to_tokens(text)[0] for pair in pairs for text in pair]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    layers = range(1, model.cfg.n_layers)
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    last = torch.empty(len(layers), len(sequences), model.cfg.d_model)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        longest = max(len(sequences[i]) for i in rows)
        tokens, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest).bool()
        for row, i in enumerate(rows):
            tokens[row, longest - len(sequences[i]) :] = sequences[i]
            mask[row, longest - len(sequences[i]) :] = True
        _, cache = model.run_with_cache(tokens, names, pos_slice=-1, attention_mask=mask, logits_at="none")
        for place, name in enumerate(names):
            last[place, rows] = cache[name][:, 0].float()
    return {
        layer: introspect.direction_of_pairs(last[place, ::2], last[place, 1::2]) for place, layer in enumerate(layers)
    }


def random_pairs(seed: int = 0) -> Pairs:
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def text() -> str:
        return " ".join("".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(draw.randint(3, 8)))

    return [(text(), text()) for _ in range(582)]


def line(name: str, ours: float, our_peak: int, theirs: float | None = None, their_peak: int | None = None) -> None:
    peer = "" if theirs is None else f"{theirs:9.2f} s{theirs / ours:8.1f}"
    peer_memory = "" if their_peak is None else f"{their_peak / 2**20:9.0f} MiB"
    print(f"{name:34}{ours:8.2f} s{our_peak / 2**20:8.0f} MiB{peer}{peer_memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--repeats", type=int, default=3, help="of ours, after one that is not counted; the median")
    parser.add_argument("--peer-repeats", type=int, default=1, help="of repeng's, the median")
    parser.add_argument("--pairs", type=int, default=582, help="fewer, to try the script")
    parser.add_argument("--without-repeng", action="store_true")
    args = parser.parse_args()
    suffixes = introspect.load_suffixes()[: args.pairs]
    model = introspect.load_model(args.gguf)
    empty = {concept: introspect.concept_pairs(model, concept, suffixes) for concept in CONCEPTS}
    default = with_default_system(model, "cat", suffixes)

    worker = None if args.without_repeng else Repeng(args.gguf, torch.get_num_threads())
    if worker is not None:
        worker.train(model, empty["cat"][:8])  # the first call of a process is slower, and is not counted

    def repeng(pairs: Pairs) -> tuple[float, int] | tuple[None, None]:
        if worker is None:
            return None, None
        runs = [worker.train(model, pairs) for _ in range(args.peer_repeats)]
        return statistics.median(run.seconds for run in runs), max(run.peak_bytes for run in runs)

    def ours(on: introspect.Model, *datasets: Pairs) -> tuple[float, int]:
        median = seconds(lambda: train(on, *datasets), args.repeats)
        return median, peak_bytes(lambda: train(on, *datasets))[0]

    print(f"{args.gguf.name}, {len(suffixes)} pairs, {torch.get_num_threads()} threads; memory is its rise")
    print(f"{'':34}{'ours':>10}{'':12}{'repeng':>11}{'ratio':>8}{'':9}")
    one, one_peak = repeng(empty["cat"])
    line("float32, empty system message", *ours(model, empty["cat"]), one, one_peak)
    line("float32, default system message", *ours(model, default), *repeng(default))
    line("float32, four concepts", *ours(model, *empty.values()), one and 4 * one, one_peak)
    if worker is not None:
        worker.__exit__()
    half = introspect.load_model(args.gguf, dtype="bfloat16")
    line("bfloat16, empty system message", *ours(half, empty["cat"]), one)
    line("bfloat16, default system message", *ours(half, default))

    unshared = random_pairs()[: args.pairs]
    mine = seconds(lambda: introspect.ControlVector.train(model, unshared, folds=0), args.repeats)
    plain = seconds(lambda: plain_batches(model, unshared), args.repeats)
    print(f"\n{'pairs of random strings':34}{mine:8.2f} s, plain batches {plain:.2f} s: {plain / mine:.2f}")


if __name__ == "__main__":
    main()
