"""Forward passes and a cached decode step, against transformers on the same weights, in one run.

    python tests/benchmarks/forward.py [GGUF] [--repeats 15]

Each figure is the best of several, the two sides taking turns; the ratio is theirs / ours.
"""

import argparse
import sys
from pathlib import Path

import torch
from measure import SMOLLM2, Times, take_turns, timed

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from reference import transformers_model

import introspect

SHAPES = [(1, 16), (1, 64), (4, 128)]


def random_tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 40000, (batch, length), generator=torch.Generator().manual_seed(0))


def decode_step(ours: introspect.Model, theirs: torch.nn.Module, repeats: int) -> list[Times]:
    """One token after 64 that are in the cache: introspect, transformers."""
    prompt, token = torch.arange(64)[None] + 1000, torch.tensor([[17]])
    cache = ours.native.make_cache(1)
    ours(prompt, cache=cache, logits_at="none")
    past = theirs(prompt, use_cache=True).past_key_values

    def our_step():
        ours(token, cache=cache, logits_at="last")
        cache.truncate(64)

    def their_step():
        theirs(token, past_key_values=past, use_cache=True)
        past.crop(-1)

    return take_turns(repeats, timed(our_step), timed(their_step))


def compare(path: Path, dtype: torch.dtype, repeats: int) -> None:
    ours, theirs = introspect.load_model(path, dtype=dtype), transformers_model(path, dtype)
    everywhere = dtype == torch.float32  # bfloat16 is compared with the last position's logits only
    keep = {} if everywhere else {"logits_to_keep": 1}
    rows = []
    for shape in SHAPES:
        tokens = random_tokens(*shape)
        times = take_turns(
            repeats,
            timed(lambda tokens=tokens: ours(tokens, logits_at="all" if everywhere else "last")),
            timed(lambda tokens=tokens: theirs(tokens, use_cache=False, **keep)),
        )
        rows.append((f"{shape[0]}x{shape[1]}", times))
    rows.append(("decode after 64", decode_step(ours, theirs, 2 * repeats)))
    logits = "all logits" if everywhere else "last position's logits"
    print(f"\n{path.name}, {str(dtype).removeprefix('torch.')}, {logits}, {torch.get_num_threads()} threads")
    print(f"{'':18}{'introspect':>12}{'transformers':>14}{'ratio':>8}")
    for name, (mine, other) in rows:
        print(f"{name:18}{mine.best:9.1f} ms{other.best:11.1f} ms{other.best / mine.best:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, default=SMOLLM2)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            compare(args.gguf, dtype, args.repeats)


if __name__ == "__main__":
    main()
