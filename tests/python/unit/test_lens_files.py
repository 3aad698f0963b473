"""Files of lenses: the packages' own and ours, and what damaged and foreign ones do."""

import hashlib
import json

import numpy as np
import pytest
import torch
from lenses import TOKENS, pair, random_lens
from reference import exact_softmax
from tiny import tiny_transformers, write_tiny

import introspect
from introspect.analysis import JacobianLens, Lens, TunedLens, logit_lens


@pytest.fixture(autouse=True)
def softmax_of_transformers_in_float64():
    with exact_softmax():
        yield


@pytest.fixture(scope="module")
def llama():
    return pair("llama")


def assert_same_lens(one, other):
    assert (one.kind, one.hash, one.layers) == (other.kind, other.hash, other.layers)
    assert (one.model_hash, one.unembed_hash, one.notes) == (other.model_hash, other.unembed_hash, other.notes)


@pytest.mark.parametrize("bias", [True, False])
def test_folder_and_safetensors_hold_a_tuned_lens(llama, tmp_path, bias):
    _, model = llama
    lens = random_lens(model, bias=bias)
    for path in (tmp_path / "lens", tmp_path / "lens.safetensors"):
        lens.save(path)
        assert_same_lens(TunedLens.load(path), lens)
    parameters = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    wanted = [f"{i}.{part}" for i in range(3) for part in (("weight", "bias") if bias else ("weight",))]
    assert list(parameters) == wanted
    translators = torch.nn.ModuleList(torch.nn.Linear(48, 48, bias=bias) for _ in range(3))
    translators.load_state_dict(parameters)
    assert torch.equal(translators[0].weight, lens.translators[-1][0])
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    assert (config["d_model"], config["num_hidden_layers"], config["bias"]) == (48, 3, bias)
    assert config["lens_type"] == "linear_tuned_lens"


def test_a_folder_of_the_tuned_lens_package_is_read(llama, tmp_path):
    theirs, model = llama
    translators = torch.nn.ModuleList(torch.nn.Linear(48, 48) for _ in range(3))
    torch.save(translators.state_dict(), tmp_path / "params.pt")
    W_U = theirs.get_output_embeddings().weight.detach().float().numpy()
    config = {
        "base_model_name_or_path": "x/y", "d_model": 48, "num_hidden_layers": 3, "bias": True,
        "base_model_revision": None, "lens_type": "linear_tuned_lens",
        "unembed_hash": hashlib.sha256(str.encode(np.array_str(W_U, precision=1))).hexdigest(),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    lens = TunedLens.load(tmp_path)
    assert torch.equal(lens.translators[1][1], translators[2].bias) and lens.model_name == "x/y"
    logit_lens(model, TOKENS, lens=lens)
    config["unembed_hash"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(introspect.ConfigError, match="another unembedding"):
        logit_lens(model, TOKENS, lens=TunedLens.load(tmp_path))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 1, 30, 1e5])
def test_unembedding_hash_is_numpys(tmp_path, scale):
    from safetensors.torch import load_file, save_file

    folder = write_tiny(tmp_path / "m", vocab_size=211)
    state = load_file(folder / "model.safetensors")
    for seed in range(25):
        rng = torch.Generator().manual_seed(seed)
        W_U = torch.randn(211, 32, generator=rng, dtype=torch.float64) * scale
        W_U[:3, :3] *= torch.rand(3, 3, generator=rng) < 0.6  # zeros among them
        W_U = W_U.to([torch.float32, torch.bfloat16][seed % 2]).double()
        save_file({**state, "lm_head.weight": W_U}, folder / "model.safetensors")
        text = np.array_str(W_U.float().numpy(), precision=1)
        model = introspect.load_model(folder)
        assert introspect._C.unembedding_hash(model) == hashlib.sha256(text.encode()).hexdigest(), text


def test_a_jacobian_lens_is_its_packages_file(llama, tmp_path):
    _, model = llama
    lens = JacobianLens.compute(model, TOKENS, skip_first=2)
    lens.save(tmp_path / "lens.pt")
    payload = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert (payload["n_prompts"], payload["source_layers"], payload["d_model"]) == (1, [0, 1], 48)
    assert payload["J"][1].dtype == torch.float16
    torch.testing.assert_close(payload["J"][1].double(), lens.translators[1][0], rtol=1e-3, atol=1e-3)
    read = JacobianLens.load(tmp_path / "lens.pt")
    assert read.layers == [0, 1, 2] and read.model_hash == model.hash
    lens.save(tmp_path / "lens.safetensors")
    assert_same_lens(Lens.load(tmp_path / "lens.safetensors"), lens)
    torch.save({"J": {0: torch.eye(48), 1: torch.eye(48)}, "n_prompts": 7, "source_layers": [0, 1], "d_model": 48},
               tmp_path / "published.pt")  # fmt: skip
    published = JacobianLens.load(tmp_path / "published.pt")
    assert published.notes == {"n_prompts": 7}
    ours, plain = (logit_lens(model, TOKENS, lens=one, layers=[0, 1, 2]) for one in (published, None))
    assert torch.equal(ours.top_log_probs, plain.top_log_probs)  # the identity is the logit lens


def test_a_lens_of_another_model_is_refused(llama, tmp_path):
    _, model = llama
    lens = random_lens(model)
    other = introspect.load_model(tiny_transformers("llama", seed=1), dtype="float64")
    with pytest.raises(introspect.ConfigError, match=r"another unembedding.*rebound"):
        logit_lens(other, TOKENS, lens=lens)
    logit_lens(other, TOKENS, lens=lens.rebound(other))
    _, wide = pair("qwen3")
    for bad in (pair("gemma3")[1], introspect.load_model(write_tiny(tmp_path / "m"))):
        with pytest.raises(introspect.ShapeError, match="3 layers of width 48"):
            logit_lens(bad, TOKENS, lens=lens)
    with pytest.raises(introspect.ConfigError):
        logit_lens(wide, TOKENS, lens=lens)


def test_damaged_and_other_files_are_errors(llama, tmp_path):
    _, model = llama
    lens = random_lens(model)
    lens.save(tmp_path / "lens")
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    (tmp_path / "x.txt").write_text("x")
    torch.save({"a": 1}, tmp_path / "other.pt")
    introspect.io.save_safetensors(tmp_path / "other.safetensors", [("x", torch.zeros(2))])
    for path, error in (
        (tmp_path / "missing", introspect.IoError), (tmp_path / "x.txt", introspect.ConfigError),
        (tmp_path / "other.pt", introspect.ConfigError), (tmp_path / "other.safetensors", introspect.ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            Lens.load(path)
    for change in ({"d_model": 47}, {"num_hidden_layers": 4}, {"lens_type": "other"}, {"d_model": "48"}):
        (tmp_path / "lens" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(introspect.Error):
            TunedLens.load(tmp_path / "lens")
    with pytest.raises(introspect.ConfigError, match="tuned"):
        Lens.logit(model).save(tmp_path / "folder")
    with pytest.raises(introspect.ConfigError, match="Jacobian"):
        lens.save(tmp_path / "lens.pt")
    lens.save(tmp_path / "tuned.safetensors")
    with pytest.raises(introspect.ConfigError, match="jacobian lens, got a tuned"):
        JacobianLens.load(tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError, match="finite"):
        Lens("tuned", model, {0: (torch.full((48, 48), float("nan")), None)})
