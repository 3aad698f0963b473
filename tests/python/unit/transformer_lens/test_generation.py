"""Generation under TransformerLens's names, on tiny random models in float64."""

import pytest
import torch


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_generates_what_its_texts_generate_alone(chat, use_past_kv_cache, side):
    texts = ["a cat", "no, the cat eats no bread yes", "b"]
    options = {"max_new_tokens": 8, "do_sample": False, "verbose": False, "use_past_kv_cache": use_past_kv_cache}
    singles = [chat.generate(text, **options) for text in texts]
    assert chat.generate(texts, padding_side=side, **options) == singles
    tokens = chat.to_tokens(texts, padding_side=side)
    out = chat.generate(tokens, padding_side=side, **options)
    assert out.shape == (3, tokens.shape[1] + 8)
    assert torch.equal(out[:, : tokens.shape[1]], tokens)
    new = [chat.generate(text, return_type="tokens", **options)[0, -8:].tolist() for text in texts]
    assert out[:, -8:].tolist() == new


def test_greedy_generation_is_the_argmax_of_full_passes(chat):
    row = chat.to_tokens("a cat")
    for _ in range(6):
        row = torch.cat([row, chat(row)[:, -1:].argmax(-1)], 1)
    for options in ({"do_sample": False}, {"temperature": 0.0}, {"do_sample": False, "freq_penalty": 2.0}):
        assert torch.equal(chat.generate(chat.to_tokens("a cat"), 6, verbose=False, stop_at_eos=False, **options), row)


def test_sampling_follows_torchs_seed_and_the_penalty(chat):
    tokens = chat.to_tokens("a cat").repeat(4, 1)
    for options in ({}, {"freq_penalty": 0.5}, {"top_k": 5, "temperature": 2.0}, {"top_p": 0.5}):
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(chat.generate(tokens, 8, verbose=False, stop_at_eos=False, **options))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(0)
    once = chat.generate(tokens[:1], 40, verbose=False, stop_at_eos=False, freq_penalty=1e6)
    assert len(set(once[0, 2:].tolist())) == 40  # no token comes twice


def test_a_row_ends_with_its_eos_and_is_filled_up(chat):
    tokens = chat.to_tokens("a cat")
    free = chat.generate(tokens, 6, do_sample=False, stop_at_eos=False, verbose=False)[0, 2:].tolist()
    eos = free[2]
    options = {"do_sample": False, "eos_token_id": eos, "verbose": False}
    assert chat.generate(tokens, 6, **options)[0, 2:].tolist() == free[: free.index(eos) + 1]
    other = chat.to_tokens("no")
    batch = chat.generate(["a cat", "no"], 6, return_type="tokens", **options)
    assert batch[0, tokens.shape[1] :].tolist()[: free.index(eos) + 1] == free[: free.index(eos) + 1]
    alone = chat.generate(other, 6, **options)[0].tolist()
    assert [t for t in batch[1].tolist() if t != chat.tokenizer.pad_token_id][: len(alone)] == alone


def test_hooks_take_part_in_generation(chat):
    plain = chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False)
    with chat.hooks([("blocks.2.hook_resid_post", lambda x, hook: x.flip(-1))]):
        assert chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False) != plain
    assert chat.generate("a cat", do_sample=False, verbose=False, stop_at_eos=False) == plain
