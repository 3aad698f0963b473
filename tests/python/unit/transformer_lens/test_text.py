"""Text, tokenizers and padding under TransformerLens's names, on tiny random models in float64."""

import pytest
import torch
from lens import FLOOR, load
from tiny_chat import write_tiny_chat

import introspect

# Padding and masks


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_unequal_length_are_those_texts_alone(chat, side):
    texts = ["a cat", "bread", "no, the cat eats no bread yes"]
    tokens = chat.to_tokens(texts, padding_side=side)
    singles = [chat(text)[0] for text in texts]
    for logits in (
        chat(texts, padding_side=side),
        chat(tokens, padding_side=side),
        chat(tokens),  # a pad token of its own shows what is padding
        chat(tokens, attention_mask=tokens != chat.tokenizer.pad_token_id),
    ):
        for row, single in zip(logits, singles, strict=True):
            real = row[-len(single) :] if side == "left" else row[: len(single)]
            torch.testing.assert_close(real, single, **FLOOR)
    losses = [chat(text, return_type="loss", loss_per_token=True).flatten() for text in texts]
    torch.testing.assert_close(chat(texts, return_type="loss", padding_side=side), torch.cat(losses).mean(), **FLOOR)


def test_where_eos_stands_in_for_pad_left_padding_is_told_by_its_side(chat):
    texts = ["a cat", "no, the cat eats no bread"]
    chat.tokenizer.pad_token = chat.tokenizer.eos_token
    chat.tokenizer.padding_side = "left"
    tokens = chat.to_tokens(texts, prepend_bos=True)  # BOS, EOS and pad are one token
    assert (tokens[:, 0] == chat.tokenizer.eos_token_id).all()
    for text, row in zip(texts, chat(tokens), strict=True):
        alone = chat(text, prepend_bos=True)[0]
        torch.testing.assert_close(row[-len(alone) :], alone, **FLOOR)
    chat.tokenizer.padding_side = "right"  # then a row may begin or end with EOS and mean it
    real = torch.tensor([[chat.tokenizer.eos_token_id, 5, 6], [7, 8, chat.tokenizer.eos_token_id]])
    ones = torch.ones_like(real)
    torch.testing.assert_close(chat(real), chat(real, attention_mask=ones), **FLOOR)


def test_masked_tokens_have_no_influence(model, tokens, rng):
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, 2] = mask[2, -3:] = 0
    other = torch.where(mask.bool(), tokens, torch.randint(0, model.cfg.d_vocab, tokens.shape, generator=rng))
    assert not torch.equal(other, tokens)
    a, b = (model(t, attention_mask=mask, return_type="both") for t in (tokens, other))
    torch.testing.assert_close(a.logits[mask.bool()], b.logits[mask.bool()], **FLOOR)
    torch.testing.assert_close(a.loss, b.loss, **FLOOR)
    alone = model(tokens[:1, 4:])
    torch.testing.assert_close(a.logits[:1, 4:], alone, **FLOOR)


# Text


def test_text_to_tokens_and_back(chat):
    assert chat.cfg.default_prepend_bos is False  # Qwen2
    plain = chat.to_tokens("a cat eats")
    assert torch.equal(plain, torch.tensor([chat.tokenizer.encode("a cat eats")]))
    with_bos = chat.to_tokens("a cat eats", prepend_bos=True)
    assert with_bos[0].tolist() == [chat.tokenizer.eos_token_id, *plain[0].tolist()]  # there is no other BOS
    assert torch.equal(chat.to_tokens(chat.tokenizer.eos_token + "a cat eats", prepend_bos=True), with_bos)
    assert chat.to_string(plain) == ["a cat eats"]
    assert chat.to_string(plain[0]) == chat.to_string(plain[0].tolist()) == "a cat eats"
    assert chat.to_str_tokens("a cat no") == ["a", " cat", " no"]
    assert chat.to_str_tokens(chat.to_tokens("a cat no")) == ["a", " cat", " no"]
    assert chat.to_str_tokens(["a cat", "no"])[0] == ["a", " cat"]
    cat = chat.to_single_token(" cat")
    assert chat.to_single_str_token(cat) == chat.to_string(cat) == " cat"
    assert chat.get_token_position(" cat", "a cat no cat") == 1
    assert chat.get_token_position(cat, chat.to_tokens("a cat no cat"), mode="last") == 3
    assert chat.get_token_position(" cat", "a cat", prepend_bos=True) == 2
    with pytest.raises(ValueError, match="2 tokens"):
        chat.to_single_token("ab")
    with pytest.raises(ValueError, match="does not occur"):
        chat.get_token_position(" no", "a cat")
    with pytest.raises(ValueError, match="padding_side"):
        chat.to_tokens("a", padding_side="top")


def test_long_text_is_cut_to_the_context(tmp_path):
    model = load(write_tiny_chat(tmp_path / "chat", max_position_embeddings=16))
    assert model.to_tokens("a" * 40).shape == (1, 16)
    assert model.to_tokens("a" * 40, truncate=False).shape == (1, 40)
    assert model.to_tokens("a" * 40, prepend_bos=True)[0, 0] == model.tokenizer.eos_token_id
    assert model("a" * 40).shape[1] == 16


def test_the_tokenizer_has_a_transformers_face(chat):
    tokenizer = chat.tokenizer
    batch = tokenizer(["a cat", "no bread yes"], padding=True, return_tensors="pt")
    assert batch.input_ids.shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [2, len(tokenizer.encode("no bread yes"))]
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["a cat", "no bread yes"]
    assert tokenizer.convert_tokens_to_ids("Ġcat") == chat.to_single_token(" cat")
    assert tokenizer.convert_ids_to_tokens([chat.to_single_token(" cat")]) == ["Ġcat"]
    assert tokenizer.tokenize("a cat") == ["a", "Ġcat"]
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.get_vocab()["Ġcat"] == chat.to_single_token(" cat")
    assert tokenizer("a cat", max_length=1, truncation=True)["input_ids"] == tokenizer.encode("a")
    with pytest.raises(introspect.ConfigError, match="no token"):
        tokenizer.pad_token = "<nothing>"


def test_another_tokenizer_can_be_used(chat_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(chat_folder)
    model, own = load(chat_folder, tokenizer=theirs, default_padding_side="left"), load(chat_folder)
    assert model.tokenizer is theirs
    assert theirs.padding_side == "left"
    texts = ["a cat", "no, the bread"]
    assert torch.equal(model.to_tokens(texts), own.to_tokens(texts, padding_side="left"))
    torch.testing.assert_close(model(texts)[:, -1], own(texts, padding_side="left")[:, -1], **FLOOR)
    assert model.to_str_tokens("a cat") == ["a", " cat"]
    assert model.generate("a cat", do_sample=False, verbose=False) == own.generate(
        "a cat", do_sample=False, verbose=False
    )
