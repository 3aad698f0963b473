"""What a study with all its control arms costs beside today's experiment: the same vectors with ten rotations of each.

    python tests/benchmarks/studies.py [GGUF] [--protocols no_info with_info] [--concepts 2] [--repeats 1] [--plan]

Both sides in one run: tokens times layers by plan (of the study with what the search for equal doses took beyond it),
and the processor time of one thread, in turns. Doses and certificates are the study's own and count; --plan leaves the
times out, and runs the arm of equal dose alone.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch

import introspect
from introspect.studies import run_study

sys.path.insert(0, str(Path(__file__).parent))
from measure import SMOLLM2

CONCEPTS = ("cat", "bread", "ocean", "music", "winter", "doctor")


def processor_seconds(call) -> tuple[float, object]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def compare(model, protocol: str, vectors: dict, args: argparse.Namespace) -> dict:
    shared = {"vectors": vectors, "nulls": args.nulls, "progress": False}
    today = introspect.run_experiment(model, protocol, plan=True, **shared).token_layers_to_run
    study = run_study(model, protocol, plan=True, **shared).together.token_layers_to_run
    options = {**shared, **({"arms": "equal_dose", "certified": False} if args.plan else {})}
    times: dict[str, list[float]] = {"today": [], "study": []}
    for _ in range(1 if args.plan else args.repeats):
        if not args.plan:
            times["today"].append(processor_seconds(lambda: introspect.run_experiment(model, protocol, **shared))[0])
        seconds, found = processor_seconds(lambda: run_study(model, protocol, **options))
        times["study"].append(seconds)
    solving = found.costs["solving"]
    out = {
        "concepts": len(vectors),
        "today": today,
        "study": study,
        "solving": solving,
        "ratio": (study + solving["token_layers"]) / today,
        "arms": list(found.results),
    }
    n = len(found["equal_dose"].settings["doses"])
    print(f"{protocol}: {len(vectors)} concepts")
    print(f"  tokens x layers: today {today:,}; all arms {study:,}, beyond the plan {solving['token_layers']:,}")
    print(f"  {solving['measured'] / n:.2f} measurements for each of {n} equal doses")
    print(f"  all arms: {out['ratio']:.2f} times today's", flush=True)
    if not args.plan:
        seconds = {side: min(of) for side, of in times.items()}
        out |= {"seconds": seconds, "time_ratio": seconds["study"] / seconds["today"]}
        print(f"  processor time: today {seconds['today']:.1f} s, study {seconds['study']:.1f} s: ", end="")
        print(f"{out['time_ratio']:.2f} times", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--protocols", nargs="+", default=["no_info", "with_info"])
    parser.add_argument("--concepts", type=int, default=2, choices=range(1, len(CONCEPTS) + 1))
    parser.add_argument("--nulls", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*left the format of the answer")
    torch.set_num_threads(1)
    model = introspect.load_model(args.gguf)
    suffixes = introspect.load_suffixes()[:40]
    vectors = {
        concept: introspect.ControlVector.train(model, introspect.concept_pairs(model, concept, suffixes))
        for concept in CONCEPTS[: args.concepts]
    }
    report = {protocol: compare(model, protocol, vectors, args) for protocol in args.protocols}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
