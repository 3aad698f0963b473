"""Inject a concept into one turn of a chat and ask the model whether it noticed, against ten random vectors.

python examples/python/inject.py [--model NAME] [--concept cat] [--strength kl=0.4]
"""

import argparse

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--concept", default="cat")
parser.add_argument("--strength", default="kl=0.4", help="a dose that is solved for, or a share of the residual norm")
parser.add_argument("--suffixes", type=int, default=100, help="pairs to train the vector on")
parser.add_argument("--nulls", type=int, default=10, help="random rotations of the vector")
args = parser.parse_args()

model = introspect.load_model(args.model, dtype="bfloat16")
pairs = introspect.concept_pairs(model, args.concept, introspect.load_suffixes()[: args.suffixes])
vector = introspect.ControlVector.train(model, pairs, method="pca_center")

result = introspect.run_experiment(
    model,
    introspect.load_protocol("no_info"),
    vectors={args.concept: vector},
    strengths=args.strength if args.strength[0].isalpha() else float(args.strength),
    strength_unit="residual",
    layers=[(1 / 3, 2 / 3)],
    questions=[],
    nulls=args.nulls,
)
table = result.to_pandas()
table["shift"] = table.log_odds - table.log_odds_base
nulls = table[table.kind == "random"]["shift"]
shift = table[table.kind == "introspection"]["shift"].item()
print(f"log-odds(yes), uninjected: {table.log_odds_base.iloc[0]:+.2f} nats")
random = f"{nulls.mean():+.2f} ± {nulls.std():.2f}"
print(f"shift by {args.concept!r}: {shift:+.2f}; by {len(nulls)} random vectors: {random}")
