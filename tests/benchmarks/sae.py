"""Dictionaries against SAELens, both sides in one run.

    python tests/benchmarks/sae.py [encoding] [training_steps] [activations] [--threads 2] [--repeats 5]

"encoding": features of rows and whole passes of a TopK dictionary: milliseconds, the ratio, and the share of the floor.

"training step": one update of a dictionary on a batch of rows, forward to Adam: tokens a second, the ratio, and the
share of the floor, which is the time of the encoder's matrix product alone. Rows, widths and options are the same, and
so are losses (tests/python/slow/test_saelens_training.py); SAELens runs with sparse activations too, where it has them.

"activations": rows of the middle block of a random model of SmolLM2-135M's shape as it reads contexts of 128 tokens,
and the same with the training of a TopK dictionary of 4,608 features: tokens a second, the ratio to ActivationsStore.
"""

import argparse
import tempfile
import time

import torch
from measure import matrix_products, take_turns, timed
from peers.environment import SAE_LENS
from peers.process import Worker
from peers.sae_client import SAELens
from transformers import LlamaConfig, LlamaForCausalLM

import introspect
from introspect import SAE
from introspect.sae.streams import ActivationStream, TokenStream
from introspect.sae.trainer import Trainer


def encoding(threads: int, repeats: int) -> None:
    rows, d_in, d_sae, k = 4096, 576, 4608, 32
    rng = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=rng), dim=1)
    weights = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": 0.01 * torch.randn(d_sae), "b_dec": torch.zeros(d_in)}
    sae, x = SAE(**weights, architecture="topk", k=k), torch.randn(rows, d_in, generator=rng)
    with SAELens({"architecture": "topk", "k": k, "d_in": d_in, "d_sae": d_sae}, weights, threads) as peer:
        peer.rows(x)
        agreement = compared(sae.encode(x), peer.encode())
        floor, sparse, dense, whole, their_encode, their_forward = take_turns(
            repeats,
            *matrix_products([torch.zeros(d_sae, d_in)], rows)[:1],
            timed(lambda: sae.encode_sparse(x)),
            timed(lambda: sae.encode(x)),
            timed(lambda: sae(x)),
            lambda: peer.milliseconds("encode"),
            lambda: peer.milliseconds("forward"),
            pause=0.1,
        )
    print(f"encoding: {rows} rows, d_in {d_in}, d_sae {d_sae}, k {k}; the encoder's product alone {floor.best:.0f} ms")
    for name, mine, theirs in (
        ("encode, indices and values", sparse, their_encode),
        ("encode, [N, d_sae]", dense, their_encode),
        ("forward", whole, their_forward),
    ):
        print(
            f"  {name:28} {mine.best:6.0f} ms  SAELens {theirs.best:6.0f} ms  x{theirs.best / mine.best:.1f}"
            f"  {floor.best / mine.best:.0%} of the floor"
        )
    print(f"  {agreement}")


def compared(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """How far values are apart, and choices: of two p that are equal but for rounding either may be the k-th."""
    mine, other = ours != 0, theirs != 0
    values = (ours - theirs).abs()[mine & other].max().item()
    swapped = (mine != other).any(1)
    said = f"features that both chose agree within {values:.1e}"
    if not swapped.any():
        return said + "; all choices are the same"
    apart = (ours * (mine & ~other) - theirs * (other & ~mine)).sum(1)[swapped].abs().max().item()
    rows = f"{int(swapped.sum())} of {len(ours)} rows"
    return f"{said}; in {rows} the last chosen is another, whose value differs by {apart:.1e}"


def training_steps(threads: int, repeats: int) -> None:
    rows, d_in, d_sae = 4096, 576, 4608
    cases = {
        "topk k=32": ("topk", {"k": 32, "use_sparse_activations": False}, {"k": 32}),
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


def activations(threads: int, repeats: int) -> None:
    rows, context, d_in, hook = 2048, 128, 576, "blocks.15.hook_resid_post"
    config = LlamaConfig(
        vocab_size=49152, hidden_size=d_in, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rope_theta=100000.0,
    )  # fmt: skip
    tokens = torch.randint(3, 49152, (512, context), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        model = introspect.load_model(folder)
        stream = TokenStream.of_tokens(tokens, context=context, packed=True, repeat=True)
        mine = ActivationStream.of_model(
            [model.native], stream, [(hook, 0)], batch_rows=rows, buffer_rows=rows, mixing=0.0
        )
        trainer = Trainer(d_in, objective="topk", d_sae=8 * d_in, k=32)

        def batch() -> None:
            mine.next_batch()

        def trained() -> None:
            trainer.step(mine.next_batch()[0])

        with Worker(SAE_LENS, "sae_activations.py", threads) as worker:
            worker._call("start", folder=folder, hook=hook, tokens=tokens, rows=rows, threads=threads)
            ours, end_to_end, theirs = take_turns(
                repeats, timed(batch), timed(trained), lambda: worker._call("batch"), pause=0.1
            )
    print(f"activations: {hook}, contexts of {context}, {rows} rows a batch")
    print(
        f"  {'from text':28} {rows / ours.median * 1e3:9,.0f} tokens/s  SAELens {rows / theirs.median * 1e3:9,.0f}"
        f"  x{theirs.median / ours.median:.1f}"
    )
    print(f"  {'with a TopK step':28} {rows / end_to_end.median * 1e3:9,.0f} tokens/s")


PARTS = {"encoding": encoding, "training_steps": training_steps, "activations": activations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    for name in options.parts or PARTS:
        PARTS[name](options.threads, options.repeats)


if __name__ == "__main__":
    main()
