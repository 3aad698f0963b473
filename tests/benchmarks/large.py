"""A model of Qwen2.5-32B's shape with random Q4_K weights, larger than the memory left beside it: one experiment.

    python tests/benchmarks/large.py FOLDER [--blocks 64] [--concepts 2] [--nulls 10] [--questions 16] [--threads 2]
        [--dtype bfloat16] [--budget 2048] [--plan]

FOLDER: where the file goes (18.4 GB for 64 blocks); it stays there for the next time. Weights stay in their blocks and
blocks in the file. Tokenizer and chat template are those of Qwen2.5-Coder-0.5B. Prints the plan, the time, the floor
that the products' FLOPs set at the rate measured just before and just after, how often the file was read, and the most
memory that the process held. The rate is the mean of ten seconds: some processors do twice as much in a
burst.
"""

import argparse
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from measure import peak_bytes

import introspect
from introspect import ops

TOKENIZER = Path.home() / ".cache/introspect/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
D, MLP, HEADS, GROUPS, VOCABULARY = 5120, 27648, 40, 8, 151936
KV = D // HEADS * GROUPS
MATRICES = {
    "attn_q": (D, D), "attn_k": (KV, D), "attn_v": (KV, D), "attn_output": (D, D),
    "ffn_gate": (MLP, D), "ffn_up": (MLP, D), "ffn_down": (D, MLP),
}  # fmt: skip


def q4_k(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random blocks whose values have mean 0 and standard deviation columns^-1/2: uint8 [rows, bytes of a row].

    A block of 256: d and dmin in float16, eight 6-bit scales and minima (all 32 here), 128 bytes of 4-bit numbers.
    """
    d = columns**-0.5 / (32 * 21.25**0.5)  # numbers 0 to 15 have variance 21.25
    head = np.array([d, 7.5 * d], np.float16).tobytes() + bytes([160] * 8 + [0] * 4)
    blocks = rng.integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
    blocks[:, :, :16] = np.frombuffer(head, np.uint8)
    return blocks.reshape(rows, -1)


def write_model(path: Path, n_blocks: int) -> None:
    """The file, tensor by tensor; the text's part is copied from TOKENIZER."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path.with_suffix(".part"), "qwen2")
    for name, field in gguf.GGUFReader(TOKENIZER).fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_name("random-32b")
    writer.add_context_length(32768)
    writer.add_embedding_length(D)
    writer.add_block_count(n_blocks)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (VOCABULARY, D)), ("output_norm.weight", (D,))]
    tensors.append(("output.weight", (VOCABULARY, D)))
    for block in range(n_blocks):
        tensors += [(f"blk.{block}.{name}.weight", (D,)) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{block}.{name}.weight", sizes) for name, sizes in MATRICES.items()]
        tensors += [(f"blk.{block}.{name}.bias", (MATRICES[name][0],)) for name in ("attn_q", "attn_k", "attn_v")]
    for name, sizes in tensors:
        if len(sizes) == 1:
            writer.add_tensor_info(name, sizes, np.dtype(np.float32), 4 * sizes[0])
        else:
            stored = (sizes[0], sizes[1] // 256 * 144)
            kind = gguf.GGMLQuantizationType.Q4_K
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, sizes in tensors:
        if len(sizes) == 2:
            writer.write_tensor_data(q4_k(rng, *sizes))
        else:
            writer.write_tensor_data(np.full(sizes, float("norm" in name), np.float32))
    writer.close()
    path.with_suffix(".part").rename(path)


def vectors_of(model, n: int) -> dict[str, introspect.ControlVector]:
    """Random directions after every block."""
    rng = torch.Generator().manual_seed(0)
    layers = range(model.cfg.n_layers)
    return {
        f"concept{i}": introspect.ControlVector("qwen2", {layer: torch.randn(D, generator=rng) for layer in layers})
        for i in range(n)
    }


def lasting_rate(dtype: torch.dtype, seconds: float = 10) -> float:
    """FLOP/s of a product of an MLP's shape, by torch or by this library, whichever is quicker, over some seconds."""
    rows = 512
    x, weight = torch.randn(rows, D).to(dtype), torch.randn(MLP, D).to(dtype)
    best = 0.0
    for product in (lambda: torch.mm(x, weight.t()), lambda: ops.linear(x, weight)):
        product()
        n, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 2:
            product()
            n += 1
        best = max(best, 2 * n * rows * D * MLP / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--concepts", type=int, default=2)
    parser.add_argument("--nulls", type=int, default=10)
    parser.add_argument("--questions", type=int, default=16, help="control questions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--budget", type=int, default=2048, help="MiB of one pass")
    parser.add_argument("--plan", action="store_true", help="nothing but the plan")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    path = options.folder / f"random-32b-{options.blocks}.Q4_K.gguf"
    if not path.exists():
        start = time.perf_counter()
        write_model(path, options.blocks)
        print(f"wrote {path.stat().st_size / 1e9:.1f} GB in {time.perf_counter() - start:.0f} s")

    def load():
        return introspect.load_model(path, dtype=dtype, weights="as stored", keep_blocks=False)

    before = 0.0 if options.plan else lasting_rate(dtype)

    def experiment():
        start = time.perf_counter()
        model = load()
        loaded = time.perf_counter() - start
        arguments = {
            "vectors": vectors_of(model, options.concepts), "nulls": options.nulls, "strengths": [0.05],
            "layers": [(model.cfg.n_layers // 3, 2 * model.cfg.n_layers // 3)],
            "questions": [f"Is {i} an odd number?" for i in range(options.questions)],
            "memory_budget": options.budget << 20,
        }  # fmt: skip
        plan = introspect.run_experiment(model, "no_info", **arguments, plan=True)
        print(f"loaded in {loaded:.1f} s; {plan}", flush=True)
        if options.plan:
            return plan, 0.0, 0, 0.0
        read = model.native.n_block_reads
        start = time.perf_counter()
        result = introspect.run_experiment(model, "no_info", **arguments, progress=False)
        seconds = time.perf_counter() - start
        return plan, seconds, len(result.rows), (model.native.n_block_reads - read) / model.cfg.n_layers

    memory, (plan, seconds, n_rows, readings) = peak_bytes(experiment)
    if options.plan:
        return
    per_token_layer = 2 * sum(rows * columns for rows, columns in MATRICES.values())
    flops, after = plan.token_layers_to_run * per_token_layer, lasting_rate(dtype)
    floor = 2 * flops / (before + after)
    print(
        f"{options.blocks} blocks, {path.stat().st_size / 1e9:.1f} GB: {n_rows} rows in "
        f"{seconds:.0f} s (planned {plan.seconds:.0f}); products alone {floor:.0f} s at "
        f"{before / 1e9:.0f} GFLOP/s before and {after / 1e9:.0f} after, {seconds / floor:.2f} times; "
        f"its blocks read {readings:.1f} times, {memory / 1e9:.1f} GB in memory at most"
    )


if __name__ == "__main__":
    main()
