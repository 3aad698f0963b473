"""The cells of tests/data/transformer_lens_demo, written for TransformerLens 2, run with the import line changed.

tests/python/slow compares what they compute with TransformerLens itself; here it is compared with what must be true.
"""

import runpy

import torch
from conftest import ROOT


def test_a_notebook_for_transformer_lens_runs_and_its_results_agree_with_each_other(smollm2, monkeypatch):
    monkeypatch.setenv("DEMO_MODEL", str(smollm2))
    cells = runpy.run_path(str(ROOT / "tests" / "data" / "transformer_lens_demo" / "demo.py"))
    results, model, clean = cells["results"], cells["model"], cells["clean"]
    clean_diff, corrupted_diff = results["logit_diff"]
    assert clean_diff > 0 > corrupted_diff  # the model moves the right name in both prompts

    torch.testing.assert_close(results["loss_per_token"].mean().item(), results["loss"])
    assert results["ablation"][1] > results["ablation"][0] + 0.1  # without its induction head it repeats less well
    assert results["induction_score"].max() > 0.5

    # A patch at the changed token of what enters block 0 makes the prompt the clean one; at the first tokens, nothing.
    patching, changed = results["patching"], cells["changed"]
    torch.testing.assert_close(patching[0, changed], torch.tensor(1.0), rtol=0, atol=1e-4)
    assert not patching[:, :changed].abs().max() > 1e-4

    # The gradient's first order: exact in sign where the patch is strong.
    estimated = results["attribution_resid"][list(cells["layers"])]
    strong = patching.abs() > 0.3
    assert strong.sum() >= 4
    assert (estimated[strong].sign() == patching[strong].sign()).float().mean() > 0.8

    with torch.no_grad():
        logits = model(clean)
    torch.testing.assert_close(results["logit_lens"][-1, 0], clean_diff, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(results["continued"], logits[0, -1], rtol=0, atol=1e-3)
    torch.testing.assert_close(results["OV_norms"], torch.linalg.matrix_norm(model.OV[:2].AB), rtol=1e-4, atol=1e-4)
    assert results["completion"].startswith(model.to_string(clean[0, 1:]))
