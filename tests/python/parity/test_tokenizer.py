"""Token ids and texts against the libraries the models were trained with."""

import json

import pytest
import tokenizers
from strings import generated_strings
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

import introspect

gguf = pytest.importorskip("gguf")
sentencepiece = pytest.importorskip("sentencepiece")

N_STRINGS = 5000


def assert_same(ours, theirs, texts, encode, decode):
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == encode(theirs, text), repr(text)
        assert ours.decode(ids) == decode(theirs, ids), repr(text)


def hf_encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def hf_decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "llama3.2", "gemma2"])
def test_tokenizer_json_gives_the_ids_and_texts_of_tokenizers(shared_data, name):
    path = shared_data / "tokenizers" / name / "tokenizer.json"
    added = [token["content"] for token in json.loads(path.read_text())["added_tokens"]]
    ours, theirs = introspect.Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert_same(ours, theirs, generated_strings(N_STRINGS, added[:40] + added[-5:]), hf_encode, hf_decode)


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "llama3.2", "gemma2"])
def test_tokens_around_a_text_and_skipped_ones_are_those_of_tokenizers(shared_data, name):
    from transformers import AutoTokenizer

    path = shared_data / "tokenizers" / name / "tokenizer.json"
    ours, theirs = introspect.Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert ours.encode("one two") == theirs.encode("one two").ids
    ids = [*range(300), max(theirs.get_vocab().values())]
    # Which tokens are special is also said by the files beside (Gemma's class names <mask>): transformers reads these.
    in_folder = AutoTokenizer.from_pretrained(path.parent)
    assert ours.decode(ids, skip_special_tokens=True) == in_folder.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "gemma2"])
def test_ids_at_random_decode_as_in_tokenizers_at_once_and_streamed(shared_data, name, numpy_rng):
    path = shared_data / "tokenizers" / name / "tokenizer.json"
    ours, theirs = introspect.Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for _ in range(300):
        # The first ids are the single bytes, whose runs are seldom UTF-8.
        ids = numpy_rng.integers(0, numpy_rng.choice([300, 2000, len(ours)]), size=20).tolist()
        ids = [i for i in ids if theirs.id_to_token(i) is not None]
        assert ours.decode(ids) == hf_decode(theirs, ids), ids
        stream = introspect.StreamDecoder(ours, skip_special_tokens=False)
        assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == hf_decode(theirs, ids), ids


def test_tokenizer_model_gives_the_ids_and_texts_of_sentencepiece(shared_data):
    path = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    ours, theirs = introspect.Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = generated_strings(N_STRINGS, ["<s>", "</s>", "<unk>", "[INST]", "<<SYS>>", "<0x0A>"])
    assert_same(ours, theirs, texts, lambda sp, text: sp.encode(text), lambda sp, ids: sp.decode(ids))
    assert ours.encode("one two") == [theirs.bos_id(), *theirs.encode("one two")]


def test_ids_at_random_decode_as_in_sentencepiece_at_once_and_streamed(shared_data, numpy_rng):
    path = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    ours, theirs = introspect.Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for _ in range(500):
        ids = numpy_rng.integers(0, numpy_rng.choice([300, len(ours)]), size=20).tolist()
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids), ids
        stream = introspect.StreamDecoder(ours)
        assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == theirs.decode(ids), ids


def test_the_control_tokens_of_a_tokenizer_model_are_found_where_a_config_is_beside_it(shared_data, tmp_path):
    source = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(source))
    ids = introspect.Tokenizer.load(tmp_path).encode("<s>[INST] one [/INST] two </s>", add_special_tokens=False)
    assert ids == [theirs.bos_id(), *theirs.encode("[INST] one [/INST] two "), theirs.eos_id()]


def gguf_fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if name.startswith("tok")}


def test_the_qwen_vocabulary_of_a_gguf_file_gives_the_ids_of_tokenizer_json(shared_data, qwen05):
    path = shared_data / "tokenizers" / "qwen2.5" / "tokenizer.json"
    ours, theirs = introspect.Tokenizer.load(qwen05), tokenizers.Tokenizer.from_file(str(path))
    specials = [token.content for token in theirs.get_added_tokens_decoder().values()]
    assert_same(ours, theirs, generated_strings(N_STRINGS, [*specials, "[PAD151665]"]), hf_encode, hf_decode)
    assert ours.stop_token_ids[0] == ours.eos_token_id == theirs.token_to_id("<|im_end|>")
    assert not ours.adds_bos


def test_the_smollm2_vocabulary_gives_the_ids_of_tokenizers_with_single_digits(smollm2):
    fields = gguf_fields(smollm2)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    theirs = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = decoders.ByteLevel()
    specials = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    theirs.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    ours = introspect.Tokenizer.load(smollm2)
    assert_same(ours, theirs, generated_strings(N_STRINGS, specials), hf_encode, hf_decode)


def gemma_with_merges(fields):
    """A GGUF vocabulary with scores as a BPE of tokenizers, the way Gemma's own tokenizer.json was made from it."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, kind, score in zip(tokens, types, fields["tokenizer.ggml.scores"], strict=True):
        if kind != 1:
            continue
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in pairs if all(part in vocabulary for part in pair)]
        merges += [(-score, vocabulary[left], vocabulary[right], left, right) for left, right in known]
    merges = [(left, right) for *_, left, right in sorted(merges)]
    theirs = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    theirs.normalizer = normalizers.Replace(" ", "▁")
    theirs.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == 4]
    theirs.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    theirs.add_tokens([AddedToken(token, normalized=False) for token in own])
    return theirs, control + own


def test_the_gemma_vocabulary_with_scores_gives_the_ids_of_the_same_one_with_merges(gemma3):
    theirs, specials = gemma_with_merges(gguf_fields(gemma3))
    ours = introspect.Tokenizer.load(gemma3)
    for text in generated_strings(N_STRINGS, specials[:8] + specials[-160:]):
        text = text.replace("▁", " ")  # tokenizers looks for runs of spaces before it spells them, sentencepiece after
        assert ours.encode(text, add_special_tokens=False) == hf_encode(theirs, text), repr(text)
    assert ours.encode("one")[0] == ours.bos_token_id == theirs.token_to_id("<bos>")
