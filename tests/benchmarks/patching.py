"""Patching grids against TransformerLens 3.9's, in one run: SmolLM2, float32, 16 tokens, a logit difference at the end.

    python tests/benchmarks/patching.py [GGUF] [--cells 24] [--repeats 3] [--json FILE]

Theirs is one forward pass a cell, timed for a random sample of cells and scaled to the grid; ours is the whole grid.
The two prompts differ from their first token on, which leaves no cell without work, and once more from the eighth on.
The floor is the arithmetic of the rows that a cell can change, at the rate that torch.mm reaches here for a block's
products.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from forward import transformers_model
from measure import SMOLLM2, matrix_products, peak_bytes, take_turns
from peers.client import Peer
from peers.environment import TRANSFORMER_LENS

import introspect
from introspect.analysis import patch_grid

T = 16
CELLS = Path(__file__).parent / "peers/patching_cells.py"


def prompts(first_difference: int) -> tuple[list[int], list[int]]:
    rng = random.Random(0)
    clean = [rng.randrange(1000, 40000) for _ in range(T)]
    return clean, clean[:first_difference] + [rng.randrange(1000, 40000) for _ in range(T - first_difference)]


def floor_flop(cfg, first_difference: int, heads: int) -> float:
    """Of the rows that cells change: cell (l, p) changes rows p.. of the layers from l on."""
    per_row = 2 * (
        cfg.d_model * (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
        + cfg.n_heads * cfg.d_head * cfg.d_model
        + 3 * cfg.d_model * cfg.d_mlp
    )
    rows = sum(T - p for p in range(first_difference, T))
    layers = cfg.n_layers * (cfg.n_layers + 1) // 2
    return per_row * rows * layers * max(heads, 1)


def ours(model, clean, corrupted, point, tokens) -> tuple[float, torch.Tensor, object]:
    metric = introspect.LogitDifference(*tokens)
    start = time.perf_counter()
    grid = patch_grid(model, clean, corrupted, [point], metric=metric)
    return time.perf_counter() - start, grid.values[0], grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, theirs = introspect.load_model(options.gguf), transformers_model(options.gguf)
    narrow = introspect.load_model(options.gguf, dtype="bfloat16")
    blocks = [p for p in theirs.model.layers[0].parameters() if p.dim() == 2]
    products = min(times.best for times in take_turns(5, *matrix_products(blocks, 2048)))
    rate = 2 * 2048 * sum(w.numel() for w in blocks) / products / 1e6  # GFLOP/s
    tokens, rng, figures = (260, 339), random.Random(1), {}
    print(f"torch.mm of a block's products: {rate:.0f} GFLOP/s\n")
    heads = (("grid", 32), ("theirs s", 10), ("ours s", 9), ("ratio", 8), ("bf16 s", 9), ("floor s", 9), ("share", 8))
    print(
        "".join(f"{name:{width}}" if width == 32 else f"{name:>{width}}" for name, width in heads),
        "    MB  token-layers",
    )
    with Peer() if TRANSFORMER_LENS.python() else tempfile.TemporaryDirectory() as peer:
        if isinstance(peer, Peer):
            with tempfile.TemporaryDirectory(prefix="hooked") as folder:
                theirs.save_pretrained(folder)
                peer.load(Path(folder))
        for first in (0, 8):
            clean, corrupted = prompts(first)
            for point, axes in (("resid_pre", ["layer", "pos"]), ("z", ["layer", "pos", "head"])):
                heads = model.cfg.n_heads if point == "z" else 0
                shape = [model.cfg.n_layers, T, *([heads] if heads else [])]
                sample = [[rng.randrange(n) for n in shape] for _ in range(options.cells)]
                run = lambda point=point, clean=clean, corrupted=corrupted: ours(model, clean, corrupted, point, tokens)  # noqa: E731
                memory, (_, values, grid) = peak_bytes(run)
                best = min(run()[0] for _ in range(options.repeats))
                in_bf16 = min(ours(narrow, clean, corrupted, point, tokens)[0] for _ in range(options.repeats))
                other = float("nan")
                if isinstance(peer, Peer):
                    found = peer.run(
                        CELLS, "seconds_of_cells", clean=[clean], corrupted=[corrupted], name=point, axes=axes,
                        cells=sample, tokens=tokens,
                    )  # fmt: skip
                    other = float(found["seconds"].mean()) * values.numel()
                    expected = torch.stack([values[tuple(cell)] for cell in sample])
                    torch.testing.assert_close(found["values"].double(), expected, rtol=0, atol=2e-3)
                floor = floor_flop(model.cfg, first, heads) / rate / 1e9
                title = f"{point} {'x'.join(map(str, shape))}, differ at {first}"
                asked, run_ = grid.token_layers_asked, grid.token_layers_to_run
                figures[title] = {
                    "theirs": other, "ours": best, "ratio": other / best, "bf16": in_bf16, "floor": floor,
                    "memory": memory, "token_layers_asked": asked, "token_layers_to_run": run_,
                }  # fmt: skip
                print(
                    f"{title:32}{other:10.1f}{best:9.2f}{other / best:8.1f}{in_bf16:9.2f}{floor:9.2f}"
                    f"{floor / best:8.0%}{memory / 1e6:7.0f}  {run_:,} of {asked:,}"
                )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
