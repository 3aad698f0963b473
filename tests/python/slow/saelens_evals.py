"""SAELens's own figures, in its environment: python saelens_evals.py FOLDER ROWS.safetensors OUT.json."""

import json
import sys
from types import SimpleNamespace

from sae_lens import SAE
from sae_lens.evals import get_sparsity_and_variance_metrics
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file

folder, rows, out = sys.argv[1:]
sae = SAE.load_from_disk(folder)
given = load_file(rows)
hook = sae.cfg.metadata.hook_name
model = SimpleNamespace(run_with_cache=lambda *_, **__: (None, {hook: given["x"]}))
store = SimpleNamespace(get_batch_tokens=lambda _: given["tokens"])
scalars, features = get_sparsity_and_variance_metrics(
    sae,
    model,
    store,
    ActivationScaler(),
    n_batches=1,
    compute_l2_norms=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
    compute_featurewise_density_statistics=True,
    eval_batch_size_prompts=len(given["tokens"]),
    model_kwargs={},
    ignore_tokens=[5],
)
with open(out, "w") as file:
    json.dump({**scalars, "feature_density": features["feature_density"]}, file)
