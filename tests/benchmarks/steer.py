"""Steered greedy generation: against our own without steering, and against repeng's ControlModel.generate, in one run.

    python tests/benchmarks/peers/environment.py repeng     # once
    python tests/benchmarks/steer.py [GGUF] [--new-tokens 100] [--repeats 7] [--without-repeng]

Medians of runs in turns, one prompt, every layer from 1 on steered; repeng in a process of its own, on the same tokens
and vector. "over" is the time of a steered generation over that of ours without steering.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

import introspect

sys.path.insert(0, str(Path(__file__).parent))
from measure import SMOLLM2, take_turns
from peers.repeng_client import Repeng

PROMPT = "Tell me what you did on your last day off, and who was with you."
Side = Callable[[], float]


def random_vector(model: introspect.Model, norm: float) -> introspect.ControlVector:
    rng = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(model.cfg.d_model, generator=rng) for layer in range(1, model.cfg.n_layers)}
    return introspect.ControlVector("llama", {layer: norm * v / v.norm() for layer, v in directions.items()})


def generation(
    model: introspect.Model,
    prompts: list[list[int]],
    n: int,
    steering: Callable[[], AbstractContextManager],
) -> Side:
    """A side for `take_turns`: exactly n greedy tokens of each prompt; ms."""

    def side() -> float:
        with steering():
            hooks = model._hooks_of_pass(torch.tensor(prompts))
            start = time.perf_counter()
            model.native.generate(prompts, hooks=hooks, max_new_tokens=n, stop_at_eos=False)
            return 1e3 * (time.perf_counter() - start)

    return side


def ways(model: introspect.Model, vector: introspect.ControlVector) -> dict[str, Callable[[], AbstractContextManager]]:
    """Ways to steer, by name."""
    width = model.cfg.d_vocab
    return {
        "no steering": nullcontext,
        "add": lambda: model.steer(vector),
        "add, new tokens only": lambda: model.steer(vector, when="generation"),
        "add, at certain tokens": lambda: model.steer(vector, tokens=range(0, width, 2)),
        "norm_preserving_add": lambda: model.steer(vector, op="norm_preserving_add"),
        "ablate": lambda: model.steer(vector, op="ablate"),
        "clamp": lambda: model.steer(vector, op="clamp", low=1.0),
        "rotate": lambda: model.steer(vector, op="rotate", angle=1.0),
    }


def table(model: introspect.Model, batch: int, args: argparse.Namespace, vector: introspect.ControlVector) -> None:
    chosen = ways(model, vector)
    prompts = [model.to_tokens(PROMPT)[0].tolist()] * batch
    sides = [generation(model, prompts, args.new_tokens, steering) for steering in chosen.values()]
    times = take_turns(args.repeats, *sides)
    print(f"\n{args.new_tokens} tokens, batch {batch}: median ms, over no steering")
    for name, time_of in zip(chosen, times, strict=True):
        print(f"  {name:26}{time_of.median:9.0f}{time_of.median / times[0].median:9.3f}", flush=True)


def against_repeng(model: introspect.Model, args: argparse.Namespace, vector: introspect.ControlVector) -> None:
    ids = model.to_tokens(PROMPT)[0].tolist()
    with tempfile.TemporaryDirectory() as folder, Repeng(args.gguf, torch.get_num_threads()) as worker:
        path = Path(folder) / "vector.gguf"
        vector.export_gguf(path)
        request = (path, vector.layers, ids, args.new_tokens)
        theirs, _ = worker.time_generation(*request)
        with model.steer(vector):
            hooks = model._hooks_of_pass(torch.tensor([ids]))
            ours = model.native.generate([ids], hooks=hooks, max_new_tokens=args.new_tokens, stop_at_eos=False)[0]
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        side = generation(model, [ids], args.new_tokens, lambda: model.steer(vector))
        mine, peer = [], []
        for _ in range(args.repeats):
            time.sleep(0.5)  # the other side's threads spin for a while after their work
            mine.append(side() / 1e3)
            time.sleep(0.5)
            peer.append(worker.time_generation(*request)[1])
    ratio = statistics.median(peer) / statistics.median(mine)
    print(
        f"\nsteered, {args.new_tokens} tokens: ours {statistics.median(mine):.2f} s, repeng "
        f"{statistics.median(peer):.2f} s, ratio {ratio:.2f}; the same token in {same} of {len(ours)} places"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7, help="of each, after one that is not counted; the median")
    parser.add_argument("--norm", type=float, default=1.0, help="of each layer's direction")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--without-repeng", action="store_true")
    args = parser.parse_args()
    model = introspect.load_model(args.gguf)
    vector = random_vector(model, args.norm)
    print(f"{args.gguf.name}, float32, {torch.get_num_threads()} threads, {len(vector.layers)} layers steered")
    for batch in args.batch:
        table(model, batch, args, vector)
    if not args.without_repeng:
        against_repeng(model, args, vector)


if __name__ == "__main__":
    main()
