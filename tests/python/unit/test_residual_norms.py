"""The usual size of the residual stream, against the definition on activations that are read one by one."""

import statistics

import pytest
import torch
from tiny_chat import overflowing, write_tiny_chat

import introspect

MESSAGES = [{"role": "user", "content": "A thought."}, {"role": "assistant", "content": "It is"}]


def norms(model, tokens, layer, row=0):
    name = f"blocks.{layer}.hook_resid_post"
    _, cache = model.run_with_cache(tokens, names_filter=[name])
    return cache[name][row].norm(dim=-1).tolist()


@pytest.mark.parametrize("n_characters", [7, 8])  # an odd and an even number of tokens
def test_the_norm_is_the_median_over_the_positions(model, n_characters):
    tokens = model.to_tokens("A little text."[:n_characters])
    assert tokens.shape[1] == n_characters
    found = introspect.residual_norms(model, tokens)
    assert sorted(found) == [0, 1, 2]
    for layer, norm in found.items():
        assert norm == pytest.approx(statistics.median(norms(model, tokens, layer)), rel=1e-12)


def test_a_massive_token_leaves_the_norm_as_it_is(model):
    tokens = model.to_tokens("A little text")
    before = introspect.residual_norms(model, tokens, layers=[0], positions=list(range(13)))
    wide = model.to_tokens("A little text" + "A")  # any token more moves a median by one place at most
    after = introspect.residual_norms(model, wide, layers=[0])
    ordered = sorted(norms(model, tokens, 0))
    assert ordered[5] <= after[0] <= ordered[7]
    assert before[0] == pytest.approx(ordered[6], rel=1e-12)


def test_texts_tokens_and_messages_are_the_same_to_it(model):
    text = model.apply_chat_template(MESSAGES, continue_final_message=True)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    expected = introspect.residual_norms(model, torch.tensor([ids]))
    for given in (MESSAGES, ids, torch.tensor(ids), text):
        assert introspect.residual_norms(model, given) == expected
    with_prompt = model.apply_chat_template(MESSAGES[:1], add_generation_prompt=True)
    assert introspect.residual_norms(model, MESSAGES[:1]) == introspect.residual_norms(model, with_prompt)


def test_layers_and_positions_are_chosen(model):
    tokens = model.to_tokens("A little text")
    every = norms(model, tokens, 1)
    found = introspect.residual_norms(model, tokens, layers=[1], positions=[2, -1, 4])
    assert found == {1: pytest.approx(statistics.median([every[2], every[-1], every[4]]), rel=1e-12)}
    assert introspect.residual_norms(model, tokens, layers=[1], positions=(3, None)) == {
        1: pytest.approx(statistics.median(every[3:]), rel=1e-12)
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(model, side):
    tokens = model.to_tokens("A little")
    pad = torch.zeros(1, 3, dtype=torch.long)
    parts = [pad, tokens] if side == "left" else [tokens, pad]
    mask = torch.cat([torch.full_like(part, part is tokens, dtype=torch.bool) for part in parts], 1)
    padded = introspect.residual_norms(model, torch.cat(parts, 1), attention_mask=mask)
    for layer, norm in introspect.residual_norms(model, tokens).items():
        assert padded[layer] == pytest.approx(norm, rel=1e-9)


def test_what_steers_the_model_takes_no_part(model):
    vector = introspect.ControlVector("qwen2", {0: torch.ones(32)})
    expected = introspect.residual_norms(model, "A text")
    with model.steer(1000 * vector):
        assert introspect.residual_norms(model, "A text") == expected


def test_mistakes_are_named(model):
    with pytest.raises(IndexError, match="0 to 2"):
        introspect.residual_norms(model, "A text", layers=[3])
    with pytest.raises(IndexError, match="row 0"):
        introspect.residual_norms(model, "A text", positions=[6])
    with pytest.raises(ValueError, match="layer"):
        introspect.residual_norms(model, "A text", layers=[])
    with pytest.raises(ValueError, match="position"):
        introspect.residual_norms(model, "A text", positions=[])
    with pytest.raises(TypeError, match="messages"):
        introspect.residual_norms(model, [1.5])


def test_a_residual_stream_that_is_not_finite_is_an_error_that_names_the_block(tmp_path):
    huge = overflowing(introspect.load_model(write_tiny_chat(tmp_path / "m"), dtype=torch.float16), block=1)
    with pytest.raises(introspect.Error, match=r"block 1 .*bfloat16"):
        introspect.residual_norms(huge, "A text")
