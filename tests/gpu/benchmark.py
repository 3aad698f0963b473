"""Passes, hooks and generation on a device against transformers on the same random weights: tests/gpu/run.sh runs this.

    python tests/gpu/benchmark.py --device cuda:0 [--quick]

A model of Qwen2.5-0.5B's shape in bfloat16. Each figure is the best of several, the two sides taking turns, each
waiting for the device at its end; the ratio is theirs / ours. The rates that the device reaches are measured too.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from measure import take_turns, timed

import introspect

SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
QUICK = {**SHAPE, "hidden_size": 112, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 1000}


class Bench:
    """Two models of the same weights on one device."""

    def __init__(self, device: torch.device, quick: bool):
        self.device, self.repeats = device, 2 if quick else 10
        self.dtype = torch.bfloat16
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**(QUICK if quick else SHAPE))
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation="sdpa")
        self.theirs = theirs.eval().to(device)
        self.ours = introspect.load_model(self.theirs, dtype=self.dtype, device=device)
        self.n_layers, self.vocab = config.num_hidden_layers, config.vocab_size
        # a token is multiplied once with every weight but the embedding's, of which the unembedding is the transpose
        self.flops_per_token = 2 * (self.ours.native.n_params - self.vocab * config.hidden_size)

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def side(self, call: Callable[[], object]) -> Callable[[], float]:
        def whole() -> object:
            result = call()
            self.wait()
            return result

        return timed(whole)

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        made = torch.randint(3, self.vocab, (batch, length), generator=torch.Generator().manual_seed(0))
        return made.to(self.device)

    def compare(self, what: str, unit: str, n: float, ours: Callable, theirs: Callable) -> float:
        mine, other = take_turns(self.repeats, self.side(ours), self.side(theirs))
        print(
            f"{what:34}{mine.best:10.2f} ms{other.best:10.2f} ms{1e3 * n / mine.best:12,.0f} {unit}/s"
            f"{other.best / mine.best:8.2f}",
            flush=True,
        )
        return 1e-3 * mine.best


def rates(bench: Bench, n: int) -> tuple[float, float]:
    """Products of bfloat16 in TFLOP/s and copies in GB/s, read and written, that this device reaches."""
    a = torch.randn(n, n, device=bench.device).to(bench.dtype)
    big = torch.empty(64 * n * n, dtype=torch.uint8, device=bench.device)
    to = torch.empty_like(big)
    product, copy = take_turns(bench.repeats, bench.side(lambda: a @ a), bench.side(lambda: to.copy_(big)))
    return 2e-9 * n**3 / product.best, 2e-6 * big.numel() / copy.best


def passes(bench: Bench, tflops: float, quick: bool) -> None:
    for shape in [(1, 16), (2, 32)] if quick else [(1, 128), (1, 1024), (8, 512), (32, 256)]:
        tokens = bench.tokens(*shape)
        n = tokens.numel()
        seconds = bench.compare(
            f"pass {shape[0]}x{shape[1]}, last logits", "tokens", n,
            lambda tokens=tokens: bench.ours(tokens, logits_at="last"),
            lambda tokens=tokens: bench.theirs(tokens, use_cache=False, logits_to_keep=1),
        )  # fmt: skip
        print(f"{'':34}{100 * bench.flops_per_token * n / seconds / 1e12 / tflops:9.0f}% of the products' rate")
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(bench.n_layers)]
    bench.compare(
        "the same with every residual kept", "tokens", n,
        lambda: bench.ours.run_with_cache(tokens, names_filter=names, logits_at="last"),
        lambda: bench.theirs(tokens, use_cache=False, logits_to_keep=1, output_hidden_states=True),
    )  # fmt: skip
    direction = torch.randn(bench.ours.cfg.d_model)
    vector = introspect.ControlVector("qwen2", dict.fromkeys(range(1, bench.n_layers), direction))
    added = direction.to(bench.device, bench.dtype)
    blocks = bench.theirs.model.layers[1:]

    def steered_theirs() -> object:
        handles = [
            block.register_forward_hook(
                lambda module, args, out: (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added
            )
            for block in blocks
        ]
        try:
            return bench.theirs(tokens, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()

    with bench.ours.steer(vector, strength=1.0):
        bench.compare(
            "the same, steered in every layer", "tokens", n,
            lambda: bench.ours(tokens, logits_at="last"), steered_theirs,
        )  # fmt: skip


def steps(bench: Bench, rows: list[list[int]], new: int) -> None:
    """A token by a pass and by a static step, which a device may replay; near ties of bfloat16 part the two texts."""
    found: dict[str, list[list[int]]] = {}

    def by(step: str) -> None:
        found[step] = bench.ours.native.generate(rows, max_new_tokens=new, stop_at_eos=False, step=step)

    passes, static = take_turns(bench.repeats, bench.side(lambda: by("plain")), bench.side(lambda: by("static")))
    pairs = [zip(*both, strict=True) for both in zip(found["plain"], found["static"], strict=True)]
    alike = min(next((i for i, (a, b) in enumerate(pair) if a != b), new) for pair in pairs)
    how = "replayed" if introspect._C.replays_steps(bench.device) else "not replayed"
    print(
        f"{'':34}a token {passes.best / new:.2f} ms by passes, {static.best / new:.2f} ms by a static step, {how}; "
        f"the first {alike} tokens are alike"
    )


def generation(bench: Bench, gigabytes: float, quick: bool) -> None:
    new = 4 if quick else 64
    for batch in (1, 4) if quick else (1, 16):
        prompts = bench.tokens(batch, 32)
        rows = prompts.tolist()
        seconds = bench.compare(
            f"greedy text, {batch} x {new} tokens", "tokens", batch * new,
            lambda rows=rows: bench.ours.native.generate(rows, max_new_tokens=new, stop_at_eos=False),
            lambda prompts=prompts: bench.theirs.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0,
            ),
        )  # fmt: skip
        floor = bench.ours.native.nbytes * new / gigabytes / 1e9
        print(f"{'':34}{100 * floor / seconds:9.0f}% of the memory's rate for the weights")
        steps(bench, rows, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, type=torch.device)
    parser.add_argument("--quick", action="store_true", help="a small model and few repeats, to see that it runs")
    args = parser.parse_args()
    with torch.inference_mode(False), torch.no_grad():
        bench = Bench(args.device, args.quick)
        tflops, gigabytes = rates(bench, 128 if args.quick else 8192)
        print(f"{args.device}: bfloat16 products {tflops:,.3g} TFLOP/s, copies {gigabytes:,.3g} GB/s")
        print(f"{'':34}{'introspect':>13}{'transformers':>13}{'':>20}{'ratio':>8}")
        passes(bench, tflops, args.quick)
        generation(bench, gigabytes, args.quick)


if __name__ == "__main__":
    main()
