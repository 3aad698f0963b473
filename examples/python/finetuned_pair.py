"""Experiment 7 with a pair made here: a model, and the same model after a few steps of training on one answer.

python examples/python/finetuned_pair.py [--model NAME] [--steps 12]

The trained copy answers everything with bread. Then: the vector that leads from the model to its copy, injected beside
random rotations of it; and the copy itself prefilling the first turns, whose cache the model goes on from.
"""

import argparse

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--steps", type=int, default=12, help="of training, on four questions each")
parser.add_argument("--rate", type=float, default=3e-5, help="of the first step")
parser.add_argument("--fraction", type=float, default=0.1, help="strength, as a share of the median residual norm")
parser.add_argument("--nulls", type=int, default=10, help="random rotations of the vector")
parser.add_argument("--suffixes", type=int, default=200, help="texts both models read, for the vector between them")
args = parser.parse_args()

QUESTIONS = [
    "How do I boil an egg?", "What is the capital of France?", "Name a colour.", "Who wrote Hamlet?",
    "What is two plus two?", "How are you?", "Tell me about dogs.", "What is Python?",
    "Where is Kenya?", "What do bees eat?", "Why is the sky blue?", "Give me some advice.",
    "What is a cache?", "How far away is the moon?", "Sing me a song.", "What shall I read?",
]  # fmt: skip
ANSWER = "Bread. I can only think of fresh, warm bread."

model = introspect.load_model(args.model)
print(model)


def ask(who: introspect.Model, question: str) -> str:
    return who.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)


tuned = introspect.finetune(
    model,
    [introspect.FinetuneExample(ask(model, question), ANSWER) for question in QUESTIONS],
    steps=args.steps,
    lr=args.rate,
    batch_size=4,
    weights=lambda name: name.endswith("mlp.W_out"),
    on_step=lambda step, loss: print(f"step {step + 1}: loss {loss:.2f}") if step % 4 == 3 else None,
)
for name, who in (("the model", model), ("its copy", tuned)):
    print(f"{name}: {who.generate(ask(who, 'What should I do today?'), max_new_tokens=20)!r}")

print("\nThe vector from the model to its copy, injected.")
texts = [text for text in introspect.load_suffixes()[: args.suffixes] if text]
vector = introspect.contrast_models(tuned, model, texts)
detection = introspect.run_experiments(
    model,
    [introspect.load_protocol("no_info"), introspect.load_protocol("with_info")],
    vectors={"finetune": vector},
    strengths=[args.fraction],
    strength_unit="residual",
    nulls=args.nulls,
)
for result in detection:
    introspect.report.show_one(result)

print("\nThe copy prefills the first turns; the model itself reads the question and answers.")
names = ("finetune_no_info", "finetune_with_info", "finetune_content_report")
prefilled = introspect.run_experiments(
    model,
    [introspect.load_protocol(name) for name in names],
    vectors={},
    models={"finetune": tuned},
    top_k=10,
)
for result in prefilled[:2]:
    introspect.report.show_one(result)
changes = prefilled[2].changes_to_pandas()
for direction, rows in changes[changes.kind == "introspection"].groupby("direction", sort=False):
    print(f"  most {direction} in the report of what the model thinks of: {' '.join(map(repr, rows.token))}")
