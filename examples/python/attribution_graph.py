"""Which features made the model say it: transcoders trained on the spot, the graph of a prompt, and whether it is true.

python examples/python/attribution_graph.py [--model NAME] [--tokens N] [--svg FILE]

The transcoders see a few thousand tokens (Python's own documentation), so most of the graph is error; with more tokens
and layers its scores rise. Layers without a transcoder count as error as a whole.
"""

import argparse
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import introspect
from introspect.circuits import attribute, qk_attribution, validate
from introspect.sae import train_many, write_activations

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--prompt", default="The opposite of small is")
parser.add_argument("--tokens", type=int, default=40_000, help="of training, over some 5,000 of text again and again")
parser.add_argument("--layers", type=int, default=4, help="layers that get a transcoder, evenly spread")
parser.add_argument("--svg", type=Path)
args = parser.parse_args()

model = introspect.load_model(args.model)
n = model.cfg.n_layers
layers = sorted({round((i + 0.5) * n / args.layers - 0.5) for i in range(args.layers)})
hooks = [f"blocks.{layer}.{point}" for layer in layers for point in ("hook_mlp_in", "hook_mlp_out")]
text = [text for text in topics.values() if 2000 < len(text) < 6000][:6]
rows = write_activations(model, text, Path(tempfile.mkdtemp()) / "activations", hooks=hooks)
trained = train_many(
    None,
    rows,
    [
        {
            "hook": f"blocks.{layer}.hook_mlp_in",
            "hook_out": f"blocks.{layer}.hook_mlp_out",
            "architecture": "topk",
            "d_sae": 1024,
            "k": 32,
        }
        for layer in layers
    ],
    training_tokens=args.tokens,
    train_batch_size_tokens=512,
    held_out_tokens=512,
)
transcoders = dict(zip(layers, trained.dictionaries, strict=True))
print(trained.to_pandas().groupby("dictionary").last()[["explained_variance", "l0"]].to_string())

graph = attribute(model, args.prompt, transcoders, name="trained on the spot")
print(f"\n{graph}\n{graph.scores()}, {graph.notes['active_features']} active features")
table = graph.to_pandas()
print(table[table.kind == "feature"].sort_values("influence", ascending=False).head(8).to_string(index=False))

# The heaviest way from the last token to the likeliest next one.
targets = [i for i, node in enumerate(graph.nodes) if node.kind == "logit"]
best = max(targets, key=lambda i: graph.nodes[i].value)
last = graph.find("token", -1, len(graph.tokens) - 1, graph.tokens[-1])
for path in graph.paths(last, best, 3):
    print(f"{path.weight:.4f}  " + " -> ".join(f"{graph.nodes[i].kind} {graph.nodes[i].layer}" for i in path.nodes))

# Is it so? Features taken out of the model one by one.
print(f"\n{validate(model, graph, transcoders, n=12)}")

# Why a head looks where it does, which the graph holds fixed.
why = qk_attribution(model, args.prompt, layer=layers[-1], head=0, query=-1, key=1, transcoders=transcoders)
print(f"\n{why}\n{why.to_pandas(5).to_string(index=False)}")

if args.svg:
    args.svg.write_text(graph.prune(0.6, 0.9).svg())
