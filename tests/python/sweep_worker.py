"""Sweeps in processes that may be killed: forked from this one, which has torch loaded and has computed nothing.

Reads one JSON object a line from standard input: the model's folder, the store, a file for the result and one for the
progress. Answers with the id of the child, and with its wait status when it has ended.
"""

import json
import os
import sys
import traceback

import torch

import introspect

MEMORY = 1 << 20  # bytes of a pass: few readings at once, so that many are committed one after another


def arguments():
    """What every sweep here runs: 1,350 readings and three without steering."""
    rng = torch.Generator().manual_seed(5)
    vectors = {
        name: introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in range(1, 6)})
        for name in ("cat", "bread")
    }
    turns = [
        {"role": "user", "content": "A thought."},
        {"role": "assistant", "content": "{ }"},
        {"role": "user", "content": "$QUESTION"},
        {"role": "assistant", "content": "The answer is"},
    ]
    own = [*turns[:2], {"role": "user", "content": "Noticed it?"}, turns[3]]
    controls = {"turns": turns, "injected": [0, 1], "questions": ["Is ice hot?", "Are you a bird?"]}
    protocol = {"name": "mine", "turns": own, "injected": [0, 1], "controls": controls}
    return introspect.Protocol.parse(json.dumps(protocol)), {
        "vectors": vectors,
        "strengths": [1.0, 2.0, 4.0],
        "layers": introspect.layer_ranges(1, 5),
        "nulls": 4,
        "memory_budget": MEMORY,
    }


def sweep(model, store, result, log):
    protocol, options = arguments()
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    introspect.run_experiment(
        introspect.load_model(model, dtype=torch.float64),
        protocol,
        **options,
        store=store,
        progress=lambda what, done, total: os.write(lines, f"{done} {total}\n".encode()),
    ).save(result)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                sweep(**json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
