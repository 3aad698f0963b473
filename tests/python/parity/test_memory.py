"""What models take in memory, measured from outside: the highest resident size of a process of its own."""

import subprocess
import sys
import textwrap

GRAPH_OF_TWO = """
    import sys
    from pathlib import Path
    import torch
    import introspect

    def resident():  # MiB, the most since this program began
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resident()
    keep = sys.argv[2] == "keep"
    pair = [introspect.load_model(sys.argv[1], keep_blocks=keep) for _ in range(2)]
    graph = introspect.Graph()
    node = None
    for model in (*pair, *pair):
        node = graph.segment(model, list(range(100, 140)), node)
    graph.read(node)
    total = float(graph.run()[0].double().sum())
    print(total, resident() - before, sum(model.native.nbytes for model in pair) / 2**20)
"""


def run(path, how):
    script = textwrap.dedent(GRAPH_OF_TWO)
    out = subprocess.run([sys.executable, "-c", script, path, how], check=True, capture_output=True, text=True)
    return [float(word) for word in out.stdout.split()]


def test_models_of_a_graph_are_loaded_and_dropped_layer_by_layer(smollm2):
    total, kept, held = run(smollm2, "keep")
    same, left, outside = run(smollm2, "leave")
    assert same == total
    assert kept > held > 900  # two times 135M parameters in float32
    # Two embeddings of 108 MiB, a block at a time (14 MiB), the pass itself, and the pages of a file of 98 MiB.
    assert outside < 230
    assert left < kept / 2
