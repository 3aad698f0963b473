"""Real checkpoints with weights as stored: the dense dequantised model's logits, and the file's memory."""

import subprocess
import sys
import textwrap

import pytest
import torch

import introspect

# Of loading and a pass: what a process has over its own memory before. The tokenizer and what torch sets up are a
# constant, so that it is asked of a larger file.
MEMORY = """
    import os, sys
    from pathlib import Path
    import torch, introspect

    def resident(key):
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resident("VmRSS:")
    model = introspect.load_model(sys.argv[1], weights="as stored")
    with torch.no_grad():
        model.native.forward(torch.arange(100, 132)[None], logits_at="last")
    size = os.path.getsize(sys.argv[1])
    print((resident("VmHWM:") - before) / size, model.native.nbytes / size)
"""


@pytest.mark.parametrize("checkpoint", ["smollm2", "qwen05", "gemma3"])
def test_logits_are_the_dense_model_s(request, checkpoint):
    path = request.getfixturevalue(checkpoint)
    ids = torch.tensor([[(37 * i) % 30000 + 10 for i in range(24)]])
    logits = []
    with torch.no_grad():
        for weights in ("dense", "as stored"):
            model = introspect.load_model(path, weights=weights)
            cache = model.native.make_cache(1)
            parts = [model(part, cache=cache) for part in ids.split([20, 1, 1, 2], dim=1)]  # prefill, then decoding
            logits.append(torch.cat(parts, 1))
    assert (logits[1] - logits[0]).abs().max() < 1e-3
    assert torch.equal(logits[1].argmax(-1), logits[0].argmax(-1))


def test_memory_is_the_file_s(qwen05):
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), qwen05], check=True, capture_output=True, text=True
    )
    peak, held = map(float, out.stdout.split())
    assert held < 1.01
    assert peak < 1.15
