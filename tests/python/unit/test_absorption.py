"""Absorption: planted in rows, and at the tokens of words in a model."""

import pytest
import torch

import introspect
from introspect import SAE
from introspect.sae.absorption import concept_absorption, first_letter_absorption

WORDS = """
back bag ball bear bed bee big bird blue boat book box boy bread bug bus sad said sand saw sea see shoe ship shop show
sick side sing sit sky sleep slow small snow soft song sun sweet swim table tail take talk tall tea tell ten thank thing
think tie time tin tiny toe top toy train tree trip truck turn quixotic zygote
"""

D, SPECIAL = 24, range(3, 11)


def rows(n=3200, seed=0):
    """Half of the rows have concept 0; one in 80, with it or without, is special: 2 in direction 3, or 4, .. or 10."""
    g = torch.Generator().manual_seed(seed)
    has = torch.arange(n) % 2 == 0
    kind = torch.randint(0, 80, (n,), generator=g)
    x = torch.zeros(n, D, dtype=torch.float64)
    x[:, 0] = has.double() * (1 + 0.1 * torch.rand(n, generator=g).double())
    for direction in SPECIAL:
        x[:, direction] = 2 * (kind == direction).double()
    x[:, 11:] = torch.rand(n, D - 11, generator=g).double() * (torch.rand(n, D - 11, generator=g) < 0.3)
    return x, has, has & (kind >= 3) & (kind <= 10)


def dictionary(taken: float) -> SAE:
    """Feature i reads direction i; of special rows a share of the concept is taken over by features 24 to 31."""
    W_enc, W_dec = torch.eye(D).double(), torch.eye(D).double()
    W_enc[list(SPECIAL), 0] = -0.6 * taken  # columns are features: 0 is less where a row is special
    absorbers, bias = torch.zeros(D, len(SPECIAL)).double(), torch.zeros(D + len(SPECIAL)).double()
    for i, direction in enumerate(SPECIAL):
        absorbers[0, i], absorbers[direction, i] = 1, 0.75
        bias[D + i] = -1.5  # active where both are: then as long as the concept
    written = torch.zeros(len(SPECIAL), D).double()
    written[:, 0] = taken
    return SAE(
        W_enc=torch.cat([W_enc, absorbers * (taken > 0)], 1), W_dec=torch.cat([W_dec, written + 1e-9]), b_enc=bias,
        architecture="standard", apply_b_dec_to_input=False,
    )  # fmt: skip


def test_a_dictionary_of_the_concepts_own_features_absorbs_nothing():
    x, has, _ = rows()
    one = concept_absorption(dictionary(0), x, has.tolist()).concepts[True]
    assert one.main == (0,) and one.f1 == 1 and one.full == 0 and one.fraction == 0 and one.absorbers == {}


def test_features_that_took_the_concept_over_are_named():
    x, has, special = rows()
    found = concept_absorption(dictionary(1), x, has.tolist(), test_share=0.5)
    one = found.concepts[True]
    test = torch.zeros(len(x), dtype=torch.bool)
    test[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: len(x) // 2]] = True
    assert one.main == (0,) and one.rows == (has & test).sum()
    assert set(one.absorbers) <= set(range(D, D + 8)) and sum(one.absorbers.values()) == (special & test).sum()
    assert one.full == one.fraction == pytest.approx(((special & test).sum() / (has & test).sum()).item())
    assert found.to_pandas().shape == (2, 7) and found.full < one.full


def test_a_concept_that_is_shared_out_is_a_fraction_and_not_full():
    x, has, special = rows()
    one = concept_absorption(dictionary(0.5), x, has.tolist(), test_share=0.5).concepts[True]
    assert one.full == 0 and one.absorbers == {}
    assert 0.4 < one.fraction / (special.sum() / has.sum()) < 0.65  # half of it, in special rows


def test_rows_that_no_figure_can_be_made_of_are_refused():
    x, has, _ = rows()
    with pytest.raises(ValueError, match="with a label each"):
        concept_absorption(dictionary(0), x, has.tolist()[1:])
    with pytest.raises(ValueError, match="needs 5 rows"):
        concept_absorption(dictionary(0), x[:12], has.tolist()[:12])


def test_letters_at_the_tokens_of_words(stories15m):
    """Of a dictionary of random directions the figures are those of its rows, read with a plain hook."""
    model = introspect.load_model(stories15m)
    g = torch.Generator().manual_seed(0)
    d, hook = model.cfg.d_model, "blocks.1.hook_resid_post"
    sae = SAE(W_enc=torch.randn(d, 64, generator=g), W_dec=torch.randn(64, d, generator=g), architecture="topk", k=8,
              hook_name=hook, model_name=model.cfg.model_name)  # fmt: skip
    said = len(model.tokenizer.encode("He said the"))
    words = [w for w in WORDS.split() if len(model.tokenizer.encode("He said the " + w)) == said + 1]
    assert len(words) > 30 and len(words) < len(WORDS.split())
    found = first_letter_absorption(model, sae, WORDS.split(), before="He said the", per_letter=1000, test_share=0.5)
    rows = [model.run_with_cache("He said the " + w)[1][hook][0, -1] for w in words]
    by_letter = {}
    for word, row in zip(words, rows, strict=True):
        by_letter.setdefault(word[0], []).append((word, row))
    assert set(found.concepts) <= set(by_letter) and found.concepts
    rng = torch.Generator().manual_seed(0)
    listed = [by_letter[a][i] for a in sorted(by_letter) for i in torch.randperm(len(by_letter[a]), generator=rng)]
    again = concept_absorption(sae, torch.stack([r for _, r in listed]), [w[0] for w, _ in listed], test_share=0.5)
    assert again.concepts.keys() == found.concepts.keys()
    for name, one in found.concepts.items():
        other = again.concepts[name]
        assert (one.main, one.rows, one.absorbers) == (other.main, other.rows, other.absorbers)
        assert (one.full, one.fraction) == pytest.approx((other.full, other.fraction), abs=1e-5)
    with pytest.raises(ValueError, match="one token"):
        first_letter_absorption(model, sae, ["qwertyuiopasdf"])
