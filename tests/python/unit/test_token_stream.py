"""Documents as contexts: packed by SAELens's rules, from every form of texts, and gone on with from any place."""

import json
import random

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect.sae import streams
from introspect.sae.streams import TokenStream

BOS, SEPARATOR = 1, 2


def packed(documents, context, bos=None, separator=None):
    """SAELens's rules as they read: all tokens in one line, cut into rows, of which the last may be short.

    A row begins with BOS unless its first token is BOS; between two documents of one row stands the separator unless
    the second begins with it.
    """
    rows, row = [], []
    for document in documents:
        starts = True
        for token in document:
            if not row and bos is not None and token != bos:
                row = [bos]
            elif row and starts and separator is not None and token != separator:
                row = [*row, separator]
                if len(row) == context:
                    rows, row = [*rows, row], [] if bos is None or token == bos else [bos]
            starts = False
            row = [*row, token]
            if len(row) == context:
                rows, row = [*rows, row], []
    return rows


def documents(seed, n=40):
    """Of all lengths, empty ones too, some of which begin with BOS or the separator."""
    rng = random.Random(seed)
    out = [[rng.randrange(3, 100) for _ in range(rng.choice([0, 1, 2, 5, 7, 8, 9, 30]))] for _ in range(n)]
    return [[rng.choice([BOS, SEPARATOR]), *d] if rng.random() < 0.3 else d for d in out]


def rows_of(stream):
    return stream.next(10_000).tolist()


@pytest.mark.parametrize("context", [2, 3, 8, 17])
@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("separator", [None, BOS, SEPARATOR])
def test_documents_are_packed_by_saelens_rules(context, bos, separator):
    for seed in range(5):
        texts = documents(seed)
        stream = TokenStream.of_tokens(texts, context=context, bos=bos, separator=separator)
        assert rows_of(stream) == packed(texts, context, bos, separator)


def test_without_concatenation_a_document_is_a_row_and_short_ones_are_dropped():
    texts = [[5, 6, 7], [5, 6], [5], [BOS, 5, 6], [BOS, 5], [5, 6, 7, 8], []]
    stream = TokenStream.of_tokens(texts, context=3, bos=BOS, concatenate=False)
    assert rows_of(stream) == [[1, 5, 6], [1, 5, 6], [1, 5, 6], [1, 5, 6]]  # not [5], [BOS, 5] and []
    assert rows_of(TokenStream.of_tokens(texts, context=3, concatenate=False)) == [[5, 6, 7], [1, 5, 6], [5, 6, 7]]


def test_packed_rows_are_cut_and_a_shorter_one_is_named():
    assert rows_of(TokenStream.of_tokens([[3, 4, 5, 6], [7, 8, 9]], context=3, packed=True)) == [[3, 4, 5], [7, 8, 9]]
    with pytest.raises(ValueError, match="row 1 has 2 tokens, fewer than the context of 3"):
        TokenStream.of_tokens([[3, 4, 5, 6], [7, 8]], context=3, packed=True).next(2)


@pytest.mark.parametrize("options", [{"bos": BOS, "separator": SEPARATOR}, {"concatenate": False}])
def test_a_stream_goes_on_from_any_place(options):
    texts = documents(3)
    whole = rows_of(TokenStream.of_tokens(texts, context=4, **options))
    for n in range(len(whole) + 1):
        first = TokenStream.of_tokens(texts, context=4, **options)
        assert first.next(n).tolist() == whole[:n]
        second = TokenStream.of_tokens(texts, context=4, **options)
        second.restore(first.state())
        assert rows_of(second) == whole[n:]


def test_a_stream_that_repeats_drops_the_row_begun_and_keeps_aside_what_is_held_out():
    stream = TokenStream.of_tokens([[3, 4, 5, 6, 7, 8, 9]], context=2, repeat=True)
    assert stream.next(7).tolist() == [[3, 4], [5, 6], [7, 8]] * 2 + [[3, 4]]
    assert stream.passes == 2
    stream = TokenStream.of_tokens([[3, 4, 5, 6, 7, 8, 9]], context=2, repeat=True)
    assert stream.next(1).tolist() == [[3, 4]]
    stream.set_aside(1)
    assert stream.next(5).tolist() == [[5, 6], [7, 8], [5, 6], [7, 8], [5, 6]]


def test_a_state_of_other_documents_or_options_is_refused():
    state = TokenStream.of_tokens([[3, 4, 5]], context=2).state()
    with pytest.raises(introspect.IoError, match=r"of\.documents must be"):
        TokenStream.of_tokens([[3, 4, 6]], context=2).restore(state)
    with pytest.raises(introspect.IoError, match=r"of\.context must be 3 as now, got 2"):
        TokenStream.of_tokens([[3, 4, 5]], context=3).restore(state)
    with pytest.raises(introspect.IoError, match="the state to go on from"):
        TokenStream.of_tokens([[3, 4, 5]], context=2).restore("{")


def test_an_empty_stream_says_so():
    for texts in ([], [[]], [[3, 4]]):
        with pytest.raises(ValueError, match="the texts must fill at least one context of 3 tokens"):
            TokenStream.of_tokens(texts, context=3).next(1)
    with pytest.raises(ValueError, match="context must be 2 or more, BOS being one of them, got 1"):
        TokenStream.of_tokens([[3]], context=1, bos=BOS)
    with pytest.raises(ValueError, match="beside the 1 that are held out"):
        stream = TokenStream.of_tokens([[3, 4, 5]], context=3, repeat=True)
        stream.next(1)
        stream.set_aside(1)
        stream.next(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory, shared_data):
    """A tiny model with a real tokenizer beside it, whose BOS is its EOS."""
    folder = write_tiny(tmp_path_factory.mktemp("model"), vocab_size=50257)
    for file in (shared_data / "tokenizers/gpt2").glob("*.json"):
        if file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    return introspect.load_model(folder)


TEXTS = ["The cat sat on the mat.", "", "A second text, a little longer than the first one.", "Third."]


def test_every_form_of_texts_gives_the_same_rows(model, tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n\n")
    ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    bos = model.tokenizer.bos_token_id
    expected = packed(ids, 6, bos, bos)
    given = [
        TEXTS,
        ids,
        lines,
        [lines],
        lambda: iter(TEXTS),
        iter(TEXTS),
        ({"text": text} for text in TEXTS),
        [{"input_ids": row} for row in ids],
        (torch.tensor(row, dtype=torch.int64) for row in ids),
    ]
    for texts in given:
        assert rows_of(streams.token_stream(model, texts, context_size=6)) == expected


def test_files_are_documents_in_their_order(model, tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes(b"One.\n<|endoftext|>\r\nTwo.\n")
    second.write_text("Three.")
    expected = ["One.\n", "Two.\n", "Three."]
    stream = streams.token_stream(
        model, [first, second], context_size=2, prepend_bos=False, sequence_separator_token=None
    )
    ids = [t for text in expected for t in model.tokenizer.encode(text, add_special_tokens=False)]
    assert [t for row in rows_of(stream) for t in row] == ids[: len(ids) // 2 * 2]
    with pytest.raises(introspect.IoError, match="line 2"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"text": "a"}\n{"words": 3}\n')
        streams.token_stream(model, bad, context_size=4).next(9)
    with pytest.raises(introspect.IoError, match="cannot be opened"):
        streams.token_stream(model, tmp_path / "none.txt")


def test_an_iterator_is_read_once(model):
    stream = streams.token_stream(model, iter(TEXTS), context_size=4, repeat=True)
    with pytest.raises(ValueError, match="an iterator is read only once"):
        stream.next(1000)
    with pytest.raises(RuntimeError, match="from the caller"):

        def broken():
            yield TEXTS[0]
            raise RuntimeError("from the caller")

        streams.token_stream(model, broken, context_size=4).next(1000)


def test_other_forms_are_refused_by_name(tmp_path):
    bare = introspect.load_model(write_tiny(tmp_path / "bare"))
    with pytest.raises(TypeError, match=r"texts must be a list of texts"):
        streams.token_stream(bare, "one text", prepend_bos=False, sequence_separator_token=None)
    with pytest.raises(introspect.ConfigError, match="need a tokenizer"):
        streams.token_stream(bare, [[1, 2]])
    with pytest.raises(introspect.ConfigError, match="texts need a model with a tokenizer"):
        streams.token_stream(bare, ["text"], prepend_bos=False, sequence_separator_token=None)
    with pytest.raises(ValueError, match='"bos", "eos", an id or None'):
        streams.token_stream(bare, [[1, 2]], prepend_bos=False, sequence_separator_token="sep")
