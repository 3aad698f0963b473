"""Dictionaries against SAELens, both sides in one run.

    python tests/benchmarks/sae.py [--threads 2] [--repeats 5]

"training step": one update of a dictionary on a batch of rows, forward to Adam: tokens a second, the ratio, and the
share of the floor, which is the time of the encoder's matrix product alone. Rows, widths and options are the same, and
so are losses (tests/python/slow/test_saelens_training.py); SAELens runs with sparse activations too, where it has them.
"""

import argparse
import time

import torch
from measure import matrix_products, take_turns
from peers.environment import SAE_LENS
from peers.process import Worker

from introspect.sae.trainer import Trainer


def training_steps(threads: int, repeats: int) -> None:
    rows, d_in, d_sae = 4096, 576, 4608
    cases = {
        "topk k=32": ("topk", {"k": 32}, {"k": 32}),
        "topk k=32, sparse SAELens": ("topk", {"k": 32, "use_sparse_activations": True}, {"k": 32}),
        "batchtopk k=32": ("batchtopk", {"k": 32}, {"k": 32}),
        "standard": ("standard", {"l1_coefficient": 5.0}, {"l1_coefficient": 5.0}),
        "jumprelu": ("jumprelu", {"l0_coefficient": 5.0}, {"l0_coefficient": 5.0}),
    }
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0))
    floor = take_turns(repeats, *matrix_products([torch.zeros(d_sae, d_in)], rows)[:1])[0]
    print(f"training step: {rows} rows, d_in {d_in}, d_sae {d_sae}; the encoder's product alone {floor.median:.0f} ms")
    for name, (architecture, theirs, ours) in cases.items():
        trainer = Trainer(d_in, objective=architecture, d_sae=d_sae, **ours)
        with Worker(SAE_LENS, "sae_training.py", threads) as worker:
            worker._call(
                "start", architecture=architecture, d_in=d_in, d_sae=d_sae, rows=rows, threads=threads, **theirs
            )

            def step(trainer=trainer) -> float:
                start = time.perf_counter()
                trainer.step(x)
                return 1e3 * (time.perf_counter() - start)

            mine, peer = take_turns(repeats, step, lambda w=worker: w._call("step")["ms"], pause=0.1)
        print(
            f"  {name:28} {rows / mine.median * 1e3:9,.0f} tokens/s  SAELens {rows / peer.median * 1e3:9,.0f}"
            f"  x{peer.median / mine.median:.1f}  {floor.median / mine.median:.0%} of the floor"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training_steps(options.threads, options.repeats)


if __name__ == "__main__":
    main()
