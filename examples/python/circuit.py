"""From a scan to a circuit: patch the residual stream, find the heads that carry the answer, and keep only their edges.

python examples/python/circuit.py [--model NAME]
"""

import argparse

import introspect
from introspect.analysis import patch_grid, path_patching
from introspect.circuits import edge_attribution, faithfulness

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2-135m-instruct")
args = parser.parse_args()

model = introspect.load_model(args.model)
pairs = [("Mary", "John"), ("Tom", "James"), ("Paul", "Mark"), ("Anna", "Laura")]
text = "When {} and {} went to the store, {} gave a drink to"
clean = [text.format(a, b, b) for a, b in pairs]
corrupted = [text.format(a, b, a) for a, b in pairs]
metric = introspect.LogitDifference([f" {a}" for a, _ in pairs], [f" {b}" for _, b in pairs])

# Where: each layer and position of the residual stream, put from the clean into the corrupted run.
scan = patch_grid(model, clean, corrupted, ["resid_pre"], metric=metric)
print(f"logit difference: clean {scan.clean.mean():+.2f}, corrupted {scan.corrupted.mean():+.2f}")
print(scan.to_pandas().sort_values("normalised", ascending=False).head(8).to_string(index=False))

# Who: the heads that tell the logits directly.
heads = path_patching(model, clean, corrupted, metric)
print("\nheads with the largest direct effect on the logits")
print(heads.top(6).to_string(index=False))

# How: every edge's score, and how much of the answer the best ones carry when all others are corrupted.
scored = edge_attribution(model, clean, corrupted, metric, method="eap-ig")
curve = faithfulness(model, scored, clean, corrupted, metric, shares=[0.01, 0.05, 0.2, 1.0])
print("\nshare of the edges kept, share of the clean run's difference that is left")
print(curve.to_pandas().to_string(index=False))
