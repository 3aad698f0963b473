"""Control vectors and steered text against repeng 0.4.0's own, on the same weights and tokens of real models.

repeng runs in an environment of its own (tests/benchmarks/peers/environment.py). Its principal components are
randomised ones from an unseeded start, so it is trained twice, and what is compared are the layers on which it agrees
with itself. INTROSPECT_SLOW=all adds the concepts on Qwen2.5-Coder-0.5B that take minutes each.
"""

import os
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import ROOT

import introspect
from introspect.repeng import ControlModel, ControlVector, DatasetEntry

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import REPENG
from peers.repeng_client import Repeng

FOLDER = Path(os.environ.get("INTROSPECT_MODELS") or Path.home() / ".cache/introspect/models")
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
AGREEMENT = 0.9999
METHODS = ["pca_center", "pca_diff"]
LONG = pytest.mark.skipif(os.environ.get("INTROSPECT_SLOW") != "all", reason="set INTROSPECT_SLOW=all")

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def both():
    """Our model and repeng's process with the same weights, by the name of the file; one process at a time."""
    if REPENG.python() is None:
        pytest.skip("no environment of repeng: python tests/benchmarks/peers/environment.py repeng makes it")
    open_now: dict[str, tuple[introspect.Model, Repeng]] = {}

    def get(name: str) -> tuple[introspect.Model, Repeng]:
        if name not in open_now:
            if not (FOLDER / name).exists():
                pytest.skip(f"{FOLDER / name} is not there")
            close()
            open_now[name] = introspect.load_model(FOLDER / name), Repeng(FOLDER / name)
        return open_now[name]

    def close() -> None:
        while open_now:
            open_now.popitem()[1][1].__exit__()

    yield get
    close()


def cosines(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> dict[int, float]:
    return {
        layer: float(torch.nn.functional.cosine_similarity(a[layer].double(), b[layer].double(), dim=0)) for layer in b
    }


@pytest.mark.parametrize(
    ("name", "concept"),
    [(SMOLLM2, "cat"), (SMOLLM2, "bread"), (SMOLLM2, "love"), (QWEN, "cat")]
    + [pytest.param(QWEN, concept, marks=LONG) for concept in ("bread", "love")],
)
def test_every_direction_is_repengs_with_its_sign(both, name, concept):
    model, repeng = both(name)
    pairs = introspect.concept_pairs(model, concept, introspect.load_suffixes())
    theirs = repeng.train_twice(model, pairs, METHODS)
    entries = [DatasetEntry(*pair) for pair in pairs]
    for method, (first, second) in theirs.items():
        named = ControlVector.train(model, None, entries, method=method).directions
        named = {layer: torch.from_numpy(direction) for layer, direction in named.items()}
        assert named.keys() == first.keys() == set(range(1, model.cfg.n_layers))
        ours, itself = cosines(named, first), cosines(first, second)
        repeated = [layer for layer in first if itself[layer] >= AGREEMENT]
        lowest = min(ours[layer] for layer in repeated)
        others = {layer: f"{ours[layer]:.4f} (itself {itself[layer]:.4f})" for layer in first if layer not in repeated}
        print(
            f"{name} {concept} {method}: {len(repeated)} of {len(first)} layers repeat, ours 1 - {1 - lowest:.1e}",
            others,
        )
        assert len(repeated) >= len(first) - 2  # nearly all, or the comparison says nothing
        assert {layer: ours[layer] for layer in repeated if ours[layer] < AGREEMENT} == {}
        native = introspect.ControlVector.train(model, pairs, method=method, folds=0).directions
        before_the_last = {layer: named[layer] for layer in named if layer < model.cfg.n_layers - 1}
        assert min(cosines(native, before_the_last).values()) >= 1 - 1e-6  # the last is read before the final norm


@pytest.fixture(scope="module")
def cat(both, tmp_path_factory):
    """A vector of SmolLM2 in a file that is ours."""
    model, _ = both(SMOLLM2)
    path = tmp_path_factory.mktemp("vectors") / "cat.gguf"
    pairs = introspect.concept_pairs(model, "cat", introspect.load_suffixes()[:100])
    introspect.ControlVector.train(model, pairs, folds=0).export_gguf(path)
    return path


def test_our_file_is_read_by_repeng_and_by_gguf_bit_for_bit(both, cat):
    _, repeng = both(SMOLLM2)
    ours = introspect.ControlVector.import_gguf(cat).directions
    model_type, theirs = repeng.read(cat)
    assert model_type == "llama"
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[layer], direction) for layer, direction in ours.items())
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(cat).tensors}
    assert tensors.keys() == {f"direction.{layer}" for layer in ours}
    assert all(np.array_equal(tensors[f"direction.{layer}"], direction) for layer, direction in ours.items())


def test_repengs_file_is_read_by_us_bit_for_bit(both, tmp_path):
    model, repeng = both(SMOLLM2)
    directions = {layer: torch.randn(model.cfg.d_model) for layer in (1, 7, model.cfg.n_layers - 1)}
    repeng.write(tmp_path / "v.gguf", "llama", directions)
    assert introspect.ControlVector.import_gguf(tmp_path / "v.gguf") == introspect.ControlVector("llama", directions)
    assert ControlVector.import_gguf(tmp_path / "v.gguf").native() == introspect.ControlVector("llama", directions)


def test_steered_greedy_text_is_repengs(both, cat):
    model, repeng = both(SMOLLM2)
    layers = list(range(10, 20))
    message = {"role": "user", "content": "What are you thinking about right now?"}
    prompt = model.to_tokens(model.apply_chat_template([message], add_generation_prompt=True))
    plain = [
        {"coeff": c, "repetition_penalty": p, "normalize": False} for p in (1.0, 1.1) for c in (0.0, 1.5, 3.0, -3.0)
    ]
    runs = [*plain, {"coeff": 6.0, "repetition_penalty": 1.1, "normalize": True}]
    ends = model.tokenizer.stop_token_ids
    settings = {"max_new_tokens": 40, "eos_token_id": ends, "pad_token_id": ends[0]}
    theirs = repeng.generate(cat, layers, prompt[0].tolist(), runs, **settings)
    assert len({tuple(tokens) for tokens in theirs}) >= 7  # the strengths and penalties matter

    controlled, vector = ControlModel(model, layers), ControlVector.import_gguf(cat)
    for run, expected in zip(runs, theirs, strict=True):
        controlled.set_control(vector, run["coeff"], normalize=run["normalize"])
        penalty = run["repetition_penalty"]
        out = controlled.generate(prompt, do_sample=False, repetition_penalty=penalty, **settings)
        print(run, model.to_string(out[0, prompt.shape[1] :]))
        assert out[0, prompt.shape[1] :].tolist() == expected
    controlled.unwrap()

    native = introspect.ControlVector.import_gguf(cat)
    for run, expected in zip(plain, theirs, strict=False):
        with model.steer(run["coeff"] * native, layers=(10, 19)):
            text = model.generate(prompt, max_new_tokens=40, repetition_penalty=run["repetition_penalty"])
        assert text == [model.tokenizer.decode(expected, skip_special_tokens=True)]
