"""Folders with a tokenizer: every file in them counts as it counts for transformers' AutoTokenizer."""

import importlib.metadata
import itertools
import json
import random

import pytest
import torch
from tiny import tiny_transformers

import introspect
from introspect.chat import load_chat_template

sentencepiece = pytest.importorskip("sentencepiece")
model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

# Before 5.24 transformers read a tokenizer.model without a known class in another way than sentencepiece.
NEW_ENOUGH = tuple(map(int, importlib.metadata.version("transformers").split(".")[:2])) >= (5, 24)


def flags(content, **changes):
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **plain, **changes}


def write(folder, source, **files):
    """A folder with one vocabulary file and JSON files: tokenizer_config={...} becomes tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / source.name).write_bytes(source.read_bytes())
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture
def qwen(shared_data):
    return shared_data / "tokenizers" / "qwen2.5" / "tokenizer.json"


@pytest.fixture
def gpt2(shared_data):
    return shared_data / "tokenizers" / "gpt2" / "tokenizer.json"


@pytest.fixture
def llama2(shared_data):
    return shared_data / "tokenizers" / "llama2" / "tokenizer.model"


# Inputs of public reports, with the values they should give


@pytest.mark.parametrize("given", [{}, {"tokenizer_class": "LlamaTokenizer"}])
def test_legacy_false_puts_no_space_after_a_token(tmp_path, llama2, given):  # huggingface/transformers#25716
    tokenizer = introspect.Tokenizer.load(write(tmp_path, llama2, tokenizer_config={"legacy": False, **given}))

    def pieces(text):
        return [tokenizer.id_to_token(i) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("</s>Human is Here") == ["</s>", "H", "uman", "▁is", "▁Here"]
    assert pieces("<s>uns") == ["<s>", "uns"]


IM = {"<|im_start|>": 32000, "<|im_end|>": 32001}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": {
            str(i): flags(token) for token, i in IM.items()}}},
        {"tokenizer_config": {"eos_token": "<|im_end|>"}, "added_tokens": IM},
        {"special_tokens_map": {"eos_token": flags("<|im_end|>")}, "added_tokens": IM},
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "eos_token": "<|im_end|>"},
         "added_tokens": IM},
    ],
)  # fmt: skip
def test_added_tokens_of_a_tokenizer_model_are_tokens(tmp_path, llama2, files):  # ggml-org/llama.cpp#7271
    tokenizer = introspect.Tokenizer.load(write(tmp_path, llama2, **files))
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n", add_special_tokens=False)
    assert ids == [32000, 1404, 13, 18567, 32001, 29871, 13]
    assert tokenizer.eos_token_id == 32001


def test_added_tokens_beside_a_tokenizer_json_are_tokens(tmp_path, qwen):  # PaddlePaddle/PaddleNLP#8997
    def load(**config):
        return introspect.Tokenizer.load(write(tmp_path, qwen, tokenizer_config=config))

    thought = load(added_tokens_decoder={"151665": flags("<|thought|>")})
    assert thought.encode("<|thought|>") == [151665]
    assert load(eos_token="<|im_start|>").eos_token_id == 151644
    assert load(eos_token="<|thought|>").eos_token_id == 151665
    call = load(added_tokens_decoder={"151657": flags("<tool_call>", rstrip=True, special=False)})
    assert call.encode("<tool_call> b") == [151657, 65]


@pytest.mark.parametrize("source", ["{{ unk_token }}", "{{ image_token }}"])
def test_special_tokens_map_names_tokens_and_the_template_may_use_them(tmp_path, qwen, source):
    # ggml-org/llama.cpp#5040, ml-explore/mlx-examples#355
    template = source + "[{{ messages[0].role }}] {{ messages[0].content }}{{ eos_token }}"
    names = {"bos_token": "<|im_start|>", "eos_token": flags("<|im_end|>"), "pad_token": "<|endoftext|>"}
    names |= {"unk_token": "<|im_start|>", "image_token": "<|im_start|>"}
    folder = write(tmp_path, qwen, special_tokens_map=names, tokenizer_config={"chat_template": template})
    text = load_chat_template(folder).render([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>[user] hi<|im_end|>"
    tokenizer = introspect.Tokenizer.load(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (151644, 151645, 151643)


def test_add_prefix_space_of_the_config_holds(tmp_path, gpt2):  # huggingface/transformers#42481
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    tokenizer = introspect.Tokenizer.load(write(tmp_path, gpt2, tokenizer_config=config))
    assert tokenizer.encode("Hello world") == [18435, 995]


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory):
    """A GPT-2 that writes token 198 whatever it reads."""
    folder = tmp_path_factory.mktemp("stubborn")
    model = tiny_transformers("gpt2", vocab_size=300)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()[0] = 1.0
        model.transformer.wte.weight[:, 0] = 0
        model.transformer.wte.weight[198, 0] = 1.0
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"generation_config": {"eos_token_id": [45, 43, 198]}}, True),  # turboderp/exllamav2#449
        ({"generation_config": {"eos_token_id": 198}}, True),
        ({"generation_config": {}, "config": {"eos_token_id": 198}}, True),
        ({"config": {"eos_token_id": [7, 198]}}, True),
        ({"generation_config": {"eos_token_id": 7}, "config": {"eos_token_id": 198}}, False),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": None}}, False),
    ],
)
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_generation_ends_where_generation_config_says(tmp_path, stubborn, gpt2, files, stops, with_tokenizer):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in stubborn.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | files.get("config", {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "generation_config" in files:
        (folder / "generation_config.json").write_text(json.dumps(files["generation_config"]))
    if with_tokenizer:
        parsed = json.loads(gpt2.read_text())
        vocab = {token: i for token, i in parsed["model"]["vocab"].items() if i < 256}
        parsed["model"] |= {"vocab": vocab, "merges": []}
        parsed["added_tokens"][0]["id"] = 256
        (folder / "tokenizer.json").write_text(json.dumps(parsed))
    engine = introspect.load_model(folder, dtype=torch.float64).native
    assert engine.generate([[1, 2]], max_new_tokens=6) == [[198] if stops else [198] * 6]
    assert engine.generate([[1, 2]], max_new_tokens=6, stop_at_eos=False) == [[198] * 6]


@pytest.mark.parametrize("value", ["x", 1.5, [1, "x"], {"a": 1}])
def test_an_eos_token_id_of_another_type_is_an_error_that_names_it(tmp_path, qwen, value):
    folder = write(tmp_path, qwen, generation_config={"eos_token_id": value})
    with pytest.raises(introspect.IoError, match="eos_token_id"):
        introspect.Tokenizer.load(folder)


# Any folder

N_TOKENS = 1200
TEXTS = [
    "Hello world", "  two  spaces ", "</s>Human<s>uns", "<|im_start|>user\nHi<|im_end|>\n", "<tool_call> b <x>c",
    "a<|thought|>b <|thought|> c", "é ▁▁ a▁b \u00a0<x>\u00a0 q<image> y", "日本\x00🙂\n\t", "▁lead<unk> <pad>", "",
]  # fmt: skip
MESSAGES = [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "yes"}]
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}",
    [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "{{ unk_token }}{{ image_token }}D"}],
]


def small_json(source):
    """A real tokenizer.json with its first tokens only; those it adds are numbered on from them."""
    parsed = json.loads(source.read_text(encoding="utf-8"))
    vocab = {token: i for token, i in parsed["model"]["vocab"].items() if i < N_TOKENS}
    merges = [m.split(" ") if isinstance(m, str) else m for m in parsed["model"]["merges"]]
    merges = [m for m in merges if m[0] + m[1] in vocab and m[0] in vocab and m[1] in vocab]
    added = [token for token in parsed["added_tokens"] if token["content"] not in vocab]
    for i, token in enumerate(added):
        token["id"] = N_TOKENS + i
    parsed["model"] |= {"vocab": vocab, "merges": merges}
    return {**parsed, "added_tokens": added}


def small_model(source):
    """A real tokenizer.model with its first pieces, and some of its single characters."""
    model = model_pb2.ModelProto()
    model.ParseFromString(source.read_bytes())
    pieces = list(model.pieces)
    del model.pieces[:]
    model.pieces.extend(pieces[:N_TOKENS] + pieces[29871:30100])
    return model.SerializeToString()


def drawn_config(rng, n_tokens, known, classes):
    """A tokenizer_config.json and its neighbours: each field is there or not, with one of its usual values."""
    new = ["<|thought|>", "<x>", "<image>", "<|im_start|>", "<|im_end|>", "<pad>"]
    config, files = {}, {"tokenizer_config": {}}

    def maybe(key, values, chance=0.4):
        if rng.random() < chance:
            config[key] = rng.choice(values)

    def token(content):
        plain = {key: rng.random() < 0.3 for key in ("lstrip", "rstrip", "single_word", "normalized")}
        return {"content": content, **plain, "special": rng.random() < 0.6}

    maybe("tokenizer_class", classes, 0.8)
    for key in ("legacy", "add_prefix_space", "add_bos_token", "add_eos_token"):
        maybe(key, [True, False])
    maybe("split_special_tokens", [True, False], 0.15)
    maybe("clean_up_tokenization_spaces", [True, False])
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        content = rng.choice([*new, *known])
        maybe(name, [content, {"__type": "AddedToken", **token(content)}, None], 0.3)
    maybe("image_token", ["<image>", "<x>"], 0.2)
    maybe("additional_special_tokens", [["<x>", "<image>"], ["<|thought|>"], []], 0.3)
    maybe("extra_special_tokens", [["<x>"], {"audio_token": "<|thought|>", "boi_token": "<x>"}, []], 0.2)
    maybe("model_specific_special_tokens", [{"image_token": "<image>"}, {"boi": "<x>", "image_token": "<image>"}], 0.15)
    maybe("chat_template", TEMPLATES, 0.7)
    if rng.random() < 0.4:
        contents = list(known)
        contents += [content for content in new if content not in known][: rng.randrange(4)]
        config["added_tokens_decoder"] = {
            str(known.get(content, n_tokens + i - len(known))): token(content) for i, content in enumerate(contents)
        }
    if rng.random() < 0.4:
        files["special_tokens_map"] = {
            "pad_token": token("<pad>"),
            "eos_token": rng.choice(list(known)),
            **({"additional_special_tokens": ["<image>"]} if rng.random() < 0.5 else {}),
        }
    if rng.random() < 0.4:
        files["added_tokens"] = {content: n_tokens + i for i, content in enumerate(new[: rng.randrange(1, 4)])}
    if rng.random() < 0.3:
        files["generation_config"] = {"eos_token_id": rng.choice([3, [3, 5]])}
    if rng.random() < 0.3:
        files["config"] = {"model_type": rng.choice(["llama", "qwen2", "gpt2", "mistral"])}
    if rng.random() < 0.85:
        files["tokenizer_config"] = config
    return files


def outcome(folder):
    """What transformers makes of a folder; None where it fails."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder)
        theirs.encode("a")
    except Exception:
        return None
    return theirs


def assert_equal_reading(folder, files, theirs):
    ours = introspect.Tokenizer.load(folder)
    told = json.dumps(files)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id), told  # fmt: skip
    assert ours.special_tokens == theirs.special_tokens_map, told
    assert ours.vocab_size == len(theirs), told
    for text, special in itertools.product(TEXTS, (True, False)):
        ids = theirs.encode(text, add_special_tokens=special)
        assert ours.encode(text, add_special_tokens=special) == ids, (text, told)
        assert ours.decode(ids) == theirs.decode(ids), (text, told)
        skipped = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == skipped, (text, told)
    ends = files.get("generation_config", {}).get("eos_token_id", [])
    assert set(ours.stop_token_ids) >= {theirs.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if theirs.chat_template is not None:
        text = theirs.apply_chat_template(MESSAGES, tokenize=False)
        assert load_chat_template(folder).render(MESSAGES) == text, told
        spelled = theirs.apply_chat_template(MESSAGES)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == spelled, told


@pytest.mark.parametrize("vocabulary", ["qwen", "gpt2", "llama2"])
def test_a_folder_gives_transformers_reading_or_an_error_that_names_the_field(tmp_path, request, vocabulary):
    source = request.getfixturevalue(vocabulary)
    small = tmp_path / source.name
    if source.suffix == ".model":
        small.write_bytes(small_model(source))
        n_tokens, known = N_TOKENS + 229, {"<unk>": 0, "<s>": 1, "</s>": 2}
        classes = ["LlamaTokenizer", "LlamaTokenizerFast", *(["PreTrainedTokenizerFast"] if NEW_ENOUGH else [])]
    else:
        parsed = small_json(source)
        small.write_text(json.dumps(parsed), encoding="utf-8")
        known = {token["content"]: token["id"] for token in parsed["added_tokens"]}
        n_tokens = N_TOKENS + len(known)
        classes = ["Qwen2Tokenizer" if vocabulary == "qwen" else "GPT2Tokenizer", "PreTrainedTokenizerFast"]
    rng = random.Random(vocabulary)
    compared = refused = 0
    for n in range(60):
        files = drawn_config(rng, n_tokens, known, classes)
        if source.suffix == ".model":
            files.pop("config", None)  # names no class that reads a tokenizer.model
            if not NEW_ENOUGH:
                files["tokenizer_config"].setdefault("tokenizer_class", "LlamaTokenizer")
        elif (
            files.get("config", {}).get("model_type") in ("qwen2", "gpt2")
            and "tokenizer_class" not in files["tokenizer_config"]
        ):
            files.pop("config")  # of another vocabulary than this one: the stages would be another's
        folder = write(tmp_path / f"folder{n}", small, **files)
        if (theirs := outcome(folder)) is None:
            continue
        try:
            assert_equal_reading(folder, files, theirs)
            compared += 1
        except introspect.Error as error:
            assert any(
                f"'{key}'" in str(error) or f"{key}.json" in str(error)
                for key in ("added_tokens_decoder", "added_tokens", "tokenizer_class")
            ), (str(error), json.dumps(files))
            refused += 1
    assert compared >= 30 and refused <= 15, (compared, refused)
