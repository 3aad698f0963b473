"""bfloat16 beside float32 on the workloads of experiments.py and on training a control vector, in one run.

    python tests/benchmarks/dtypes.py [GGUF] [--workloads vector sweep suite grid] [--repeats 2] [--device cpu]
        [--json FILE]

The best of several, the two in turns on the same vectors; the ratio is float32's time / bfloat16's. Nothing is compared
with a peer here: experiments.py and vectors.py do that.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from experiments import WORKLOADS, Ours
from measure import SMOLLM2, take_turns, timed

import introspect

VECTOR = "vector"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--workloads", nargs="+", choices=[VECTOR, *WORKLOADS], default=[VECTOR, *WORKLOADS])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--suffixes", type=int, default=582, help="pairs that the vectors are trained on")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    warnings.filterwarnings("ignore", message=".* tokens of this model")  # spellings of yes and no for the lens
    warnings.filterwarnings("ignore", message=".*left the format of the answer")
    sides = [Ours(args.gguf, dtype, {}, args.device) for dtype in ("float32", "bfloat16")]
    model, suffixes = sides[0].model, introspect.load_suffixes()[: args.suffixes]
    pairs = {concept: introspect.concept_pairs(model, concept, suffixes) for concept in ("cat", "bread")}

    def training(side: Ours) -> Callable[[], object]:
        return lambda: introspect.ControlVector.train(side.model, pairs["cat"])

    def running(side: Ours, work) -> Callable[[], object]:
        return lambda: side.run(work)

    vectors = {concept: introspect.ControlVector.train(model, of) for concept, of in pairs.items()}
    for side in sides:
        side.vectors.update(vectors)
    print(f"{args.gguf.name}, {args.device}, {torch.get_num_threads()} threads, best of {args.repeats}")
    print(f"{'workload':22}{'float32':>10}{'bfloat16':>11}{'ratio':>8}")
    report = {}
    for name in args.workloads:
        if name == VECTOR:
            title, calls = f"vector, {len(pairs['cat'])} pairs", [training(side) for side in sides]
        else:
            work = WORKLOADS[name](model.cfg.n_layers, False)
            title, calls = work.title, [running(side, work) for side in sides]
        full, half = (times.best / 1e3 for times in take_turns(args.repeats, *map(timed, calls)))
        print(f"{title:22}{full:8.2f} s{half:9.2f} s{full / half:8.2f}", flush=True)
        report[name] = {"float32_s": full, "bfloat16_s": half}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
