"""Arguments as people give them (layers, vectors, messages, models in memory), and what is refused."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_transformers, write_tiny
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect import repeng
from introspect.arguments import layer_range

MESSAGES = [
    {"role": "user", "content": "a cat"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "yes"},
]
RENDERED = (
    "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nyes<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


@pytest.fixture(scope="module")
def lens(folder):
    return introspect.HookedTransformer.from_pretrained(folder)


# Layers


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (None, None),
        (14, (14, 14)),
        (np.int64(14), (14, 14)),
        ((8, 16), (8, 16)),
        ([8, 16], (8, 16)),
        ([14], (14, 14)),
        (torch.tensor([8, 16]), (8, 16)),
        (np.array([8, 16]), (8, 16)),
        (range(8, 17), (8, 16)),
        ((0.33, 0.66), (9, 18)),  # 9.24 and 18.48 of 28
        ((0.0, 1.0), (0, 27)),
        ((0, 0.5), (0, 14)),
        (0.5, (14, 14)),
        ((np.float32(0.25), 0.5), (7, 14)),
    ],
)
def test_layers_are_blocks_or_fractions_of_the_depth(layers, blocks):
    assert layer_range(layers, 28, "steer") == blocks


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ("8-16", TypeError, "layers must be one block"),
        ((1, 2, 3), TypeError, "layers must be one block"),
        ([(8, 16)], TypeError, "layers must be one block"),
        (True, TypeError, "layers must be one block"),
        ((None, 3), TypeError, "layers must be one block"),
        ({8: 16}, TypeError, "layers must be one block"),
        ((0.66, 0.33), ValueError, "in order and from 0 to 1"),
        ((0.5, 1.5), ValueError, "in order and from 0 to 1"),
        ((3.0, 8.0), ValueError, "in order and from 0 to 1"),
        ((float("nan"), 0.5), ValueError, "in order and from 0 to 1"),
        ((0.33, 9), ValueError, "two block numbers or two fractions"),
        (range(3, 9, 2), ValueError, "neighbouring"),
        (range(3, 3), ValueError, "neighbouring"),
    ],
)
def test_other_layers_are_refused_in_a_sentence(model, layers, error, words):
    with pytest.raises(error, match=f"who: .*{words}"):
        layer_range(layers, 28, "who")
    with pytest.raises(error, match=f"steer: .*{words}"), model.steer(random_vectors()["cat"], layers=layers):
        pass


def test_steering_takes_layers_in_every_form(model):
    vector = random_vectors((0, 1, 2))["cat"]
    tokens = model.to_tokens("a cat")
    for layers, blocks in ((1, (1, 1)), ((0.3, 0.7), (1, 2)), (range(1, 3), (1, 2)), ([2], (2, 2))):
        with model.steer(vector, layers=layers):
            logits = model(tokens)
        with model.steer(vector, layers=blocks):
            assert torch.equal(model(tokens), logits)


# Vectors and what goes with them


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vector": torch.ones(32)}, r"ControlVector, got Tensor; introspect\.ControlVector\(model_type, \{layer: "),
        ({"vector": np.ones(32)}, r"ControlVector, got ndarray; introspect\.ControlVector\("),
        ({"vector": {1: torch.ones(32)}}, r"ControlVector, got dict; introspect\.ControlVector\("),
        ({"vector": [torch.ones(32)]}, r"ControlVector, got Tensor"),
        ({"vector": None}, r"ControlVector, got NoneType"),
        ({"vector": "cat.gguf"}, r"ControlVector, got str; introspect\.ControlVector\.load"),
        ({"vector": repeng.ControlVector("qwen2", {1: np.ones(32)})}, r"vector\.native\(\)"),
        ({"second": torch.ones(32), "op": "rotate", "angle": 3.0}, "ControlVector, got Tensor"),
        ({"positions": 3}, "positions must be"),
        ({"positions": (1, 2, 3)}, "positions must be"),
        ({"positions": "all"}, "positions must be"),
        ({"tokens": 5}, "tokens must be a list of token ids, got 5"),
        ({"tokens": "cat"}, "tokens must be a list of token ids, got 'cat'"),
        ({"after": 5}, "after must be a list of token ids, got 5"),
        ({"rows": 1}, "rows must be a list"),
        ({"condition": lambda tokens: True}, "condition must be an introspect.Condition, got function"),
        ({"strength": None}, "steer: strength must be a number or a dose, got None"),
        ({"op": 3}, "Intervention.*'op' must be str, got int"),
        ({"when": 3}, "TextFilter.*'phase' must be str, got int"),
        ({"angle": "30", "op": "rotate"}, "Intervention.*'parameters'.*str for 'angle'"),
    ],
)  # fmt: skip
def test_steer_says_what_it_takes(model, arguments, words):
    given = {"vector": random_vectors()["cat"], **arguments}
    with pytest.raises(TypeError, match=words), model.steer(**given):
        pass


# Messages


def test_messages_are_written_by_the_chat_template(model, lens):
    tokens = model.to_tokens(RENDERED)
    for one in (model, lens):
        assert torch.equal(one.to_tokens(MESSAGES), tokens)
    assert torch.equal(model(MESSAGES), model(tokens)) and torch.equal(lens(MESSAGES), lens(tokens))
    options = {"max_new_tokens": 5, "stop_at_eos": False}
    text = model.generate(MESSAGES, **options)
    assert isinstance(text, str) and text == model.generate(RENDERED, **options)
    both = model.generate([MESSAGES, "a cat", MESSAGES[:1]], **options)
    assert both == [text, model.generate("a cat", **options), model.generate(MESSAGES[:1], **options)]
    greedy = {**options, "do_sample": False, "verbose": False}
    assert lens.generate(MESSAGES, **greedy) == lens.generate(RENDERED, **greedy)
    assert lens.to_str_tokens(MESSAGES) == lens.to_str_tokens(RENDERED)


def test_a_bos_token_is_not_put_before_messages_unless_asked_for(lens):
    plain = lens.to_tokens("yes", prepend_bos=True)
    assert plain[0, 0] == lens.tokenizer.bos_token_id
    lens.cfg.default_prepend_bos = True
    try:
        assert torch.equal(lens.to_tokens(MESSAGES), lens.to_tokens(RENDERED, prepend_bos=False))
        assert lens.to_tokens([MESSAGES, "yes"])[1, 0] == lens.tokenizer.bos_token_id
        assert torch.equal(lens.to_tokens(MESSAGES, prepend_bos=True), lens.to_tokens(RENDERED, prepend_bos=True))
    finally:
        lens.cfg.default_prepend_bos = False


def test_a_tokenizer_of_ones_own_writes_its_own_template(model):
    class Own:
        padding_side, bos_token_id, eos_token_id, pad_token_id = "right", 1, 2, 2

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return "|".join(message["content"] for message in messages)

        def encode(self, text, add_special_tokens):
            return [ord(letter) for letter in text]

    lens = introspect.HookedTransformer(model, tokenizer=Own())
    assert lens.to_tokens(MESSAGES).tolist() == [[ord(letter) for letter in "a cat|no|yes"]]


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        (5, TypeError, "text, a list of texts, or messages .* got int"),
        (None, TypeError, "got NoneType"),
        ([1, 2, 3], TypeError, "got a list with int"),
        ({"role": "user", "content": "a"}, TypeError, "got dict"),
        (np.array([1, 2]), TypeError, "got ndarray"),
        ([["a"]], TypeError, "got a list with list"),
        ([{"content": "a"}], ValueError, "a message must have 'role' and 'content', got .'content'."),
        ([MESSAGES[0], "a"], TypeError, "got a list with dict"),
    ],
)
def test_other_prompts_are_refused_in_a_sentence(model, lens, prompt, error, words):
    calls = (model.generate, model.to_tokens, model, lens.generate, lens.to_tokens, lens, lens.generate_stream)
    for call in calls:
        with pytest.raises(error, match=words):
            call(prompt)


def test_tokens_of_another_shape_are_refused(model):
    for tokens in (torch.ones(2, 3), torch.ones(1, 2, 3, dtype=torch.long), torch.tensor(3), torch.ones(1, 2).bool()):
        with pytest.raises(introspect.ShapeError, match="generate: tokens must be int64"):
            model.generate(tokens)
    row = model.to_tokens("a cat")
    assert model.generate(row[0], max_new_tokens=3) == model.generate(row, max_new_tokens=3)


def test_messages_without_a_chat_template_say_so(tmp_path):
    folder = write_tiny_chat(tmp_path / "plain")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    plain = introspect.load_model(folder)
    for call in (plain.generate, plain.to_tokens, introspect.HookedTransformer(plain).to_tokens):
        with pytest.raises(introspect.ConfigError, match="chat template"):
            call(MESSAGES)


# Models in memory


def test_a_transformers_model_in_memory_is_loaded(folder):
    theirs = tiny_transformers("qwen2")
    model = introspect.load_model(theirs, dtype="float64")
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)  # its norms are float32
    assert model.tokenizer is None and type(model) is introspect.Model
    with pytest.raises(introspect.ConfigError, match="tokenizer"):
        model.generate("a cat")
    with torch.no_grad():
        next(theirs.parameters()).zero_()  # weights were copied
    assert model(tokens).isfinite().all() and not torch.equal(model(tokens)[0], theirs(tokens).logits[0])


def test_its_tokenizer_comes_along(folder, model):
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    theirs = Qwen2ForCausalLM.from_pretrained(folder)
    words = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **words)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == RENDERED
    for given in (tokenizer, folder, str(folder)):
        loaded = introspect.load_model(theirs, tokenizer=given)
        assert loaded.generate(MESSAGES, max_new_tokens=4) == model.generate(MESSAGES, max_new_tokens=4)
        assert loaded.apply_chat_template(MESSAGES, add_generation_prompt=True) == RENDERED


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (3, {}, TypeError, "a short name, a path, a hub id or a transformers model in memory, got int"),
        (None, {}, TypeError, "got NoneType"),
        (torch.nn.Linear(2, 2), {}, TypeError, "only transformers' models can be copied, got Linear"),
        (
            tiny_transformers("qwen2"),
            {"tokenizer": 3},
            TypeError,
            "tokenizer must be a path or a transformers tokenizer",
        ),
        ("somewhere", {"tokenizer": 3}, introspect.ConfigError, "tokenizer= goes with a transformers model"),
    ],
)
def test_other_sources_of_a_model_are_refused(source, options, error, words):
    with pytest.raises(error, match=words):
        introspect.load_model(source, **options)


# Names and texts


def test_names_of_the_other_class_are_hinted_at(model):
    for name in ("blocks", "W_U", "to", "eval", "to_str_tokens", "to_single_token", "state_dict", "mps"):
        with pytest.raises(
            AttributeError, match=rf"Model has no attribute '{name}': introspect\.HookedTransformer\(model\)"
        ):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=r"near it: .*generate"):
        model.generat  # noqa: B018
    same = introspect.HookedTransformer(model)
    assert same.native is model.native and same.name == model.name
    assert "HookedTransformer" in introspect.Model.__doc__ and "load_model" in introspect.HookedTransformer.__doc__


def test_what_a_property_says_when_it_fails_is_not_lost(folder):
    class Broken(introspect.Model):
        @property
        def broken(self):
            return self.native.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        Broken(introspect.load_model(folder).native).broken  # noqa: B018


def test_objects_show_themselves_in_a_line_or_a_page(model, lens, tmp_path):
    _, cache = lens.run_with_cache("a cat")
    shown = repr(cache)
    assert len(shown) < 300 and f"{len(cache)} activations" in shown and "hook_embed" in shown
    _, few = model.run_with_cache("a cat", ["hook_embed"])
    assert repr(few) == "ActivationCache(1 activations: hook_embed)"
    for config in (model.cfg, lens.cfg):
        assert "d_model" in repr(config) and "n_layers" in repr(config) and "object at 0x" not in repr(config)
    assert repr(introspect.load_model(write_tiny(tmp_path / "other")).cfg) != repr(model.cfg)


# Where a model, or a list, is wanted


@pytest.mark.parametrize(
    "call",
    [
        lambda m: introspect.concept_pairs(m, "cat", ["I"]),
        lambda m: introspect.ControlVector.train(m, [("a", "b"), ("c", "d")]),
        lambda m: introspect.collect_activations(m, ["a"]),
        lambda m: random_vectors()["cat"].intervention(m),
        lambda m: introspect.Condition(torch.ones(32), layer=1, threshold=0.0).rows(m, torch.ones(1, 2).long()),
        lambda m: introspect.Graph().segment(m, [1, 2]),
        lambda m: introspect.finetune(m, [introspect.FinetuneExample("a", "b")], steps=1),
    ],
)
@pytest.mark.parametrize("wrong", ["qwen", None, torch.ones(3)])
def test_what_is_no_model_is_said(call, wrong):
    with pytest.raises(TypeError, match=f"model must be an introspect.Model, got {type(wrong).__name__}"):
        call(wrong)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: introspect.Graph().segment(m, 5), "Graph.segment: tokens must be a list, got 5"),
        (
            lambda m: introspect.Graph().segment(m, ["a"]),
            "Graph.segment.*'tokens' must be a list of int, got str",
        ),
        (lambda m: introspect.Graph().read(0, positions=3), "Graph.read: positions must be a list, got 3"),
        (lambda m: introspect.Graph().read(0, layers=3), "Graph.read: layers must be a list, got 3"),
        (lambda m: introspect.Graph().read_attention(0, heads=1), "heads must be a list, got 1"),
        (lambda m: introspect.Graph().read_attention(0, keys=3), r"keys must be \(first, last\), got 3"),
        (lambda m: introspect.finetune(m, ["a"], steps=1), r"examples\[0\] must be a FinetuneExample, got str"),
        (
            lambda m: introspect.finetune(m, [introspect.FinetuneExample(1, "b")], steps=1),
            r"examples\[0\].*must be a list",
        ),
        (lambda m: introspect.concept_pairs(m, 5, ["I"]), "concept_pairs.*'concept' must be str, got int"),
        (lambda m: introspect.concept_pairs(m, "cat", "I"), "concept_pairs.*'suffixes' must be a list of str, got str"),
        (lambda m: introspect.ControlVector.train(m, ["abc"]), "ControlVector.train.*'pairs'"),
        (
            lambda m: introspect.random_rotation(torch.ones(3), seed=1),
            r"ControlVector, got Tensor: introspect\.ControlV",
        ),
        (
            lambda m: introspect.run_trie(m, [[1]], nodes=[1], layers=[0]),
            "run_trie.*'trie' must be TokenTrie",
        ),
        (
            lambda m: introspect._C.apply_norm(m, torch.ones(1), None, layer=0),
            "must be Model, got Model: its",
        ),
    ],
)
def test_lists_and_texts_are_told_apart(model, call, words):
    with pytest.raises(TypeError, match=words):
        call(model)
