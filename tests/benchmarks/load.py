"""Loading a GGUF file into float32, against transformers' ``gguf_file=``, in one run.

    python tests/benchmarks/load.py [GGUF ...]

Ours is the best of five; theirs runs once, since it takes tens of seconds. The file is in the page cache for both.
"""

import argparse
import time
from pathlib import Path

from transformers import AutoModelForCausalLM
from transformers.utils import logging

import introspect

MODELS = Path.home() / ".cache/introspect/models"
DEFAULT = [MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf", MODELS / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"]


def seconds(load, *args, **options) -> float:
    start = time.perf_counter()
    load(*args, **options)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="*", type=Path, default=DEFAULT)
    args = parser.parse_args()
    logging.disable_progress_bar()
    print(f"{'':42}{'introspect':>12}{'bfloat16':>11}{'transformers':>14}{'ratio':>7}")
    for path in args.gguf:
        path.read_bytes()
        ours = min(seconds(introspect.load_model, path) for _ in range(5))
        half = min(seconds(introspect.load_model, path, dtype="bfloat16") for _ in range(5))
        theirs = seconds(AutoModelForCausalLM.from_pretrained, path.parent, gguf_file=path.name)
        print(f"{path.name:42}{ours:10.2f} s{half:9.2f} s{theirs:12.1f} s{theirs / ours:7.0f}")


if __name__ == "__main__":
    main()
