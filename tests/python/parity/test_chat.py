"""Chat texts against transformers' apply_chat_template on the same Jinja sources."""

import itertools
import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import introspect
from introspect.chat import chat_template, jinja_chat_template

TEMPLATES = Path(__file__).parents[2] / "data" / "chat_templates"
TOKENS = {
    "llama-2": {"bos_token": "<s>", "eos_token": "</s>"},
    "llama-3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "llama-3.2": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "gemma-3": {"bos_token": "<bos>", "eos_token": "<eos>"},
}
TEXTS = ["Hello", "", "  two spaces \n", "\n\nline\n", "\u00a0é\u3000", "a\x1cb\x1c", "{{ x }} <|im_end|>"]
TEXTS.append("日本語 🙂 ")
CONVERSATIONS = [
    roles
    for n in (1, 2, 3, 4, 5)
    for roles in [(["user", "assistant"] * 3)[:n], ["system", *(["user", "assistant"] * 3)[:n]]]
]


def config_template(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]


IN_TEST_DATA = ["chatml", "llama-2", "llama-3", "gemma-3"]
IN_GGUF_FILES = {"qwen05": "qwen2.5", "qwen15": "qwen2.5", "smollm2": "smollm2"}


@pytest.fixture(params=[*IN_TEST_DATA, "qwen2.5", "llama-3.2", "gemma", *IN_GGUF_FILES])
def known(request):
    """(name of the format, its Jinja source) from every place a known source is in."""
    name = request.param
    if name in IN_TEST_DATA:
        return name, (TEMPLATES / f"{name}.jinja").read_text()
    if name in IN_GGUF_FILES:
        return IN_GGUF_FILES[name], introspect.Tokenizer.load(request.getfixturevalue(name)).chat_template
    data = request.getfixturevalue("shared_data") / "tokenizers"
    if name == "gemma":
        return name, (data / "gemma2" / "chat_template.jinja").read_text()
    return name, config_template(data / name.replace("-", ""))


def conversations():
    for offset, roles in itertools.product(range(len(TEXTS)), CONVERSATIONS):
        yield [{"role": role, "content": TEXTS[(offset + i * 3) % len(TEXTS)]} for i, role in enumerate(roles)]


def theirs(source, messages, tokens, **options):
    return render_jinja_template([messages], chat_template=source, **options, **tokens)[0][0]


OPTIONS = [{}, {"add_generation_prompt": True}, {"continue_final_message": True}]


def assert_equal_texts(template, source, tokens):
    compared = 0
    for messages, options in itertools.product(conversations(), OPTIONS):
        try:
            expected = theirs(source, messages, tokens, **options)
        except Exception as error:  # the template or transformers refuses
            if messages[0] == {"role": "system", "content": ""} and "System role" in str(error):
                continue  # Gemma: see test_gemma_leaves_out_an_empty_system_message
            with pytest.raises(introspect.ConfigError):
                template.render(messages, **options)
            continue
        assert template.render(messages, **options) == expected, (messages, options)
        compared += 1
    assert compared > 50


def test_native_formats_write_what_transformers_writes(known):
    name, source = known
    tokens = TOKENS.get(name, {})
    template = chat_template(source, special_tokens=tokens)
    assert template.name == name
    assert_equal_texts(template, source, tokens)


def test_the_sandboxed_renderer_writes_what_transformers_writes(known):
    name, source = known
    tokens = TOKENS.get(name, {})
    template = jinja_chat_template(source, special_tokens=tokens)
    for messages, options in itertools.product(list(conversations())[:20], OPTIONS):
        try:
            expected = theirs(source, messages, tokens, **options)
        except Exception:
            with pytest.raises(introspect.ConfigError):
                template.render(messages, **options)
            continue
        assert template.render(messages, **options) == expected, (messages, options)


def test_named_formats_are_the_recognised_ones_with_their_familys_tokens(known):
    name, source = known
    by_source = chat_template(source, special_tokens=TOKENS.get(name, {}))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert introspect.ChatTemplate.named(name).render(messages) == by_source.render(messages)


def test_gemma_leaves_out_an_empty_system_message(shared_data):
    source = (shared_data / "tokenizers" / "gemma2" / "chat_template.jinja").read_text()
    template = chat_template(source, special_tokens=TOKENS["gemma"])
    question = [{"role": "user", "content": "q"}]
    expected = theirs(source, question, TOKENS["gemma"], add_generation_prompt=True)
    empty = {"role": "system", "content": ""}
    assert template.render([empty, *question], add_generation_prompt=True) == expected


def test_transformers_own_tokenizer_writes_the_same(shared_data):
    from transformers import AutoTokenizer

    folder = shared_data / "tokenizers" / "qwen2.5"
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hello"}]
    ours = chat_template(config_template(folder)).render(messages, add_generation_prompt=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ours == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = introspect.Tokenizer.load(folder).encode(ours, add_special_tokens=False)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
