"""Train a control vector for a concept, steer generation with it and save it where repeng and llama.cpp can read it.

python examples/python/steer.py [--model NAME] [--concept cat] [--strength 8]
"""

import argparse
from pathlib import Path

import introspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
parser.add_argument("--concept", default="cat")
parser.add_argument("--strength", type=float, default=1.5)
parser.add_argument("--suffixes", type=int, default=100, help="pairs to train the vector on")
parser.add_argument("-o", "--output", type=Path, help="write the vector to this .gguf file")
args = parser.parse_args()

model = introspect.load_model(args.model, dtype="bfloat16")
pairs = introspect.concept_pairs(model, args.concept, introspect.load_suffixes()[: args.suffixes])
vector = introspect.ControlVector.train(model, pairs)

prompt = model.apply_chat_template(
    [{"role": "user", "content": "What are you thinking about right now?"}], add_generation_prompt=True
)
layers = (model.cfg.n_layers // 3, 2 * model.cfg.n_layers // 3)
print("plain:  ", model.generate(prompt, max_new_tokens=40))
with model.steer(args.strength * vector, layers=layers):
    print("steered:", model.generate(prompt, max_new_tokens=40))
if args.output:
    vector.export_gguf(args.output)
    print(f"wrote {args.output}")
