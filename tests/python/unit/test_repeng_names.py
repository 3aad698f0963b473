"""introspect.repeng on tiny models: repeng's own test cases as properties, and transformers as the oracle.

tests/python/slow/test_repeng.py compares with repeng itself.
"""

import gguf
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tiny import tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect.repeng import ControlModel, ControlVector, DatasetEntry
from introspect.repeng.control import model_layer_list
from introspect.repeng.extract import batched_get_hiddens

PROMPT = "You are feeling"
SUFFIXES = ["I", "That was", "The weather", "Yes, and", "Hm", "We saw it", "A"]  # odd: no vote on a sign is even


def letters(texts: list[str]) -> dict[str, list[list[int]]]:
    """A tokenizer for models of 101 tokens, called as transformers' are."""
    return {"input_ids": [[ord(letter) % 101 for letter in text] for text in texts]}


def dataset(positive="happy", negative="sad", suffixes=SUFFIXES) -> list[DatasetEntry]:
    feeling = "You are feeling extremely {}. {}"
    return [DatasetEntry(feeling.format(positive, suffix), feeling.format(negative, suffix)) for suffix in suffixes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(folder):
    return introspect.load_model(folder)


@pytest.fixture
def vector(model):
    return ControlVector.train(model, None, dataset(), method="pca_center")


@pytest.fixture
def their_model():
    return tiny_transformers("qwen2").float().eval()


def decoder_layers(their_model):
    return their_model.transformer.h if hasattr(their_model, "transformer") else their_model.model.layers


# Vectors


def test_round_trip_gguf(vector, tmp_path):
    vector.export_gguf(tmp_path / "v.gguf")
    assert ControlVector.import_gguf(tmp_path / "v.gguf") == vector
    assert introspect.ControlVector.import_gguf(tmp_path / "v.gguf") == vector.native()


def test_a_file_holds_every_direction_as_it_is_layer_0_too(tmp_path, numpy_rng):
    directions = {layer: numpy_rng.standard_normal(8).astype(np.float32) for layer in (2, 0)}
    ControlVector("llama", directions).export_gguf(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    read = {tensor.name: tensor.data for tensor in reader.tensors}
    assert read.keys() == {"direction.0", "direction.2"}
    assert all(np.array_equal(read[f"direction.{layer}"], direction) for layer, direction in directions.items())


def test_vectors_add_over_the_union_of_their_layers(numpy_rng):
    a, b, c, d = numpy_rng.standard_normal((4, 8)).astype(np.float32)
    one, other = ControlVector("qwen2", {1: a, 2: b}), ControlVector("qwen2", {2: c, 3: d})
    assert one + other == ControlVector("qwen2", {1: a, 2: b + c, 3: d})
    assert one - other == ControlVector("qwen2", {1: a, 2: b - c, 3: -d})
    assert 2 * one == one * 2 == -(one * -2) == one / 0.5
    assert one != ControlVector("llama", one.directions)
    assert one != other
    with pytest.raises(TypeError):
        one + 1  # type: ignore[operator]
    with pytest.warns(UserWarning, match="llama"):
        assert (one + ControlVector("llama", {1: a})).directions[1].tolist() == (a + a).tolist()


def test_native_vectors_and_back(vector, model):
    native = vector.native()
    assert isinstance(native, introspect.ControlVector)
    assert ControlVector.from_native(native) == vector
    with model.steer(3 * native), torch.no_grad():
        steered = model("You are")
    wrapped = ControlModel(model, [1, 2])
    wrapped.set_control(native, 3)
    torch.testing.assert_close(wrapped(model.to_tokens("You are")).logits, steered, rtol=0, atol=1e-5)


# Training


def sklearn_directions(their_model, method: str) -> dict[int, np.ndarray]:
    """Principal components of transformers' hidden states, by the description of repeng's methods in PEERS."""
    rows = [
        torch.tensor([ids]) for entry in dataset() for ids in letters([entry.positive, entry.negative])["input_ids"]
    ]
    with torch.no_grad():
        states = [their_model(row, output_hidden_states=True).hidden_states for row in rows]
    directions = {}
    for layer in range(1, their_model.config.num_hidden_layers):
        hiddens = torch.stack([state[layer + 1][0, -1] for state in states]).double().numpy()
        positive, negative = hiddens[::2], hiddens[1::2]
        middle = (positive + negative) / 2
        data = positive - negative if method == "pca_diff" else np.concatenate([positive - middle, negative - middle])
        direction = PCA(1, svd_solver="full").fit(data).components_[0]
        directions[layer] = direction * np.sign(np.sign((positive - negative) @ direction).sum())
    return directions


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("method", ["pca_center", "pca_diff"])
def test_directions_are_those_of_transformers_hidden_states(architecture, method):
    their_model = tiny_transformers(architecture).float().eval()
    ours = ControlVector.train(their_model, letters, dataset(), method=method)
    theirs = sklearn_directions(their_model, method)
    assert ours.model_type == their_model.config.model_type
    assert list(ours.directions) == [2, 1]
    for layer, direction in theirs.items():
        assert ours.directions[layer].dtype == np.float32
        np.testing.assert_allclose(ours.directions[layer], direction, rtol=0, atol=1e-4)  # float32 states


def test_the_model_type_of_files_is_transformers(tmp_path):
    for architecture in ("gpt2", "gpt_neox", "gemma3", "qwen2"):
        their_model = tiny_transformers(architecture)
        their_model.save_pretrained(tmp_path / architecture)
        ours = ControlModel(tmp_path / architecture, [1])
        assert ours.config.model_type == their_model.config.model_type
        assert ours.config.num_hidden_layers == their_model.config.num_hidden_layers


@pytest.mark.parametrize("given", [[-1, 0], [1], range(-1, -3, -1)])
def test_hidden_layers_and_their_order(model, vector, given):
    some = ControlVector.train(model, None, dataset(), method="pca_center", hidden_layers=given, batch_size=1)
    assert list(some.directions) == [layer % 3 for layer in given]
    for layer in some.directions.keys() & vector.directions.keys():
        np.testing.assert_array_equal(some.directions[layer], vector.directions[layer])


def test_hook_compute_hiddens(model):
    """Hidden states of zero: the first unit vector for every layer but 0."""
    seen = {}

    def compute_hiddens(model, tokenizer, train_strs, hidden_layers, batch_size):
        seen.update(strings=train_strs, batch_size=batch_size)
        return {layer: np.zeros((len(train_strs), 4)) for layer in hidden_layers}

    vector = ControlVector.train(model, None, dataset(), method="pca_center", compute_hiddens=compute_hiddens)
    assert vector.directions.keys() == {1, 2}
    assert all(direction.tolist() == [1, 0, 0, 0] for direction in vector.directions.values())
    assert seen["strings"] == [text for entry in dataset() for text in (entry.positive, entry.negative)]
    assert seen["batch_size"] == 32


def test_transform_hiddens_replaces_what_directions_are_found_in(model):
    seen = {}

    def keep_two(hiddens):
        seen.update(hiddens)
        return {layer: states[:, :2] for layer, states in hiddens.items()}

    vector = ControlVector.train(model, None, dataset(), method="pca_center", transform_hiddens=keep_two)
    for layer, states in seen.items():
        assert states.shape == (2 * len(SUFFIXES), 32)
        halves = (states[::2, :2] - states[1::2, :2]).astype(float)
        direction = np.linalg.svd(halves)[2][0]
        direction *= np.sign(np.sign(halves @ direction).sum())
        np.testing.assert_allclose(vector.directions[layer], direction, rtol=0, atol=1e-5)


def test_a_controlled_model_is_trained_as_it_is_controlled(model, vector):
    texts = [entry.positive for entry in dataset()]
    plain = batched_get_hiddens(model, None, texts, [0, 1, -1], 2)
    wrapped = ControlModel(model, [1])
    wrapped.set_control(vector, 5)
    steered = batched_get_hiddens(wrapped, None, texts, [0, 1, -1], 2)
    wrapped.reset()
    np.testing.assert_allclose(steered[0], plain[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(steered[1], plain[1] + 5 * vector.directions[1], rtol=0, atol=1e-4)
    assert np.abs(steered[-1] - plain[-1]).max() > 0.1
    again = batched_get_hiddens(wrapped, None, texts, [0, 1, -1], 2)
    assert all(np.array_equal(again[layer], plain[layer]) for layer in plain)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "umap"}, ValueError),
        ({"hidden_layers": [3]}, IndexError),
        ({"dataset": []}, ValueError),
        ({"model": 3}, TypeError),
        ({"transform_hiddens": lambda hiddens: {layer: h[:2] for layer, h in hiddens.items()}}, introspect.ShapeError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_training_refuses(model, options, error):
    with pytest.raises(error):
        ControlVector.train(**{"model": model, "tokenizer": None, "dataset": dataset(), **options})


# Control


def generated(wrapped, vector=None, coeff=None) -> list[int]:
    if vector is not None:
        wrapped.set_control(vector, *([] if coeff is None else [coeff]))
    out = wrapped.generate(
        input_ids=wrapped.to_tokens(PROMPT), max_new_tokens=12, do_sample=False, repetition_penalty=1.1, pad_token_id=0
    )
    wrapped.reset()
    return out.squeeze().tolist()


def test_the_identities_of_control(model, vector):
    wrapped = ControlModel(model, [-1, -2])
    base = generated(wrapped)
    assert base == generated(wrapped, vector, 0.0) == generated(wrapped, vector * 0.0)
    assert base == generated(wrapped, vector - vector)
    for strength in (20, -50):
        steered = generated(wrapped, vector, strength)
        assert steered != base
        assert steered == generated(wrapped, strength * vector) == generated(wrapped, -(vector * -strength))
    assert base == generated(wrapped)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
@pytest.mark.parametrize(
    ("options", "combine"),
    [
        ({}, lambda x, v: x + v),
        ({"operator": lambda x, v: x - 0.5 * v}, lambda x, v: x - 0.5 * v),
        (
            {"normalize": True},
            lambda x, v: (x + v) * (x.norm(dim=-1, keepdim=True) / (x + v).norm(dim=-1, keepdim=True)),
        ),
    ],
    ids=["+", "operator", "normalize"],
)
def test_a_control_is_combined_with_the_blocks_output(architecture, options, combine, rng):
    their_model = tiny_transformers(architecture).float().eval()
    directions = {layer: torch.randn(48, generator=rng) for layer in (0, 2)}
    tokens = torch.randint(101, (2, 7), generator=rng)
    wrapped = ControlModel(their_model, [0, -1])
    wrapped.set_control(
        ControlVector(wrapped.config.model_type, {k: v.numpy() for k, v in directions.items()}), 3, **options
    )
    layers = decoder_layers(their_model)

    def steer(layer):
        def hook(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            changed = combine(hidden, 3 * directions[layer])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return layers[layer].register_forward_hook(hook)

    with torch.no_grad():
        plain = their_model(tokens).logits
        handles = [steer(layer) for layer in directions]
        expected = their_model(tokens, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        ours = wrapped(input_ids=tokens, output_hidden_states=True)
        torch.testing.assert_close(ours.logits, expected.logits, rtol=0, atol=2e-4)
        for ours_l, theirs_l in zip(ours.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours_l, theirs_l, rtol=0, atol=2e-4)
        wrapped.reset()
        torch.testing.assert_close(wrapped(tokens).logits, plain, rtol=0, atol=2e-4)


def test_keys_and_values_of_a_steered_call_are_continued(model, vector):
    """The first part steered, the rest not: what is left of the control is in the cache."""
    tokens = model.to_tokens("A concept may be here. Is it?")
    wrapped = ControlModel(model, [1])
    wrapped.set_control(vector, 4)
    past = wrapped(tokens[:, :9]).past_key_values
    wrapped.reset()
    mask = torch.ones_like(tokens)  # of the whole, as transformers wants it
    out = wrapped(tokens[:, 9:], attention_mask=mask, past_key_values=past)
    cache = model.native.make_cache(1)
    with model.steer(4 * vector.native(), layers=(1, 1)):
        model(tokens[:, :9], cache=cache)
    torch.testing.assert_close(out.logits, model(tokens[:, 9:], cache=cache), rtol=0, atol=1e-5)
    assert len(out.past_key_values) == tokens.shape[1]


def test_the_last_control_of_a_layer_counts(model, vector):
    tokens = model.to_tokens(PROMPT)
    first = ControlModel(model, [1, 2])
    first.set_control(vector, 7)
    with pytest.warns(UserWarning, match="unwrap"):
        second = ControlModel(first, [2])
    second.set_control(vector, -1)
    both = second(tokens).logits
    first.unwrap()
    third = ControlModel(model, [1, 2])
    third.set_raw_control({1: 7 * torch.tensor(vector.directions[1]), 2: -torch.tensor(vector.directions[2])})
    torch.testing.assert_close(third(tokens).logits, both, rtol=0, atol=1e-5)


def test_unwrapping_gives_the_model_back_as_it_was(model, vector, their_model):
    plain = model(PROMPT)
    wrapped = ControlModel(model, [1])
    wrapped.set_control(vector, 9)
    assert not torch.equal(model(PROMPT), plain)
    assert wrapped.unwrap() is model
    assert torch.equal(model(PROMPT), plain)
    with pytest.raises(introspect.ConfigError, match="unwrapped"):
        wrapped.set_control(vector)
    assert ControlModel(their_model, [0]).unwrap() is their_model


def test_a_control_that_does_not_fit_changes_nothing(model, vector):
    wrapped = ControlModel(model, [1, 2])
    wrapped.set_control(vector, 2)
    before = wrapped(model.to_tokens(PROMPT)).logits
    bad = {"width": torch.zeros(5), "nan": torch.full((32,), float("nan"))}
    for options in ({}, {"normalize": True}):
        with pytest.raises(KeyError):
            wrapped.set_control(ControlVector("qwen2", {1: np.ones(32)}), **options)
        with pytest.raises(introspect.ShapeError):
            wrapped.set_raw_control({1: torch.ones(32), 2: bad["width"]}, **options)
        with pytest.raises(ValueError):
            wrapped.set_raw_control({1: torch.ones(32), 2: bad["nan"]}, **options)
    assert torch.equal(wrapped(model.to_tokens(PROMPT)).logits, before)
    with pytest.raises(IndexError):
        ControlModel(model, [3])


def test_layers_can_be_counted(model, their_model):
    assert len(model_layer_list(model)) == 3
    assert len(model_layer_list(ControlModel(their_model, [1]))) == 3


# Generation


def test_generation_of_a_padded_batch_with_transformers_arguments(their_model):
    prompts = [[5, 9, 40, 41, 42], [17, 3]]
    tokens = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    mask = (tokens != 0).long()
    wrapped = ControlModel(their_model, [1])
    settings = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.3, "pad_token_id": 0}
    theirs = their_model.generate(input_ids=tokens, attention_mask=mask, eos_token_id=7, **settings)
    ours = wrapped.generate(input_ids=tokens, attention_mask=mask, eos_token_id=7, **settings)
    assert ours.tolist() == theirs.tolist()
    without_mask = wrapped.generate(tokens, eos_token_id=7, **settings)
    assert without_mask.tolist() == theirs.tolist()
    stop = int(theirs[0, 8])  # a token that one row chooses early ends it there
    theirs = their_model.generate(input_ids=tokens, attention_mask=mask, eos_token_id=[7, stop], **settings)
    ours = wrapped.generate(input_ids=tokens, attention_mask=mask, eos_token_id=[7, stop], **settings)
    assert ours.tolist() == theirs.tolist()
    assert wrapped.generate(tokens[:1], eos_token_id=7).shape[1] == 20  # transformers' default length


def test_draws_follow_torchs_seed(model):
    wrapped = ControlModel(model, [1])
    tokens = model.to_tokens(PROMPT)

    def draw(seed, **options):
        torch.manual_seed(seed)
        return wrapped.generate(tokens, do_sample=True, temperature=1.5, max_new_tokens=10, **options).tolist()

    assert draw(1) == draw(1)
    assert len({str(draw(seed)) for seed in range(4)}) > 1
    assert draw(1, top_k=1) == wrapped.generate(tokens, max_new_tokens=10).tolist()


def test_text_is_continued_as_text(model, vector):
    wrapped = ControlModel(model, [1])
    wrapped.set_control(vector, 3)
    with model.hooks():
        expected = model.generate([PROMPT, "I"], max_new_tokens=6)
    assert wrapped.generate([PROMPT, "I"], max_new_tokens=6) == expected
    assert wrapped.generate(PROMPT, max_new_tokens=6) == expected[0]


def test_a_streamer_gets_prompt_and_tokens(model):
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.ended = True

    wrapped, streamer = ControlModel(model, [1]), Streamer()
    out = wrapped.generate(model.to_tokens(PROMPT), max_new_tokens=5, streamer=streamer)
    assert streamer.got == out[0].tolist()
    assert streamer.ended


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_beams": 4}, introspect.ConfigError),
        ({"no_repeat_ngram_size": 2}, introspect.ConfigError),
        ({"do_sample": True, "temperature": 0.0}, ValueError),
        ({"repetition_penalty": 0.0}, ValueError),
        ({"inputs": None}, ValueError),
    ],
)
def test_generation_refuses_what_it_would_not_do(model, options, error):
    wrapped, tokens = ControlModel(model, [1]), model.to_tokens(PROMPT)
    with pytest.raises(error):
        wrapped.generate(**{"inputs": tokens, "max_new_tokens": 3, **options})
    with pytest.raises(introspect.ConfigError, match="labels"):
        wrapped(tokens, labels=tokens)
