"""detect_head against TransformerLens's own, asked the same questions about the same tiny random models."""

import sys
from pathlib import Path

import head_probes
import pytest
import torch
from conftest import ROOT
from tiny import write_tiny_transformers

import introspect

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.client import Peer
from peers.environment import TRANSFORMER_LENS

FAMILIES = {
    "Llama": ("llama llama3 rope", {"num_key_value_heads": 6}),
    "Qwen2": ("qwen2", {}),
    "GPT-2": ("gpt2", {"n_ctx": 64}),
}
TOKENS = torch.randint(3, 9, (2, 11), generator=torch.Generator().manual_seed(0)).tolist()  # few, so that some repeat


@pytest.fixture(scope="module")
def peer():
    if TRANSFORMER_LENS.python() is None:
        pytest.skip("no environment of the peers: python tests/benchmarks/peers/environment.py makes it")
    with Peer() as worker:
        yield worker


@pytest.mark.parametrize("family", FAMILIES)
def test_every_score_is_theirs(family, peer, tmp_path):
    name, overrides = FAMILIES[family]
    folder = write_tiny_transformers(tmp_path / "tiny", name, **overrides)
    peer.load(folder)
    theirs = peer.run(Path(head_probes.__file__), "detections", tokens=TOKENS)
    ours = head_probes.detections(introspect.HookedTransformer.from_pretrained_no_processing(str(folder)), TOKENS)
    assert set(ours) == set(theirs) and len(theirs) > 70
    for question, expected in theirs.items():
        # "abs" is rounded to three digits: where a rounding falls on the other side, by one step.
        atol = 1.01e-3 if "'abs'" in question else 1e-4
        torch.testing.assert_close(ours[question], expected, rtol=0, atol=atol, msg=lambda m, q=question: f"{q}: {m}")
    measured = [q for q in theirs if "'abs'" in q]
    equal = [((ours[q] - theirs[q]).abs() < 1e-6).float().mean() for q in measured]
    assert torch.stack(equal).mean() > 0.98
