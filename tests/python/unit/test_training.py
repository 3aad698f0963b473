"""Training control vectors: several at once, where activations are read, words, two models, a caller's functions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_chat import write_tiny_chat

import introspect

SUFFIXES = ["I", "It is", "The weather", "It", "A long beginning of an answer", "It is", "Yes", "No"]
METHODS = ["pca_center", "pca_global_center", "pca_diff", "pca_diff_uncentered", "lat", "mean_diff", "logistic"]
train = introspect.ControlVector.train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder, dtype=torch.float64)


def plain(model, text, name):
    """What stands at a hook point in a run of one text by itself, [pos, ...]."""
    _, cache = model.run_with_cache(model.to_tokens(text), names_filter=[name])
    return cache[name][0].double()


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


# Several at once


@pytest.mark.parametrize("method", METHODS)
def test_vectors_trained_together_are_those_trained_one_by_one(model, method):
    sets = {name: introspect.concept_pairs(model, name, SUFFIXES) for name in ("cat", "bread", "love")}
    together = introspect.ControlVector.train_many(model, sets, method=method)
    assert list(together) == list(sets)
    for name, pairs in sets.items():
        alone = train(model, pairs, method=method)
        assert together[name].layers == alone.layers
        # passes of other sizes sum in another order
        assert min(together[name].cosine(alone).values()) > 1 - 1e-6
        assert together[name].norms == pytest.approx(alone.norms, rel=1e-6)
        assert (together[name].n_pairs, together[name].method) == (len(pairs), method)


def test_texts_that_sets_share_are_run_once(model):
    sets = {name: introspect.concept_pairs(model, name, SUFFIXES) for name in ("cat", "bread")}
    texts = {text for pairs in sets.values() for pair in pairs for text in pair}
    assert len(texts) == 3 * len(set(SUFFIXES))  # two concepts and one baseline; an equal suffix is an equal text
    ids = [model.to_tokens(text)[0].tolist() for text in texts]
    nodes = len({tuple(text[: n + 1]) for text in ids for n in range(len(text))})
    steps = []
    introspect.ControlVector.train_many(model, sets, progress=lambda *step: steps.append(step))
    assert ("activations", nodes, nodes) in steps


def test_a_set_without_a_direction_is_named(model):
    good = introspect.concept_pairs(model, "cat", SUFFIXES)
    for _ in range(50):  # every layer is at fault, on several threads: the first one is named all the same
        with pytest.raises(ValueError, match=r"'same': layer 1: .*differ"):
            introspect.ControlVector.train_many(model, {"good": good, "same": [("a", "a")]})
    with pytest.raises(ValueError, match=r"'empty'.*at least 1"):
        introspect.ControlVector.train_many(model, {"good": good, "empty": []})
    with pytest.raises(ValueError, match="at least one set"):
        introspect.ControlVector.train_many(model, {})


# Where activations are read

TEXTS = ["The cat sleeps", "The cat", "No bread at all today", "The cat sleeps"]


@pytest.mark.parametrize("position", [-1, 0, 3, -4, (0, None), (1, 4), (-4, -1), (2, None)])
@pytest.mark.parametrize("point", ["hook_resid_post", "mlp.hook_post", "attn.hook_z", "hook_resid_pre"])
def test_activations_are_those_of_single_runs(model, position, point):
    read = introspect.collect_activations(model, TEXTS, layers=[2, 0], read_position=position, point=point)
    assert (read.layers, read.point, read.read_position) == ([0, 2], point, position)
    for row, layer in itertools.product(range(len(TEXTS)), range(2)):
        every = plain(model, TEXTS[row], f"blocks.{[0, 2][layer]}.{point}").flatten(1)
        expected = every[slice(*position)].mean(0) if isinstance(position, tuple) else every[position]
        # float64 sums of another order
        torch.testing.assert_close(read.values[row, layer], expected, rtol=1e-9, atol=1e-9)


def test_activations_in_float32_and_of_many_passes(folder):
    model = introspect.load_model(folder)
    read = introspect.collect_activations(model, TEXTS, read_position=(1, -1), memory_budget=60_000)
    for row, layer in itertools.product(range(len(TEXTS)), (1, 2)):
        expected = plain(model, TEXTS[row], f"blocks.{layer}.hook_resid_post")[1:-1].mean(0)
        torch.testing.assert_close(read.values[row, layer - 1].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("position", [-1, (0, None)])
def test_the_last_layer_can_be_read_after_the_final_norm(model, position):
    read = introspect.collect_activations(
        model, TEXTS, layers=[1, 2], read_position=position, last_layer_after_norm=True
    )
    for row, text in enumerate(TEXTS):
        rows = slice(*position) if isinstance(position, tuple) else slice(-1, None)
        last = plain(model, text, "unembed.hook_in")[rows].mean(0)
        torch.testing.assert_close(read.values[row, 1], last, rtol=1e-9, atol=1e-9)
        before = plain(model, text, "blocks.1.hook_resid_post")[rows].mean(0)
        torch.testing.assert_close(read.values[row, 0], before, rtol=1e-9, atol=1e-9)


def test_a_vector_says_where_it_was_read(model, tmp_path):
    pairs = introspect.concept_pairs(model, "cat", SUFFIXES)
    vector = train(model, pairs, layers=[0, 2], read_position=(-2, None), last_layer_after_norm=True)
    assert vector.layers == [0, 2]
    vector.save(tmp_path / "v.safetensors")
    for one in (vector, introspect.ControlVector.load(tmp_path / "v.safetensors")):
        assert (one.point, one.read_position, one.last_layer_after_norm) == ("hook_resid_post", "mean -2:", True)
    wide = train(model, pairs, point="mlp.hook_post", read_position=-2)
    assert (wide.d_model, wide.point, wide.read_position) == (48, "mlp.hook_post", "-2")
    with pytest.raises(introspect.ShapeError), model.steer(wide):
        pass


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"layers": [3]}, IndexError, "0 to 2"),
        ({"layers": []}, ValueError, "layer"),
        ({"read_position": 6}, IndexError, "text 1 of"),
        ({"read_position": -99}, IndexError, "text 0 of"),
        ({"read_position": (2, 2)}, ValueError, "empty"),
        ({"read_position": (3, 1)}, ValueError, "empty"),
        ({"read_position": (0, 99)}, IndexError, "mean 0:99"),
        ({"point": "attn.hook_pattern"}, ValueError, "every head"),
        ({"point": "ln1.hook_scale"}, ValueError, "one number"),
        ({"point": "attn.hook_result"}, ValueError, "d_model for every head"),
        ({"point": "hook_embed"}, introspect.HookError, "hook_embed"),
        ({"point": "hook_resid_pots"}, introspect.HookError, "hook_resid_post"),
        ({"point": "hook_mlp_out", "last_layer_after_norm": True}, ValueError, "final norm"),
        ({"memory_budget": 10}, ValueError, "budget"),
        ({"method": "umap"}, ValueError, "pca_center"),
        ({"folds": 1}, ValueError, "folds"),
    ],
)
def test_options_are_checked_before_the_first_pass(model, options, error, says):
    steps = []
    with pytest.raises(error, match=says):
        train(model, [("no cat here", "no cat"), ("bread", "yes")], progress=lambda *s: steps.append(s), **options)
    assert not steps


# A caller's functions


def planted_hiddens(rng, n, d):
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    common, noise = rng.normal(size=(n, d)), 0.05 * rng.normal(size=(2 * n, d))
    rows = np.repeat(common, 2, axis=0) * 0.1 + noise
    rows[::2] += rng.uniform(4, 12, size=(n, 1)) * direction
    return rows.astype(np.float32), direction


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(20, 150), d=st.integers(3, 200), seed=st.integers(0, 2**32 - 1))
def test_every_method_finds_a_planted_direction_with_its_sign(model, method, n, d, seed):
    hiddens, direction = planted_hiddens(np.random.default_rng(seed), n, d)
    pairs = [(f"a{i}", f"b{i}") for i in range(n)]
    vector = train(model, pairs, method=method, layers=[1], compute_hiddens=lambda **_: {1: hiddens})
    assert cosine(vector.directions[1], torch.from_numpy(direction)) > 0.95
    turned = train(
        model,
        pairs,
        method=method,
        layers=[1],
        compute_hiddens=lambda **_: {1: hiddens},
        transform_hiddens=lambda h: {1: -h[1]},
    )
    assert cosine(turned.directions[1], torch.from_numpy(direction)) < -0.95


def test_functions_get_what_repengs_get(model):
    seen = {}

    def compute(model, tokenizer, train_strs, hidden_layers, batch_size):
        seen.update(model=model, tokenizer=tokenizer, texts=train_strs, layers=hidden_layers, batch_size=batch_size)
        return {layer: torch.randn(len(train_strs), 5) for layer in hidden_layers}

    vector = train(model, [("a", "b"), ("c", "d")], layers=[2, 1], compute_hiddens=compute)
    assert seen["model"] is model
    assert seen["tokenizer"].encode("cat") == model.tokenizer.encode("cat")
    assert (seen["texts"], seen["layers"]) == (["a", "b", "c", "d"], [1, 2])
    assert isinstance(seen["batch_size"], int)
    assert vector.d_model == 5


def test_transformed_hiddens_are_the_models_own(model):
    pairs = introspect.concept_pairs(model, "cat", SUFFIXES)
    got = {}

    def keep(hiddens):
        got.update({layer: rows.clone() for layer, rows in hiddens.items()})
        return {layer: rows.numpy() * 2 for layer, rows in hiddens.items()}

    twice = train(model, pairs, method="mean_diff", transform_hiddens=keep)
    assert got.keys() == {1, 2}
    for row, text in enumerate(text for pair in pairs for text in pair):
        expected = plain(model, text, "blocks.1.hook_resid_post")[-1]
        torch.testing.assert_close(got[1][row], expected, rtol=1e-9, atol=1e-9)
    once = train(model, pairs, method="mean_diff")
    for layer in (1, 2):
        torch.testing.assert_close(twice.directions[layer], 2 * once.directions[layer])


@pytest.mark.parametrize(
    ("hiddens", "error", "says"),
    [
        ({}, ValueError, "layer 1"),
        ({1: torch.zeros(3, 4)}, introspect.ShapeError, r"\[4, d\]"),
        ({1: torch.zeros(4)}, introspect.ShapeError, r"\[4, d\]"),
        ({1: torch.ones(4, 4)}, ValueError, "layer 1: .*no variance"),
        ({1: torch.tensor([[1.0], [2], [3], [float("nan")]])}, ValueError, "layer 1: .*negative text of pair 1, 'dog'"),
        ({1: torch.tensor([[1.0], [2], [float("inf")], [0]])}, ValueError, "layer 1: .*positive text of pair 1, 'c'"),
    ],
)
def test_bad_hiddens_say_what_and_where(model, hiddens, error, says):
    pairs = [("a", "b"), ("c", "dog")]
    for function in ({"compute_hiddens": lambda **_: hiddens}, {"transform_hiddens": lambda _: hiddens}):
        with pytest.raises(error, match=says):
            train(model, pairs, layers=[1], **function)


def test_an_error_in_a_callers_function_arrives(model):
    def fail(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(model, [("a", "b")], transform_hiddens=fail)


# Words


def test_word_vectors_are_the_word_less_the_mean(model):
    words, baseline = ["cat", "bread"], ["dust", "milk", "snow"]
    templates = ["Tell me about {word}.", "{word} and {word}"]
    vectors = introspect.ControlVector.train_words_many(model, words, baseline, template=templates, layers=[0, 2])
    assert list(vectors) == words

    def mean(words, layer):
        texts = [
            model.apply_chat_template(
                [{"role": "user", "content": template.replace("{word}", word)}], add_generation_prompt=True
            )
            for word, template in itertools.product(words, templates)
        ]
        return torch.stack([plain(model, text, f"blocks.{layer}.hook_resid_post")[-1] for text in texts]).mean(0)

    for word, layer in itertools.product(words, (0, 2)):
        expected = mean([word], layer) - mean(baseline, layer)
        torch.testing.assert_close(vectors[word].directions[layer].double(), expected, rtol=0, atol=1e-5)
    one = introspect.ControlVector.train_words(model, "cat", baseline, template=templates, layers=[0, 2])
    assert min(one.cosine(vectors["cat"]).values()) > 1 - 1e-6
    assert one.model_hash == model.hash


def test_a_direction_planted_in_a_words_embedding_is_its_vector(folder, tmp_path, rng):
    """Blocks that write nothing leave the embedding; the word's is the others' mean and the direction."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    direction = torch.randn(32, generator=rng, dtype=torch.float64)
    cat = introspect.Tokenizer.load(folder).encode("cat", add_special_tokens=False)
    assert len(cat) == 1
    weights["model.embed_tokens.weight"] *= 0.1
    weights["model.embed_tokens.weight"][cat[0]] += 3 * direction
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    save_file(weights, tmp_path / "model.safetensors")
    model = introspect.load_model(tmp_path)
    vector = introspect.ControlVector.train_words(model, "cat", list("abdefghijk"), template="{word}", chat=False)
    assert min(cosine(v, direction) for v in vector.directions.values()) > 0.95


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"word": ""}, "must not be empty"),
        ({"baseline_words": []}, "baseline"),
        ({"template": "no place"}, "{word}"),
        ({"template": []}, "at least one template"),
        ({"word": "dust", "baseline_words": ["dust"]}, "layer 1: .*differ"),
    ],
)
def test_words_without_a_vector_are_refused(model, arguments, says):
    with pytest.raises(ValueError, match=says):
        introspect.ControlVector.train_words(model, **{"word": "cat", "baseline_words": ["dust"], **arguments})


def test_the_shipped_words():
    assert [len(introspect.load_words(name)) for name in ("concepts", "baseline", "more_concepts")] == [50, 100, 450]
    assert "Origami" in introspect.load_words()
    assert set(introspect.load_words("concepts_lindsey")) - set(introspect.load_words()) == {"Information"}
    with pytest.raises(ValueError, match="baseline"):
        introspect.load_words("verbs")


# Two models


def planted_copy(folder, to, direction, layer, rng):
    """The model with a low-rank change merged into what one block's MLP writes: a direction, by as much as it fires."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    weights = load_file(to / "model.safetensors")
    down = weights[f"model.layers.{layer}.mlp.down_proj.weight"]
    reads = torch.rand(down.shape[1], generator=rng, dtype=torch.float64)
    down += torch.outer(direction, reads)
    save_file(weights, to / "model.safetensors")
    return to


@pytest.mark.parametrize("method", ["pca_center", "pca_diff", "pca_diff_uncentered", "mean_diff"])
def test_a_direction_that_one_model_writes_is_the_vector_between_the_two(model, folder, tmp_path, rng, method):
    direction = torch.randn(32, generator=rng, dtype=torch.float64)
    other = planted_copy(folder, tmp_path / "other", direction, 1, rng)
    texts = [f"text {i} about {word}" for i, word in enumerate(introspect.load_words()[:40])]
    vector = introspect.contrast_models(other, model, texts, method=method, layers=[1], dtype="float64")
    # both signs of the MLP's activations occur, and the vector may point either way
    assert abs(cosine(vector.directions[1], direction)) > 0.95
    assert vector.model_hash == model.hash
    assert vector.method == f"{method} of two models"


def test_equal_models_have_no_contrast(model):
    with pytest.raises(ValueError, match=r"contrast: layer 1: .*no variance"):
        introspect.contrast_models(model, model, ["a", "b"])


def test_activations_are_kept_in_a_file(model, folder, tmp_path, rng):
    direction = torch.randn(32, generator=rng, dtype=torch.float64)
    other = introspect.load_model(planted_copy(folder, tmp_path / "other", direction, 0, rng), dtype=torch.float64)
    texts = ["one", "two texts", "three"]
    options = {"layers": [0, 2], "read_position": (0, -1), "point": "hook_resid_mid"}
    read = [introspect.collect_activations(m, texts, **options) for m in (other, model)]
    for i, one in enumerate(read):
        one.save(tmp_path / f"{i}.safetensors")
    back = [introspect.Activations.load(tmp_path / f"{i}.safetensors") for i in range(2)]
    for one, again in zip(read, back, strict=True):
        assert torch.equal(one.values, again.values)
        assert one.values.dtype == again.values.dtype
        for field in ("layers", "read_position", "point", "last_layer_after_norm", "texts_hash", "model_name",
                      "model_hash", "model_type"):  # fmt: skip
            assert getattr(one, field) == getattr(again, field)
    assert read[0].model_hash != read[1].model_hash
    # layer 0's middle is read before the change of its MLP
    with pytest.raises(ValueError, match=r"layer 0: .*no variance"):
        introspect.contrast(*back)
    both = [introspect.collect_activations(m, texts, layers=[1, 2]) for m in (other, model)]
    vector = introspect.contrast(*both, method="mean_diff")
    for at, layer in enumerate((1, 2)):
        expected = introspect.direction_of_pairs(both[0].values[:, at], both[1].values[:, at], method="mean_diff")
        assert torch.equal(vector.directions[layer], expected)


def test_activations_that_do_not_belong_together_are_refused(model, tmp_path):
    read = introspect.collect_activations(model, ["a", "b"])
    for options, says in [
        ({"texts": ["a", "c"]}, "same texts"),
        ({"texts": ["b", "a"]}, "same texts"),
        ({"layers": [1]}, "same layers"),
        ({"read_position": 0}, "same place"),
        ({"point": "hook_mlp_out"}, "same place"),
        ({"last_layer_after_norm": True}, "same place"),
    ]:
        other = introspect.collect_activations(model, **{"texts": ["a", "b"], **options})
        with pytest.raises(ValueError, match=says):
            introspect.contrast(read, other)
    wide = introspect.load_model(write_tiny_chat(tmp_path / "wide", hidden_size=64))
    with pytest.raises(introspect.ShapeError, match="one width"):
        introspect.contrast(read, introspect.collect_activations(wide, ["a", "b"]))
    vector = train(model, [("a", "b")], folds=0)
    vector.save(tmp_path / "v.safetensors")
    with pytest.raises(introspect.IoError, match="activations"):
        introspect.Activations.load(tmp_path / "v.safetensors")
