"""Attribution graphs of SmolLM2 with random top-k transcoders of about 300 active features at each layer and position.

One run prints the time for 2,000 rows, its share of the FLOP floor at the rate of matrix products measured here, and
the memory above model and transcoders; beside it circuit-tracer's way in plain torch: a forward pass of a batch whose
graph is kept, for each batch of rows one backward pass over all positions and layers, and for each layer the gradients
gathered at every active feature and multiplied (its einsum). It runs one batch, and its time is scaled; what it does
between batches (ranking on the dense matrix) and its encoders are not counted. It is not on PyPI itself. Long prompts
have few rows: their memory is what counts.

python tests/benchmarks/graphs.py [--tokens 16 512 2048] [--rows 2000] [--features 16384] [--json F]
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from measure import matrix_products, peak_bytes, take_turns

import introspect
from introspect import _C
from introspect.circuits import attribute


def transcoders_of(model, d_sae: int, k: int):
    """Random, as wide as a real set's; the decoder's rows are small, so that features do not swamp the model."""
    D, rng = model.cfg.d_model, torch.Generator().manual_seed(0)
    out = {}
    for layer in range(model.cfg.n_layers):
        site = lambda point, layer=layer: [_C.DictionarySite(f"blocks.{layer}.{point}", D)]  # noqa: E731
        out[layer] = _C.Dictionary(
            "topk",
            {
                "W_enc": torch.randn(d_sae, D, generator=rng) / D**0.5,
                "b_enc": torch.zeros(d_sae),
                "W_dec": torch.randn(d_sae, D, generator=rng) / D**0.5 / 10,
                "b_dec": torch.zeros(D),
            },
            k=k,
            subtract_b_dec=False,
            origin=_C.DictionaryOrigin(inputs=site("hook_mlp_in"), outputs=site("hook_mlp_out")),
        )
    return out


def floor_flop(model, graph) -> float:
    """Of the rows of a graph, each within its causal cone: attention's adjoint, and the products with decoder rows."""
    cfg = model.cfg
    adjoint = 2 * cfg.d_model * (cfg.n_heads + cfg.n_key_value_heads) * cfg.d_head  # a position and layer
    per_cell = graph.notes["active_features"] / (cfg.n_layers * (len(graph.tokens) - 1))  # the first has none
    total = 0.0
    for node in graph.nodes:
        if node.kind in ("feature", "logit"):
            seen = node.position + 1  # positions
            total += node.layer * (seen * adjoint + 2 * cfg.d_model * per_cell * (seen - 1))
            total += node.layer * seen * 2 * cfg.n_heads * cfg.d_head * seen / 2  # through the patterns
    return total


class PeersWay:
    """circuit-tracer's linear model on the blocks' weights, and its rows by backward passes."""

    def __init__(self, model, tokens, transcoders) -> None:
        cfg, weights = model.cfg, dict(model.native.named_weights())
        names = [
            f"blocks.{i}.{point}"
            for i in range(cfg.n_layers)
            for point in ("attn.hook_pattern", "ln1.hook_scale", "hook_mlp_in", "hook_mlp_out")
        ]
        _, cache = model.run_with_cache(torch.tensor([tokens]), names)
        self.cfg, self.layers = cfg, []
        H, G, K = cfg.n_heads, cfg.n_key_value_heads, cfg.d_head
        for i in range(cfg.n_layers):
            prefix = f"blocks.{i}."
            f = transcoders[i].encode_sparse(cache[prefix + "hook_mlp_in"][0])
            self.layers.append(
                {
                    "pattern": cache[prefix + "attn.hook_pattern"][0],
                    "scale": cache[prefix + "ln1.hook_scale"][0],
                    "ln1": weights[prefix + "ln1.w"],
                    "W_V": weights[prefix + "attn.W_QKV"][(H + G) * K :],
                    "W_O": weights[prefix + "attn.W_O"],
                    "offsets": f.offsets,
                    "ids": f.indices,
                    "values": f.values,
                    "W_enc": transcoders[i].weights["W_enc"],
                    "W_dec": transcoders[i].weights["W_dec"],
                    "out": cache[prefix + "hook_mlp_out"][0],
                }
            )
        self.embedded = weights["embed.W_E"][torch.tensor(tokens)]
        self.vectors = [of["W_dec"][of["ids"]] * of["values"][:, None] for of in self.layers]

    def prepare(self, R: int) -> None:
        """One forward pass of a batch of R copies with everything frozen, whose graph is kept for all batches."""
        cfg, T = self.cfg, len(self.embedded)
        H, G, K = cfg.n_heads, cfg.n_key_value_heads, cfg.d_head
        x = self.embedded.expand(R, -1, -1).clone().requires_grad_()
        self.reads, self.writes = [], []
        for of in self.layers:
            v = torch.nn.functional.linear(x / of["scale"] * of["ln1"], of["W_V"]).view(R, T, G, K)
            z = torch.einsum("hts,rshk->rthk", of["pattern"], v.repeat_interleave(H // G, 2))
            x = x + torch.nn.functional.linear(z.reshape(R, T, H * K), of["W_O"])
            self.reads.append(x)
            self.writes.append(of["out"].expand(R, -1, -1).clone().requires_grad_())
            x = x + self.writes[-1]

    def rows(self, layers, positions, features) -> torch.Tensor:
        """Dense rows of a batch: gradients put in where each is read, one backward pass, all cells of all layers."""
        values = torch.zeros(len(layers), self.cfg.d_model)
        at_layer: dict[int, list[int]] = {}
        for row, (layer, feature) in enumerate(zip(layers, features, strict=True)):
            values[row] = self.layers[layer]["W_enc"][feature]
            at_layer.setdefault(layer, []).append(row)
        inputs = []
        for layer, some in at_layer.items():
            gradient = torch.zeros_like(self.reads[layer])
            gradient[some, [positions[row] for row in some]] = values[some]
            inputs.append((self.reads[layer], gradient))
        gradients = torch.autograd.grad(
            [x for x, _ in inputs], self.writes, [g for _, g in inputs], retain_graph=True, allow_unused=True
        )
        buffer = torch.zeros(sum(len(v) for v in self.vectors), len(layers))
        at = 0
        for of, vectors, gradient in zip(self.layers, self.vectors, gradients, strict=True):
            if gradient is not None:  # its hook: gradients at each feature's position, times what the feature writes
                cells = torch.repeat_interleave(torch.arange(len(self.embedded)), of["offsets"].diff())
                buffer[at : at + len(vectors)] += torch.einsum("bpd,pd->pb", gradient[:, cells], vectors)
            at += len(vectors)
        return buffer.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 512, 2048])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--long-rows", type=int, default=32, help="of prompts of more than 64 tokens")
    parser.add_argument("--features", type=int, default=16384)
    parser.add_argument("--active", type=int, default=300)
    parser.add_argument("--peer-rows", type=int, default=64, help="rows of the peer's way, one batch; 0: not run")
    parser.add_argument("--budget", type=int, default=2, help="GiB that attribute may take beside its result")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = introspect.load_model(options.model)
    transcoders = transcoders_of(model, options.features, options.active)
    attention = [model.native.named_weights()[0][1].new_empty(model.cfg.d_model, model.cfg.d_model)]
    rows = 256 * 16
    products = min(times.best for times in take_turns(5, *matrix_products(attention, rows)))
    rate = 2 * rows * attention[0].numel() / products * 1e3  # FLOP/s
    print(f"torch.mm [{rows}, D] by [D, D]: {rate / 1e9:.0f} GFLOP/s\n")
    rng = random.Random(0)
    figures = {"rate": rate}
    for n in options.tokens:
        tokens = [rng.randrange(1000, 40000) for _ in range(n)]
        n_rows = options.rows if n <= 64 else options.long_rows

        def ours(n_rows=n_rows, tokens=tokens):
            """The graph, its seconds, and those before its features' rows: forward pass, encoders, rows of targets."""
            start, steps = time.perf_counter(), []
            graph = attribute(
                model, tokens, transcoders, max_features=n_rows, memory_budget=options.budget << 30,
                progress=lambda *_: steps.append(time.perf_counter() - start),
            )  # fmt: skip
            return time.perf_counter() - start, steps[0], graph

        memory, run = peak_bytes(ours)
        runs = [run] + [ours() for _ in range(options.repeats - 1 if n <= 64 else 0)]
        best, before, graph = min(runs, key=lambda one: one[0])
        flop = floor_flop(model, graph)
        figures[n] = {
            "rows": graph.notes["features_with_rows"], "active": graph.notes["active_features"], "seconds": best,
            "before rows": before, "floor": flop / rate, "memory": memory,
        }  # fmt: skip
        print(
            f"{n:5} tokens: {figures[n]['rows']:,} rows over {figures[n]['active']:,} active features in {best:.1f} s "
            f"({before:.1f} s before them); floor {flop / rate:.2f} s, {flop / rate / (best - before):.0%} of it; "
            f"memory {memory / 1e6:,.0f} MB"
        )
        if n <= 64 and options.peer_rows:
            figures[n] |= peer(model, tokens, transcoders, graph, options.peer_rows)
            scaled = figures[n]["peer seconds a row"] * figures[n]["rows"]
            print(
                f"      the peer's way: {scaled:.1f} s for as many rows (of {options.peer_rows}), "
                f"{scaled / best:.1f} times ours; rows within {figures[n]['difference']:.1e} of the largest edge; "
                f"memory {figures[n]['peer memory'] / 1e6:,.0f} MB for a batch and its rows, "
                f"{figures[n]['peer dense'] / 1e6:,.0f} MB for the dense matrix of as many rows"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def peer(model, tokens, transcoders, graph, n_rows):
    """Seconds a row of the peer's way, and how far its rows are from ours where both have an edge."""
    theirs = PeersWay(model, tokens, transcoders)
    numbers = [i for i, node in enumerate(graph.nodes) if node.kind == "feature"]
    random.Random(0).shuffle(numbers)
    nodes = graph.nodes
    some = [(n.layer, n.position, n.feature) for n in (nodes[i] for i in numbers[:n_rows])]
    call = lambda: theirs.rows(*zip(*some, strict=True))  # noqa: E731
    theirs.prepare(len(some))
    call()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    memory, dense = peak_bytes(call)
    column, at = {}, 0
    for layer, of in enumerate(theirs.layers):
        bounds, ids = of["offsets"].tolist(), of["ids"].tolist()
        for p in range(len(tokens)):
            column |= {(layer, p, ids[j]): at + j for j in range(bounds[p], bounds[p + 1])}
        at += len(ids)
    # Columns of nodes; -1 of all that are no features.
    columns = torch.tensor([column[n.layer, n.position, n.feature] if n.kind == "feature" else -1 for n in nodes])
    native, worst, largest = graph.native, 0.0, 0.0
    row_of = {target: row for row, target in enumerate(native.targets)}
    offsets, sources, weights = native.offsets.tolist(), native.sources, native.weights
    for row, number in enumerate(numbers[:n_rows]):
        part = slice(offsets[row_of[number]], offsets[row_of[number] + 1])
        at_columns = columns[sources[part]]
        known = at_columns >= 0
        theirs_row = dense[row, at_columns[known]]
        if known.any():
            largest = max(largest, theirs_row.abs().max().item())
            worst = max(worst, (theirs_row - weights[part][known]).abs().max().item())
    return {
        "peer seconds a row": seconds / n_rows,
        "peer memory": memory,
        "peer dense": 4 * dense.shape[1] * graph.notes["features_with_rows"],
        "difference": worst / max(largest, 1e-30),
    }


if __name__ == "__main__":
    main()
