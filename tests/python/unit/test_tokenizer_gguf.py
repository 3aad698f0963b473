"""Vocabularies in GGUF metadata: which keys count, and what broken ones get."""

import contextlib

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import introspect
from introspect import ConfigError, IoError, Tokenizer

gguf = pytest.importorskip("gguf")
sentencepiece = pytest.importorskip("sentencepiece")

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*LETTERS, "th", "the", "12", "Ġt", "Ġthe", "<|im_end|>", "<tool>", "[PAD0]"]
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [NORMAL] * (len(TOKENS) - 3) + [CONTROL, USER_DEFINED, UNUSED],
    "tokenizer.ggml.merges": ["t h", "th e", "1 2", "Ġ t"],
}


@pytest.fixture
def load(tmp_path):
    """Writes the metadata to a GGUF file and loads its tokenizer."""

    def load(fields):
        path = tmp_path / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in fields.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_int32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Tokenizer.load(path)

    return load


def ids_of(*tokens):
    return [TOKENS.index(token) for token in tokens]


def test_control_and_user_defined_tokens_are_found_in_a_text_and_unused_ones_are_not(load):
    tokenizer = load(BPE)
    assert tokenizer.encode("a<|im_end|><tool>") == ids_of("a", "<|im_end|>", "<tool>")
    assert tokenizer.encode("[PAD0]") == ids_of(*"[PAD0]")
    ids = ids_of("a", "<|im_end|>", "<tool>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>"
    assert tokenizer.stop_token_ids == ids_of("<|im_end|>")


@pytest.mark.parametrize(
    ("pre", "expected"),
    [("gpt-2", ["12"]), ("smollm", ["1", "2"]), ("qwen2", ["1", "2"]), ("llama-bpe", ["12"])],
)
def test_the_pre_tokenizer_decides_whether_digits_may_join(load, pre, expected):
    assert load({**BPE, "tokenizer.ggml.pre": pre}).encode("12", add_special_tokens=False) == ids_of(*expected)


@pytest.mark.parametrize("pre", ["no-such-thing", None])
def test_an_unknown_or_missing_pre_tokenizer_is_named(load, pre):
    with pytest.raises(ConfigError, match=pre or "tokenizer.ggml.pre is missing"):
        load({**BPE, "tokenizer.ggml.pre": pre})


def test_bos_is_added_where_the_file_says_so(load):
    fields = {**BPE, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    assert load(fields).encode("the") == [0, *ids_of("the")]
    assert load({**fields, "tokenizer.ggml.add_bos_token": False}).encode("the") == ids_of("the")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, ConfigError, "bert"),
        ({"tokenizer.ggml.token_type": [1, 1]}, IoError, "token_type"),
        ({"tokenizer.ggml.bos_token_id": len(TOKENS)}, IoError, "bos_token_id"),
        ({"tokenizer.ggml.merges": ["th"]}, IoError, "merge"),
        ({"tokenizer.ggml.merges": ["q q"]}, IoError, "merge 0"),
        ({"tokenizer.ggml.tokens": None}, ConfigError, "tokens"),
        ({"tokenizer.ggml.tokens": 7}, ConfigError, "tokens"),
    ],
)
def test_a_broken_vocabulary_is_a_typed_error_that_says_what(load, change, error, message):
    with pytest.raises(error, match=message):
        load({**BPE, **change})


# What llama.cpp's src/llama-vocab.cpp does that no key of the file says.


@pytest.mark.parametrize(("name", "strips"), [("Phi3", True), ("Phi-3 mini 4k instruct", True), ("Phi2", False)])
def test_tokens_of_a_phi3_vocabulary_take_the_white_space_after_them(load, name, strips):
    special = ["<|user|>", "<|end|>", "<s>", "<|endoftext|>"]
    tokens = [*TOKENS[:-3], *special]
    types = [NORMAL] * (len(TOKENS) - 3) + [CONTROL] * len(special)
    fields = {**BPE, "general.name": name, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    ours = load(fields)

    def ids(*spelled):
        return [tokens.index(token) for token in spelled]

    space = [] if strips else ["\u010a"]  # the newline's spelling
    assert ours.encode("<|user|>\na<|end|>\n\t") == ids(
        "<|user|>", *space, "a", "<|end|>", *space, *([] if strips else ["\u0109"])
    )
    assert ours.encode("<s> a<|endoftext|> a") == ids("<s>", "Ġ", "a", "<|endoftext|>", "Ġ", "a")
    assert ours.encode("<|user|>\u00a0a") == ids("<|user|>", "Â", "ł", "a")  # ASCII's white space only


def test_the_ends_of_a_generation_are_llama_cpps(load):
    ends = ["<|im_end|>", "<EOT>", "<|fim_pad|>", "<|file_sep|>"]
    tokens = [*TOKENS[:-3], *ends, "<custom>", "<|fim_prefix|>"]
    types = [NORMAL] * len(tokens)  # whatever the file says, a token with such a text is a control token
    fields = {**BPE, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    fields["tokenizer.ggml.eot_token_id"] = tokens.index("<custom>")
    ours = load(fields)
    assert set(ours.stop_token_ids) == {tokens.index(token) for token in [*ends, "<custom>"]}
    assert ours.encode("a<EOT><|fim_prefix|>") == [tokens.index(t) for t in ("a", "<EOT>", "<|fim_prefix|>")]
    assert ours.is_special(tokens.index("<|fim_prefix|>"))


def test_space_prefix_and_extra_spaces_are_not_the_business_of_byte_level_vocabularies(load):
    fields = {**BPE, "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True}
    assert load(fields).encode("a  b") == ids_of("a", "Ġ", "Ġ", "b")


def test_empty_tokens_get_a_name(load):
    tokens = [*TOKENS[:-1], ""]
    ours = load({**BPE, "tokenizer.ggml.tokens": tokens})
    assert ours.id_to_token(len(tokens) - 1) == f"[EMPTY_{len(tokens) - 1}]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sentencepiece BPE with byte fallback, trained here, and its vocabulary as GGUF metadata."""
    prefix = tmp_path_factory.mktemp("spm") / "small"
    texts = ["the thing in the inn", "other things thin out", "in then and there"] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(prefix), vocab_size=300, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        user_defined_symbols=["<tool>"], minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(prefix.with_suffix(".model")))
    ids = range(processor.get_piece_size())

    def kind(i):
        if processor.is_unknown(i):
            return 2
        return CONTROL if processor.is_control(i) else 6 if processor.is_byte(i) else NORMAL

    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [USER_DEFINED if processor.id_to_piece(i) == "<tool>" else kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }
    return processor, fields


@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.text("thein <ol>▁", max_size=60)))
def test_scores_give_the_ids_and_texts_of_sentencepiece(load, trained, text):
    theirs, fields = trained
    ours = load(fields)
    ids = ours.encode(text, add_special_tokens=False)
    if not any(token in text for token in ("<s>", "</s>", "<unk>", "<tool>")):  # texts of their own stand after these
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode(text) == [theirs.bos_id(), *ids]


@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_vocabulary_loads_or_is_a_typed_error(load, trained, data):
    fields = dict(data.draw(st.sampled_from([BPE, trained[1]])))
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from(sorted(fields)))
        value = fields[key]
        if not isinstance(value, list):
            fields[key] = data.draw(st.one_of(st.integers(-(2**31), 2**31 - 1), st.text(max_size=5)))
            continue
        value = list(value)
        place = data.draw(st.integers(0, len(value) - 1))
        junk = {str: st.text(max_size=6), int: st.integers(-5, 9), float: st.floats(width=32)}[type(value[0])]
        value[place] = data.draw(junk)
        fields[key] = value
    with contextlib.suppress(introspect.Error):
        tokenizer = load(fields)
        tokenizer.decode(tokenizer.encode("the thing é日本 <tool> <|im_end|>"))


def test_a_vocabulary_with_scores_has_llama_cpps_defaults(load, trained):
    theirs, fields = trained
    without = {key: value for key, value in fields.items() if not key.endswith("_token_id")}
    ours = load({**without, "tokenizer.ggml.remove_extra_whitespaces": True})
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)
    assert ours.encode("the  thing") == [1, *theirs.encode("the  thing")]
    assert 2 in ours.stop_token_ids


def test_each_part_after_a_token_begins_like_a_text(load, trained):
    theirs, fields = trained
    ours = load(fields)
    tool = fields["tokenizer.ggml.tokens"].index("<tool>")
    expected = [*theirs.encode("the"), tool, *theirs.encode("thing"), 2, *theirs.encode("in")]
    assert ours.encode("the<tool>thing</s>in", add_special_tokens=False) == expected
    plain = load({**fields, "tokenizer.ggml.add_space_prefix": False})
    pieces = fields["tokenizer.ggml.tokens"]
    assert not pieces[plain.encode("the<tool>thing", add_special_tokens=False)[-1]].startswith("\u2581")


@pytest.mark.parametrize("token", ["", "the"])
def test_tokens_that_are_there_twice_are_named(load, trained, token):
    tokens = list(trained[1]["tokenizer.ggml.tokens"])
    tokens[-2:] = [token, token]
    if token == "":  # they get names of their own
        load({**trained[1], "tokenizer.ggml.tokens": tokens})
    else:
        with pytest.raises(IoError, match="twice"):
            load({**trained[1], "tokenizer.ggml.tokens": tokens})


def test_scores_must_be_numbers(load, trained):
    scores = [*trained[1]["tokenizer.ggml.scores"][:-1], float(np.nan)]
    with pytest.raises(IoError, match="finite"):
        load({**trained[1], "tokenizer.ggml.scores": scores})
