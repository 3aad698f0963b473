"""The seven experiments of the article on a model of yours, each beside random rotations of its vector and controls.

python examples/python/seven_experiments.py [--model NAME] [--sweep] [--output DIR]
"""

import argparse
from pathlib import Path

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--fraction", type=float, default=0.1, help="strength, as a share of the mean residual norm")
parser.add_argument("--suffixes", type=int, default=582, help="pairs to train a vector on")
parser.add_argument("--nulls", type=int, default=10, help="random rotations of each vector")
parser.add_argument("--sweep", action="store_true", help="also every range of layers [i, j], 0 < i <= j")
parser.add_argument("-o", "--output", type=Path, help="folder for the results, and what `introspect report` makes of them")
args = parser.parse_args()

model = introspect.load_model(args.model, dtype="bfloat16")
vectors = {}
for concept in ("cat", "bread"):
    pairs = introspect.concept_pairs(model, concept, introspect.load_suffixes()[: args.suffixes])
    vectors[concept] = introspect.ControlVector.train(model, pairs)


def run(protocol: str, fraction: float = args.fraction, questions: list[str] | None = (), **options):
    settings = {"strengths": [fraction], "strength_unit": "residual", "layers": [(0.33, 0.66)], "nulls": args.nulls}
    protocol = introspect.load_protocol(protocol)
    return introspect.run_experiment(model, protocol, vectors=vectors, questions=questions, **{**settings, **options})


results = [
    run("top_of_mind", nulls=0),  # 1: the text
    run("no_info"),  # 1
    run("with_info", questions=None),  # 2, and 3: its 16 control questions
    run("inaccurate_location"),  # 4
    run("lorem_ipsum"),  # 4
    run("content_report"),  # 6
]
introspect.report.show(results)
