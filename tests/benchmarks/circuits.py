"""EAP-IG of all edges against the EAP-IG package's way of doing it on TransformerLens 3.9: SmolLM2, float32, one run.

    python tests/benchmarks/circuits.py [GGUF] [--prompts 4] [--tokens 16] [--steps 5] [--repeats 3] [--json FILE]

The package is not on PyPI: peers/edge_attribution.py is its algorithm, written from the formula. Both sides score the
same edges (keys and values of each query head) and the scores are compared; grouped keys, which the package cannot
score, and bfloat16 stand beside it. The floor is the arithmetic of two forward passes, of a forward and a backward pass
to activations a step, and of the products of senders and receivers, at the rate that torch.mm reaches here for a
block's products.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from forward import transformers_model
from measure import SMOLLM2, matrix_products, peak_bytes, take_turns, timed
from peers.client import Peer
from peers.environment import TRANSFORMER_LENS

import introspect
from introspect.circuits import edge_attribution

THEIRS = Path(__file__).parent / "peers/edge_attribution.py"


def floor_flop(cfg, n_tokens: int, steps: int, circuit) -> float:
    """Of all prompts, which hold n_tokens together."""
    block = 2 * (
        cfg.d_model * (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
        + cfg.n_heads * cfg.d_head * cfg.d_model
        + 3 * cfg.d_model * cfg.d_mlp
    )
    products = 2 * cfg.d_model * circuit.n_edges
    return n_tokens * (cfg.n_layers * block * (2 + 2 * steps) + products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, theirs = introspect.load_model(options.gguf), transformers_model(options.gguf)
    narrow = introspect.load_model(options.gguf, dtype="bfloat16")
    blocks = [p for p in theirs.model.layers[0].parameters() if p.dim() == 2]
    products = min(times.best for times in take_turns(5, *matrix_products(blocks, 2048)))
    rate = 2 * 2048 * sum(w.numel() for w in blocks) / products / 1e6  # GFLOP/s
    print(f"torch.mm of a block's products: {rate:.0f} GFLOP/s\n")

    rng = random.Random(0)
    draw = lambda: [[rng.randrange(1000, 40000) for _ in range(options.tokens)] for _ in range(options.prompts)]  # noqa: E731
    clean, corrupted = draw(), draw()
    right, wrong = ([rng.randrange(1000, 40000) for _ in range(options.prompts)] for _ in range(2))
    metric = introspect.LogitDifference(right, wrong)

    def ours(of, ungrouped):
        return edge_attribution(
            of, clean, corrupted, metric, method="eap-ig", ig_steps=options.steps, ungrouped=ungrouped, progress=False
        )

    figures = {}
    memory, found = peak_bytes(lambda: ours(model, True))
    sides = [timed(lambda: ours(model, True)), timed(lambda: ours(model, False)), timed(lambda: ours(narrow, False))]
    for name, times in zip(
        ("ungrouped", "grouped", "grouped, bfloat16"), take_turns(options.repeats, *sides), strict=True
    ):
        circuit = ours(model, name == "ungrouped").circuit if name != "grouped, bfloat16" else None
        figures[name] = {"seconds": times.best / 1e3}
        if circuit is not None:
            flop = floor_flop(model.cfg, options.prompts * options.tokens, options.steps, circuit)
            figures[name] |= {"floor": flop / rate / 1e9, "edges": circuit.n_edges}
    figures["memory"] = memory
    if TRANSFORMER_LENS.python():
        with Peer(threads=options.threads) as peer, tempfile.TemporaryDirectory(prefix="hooked") as folder:
            theirs.save_pretrained(folder)
            peer.load(Path(folder))
            for name, weight_gradients in (("peer", True), ("peer, activations' gradients only", False)):
                got = peer.run(
                    THEIRS, "scores_and_seconds", clean=clean, corrupted=corrupted, right=right, wrong=wrong,
                    steps=options.steps, weight_gradients=weight_gradients, repeats=options.repeats,
                )  # fmt: skip
                figures[name] = {"seconds": float(got["seconds"])}
                scale = float(got["scores"].abs().max())
                worst = float((got["scores"].double() - found.circuit.scores).abs().max())
                figures[name]["largest difference of scores"] = worst / scale
    for name, of in figures.items():
        if name == "memory":
            continue
        line = f"{name:36}{of['seconds']:8.2f} s"
        if "floor" in of:
            line += f"   floor {of['floor']:.2f} s, {of['floor'] / of['seconds']:.0%} of it; {of['edges']:,} edges"
        if name.startswith("peer"):
            line += f"   ours {of['seconds'] / figures['ungrouped']['seconds']:.1f} times faster"
            line += f"   scores within {of['largest difference of scores']:.1e} of the largest"
        print(line)
    print(f"memory above the model: {memory / 1e6:.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
