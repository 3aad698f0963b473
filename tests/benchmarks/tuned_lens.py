"""A tuned lens trained on the texts at hand: what it gains over the logit lens on others, and how fast it trains.

    python tests/benchmarks/tuned_lens.py smollm2-135m-instruct --steps 8 --save lens

Texts are StrongREJECT's prompts, true facts, beginnings of answers, and what the model itself writes. The floor counts
a multiplication and an addition as two operations: an unembedding forward and back and a translator forward and back
(its weights' gradient alone) for every token and layer, and the model's own pass.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from pathlib import Path

import torch

import introspect
from introspect.analysis import TunedLens, trajectory

SHARED = Path(os.environ.get("INTROSPECT_SHARED") or Path(__file__).resolve().parents[3] / "shared")


def texts_at_hand(model: introspect.Model, n_own: int) -> list[str]:
    data = SHARED / "data"
    with open(data / "strongreject" / "strongreject.csv") as file:
        texts = [row["forbidden_prompt"] for row in csv.DictReader(file)]
    facts = json.loads((data / "repeng" / "true_facts.json").read_text())
    starts = json.loads((data / "repeng" / "all_truncated_outputs.json").read_text())
    random.Random(0).shuffle(texts)
    texts = texts[:120] + facts[:150] + starts[::4]
    chats = [[{"role": "user", "content": text}] for text in random.Random(1).sample(facts + texts, n_own)]
    prompts = [model.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    answers = model.generate(prompts, max_new_tokens=64, temperature=1.0) if prompts else []
    texts += [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    random.Random(2).shuffle(texts)
    return [text for text in texts if text.strip()]


def floor(model: introspect.Model) -> tuple[float, float]:
    """Operations a token of training takes: of the lens, and of the model's own pass and its unembedding."""
    cfg = model.cfg
    head, square = 2 * cfg.d_model * cfg.d_vocab, 2 * cfg.d_model**2
    blocks = sum(w.numel() for name, w in model.native.named_weights() if name.startswith("blocks.") and w.dim() == 2)
    return cfg.n_layers * (2 * head + 2 * square), 2.0 * blocks + head


def gflops() -> float:
    """Of a large float32 product of torch's, here and now."""
    a, b = torch.randn(512, 576), torch.randn(576, 49152)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 512 * 576 * 49152 / min(times) / 1e9


def mean_kl(model: introspect.Model, texts: list[str], lens=None) -> torch.Tensor:
    """Mean over the tokens of all texts of KL(model || lens), [layers], the model's own row last."""
    parts = [trajectory(model, text, lens=lens, top_k=0, progress=False).measures["forward_kl"] for text in texts]
    return torch.cat(parts, 1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens-per-step", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--ridge", type=float, default=0.01)
    parser.add_argument("--own", type=int, default=40, help="texts that the model writes itself")
    parser.add_argument("--held-out", type=int, default=25)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    model = introspect.load_model(asked.model)
    texts = texts_at_hand(model, asked.own)
    held_out, train = texts[: asked.held_out], texts[asked.held_out :]
    n_tokens = sum(len(model.tokenizer.encode(text)) for text in train)
    print(f"{len(train)} texts of {n_tokens} tokens to train on, {len(held_out)} held out", flush=True)

    start = time.perf_counter()
    regression = TunedLens.regression(model, train, ridge=asked.ridge, progress=False)
    print(f"regression: {n_tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)
    if asked.save:
        regression.save(f"{asked.save}-regression")

    start = time.perf_counter()
    lens = TunedLens.train(
        model, train, steps=asked.steps, tokens_per_step=asked.tokens_per_step, lr=asked.lr, optimizer=asked.optimizer,
        start=regression, on_step=lambda step, kl: print(f"  step {step}: mean KL {kl.mean():.4f}", flush=True),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    of_lens, of_model = floor(model)
    rate, peak = lens.notes["tokens"] / seconds, gflops()
    did = rate * (of_lens + of_model) / 1e9
    print(f"training: {rate:.1f} tokens/s, {(of_lens + of_model) / 1e9:.2f} GFLOP a token: {did:.0f} GFLOP/s")
    print(f"torch's own product, here and now: {peak:.0f} GFLOP/s, so {did / peak:.0%} of the floor", flush=True)
    if asked.save:
        lens.save(asked.save)

    rows = {"logit": mean_kl(model, held_out), "regression": mean_kl(model, held_out, regression)}
    rows["tuned"] = mean_kl(model, held_out, lens)
    print("held-out KL to the model (nats)\nblock " + " ".join(f"{name:>10}" for name in rows))
    for layer in range(model.cfg.n_layers):
        print(f"{layer - 1:5d} " + " ".join(f"{float(kl[layer]):10.3f}" for kl in rows.values()))
    lower = sum(bool(rows["tuned"][i] < rows["logit"][i]) for i in range(model.cfg.n_layers))
    print(f"the tuned lens is closer than the logit lens at {lower} of {model.cfg.n_layers} layers")


if __name__ == "__main__":
    main()
