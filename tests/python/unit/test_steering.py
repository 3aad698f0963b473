"""Control vectors: training on a tiny model, and files other programs read and write."""

import itertools

import gguf
import numpy as np
import pytest
import torch
from tiny_chat import write_tiny_chat

import introspect


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory):
    """In float64: float32's rounding alone is 2e-5 in a residual of random weights."""
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("exact")), dtype=torch.float64)


@pytest.fixture
def vector(rng):
    return introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in (1, 2)})


def activations(model, text, layer):
    """The residual stream after a block at the text's last token, one text at a time."""
    _, cache = model.run_with_cache(model.to_tokens(text), names_filter=[f"blocks.{layer}.hook_resid_post"])
    return cache[f"blocks.{layer}.hook_resid_post"][0, -1].double()


def test_concept_pairs_are_the_chat_with_the_suffix_as_its_answer(model):
    pairs = introspect.concept_pairs(model, "cat", ["I", "Well, I"])
    user = "<|im_start|>user\nPlease talk about {}.<|im_end|>\n"
    expected = "<|im_start|>system\n<|im_end|>\n" + user + "<|im_start|>assistant\n"
    assert pairs == [
        (expected.format("cat") + suffix, expected.format("anything") + suffix) for suffix in ("I", "Well, I")
    ]


@pytest.mark.parametrize("memory_budget", [120_000, 400_000, 1 << 30])
@pytest.mark.parametrize("layers", [None, [0, 1], [2]])
def test_mean_difference_is_that_of_single_unpadded_runs(exact_model, layers, memory_budget):
    model = exact_model
    suffixes = ["I", "It is", "The weather", "It", "A long beginning of an answer"]
    pairs = introspect.concept_pairs(model, "cat", suffixes)
    vector = introspect.ControlVector.train(
        model, pairs, method="mean_diff", layers=layers, memory_budget=memory_budget
    )
    assert vector.layers == (layers or [1, 2])
    for layer in vector.layers:
        differences = [activations(model, p, layer) - activations(model, n, layer) for p, n in pairs]
        expected = torch.stack(differences).mean(0)
        torch.testing.assert_close(vector.directions[layer].double(), expected, rtol=0, atol=1e-6)  # kept in float32


def test_pca_of_texts_without_a_common_beginning(model):
    pairs = [("cats sleep", "dogs bark"), ("a cat", "the dog"), ("my cat purrs loudly", "no")]
    vector = introspect.ControlVector.train(model, pairs, layers=[1])
    halves = torch.stack([(activations(model, p, 1) - activations(model, n, 1)) / 2 for p, n in pairs])
    singular = torch.linalg.svd(halves)
    expected = singular.Vh[0] * torch.sign((halves @ singular.Vh[0]).sign().sum())
    torch.testing.assert_close(vector.directions[1].double(), expected, rtol=0, atol=1e-5)
    shares = singular.S.square() / singular.S.square().sum()
    assert vector.spectrum[1] == pytest.approx(shares.tolist(), abs=1e-5)
    assert (vector.model_hash, vector.n_pairs, vector.model_type) == (model.hash, 3, "qwen2")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pairs": []}, ValueError),
        ({"pairs": [("same", "same")]}, ValueError),
        ({"pairs": [("", "x")]}, ValueError),
        ({"pairs": [("a", "b")], "method": "pca_diff"}, ValueError),
        ({"pairs": [("a", "b")], "method": "umap"}, ValueError),
        ({"pairs": [("a", "b")], "layers": [3]}, IndexError),
        ({"pairs": [("a", "b")], "layers": []}, ValueError),
        ({"pairs": [("a", "b")], "memory_budget": 0}, ValueError),
        ({"pairs": [("a" * 9000, "b")]}, introspect.ShapeError),
    ],
)
def test_training_refuses_what_has_no_direction(model, options, error):
    with pytest.raises(error):
        introspect.ControlVector.train(model, **options)


def test_progress_is_told_and_may_stop_the_training(model):
    pairs = introspect.concept_pairs(model, "cat", ["I", "It", "We"])
    steps = []
    introspect.ControlVector.train(model, pairs, progress=lambda *step: steps.append(step))
    texts = [model.to_tokens(text)[0].tolist() for pair in pairs for text in pair]
    nodes = len({tuple(text[: n + 1]) for text in texts for n in range(len(text))})
    assert steps[0] == ("activations", 0, nodes)
    assert ("activations", nodes, nodes) in steps

    def stop(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        introspect.ControlVector.train(model, pairs, progress=stop)


def test_an_exported_vector_is_what_repeng_and_llama_cpp_read(vector, tmp_path):
    path = tmp_path / "v.gguf"
    vector.export_gguf(path)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    tensors = {t.name: t for t in reader.tensors}
    assert tensors.keys() == {"direction.1", "direction.2"}
    for layer, direction in vector.directions.items():
        tensor = tensors[f"direction.{layer}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [32]
        np.testing.assert_array_equal(tensor.data, direction.numpy())


def test_a_vector_written_as_repeng_does_is_imported(tmp_path, rng):
    path = tmp_path / "v.gguf"
    directions = {layer: torch.randn(8, generator=rng) for layer in (1, 7)}
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    vector = introspect.ControlVector.import_gguf(path)
    assert vector == introspect.ControlVector("mistral", directions)


def test_a_model_file_is_not_a_control_vector(tmp_path):
    path = tmp_path / "v.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("direction.1", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(introspect.IoError, match="controlvector"):
        introspect.ControlVector.import_gguf(path)


def test_vectors_in_python_are_values(vector):
    assert 20 * vector == vector * 20 == -(vector * -20)
    assert (vector + vector) / 2 == vector
    assert vector - 0.5 * vector == 0.5 * vector
    assert vector != 2 * vector
    assert vector != "a vector"
    before = vector.directions[1].clone()
    vector.directions[1].zero_()
    assert torch.equal(vector.directions[1], before)
    with pytest.raises(TypeError):
        vector * "2"
    with pytest.raises(TypeError):
        hash(vector)


def test_a_rotation_keeps_norms_and_cosines(vector):
    rotated = introspect.random_rotation(vector, seed=3)
    for a, b in itertools.product(vector.layers, repeat=2):
        expected = vector.directions[a].double() @ vector.directions[b].double()
        assert float(rotated.directions[a].double() @ rotated.directions[b].double()) == pytest.approx(
            float(expected), abs=1e-4
        )


def test_steering_adds_the_directions_after_the_blocks_of_the_range(model, vector):
    tokens = model.to_tokens("Hello there")
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    _, plain = model.run_with_cache(tokens, names_filter=names)
    with model.steer(3 * vector, layers=(0, 1)):
        _, steered = model.run_with_cache(tokens, names_filter=names)
    assert torch.equal(steered[names[0]], plain[names[0]])  # the vector has no direction for layer 0
    torch.testing.assert_close(steered[names[1]], plain[names[1]] + 3 * vector.directions[1])
    assert torch.equal(steered[names[2]], steered[names[1]])
    _, after = model.run_with_cache(tokens, names_filter=names)
    assert torch.equal(after[names[1]], plain[names[1]])


@pytest.mark.parametrize(
    ("layers", "error"), [((0, 0), introspect.ConfigError), ((1, 3), IndexError), ((2, 1), IndexError)]
)
def test_steering_refuses_ranges_without_directions(model, vector, layers, error):
    with pytest.raises(error), model.steer(vector, layers=layers):
        pass
