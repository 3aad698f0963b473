"""A real training: TopK and JumpReLU dictionaries of SmolLM2's middle layer, from text to a steered sentence.

    python tests/benchmarks/corpus.py corpus
    python tests/benchmarks/dictionary.py write corpus work --rows 400000
    python tests/benchmarks/dictionary.py train corpus work --tokens 1200000 --kill-at 150   # ends by kill -9
    python tests/benchmarks/dictionary.py train corpus work --tokens 1200000                 # goes on
    python tests/benchmarks/dictionary.py judge corpus work
    python tests/benchmarks/dictionary.py show corpus work

Every step goes on where it was broken off. ``train`` keeps the losses of every step in work/steps.jsonl, those of steps
that ran twice too, and says at its end whether they were the same. ``judge`` reads the last documents of the corpus,
which no training saw.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path

import torch

import introspect
from introspect.sae import ActivationFile, evaluate, feature_statistics, steer_with_sae, train_many, write_activations

HOOK = "blocks.15.hook_resid_post"
WANTED = {
    "topk": {"hook": HOOK, "d_sae": 4608, "k": 32},
    "jumprelu": {"hook": HOOK, "d_sae": 4608, "k": 32, "architecture": "jumprelu"},
}
HELD_OUT = 60  # documents
JUDGED = 24  # of these
CHARACTERS = 1000  # of each


def write(args: argparse.Namespace) -> None:
    model = introspect.load_model(args.model, dtype=args.dtype)
    start = time.perf_counter()
    rows = write_activations(
        model,
        args.corpus / "corpus.jsonl",
        args.work / "activations",
        hooks=HOOK,
        tokens=args.rows,
        resume=(args.work / "activations").exists(),
        progress=lambda what, done, total: print(f"{what} {done:,} / {total:,}", flush=True),
    )
    print(f"{rows.rows:,} rows in {time.perf_counter() - start:.0f} s")


def train(args: argparse.Namespace) -> None:
    rows = ActivationFile.open(args.work / "activations", verify=False)
    steps = args.work / "steps.jsonl"
    start = time.perf_counter()

    def note(record: introspect.sae.training.TrainingRecord) -> None:
        losses = [one.loss for one in record.trained]
        with steps.open("a") as out:
            out.write(json.dumps({"pid": os.getpid(), "step": record.step, "losses": losses}) + "\n")
        if record.held_out:
            figures = "  ".join(
                f"{name} explained variance {one['explained_variance']:.4f} L0 {one['l0']:.1f} "
                f"dead {one['dead_share']:.3f}"
                for name, one in zip(WANTED, record.held_out, strict=True)
            )
            print(
                f"step {record.step}, {record.rows:,} tokens, {time.perf_counter() - start:.0f} s: {figures}",
                flush=True,
            )
        if record.step == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trained = train_many(
        None,
        rows,
        list(WANTED.values()),
        training_tokens=args.tokens,
        train_batch_size_tokens=args.batch,
        held_out_tokens=4096,
        evaluate_every=max(1, args.tokens // args.batch // 10),
        record_every=1,
        checkpoint_path=args.work / "checkpoint",
        resume=True,
        on_record=note,
        progress=False,
    )
    for name, one in zip(WANTED, trained.dictionaries, strict=True):
        one.save(args.work / name)
    seen: dict[int, list[float]] = {}
    twice = same = 0
    for line in steps.read_text().splitlines():
        row = json.loads(line)
        if row["step"] in seen:
            twice += 1
            same += seen[row["step"]] == row["losses"]
        seen[row["step"]] = row["losses"]
    print(f"{twice} steps ran twice, {same} of them with the same losses to the last bit")


def texts_of(args: argparse.Namespace) -> list[str]:
    with (args.corpus / "corpus.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["text"][:CHARACTERS] for line in file][-HELD_OUT:]


def dictionaries(args: argparse.Namespace) -> dict[str, introspect.SAE]:
    """The trained ones; random directions around the mean of the activations; the mean alone."""
    found = {name: introspect.SAE.from_pretrained(str(args.work / name)) for name in WANTED}
    trained = found["topk"]
    rows = ActivationFile.open(args.work / "activations", verify=False)
    mean = rows.read(0, 0, min(rows.rows, 65536)).double().mean(0).float()
    d_sae, d = trained.d_sae, trained.d_in
    W = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=torch.Generator().manual_seed(0)), dim=1)
    same = {"architecture": "topk", "k": 32, "b_dec": mean, "hook_name": HOOK, "model_name": trained.origin.model_name}
    found["random directions"] = introspect.SAE(W.T.contiguous(), W, **same)
    found["mean"] = introspect.SAE(torch.zeros(d, d_sae), W, **same)
    return found


def judge(args: argparse.Namespace) -> None:
    model = introspect.load_model(args.model)
    texts = texts_of(args)[:JUDGED]
    print(f"{len(texts)} documents; sources and licences: {args.corpus / 'SOURCES.md'}")
    columns = ["dictionary", "explained variance", "L0", "dead", "CE", "spliced", "zero"]
    columns += ["CE recovered", "of the mean's", "KL recovered"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    found = {
        name: evaluate(model, one, texts, context_size=128, progress=False) for name, one in dictionaries(args).items()
    }
    floor = found["mean"].splice.ce_spliced
    for name, one in found.items():
        r, s = one.reconstruction, one.splice
        numbers = [r.explained_variance, r.l0, r.dead_share, s.ce, s.ce_spliced, s.ce_zero, s.ce_score]
        numbers += [(floor - s.ce_spliced) / (floor - s.ce), s.kl_score]
        print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |", flush=True)
    print(f"({found['topk'].reconstruction.rows:,} tokens)")


def show(args: argparse.Namespace) -> None:
    model = introspect.load_model(args.model)
    sae = introspect.SAE.from_pretrained(str(args.work / args.which))
    features = feature_statistics(model, sae, texts_of(args), context_size=128, progress=False)
    print(features)
    table = features.to_pandas()
    chosen = args.feature or table[table["count"].between(30, 400)].sort_values("max_active").feature.tail(12).tolist()
    for feature in chosen:
        card = features.card(int(feature), top=6)
        print(
            f"\nfeature {feature}: {card['frequency']:.2%} of the tokens, at most {card['max_active']:.1f}, raises",
            [one["token"] for one in card["top_logits"][:6]],
        )
        for one in card["groups"][0]["contexts"][:4]:
            tokens, at = [token.replace("\n", " ") for token in one["tokens"]], one["position"]
            print(f"  ..{''.join(tokens[max(0, at - 10) : at])}<<{tokens[at]}>>{''.join(tokens[at + 1 : at + 6])}")
    if args.strength:
        for strength in (0.0, *args.strength):
            options = {"max_new_tokens": 40, "temperature": 0.0}
            text = (
                steer_with_sae(model, sae, int(chosen[0]), strength, args.prompt, **options)
                if strength
                else model.generate(args.prompt, **options)
            )
            print(f"\nfeature {chosen[0]} + {strength}: {args.prompt}{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["write", "train", "judge", "show"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16", help="of the model that writes rows, which are bfloat16")
    parser.add_argument("--rows", type=int, default=400_000, help="of activations, from the corpus's beginning")
    parser.add_argument("--tokens", type=int, default=1_200_000, help="of the training, over and over the rows")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--kill-at", type=int, help="the step after which the training kills itself")
    parser.add_argument("--which", default="topk", choices=list(WANTED), help="whose features are shown")
    parser.add_argument("--feature", type=int, nargs="*")
    parser.add_argument("--strength", type=float, nargs="*", help="steer with the first feature")
    parser.add_argument("--prompt", default="The weather in the city was")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"write": write, "train": train, "judge": judge, "show": show}[args.step](args)


if __name__ == "__main__":
    main()
