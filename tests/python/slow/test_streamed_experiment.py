"""One experiment on a real quantised checkpoint, whose blocks are in memory and in the file: the same bits."""

import pytest
import torch

import introspect

MODEL = "qwen2.5-coder-1.5b-instruct"


def test_the_file_is_read_once_for_the_results_of_the_model_in_memory():
    rng = torch.Generator().manual_seed(0)
    results = []
    for keep in (True, False):
        try:
            model = introspect.load_model(MODEL, dtype="bfloat16", weights="as stored", keep_blocks=keep)
        except introspect.Error as error:
            pytest.skip(f"{MODEL} is not here: {error}")
        if not results:
            vectors = {
                name: introspect.ControlVector(
                    "qwen2", {layer: torch.randn(1536, generator=rng) for layer in range(28)}
                )
                for name in ("a", "b")
            }
        options = {"vectors": vectors, "nulls": 2, "strengths": [0.5, 2.0], "layers": (9, 18)}
        options["questions"] = ["Is 1 an odd number?", "Is ice hot?"]
        plan = introspect.run_experiment(model, "no_info", plan=True, **options)
        before = model.native.n_block_reads
        results.append(introspect.run_experiment(model, "no_info", progress=False, **options))
        blocks = 0 if keep else model.cfg.n_layers
        assert model.native.n_block_reads - before == blocks
        assert plan.bytes_read == sum(model.native.bytes_read(layer) for layer in range(blocks))
    assert results[0].rows == results[1].rows
