"""What Tokenizer.load makes of broken, hostile and unusual files, and encode of hostile texts."""

import contextlib
import copy
import json
import signal
import subprocess
import sys
import time

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import introspect
from introspect import ConfigError, IoError, Tokenizer

fuzz = settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def added_token(content, token_id):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = {**BYTE_LEVEL, "use_regex": False}


def byte_level(**changes):
    """A small byte-level BPE that can spell any text."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(sorted(letters))}
    for token in ["th", "the", "Ġt", "Ġth", "Ġthe", "in", "ing"]:
        vocab[token] = len(vocab)
    parsed = {
        "version": "1.0",
        "added_tokens": [added_token("<end>", len(vocab))],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e", "Ġ t", "Ġt h", "Ġth e", "i n", "in g"]},
    }
    return {**parsed, **changes}


@pytest.fixture
def load(tmp_path):
    def load(parsed):
        path = tmp_path / "tokenizer.json"
        path.write_text(parsed if isinstance(parsed, str) else json.dumps(parsed), encoding="utf-8")
        return Tokenizer.load(path)

    return load


@pytest.fixture
def both(load, tmp_path):
    """Ours and the one of the tokenizers library, of the same file."""

    def both(parsed):
        ours = load(parsed)
        return ours, tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    return both


@fuzz
@given(text=st.text(max_size=200))
def test_any_text_gives_the_ids_of_tokenizers_and_comes_back(both, text):
    ours, theirs = both(byte_level(normalizer=None))
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == text


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
@pytest.mark.parametrize("text", ["a <end> b", "<end><end>", "  <end>  <end> x", "x<end>y", "é<end> 1<end>_<end>."])
def test_flags_of_added_tokens_mean_what_they_mean_in_tokenizers(both, flags, text):
    parsed = byte_level()
    parsed["added_tokens"][0].update(flags)
    ours, theirs = both(parsed)
    assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("behavior", ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("pattern", [{"String": "the"}, {"Regex": "[\\s\\p{N}]"}, {"Regex": "\\p{L}+"}])
def test_splits_mean_what_they_mean_in_tokenizers(both, behavior, invert, pattern):
    split = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
    ours, theirs = both(byte_level(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]}))
    for text in ["the theme 12 in  the1thethe 3", " ", "the", "12the", "xthe the\n\n7"]:
        assert ours.encode(text) == theirs.encode(text).ids, text


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [False, True])
def test_metaspace_means_what_it_means_in_tokenizers(both, scheme, split):
    vocab = {token: i for i, token in enumerate(["▁", "a", "b", "c", "▁a", "▁b", "ab", "a▁", "<unk>"])}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": ["▁ a", "▁ b", "a b", "a ▁"]}
    stage = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    parsed = byte_level(pre_tokenizer=stage, decoder={"type": "Fuse"}, model=model)
    parsed["added_tokens"] = [added_token("<s>", len(vocab))]
    ours, theirs = both(parsed)
    for text in ["ab a b", " ab", "<s>ab", "a<s> b<s>a", "  a  ", "", "xyz a"]:
        assert ours.encode(text) == theirs.encode(text).ids, text


@pytest.mark.parametrize(
    ("stage", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("decoder", {"type": "WordPiece"}),
        ("post_processor", {"type": "BertProcessing"}),
        ("model", {"type": "WordPiece", "vocab": {}}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "[a-z&&[aeiou]]"}, "behavior": "Isolated"}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
    ],
)
def test_a_stage_that_is_not_supported_is_named(load, stage, value):
    with pytest.raises(ConfigError, match=value["type"] if "pattern" not in value else "pattern"):
        load(byte_level(**{stage: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["merges"].append("a q q"), "two tokens"),
        (lambda m: m["merges"].append("zz q"), "merge 7"),
        (lambda m: m["vocab"].update(a=2**40), "id"),
        (lambda m: m["vocab"].update(a=-1), "id"),
        (lambda m: m["vocab"].update(a=3), "one token"),
        (lambda m: m.pop("vocab"), "vocab"),
        (lambda m: m.update(unk_token="nowhere"), "unk_token"),
    ],
)
def test_a_broken_vocabulary_is_an_io_error_that_says_what(load, change, message):
    parsed = byte_level()
    change(parsed["model"])
    with pytest.raises(IoError, match=message):
        load(parsed)


def paths(value, prefix=()):
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:12]:
        yield from paths(inner, (*prefix, key))


PATHS = list(paths(byte_level()))[1:]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)  # fmt: skip


@fuzz
@given(places=st.lists(st.tuples(st.sampled_from(PATHS), JUNK), min_size=1, max_size=3))
def test_a_mutated_tokenizer_json_loads_or_is_a_typed_error(load, places):
    parsed = copy.deepcopy(byte_level())
    for path, junk in places:
        target = parsed
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = junk
        except (KeyError, IndexError, TypeError):
            continue
    try:
        tokenizer = load(parsed)
    except introspect.Error:
        return
    tokenizer.decode(tokenizer.encode("the thing <end>"))


@fuzz
@given(data=st.data())
def test_damaged_bytes_of_a_tokenizer_json_load_or_are_a_typed_error(tmp_path, data):
    raw = bytearray(json.dumps(byte_level()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with contextlib.suppress(introspect.Error):
        Tokenizer.load(path).encode("the thing")


@pytest.fixture(scope="module")
def spm_bytes(tmp_path_factory):
    """A small tokenizer.model with byte fallback and a character map, trained here."""
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "small"
    texts = ["the thing in the inn", "other things thin out", "in then and there"] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(prefix), vocab_size=300, model_type="bpe", byte_fallback=True,
        normalization_rule_name="nfkc", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model").read_bytes()


@fuzz
@given(data=st.data())
def test_a_damaged_tokenizer_model_loads_or_is_a_typed_error(tmp_path, spm_bytes, data):
    raw = bytearray(spm_bytes)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with contextlib.suppress(introspect.Error):
        tokenizer = Tokenizer.load(path)
        tokenizer.decode(tokenizer.encode("the thing é 日本 ①"))


def test_a_small_sentencepiece_model_gives_the_ids_of_its_own_library(tmp_path, spm_bytes):
    import sentencepiece

    path = tmp_path / "tokenizer.model"
    path.write_bytes(spm_bytes)
    ours, theirs = Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_proto=spm_bytes)
    for text in ["the thing", "  other   things ", "é ① ﬁ 日本", "\n\tx\x00y", ""]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text


@pytest.mark.parametrize("part", ["a", " ", "\n", "the ", "é中"])
def test_a_megabyte_takes_seconds_not_minutes(load, part):
    tokenizer = load(byte_level())
    text = part * (1_000_000 // len(part))
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    assert time.perf_counter() - start < 10
    assert tokenizer.decode(ids) == text


def test_a_pattern_that_backtracks_without_end_is_a_config_error(load):
    split = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load(byte_level(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]}))
    with pytest.raises(ConfigError, match="match limit"):
        tokenizer.encode("a" * 5000 + "b")


def regex_split(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return byte_level(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]})


HOSTILE = {
    # (pattern, text, what is exceeded)
    "memory": ("(?:" + "()" * 5000 + "(?:a|b))*c|a", "ab" * 20_000, "memory limit"),
    "backtracking": ("(a|aa)+$", "a" * 5000 + "b", "match limit"),
    "recursion at every place": ("(a(?1)?b)|a", "a" * 100_000, "processor time|match limit|memory limit|depth limit"),
    "deep recursion on a shorter text": ("(a(?1)?)b|a", "a" * 50_000, "processor time|depth limit|memory limit"),
    "recursion by name": ("(?(DEFINE)(?<n>a(?&n)?))(?&n)b|a", "a" * 100_000, "processor time|depth limit|memory limit"),
    "choices at every place": ("(a|aa){1,16}b|a", "a" * 200_000, "processor time"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pattern_stops_and_names_its_file_and_what_it_exceeds(load, tmp_path, name):
    import resource

    pattern, text, message = HOSTILE[name]
    tokenizer = load(regex_split(pattern))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ConfigError, match=message) as error:
        tokenizer.encode(text)
    assert time.thread_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB; one match may have 64 MiB
    assert str(tmp_path / "tokenizer.json") in str(error.value) and len(str(error.value)) < 1000


def test_ctrl_c_stops_a_slow_text(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(regex_split("(a|aa){1,16}b|a")))
    program = (
        "import sys, introspect\n"
        "t = introspect.Tokenizer.load(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "try: t.encode('a' * 500_000)\n"
        "except KeyboardInterrupt: print('stopped', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert output == "stopped\n"


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}},
        {"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40 + [{"type": "Fuse"}]}},
    ],
)  # fmt: skip
def test_stages_that_double_a_text_forty_times_are_a_config_error(load, change):
    tokenizer = load(byte_level(**change))
    with pytest.raises(ConfigError, match=r"normalizer|decoder"):
        tokenizer.decode(tokenizer.encode("a" * 10))


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}])
def test_white_space_tokens_that_strip_white_space_take_linear_time(both, flags):
    parsed = byte_level()
    parsed["added_tokens"] = [{**added_token(" ", 300), **flags, "id": len(parsed["model"]["vocab"])}]
    ours, theirs = both(parsed)
    assert ours.encode("a   b  ") == theirs.encode("a   b  ").ids
    start = time.thread_time()
    ours.encode(" " * 300_000)
    assert time.thread_time() - start < 5


def test_stages_nested_without_end_are_a_config_error(load):
    depth = 100_000
    nested = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    text = json.dumps(byte_level(normalizer="HERE")).replace('"HERE"', nested)
    with pytest.raises(IoError, match="deeper"):
        load(text)


def test_text_that_is_not_unicode_is_a_config_error(load):
    tokenizer = load(byte_level())
    with pytest.raises(ConfigError, match="byte 3 "):
        tokenizer.encode(b"abc\xff")
    with pytest.raises(ConfigError, match="surrogate"):
        tokenizer.encode("abc\ud800")
    assert tokenizer.encode("é".encode()) == tokenizer.encode("é")


def test_ids_without_a_token_are_an_index_error(load):
    tokenizer = load(byte_level())
    for call in (lambda i: tokenizer.decode([i]), tokenizer.id_to_token, introspect.StreamDecoder(tokenizer).push):
        for bad in (-1, len(tokenizer)):
            with pytest.raises(IndexError):
                call(bad)
