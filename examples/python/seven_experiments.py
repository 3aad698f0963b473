"""The article's seven experiments on a model of yours, beside random rotations, control questions and intervals.

python examples/python/seven_experiments.py [--model NAME] [--finetune NAME --prompts CSV] [--sweep] [-o DIR]

Strengths are fractions of the median residual norm and the layers a third to two thirds of the depth, which is where
the article's are. Experiment 7 needs a second model of the same shape (finetuned_pair.py makes one); its vector is made
from a column of prompts ("forbidden_prompt", as in StrongREJECT's CSV file).
"""

import argparse
import csv
from pathlib import Path

import pandas

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--dtype", default="float32", help="bfloat16 is quicker, and its log-odds are rough by 0.1 to 0.5")
parser.add_argument("--finetune", help="of the same shape, for experiment 7")
parser.add_argument("--prompts", type=Path, help="that both models read, for the vector between them")
parser.add_argument("--fraction", type=float, default=0.1, help="strength, as a share of the median residual norm")
parser.add_argument("--suffixes", type=int, default=582, help="pairs to train a vector on")
parser.add_argument("--nulls", type=int, default=10, help="random rotations of each vector")
parser.add_argument("--sweep", action="store_true", help="also every range of blocks [i, j], 0 < i <= j")
parser.add_argument("-o", "--output", type=Path, help="folder for the results; `introspect report` makes a page of it")
args = parser.parse_args()

model = introspect.load_model(args.model, dtype=args.dtype)
vectors = {}
for concept in ("cat", "bread"):
    pairs = introspect.concept_pairs(model, concept, introspect.load_suffixes()[: args.suffixes])
    vectors[concept] = introspect.ControlVector.train(model, pairs)


def run(*names: str, is_sweep: bool = False, **options) -> list[introspect.Result]:
    """Shipped protocols at the strength asked for, as tables and, where a folder is given, in files."""
    usual = {"vectors": vectors, "strengths": [args.fraction], "strength_unit": "residual", "layers": [(0.33, 0.66)]}
    options = {**usual, "questions": [], "nulls": args.nulls, **options}
    results = introspect.run_experiments(model, [introspect.load_protocol(name) for name in names], **options)
    for name, result in zip(names, results, strict=True):
        if not is_sweep:
            introspect.report.show_one(result)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            result.save(args.output / (f"{name}_ranges.json" if is_sweep else f"{name}.json"))
    return results


def lens(result: introspect.Result) -> pandas.DataFrame:
    """Log-odds after every block: unsteered, each injection, and the mean and spread of all random rotations."""
    table = result.lens_to_pandas()
    nulls = table[table.kind == "random"].groupby("layer").log_odds.agg(["mean", "std"]).add_prefix("random ")
    own = table[table.kind == "introspection"]
    base = own.groupby("layer").log_odds_base.first().rename("base")
    curves = own.pivot(index="layer", columns="concept", values="log_odds")
    return pandas.concat([base, curves, nulls], axis=1).dropna(axis=1, how="all")


def show_raised(result: introspect.Result) -> None:
    """The tokens whose probability rose most under each injection."""
    changes = result.changes_to_pandas()
    raised = changes[(changes.kind == "introspection") & (changes.direction == "raised")]
    for concept, rows in raised.groupby("concept", sort=False):
        print(f"  most raised, {concept}: {' '.join(map(repr, rows.token[:10]))}")


print("1. Top of mind: the vector stays on while the answer is generated. Detection, without a word of explanation.")
run("top_of_mind", nulls=0)
run("no_info")

print("\n2 and 3. The info prompt, and its control questions, whose answer is no.")
run("with_info", questions=None)

print("\n4. Told a wrong place; filler of the length of the info.")
run("inaccurate_location", "lorem_ipsum")

print("\n5. Where in the depth the answer comes up: log-odds of the lens.")
for result in run("lens_no_info", "lens_with_info", "lens_inaccurate_location", "lens_quarter_strength"):
    print(result.protocol["name"], lens(result).round(2).to_string(), sep="\n")

print("\n6. What was it? The tokens that rose most, and the concept written into the text instead of injected.")
show_raised(*run("lens_content_report"))
run("priming_content_report", vectors={}, concepts=list(vectors), nulls=0)

if args.finetune:
    print("\n7. Another model: the vector that leads to it, and itself in the first turns.")
    finetune = introspect.load_model(args.finetune, dtype=args.dtype, keep_blocks=False)
    if args.prompts:
        with args.prompts.open(newline="", encoding="utf-8") as file:
            prompts = [row["forbidden_prompt"] for row in csv.DictReader(file)]
        vectors = {"finetune": introspect.contrast_models(finetune, model, prompts)}
        run("no_info", "with_info", questions=None)
        run("top_of_mind", strengths=[-args.fraction, args.fraction], nulls=0)
    prefilled = {"vectors": {}, "models": {"finetune": finetune}, "nulls": 0}
    for result in run("finetune_no_info", lens=True, **prefilled):
        print(lens(result).round(2).to_string())
    run("finetune_with_info", **{**prefilled, "questions": None})
    show_raised(*run("finetune_content_report", top_k=10, **prefilled))
else:
    print("\n7. Left out: --finetune names no second model.")

if args.sweep:
    print("\nEvery range of blocks: the shift of the log-odds, first block down, last block across.")
    last = model.cfg.n_layers - 1
    ranges = [(i, j) for i in range(1, last + 1) for j in range(i, last + 1)]
    [result] = run("no_info", is_sweep=True, layers=ranges, nulls=0)
    table = result.to_pandas()
    table["shift"] = table.log_odds - table.log_odds_base
    for concept, rows in table.groupby("concept", sort=False):
        print(
            concept,
            rows.pivot(index="first_layer", columns="last_layer", values="shift").round(1).to_string(),
            sep="\n",
        )
