"""What training on a token trie costs, in time and memory, against its distinct nodes: 10 to 100,000 synthetic strings.

    python tests/benchmarks/trie_cost.py [FOLDER] [--most 100000] [--budget-mib 64] [--png trie_cost.png]

Strings are random walks that branch eight ways for three tokens and sixty-four ways after, 4 to 16 tokens long, on
stories260K. Time is a straight line in the nodes where they fill a pass, and does not see how many tokens the strings
hold. Memory is the rise of the resident set during run_trie less the result, which the caller asked for; the budget
is for activations and the path's keys and values.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

import introspect
from introspect._C import plan_trie

sys.path.insert(0, str(Path(__file__).parent))
from measure import peak_bytes

SHARED = Path(os.environ.get("INTROSPECT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
MIB = 2**20


class Row(NamedTuple):
    strings: int
    tokens: int
    nodes: int
    passes: int
    seconds: float
    memory: int


def strings(count: int, n_vocab: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    few, many = range(3, 11), range(3, min(67, n_vocab))

    def one() -> list[int]:
        return [draw.choice(few if depth < 3 else many) for depth in range(draw.randint(4, 16))]

    return [one() for _ in range(count)]


def measured(model: introspect.Model, count: int, budget: int, repeats: int) -> Row:
    trie = introspect.TokenTrie(strings(count, model.cfg.d_vocab))
    layers = list(range(1, model.cfg.n_layers))
    plan = plan_trie(model.native, trie, memory_budget=budget)

    def run() -> torch.Tensor:
        return introspect.run_trie(model.native, trie, nodes=trie.ends, layers=layers, memory_budget=budget)

    peak, result = peak_bytes(run)
    memory = max(peak - result.nbytes, 0)
    del result
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return Row(count, plan.tokens, plan.nodes, plan.n_passes, min(times), memory)


def plot(rows: list[Row], budget: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    nodes = [row.nodes for row in rows]
    left.loglog(nodes, [row.seconds for row in rows], "o-", label="run_trie")
    per_node = rows[-1].seconds / rows[-1].nodes
    left.loglog(nodes, [per_node * n for n in nodes], ":", color="grey", label=f"{1e6 * per_node:.1f} µs a node")
    left.set(xlabel="distinct nodes", ylabel="seconds")
    left.legend()
    right.semilogx(nodes, [row.memory / MIB for row in rows], "o-", label="rise, less the result")
    right.axhline(budget / MIB, linestyle=":", color="grey", label="budget")
    right.set(xlabel="distinct nodes", ylabel="MiB", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED / "data" / "models" / "stories260K")
    parser.add_argument("--most", type=int, default=100_000, help="strings")
    parser.add_argument("--budget-mib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of the time, the best of which counts")
    parser.add_argument("--png", type=Path, default=Path("trie_cost.png"))
    args = parser.parse_args()
    model = introspect.load_model(args.folder)
    budget = args.budget_mib * MIB
    counts = [10]
    while counts[-1] < args.most:
        counts.append(min(10 * counts[-1] if str(counts[-1]).startswith("3") else 3 * counts[-1], args.most))
    measured(model, 10, budget, 1)  # the first call of a process is slower, and is not counted
    print(f"{args.folder.name}, budget {args.budget_mib} MiB, {torch.get_num_threads()} threads")
    print(f"{'strings':>9}{'tokens':>11}{'nodes':>10}{'passes':>8}{'seconds':>10}{'µs/node':>9}{'memory':>11}")
    rows = []
    for count in counts:
        row = measured(model, count, budget, args.repeats)
        rows.append(row)
        print(
            f"{row.strings:9,}{row.tokens:11,}{row.nodes:10,}{row.passes:8,}{row.seconds:10.4f}"
            f"{1e6 * row.seconds / row.nodes:9.1f}{row.memory / MIB:7.0f} MiB",
            flush=True,
        )
    plot(rows, budget, args.png)
    print(f"plot: {args.png}")


if __name__ == "__main__":
    main()
