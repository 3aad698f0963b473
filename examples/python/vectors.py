"""Train control vectors for two concepts, see which layers hold them, combine them and write them to files.

python examples/python/vectors.py [--model NAME] [--concepts cat dog] [--output DIR]
"""

import argparse
from pathlib import Path

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--concepts", nargs=2, default=["cat", "dog"], metavar="WORD")
parser.add_argument("--suffixes", type=int, default=100, help="pairs to train each vector on")
parser.add_argument("--strength", type=float, default=2.0)
parser.add_argument("-o", "--output", type=Path, help="write the vectors and their plots to this folder")
args = parser.parse_args()

model = introspect.load_model(args.model, dtype="bfloat16")
suffixes = introspect.load_suffixes()[: args.suffixes]


def train(concept: str, method: str = "pca_center") -> introspect.ControlVector:
    return introspect.ControlVector.train(model, introspect.concept_pairs(model, concept, suffixes), method=method)


first, second = (train(concept) for concept in args.concepts)

# Diagnosing: pairs that the direction was not trained on.
print(
    f"{'layer':>5}{'accuracy':>10}{'AUC':>7}{'cosine with mean difference':>29}{'cosine with ' + args.concepts[1]:>17}"
)
mean, other = first.cosine(train(args.concepts[0], "mean_diff")), first.cosine(second)
for layer in first.layers[:: max(len(first.layers) // 8, 1)]:
    held_out = first.diagnostics[layer]
    print(f"{layer:>5}{held_out.accuracy:>10.3f}{held_out.auc:>7.3f}{mean[layer]:>29.3f}{other[layer]:>17.3f}")

# Combining: what tells one concept from the other.
difference = first - second
prompt = model.apply_chat_template(
    [{"role": "user", "content": "Which animal do you like best?"}], add_generation_prompt=True
)
layers = (model.cfg.n_layers // 3, 2 * model.cfg.n_layers // 3)
for sign, towards in ((0, "neither"), (1, args.concepts[0]), (-1, args.concepts[1])):
    with model.steer(sign * args.strength * difference, layers=layers):
        print(f"towards {towards}:", model.generate(prompt, max_new_tokens=25).replace("\n", " "))

# Files: GGUF for repeng and llama.cpp, safetensors with where the vector came from.
if args.output:
    args.output.mkdir(parents=True, exist_ok=True)
    for concept, vector in zip(args.concepts, (first, second), strict=True):
        vector.export_gguf(args.output / f"{concept}.gguf")
        vector.save_safetensors(args.output / f"{concept}.safetensors")
        introspect.plots.plot_vector(vector).savefig(args.output / f"{concept}.png")
    print(f"wrote {', '.join(sorted(path.name for path in args.output.iterdir()))} to {args.output}")
