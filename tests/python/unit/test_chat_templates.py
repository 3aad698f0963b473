"""Chat templates from Python: choice of the renderer, its sandbox, and what it refuses."""

import json

import pytest
from tiny_chat import write_tiny_chat

import introspect
from introspect import ChatTemplate, ConfigError
from introspect.chat import chat_template, load_chat_template

QUESTION = [{"role": "user", "content": "q"}]


def test_an_unknown_source_is_refused_natively_and_rendered_by_jinja():
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | tojson }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(ConfigError, match="Python"):
        ChatTemplate.from_jinja(source, bos="<s>", eos="</s>")
    template = chat_template(source, special_tokens={"bos_token": "<s>"})
    assert template.name == "jinja"
    assert template.render([{"role": "user", "content": 'é"<'}], add_generation_prompt=True) == '<s>[user] "é\\"<"\n>'


def test_the_template_beside_a_model_is_found(tmp_path):
    assert load_chat_template(tmp_path) is None
    config = {"chat_template": "A{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_chat_template(tmp_path).render(QUESTION) == "A<b>q"
    (tmp_path / "chat_template.jinja").write_text("B{{ messages[0].content }}")
    assert load_chat_template(tmp_path).render(QUESTION) == "Bq"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ messages[0].content }}"}]
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(tmp_path).render(QUESTION) == "Dq"


def test_templates_are_found_in_all_their_places(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": {"default": "C", "rag": "R"}}))
    assert load_chat_template(tmp_path).render(QUESTION) == "C"
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("T")  # files hide what the config has
    with pytest.raises(ConfigError, match="tool_use"):
        load_chat_template(tmp_path).render(QUESTION)
    (tmp_path / "chat_template.jinja").write_text("D")
    assert load_chat_template(tmp_path).render(QUESTION) == "D"


@pytest.mark.parametrize(
    ("value", "message"),
    [(7, "chat_template"), ([{"name": "default"}], "chat_template"), ({"default": 3}, "chat_template")],
)
def test_a_template_of_another_type_is_an_io_error_that_names_the_field(tmp_path, value, message):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(introspect.IoError, match=message):
        load_chat_template(tmp_path)


def test_a_template_may_use_every_special_token_the_files_name(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ image_token }}{{ unk_token }}{{ bos_token }}", "image_token": "<image>"})
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": {"content": "<u>"}, "bos_token": "<b>"}))
    assert load_chat_template(tmp_path).render(QUESTION) == "<image><u><b>"


def test_a_model_takes_a_template_of_ones_own(tmp_path):
    folder = write_tiny_chat(tmp_path / "tiny")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>"}')
    with pytest.raises(ConfigError, match="chat_template") as error:
        introspect.load_model(folder).apply_chat_template(QUESTION)
    assert "LoadOptions" not in str(error.value)

    def text(given):
        return introspect.load_model(folder, chat_template=given).apply_chat_template(QUESTION)

    source = "{{ bos_token }}[{{ messages[0].content }}]"
    (tmp_path / "mine.jinja").write_text(source)
    assert text(source) == text(tmp_path / "mine.jinja") == text(str(tmp_path / "mine.jinja")) == "<|im_start|>[q]"
    assert text("chatml") == text(ChatTemplate.named("chatml")) == "<|im_start|>user\nq<|im_end|>\n"
    with pytest.raises(ConfigError, match="chat_template must be"):
        text("no-such-file.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[7].content.x.y }}",
        "{% if %}",
        "{% include 'x' %}",
    ],
)
def test_what_a_template_may_not_do_is_a_config_error(source):
    with pytest.raises(ConfigError, match="chat template"):
        chat_template(source).render(QUESTION)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": "x", "tool_calls": []}],
        [{"role": "user", "content": "\ud800"}],
    ],
)
def test_messages_that_are_none_are_a_config_error(messages):
    with pytest.raises(ConfigError):
        ChatTemplate.named("chatml").render(messages)


def test_the_date_is_todays_unless_one_is_given():
    from datetime import datetime

    template = ChatTemplate.named("llama-3.2")
    assert f"Today Date: {datetime.now():%d %b %Y}\n" in template.render(QUESTION)
    assert "Today Date: 26 Jul 2024\n" in template.render(QUESTION, date_string="26 Jul 2024")


def test_an_exception_of_ones_own_renderer_reaches_the_caller():
    def broken(messages, add_generation_prompt):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ChatTemplate("broken", broken).render(QUESTION)


def test_every_named_format_writes_question_and_answer():
    for name in ChatTemplate.names():
        text = introspect.ChatTemplate.named(name).render([*QUESTION, {"role": "assistant", "content": "answer"}])
        assert "q" in text and text.index("answer") > text.index("q")
    with pytest.raises(ConfigError, match="chatml"):
        ChatTemplate.named("alpaca")
