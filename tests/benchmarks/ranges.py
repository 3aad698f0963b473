"""Which blocks move the answer: what the README says of ranges on a real model.

python tests/benchmarks/ranges.py [--model NAME] [--dtype TYPE] [--step N] [--only map nulls controls] [-o FOLDER]

map: every range, and how first-order estimates order them. nulls: every fourth block's ranges beside ten rotations.
controls: two early ranges beside rotations and less the control questions.
"""

import argparse
import statistics
import time
from pathlib import Path

import introspect
from introspect.experiments.range_search import Agreement
from introspect.experiments.results import Result

STRENGTH = 0.1  # of the mean residual norm
EARLY = [(1, 13), (5, 13)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--step", type=int, default=1, help="between the blocks of the map's ranges")
    parser.add_argument("--suffixes", type=int, default=582, help="pairs that the vectors are trained on")
    parser.add_argument("--nulls", type=int, default=10, help="random rotations of each vector")
    parser.add_argument("--only", nargs="+", choices=["map", "nulls", "controls"], default=["map", "nulls", "controls"])
    parser.add_argument("-o", "--output", type=Path, help="folder for the results and the map's picture")
    args = parser.parse_args()

    model = introspect.load_model(args.model, dtype=args.dtype)
    protocol = introspect.load_protocol("no_info")
    vectors = {
        concept: introspect.ControlVector.train(
            model, introspect.concept_pairs(model, concept, introspect.load_suffixes()[: args.suffixes])
        )
        for concept in ("cat", "bread")
    }
    common = {"vectors": vectors, "strengths": [STRENGTH], "strength_unit": "residual"}
    last = model.cfg.n_layers - 1

    def run(name: str, **options) -> Result:
        start = time.perf_counter()
        result = introspect.run_experiment(model, protocol, **common, **options)
        print(f"{name}: {len(result.rows)} readings in {time.perf_counter() - start:.0f} s", flush=True)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            result.save(args.output / f"{name}.json")
        return result

    if "map" in args.only:
        exact = run("map", layers=introspect.layer_ranges(1, last, step=args.step), questions=[], nulls=0)
        if args.output:
            introspect.plots.range_maps(exact).savefig(args.output / "map.png")
        if args.dtype == "float32":  # estimates are of one backward pass, in the model's dtype
            for concept, vector in vectors.items():
                compare_with_estimates(model, protocol, concept, vector, exact)
    if "nulls" in args.only:
        beside = run("nulls", layers=introspect.layer_ranges(1, last, step=4), questions=[], nulls=args.nulls)
        places = [place(d.shift) for d in beside.detections()]
        print(f"  highest of {args.nulls + 1} directions in {places.count(1)} of {len(places)} settings")
    if "controls" in args.only:
        introspect.report.show_one(run("controls", layers=EARLY, nulls=args.nulls))


def place(compared) -> int:
    return 1 + sum(null > compared.value for null in compared.nulls)


def compare_with_estimates(model, protocol, concept: str, vector: introspect.ControlVector, exact: Result) -> None:
    """Prints how well the order of one backward pass agrees with the exact runs."""
    start = time.perf_counter()
    estimates = introspect.estimate_ranges(
        model, protocol, vectors={concept: vector}, strengths=[STRENGTH], strength_unit="residual", questions=[]
    )
    seconds, scores = time.perf_counter() - start, estimates.scores(STRENGTH)
    shifts = {
        (row["first_layer"], row["last_layer"]): row["injected"]["log_odds"] - row["base"]["log_odds"]
        for row in exact.rows
        if row["concept"] == concept
    }
    ranges = [r for r in shifts if r in scores]
    k = max(2, round(len(ranges) / 20))
    agreement = Agreement.of([scores[r] for r in ranges], [shifts[r] for r in ranges], k)
    print(
        f"  {concept}: shifts {min(shifts.values()):+.2f} to {max(shifts.values()):+.2f}, "
        f"mean {statistics.mean(shifts.values()):+.2f}; one backward pass in {seconds:.1f} s: Spearman "
        f"{agreement.spearman:.2f}, {agreement.overlap:.0%} of the best {k} shared",
        flush=True,
    )


if __name__ == "__main__":
    main()
