"""Contexts beside those of SAELens's concat_and_batch_sequences."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from introspect.sae.streams import TokenStream

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import SAE_LENS

BOS, SEPARATOR = 1, 2


def test_contexts_are_saelens_own():
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of SAELens: python tests/benchmarks/peers/environment.py makes it")
    rng = random.Random(0)
    jobs = []
    for context, bos, separator, whole in itertools.product([3, 8, 17], [None, BOS], [None, BOS, SEPARATOR], [0, 1]):
        documents = [
            [rng.choice([BOS, SEPARATOR, 5, 6, 7]) for _ in range(rng.choice([1, 2, 7, 8, 9, 17, 40]))]
            for _ in range(30)
        ]
        options = {
            "context_size": context,
            "begin_batch_token_id": bos,
            "sequence_separator_token_id": separator,
            "disable_concat_sequences": bool(whole),
        }
        jobs.append({"documents": documents, "options": options})
    script = Path(__file__).with_name("saelens_packing.py")
    done = subprocess.run([python, script], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for job, rows in zip(jobs, theirs, strict=True):
        options = job["options"]
        mine = TokenStream.of_tokens(
            job["documents"],
            context=options["context_size"],
            bos=options["begin_batch_token_id"],
            separator=options["sequence_separator_token_id"],
            concatenate=not options["disable_concat_sequences"],
        )
        assert mine.next(10_000).tolist() == rows, options
