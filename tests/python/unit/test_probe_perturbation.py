"""TPP and SCR against their definitions written out in loops, and on concepts that single features carry."""

import numpy as np
import pytest
import torch
from dictionaries import dictionary_at
from sklearn.linear_model import LogisticRegression

from introspect import SAE, ConfigError
from introspect.sae import spurious_correlation_removal, targeted_probe_perturbation

HOOK = "blocks.0.hook_resid_post"
COLOURS, PETS, VERBS = ["red", "blue", "green"], ["dog", "cat", "bird"], ["eats", "sees", "finds"]

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say which model")


def texts(n: int = 120, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    rng = np.random.default_rng(seed)
    colours, pets = rng.choice(COLOURS[:2], n), rng.choice(PETS, n)
    listed = [f"the {c} {p} {rng.choice(VERBS)} {rng.choice(VERBS)}" for c, p in zip(colours, pets, strict=True)]
    return listed, colours.tolist(), pets.tolist()


@pytest.fixture(scope="module")
def sae(model):
    return dictionary_at(HOOK, model.cfg.d_model, d_sae=40, seed=2, size=0.3)


def activations(model, text: str) -> torch.Tensor:
    """[tokens, d] at the hook, without special tokens."""
    tokens = model.to_tokens(text)
    _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
    keep = [not model.tokenizer.is_special(one) for one in tokens[0].tolist()]
    return cache[HOOK][0][torch.tensor(keep)]


def ablated(sae, x: torch.Tensor, ids) -> torch.Tensor:
    """SAEBench: decode what is left of the features, add the error, and take the mean over tokens."""
    f = sae.encode(x)
    error = x - sae.decode(f)
    f[:, list(ids)] = 0
    return (sae.decode(f) + error).mean(0)


def probe_of(rows: torch.Tensor, y: torch.Tensor):
    """A logistic probe of standardised rows, as fit_probe has it: (accuracy of rows and labels, weights of x)."""
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    found = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(((rows - mean) / scale).numpy(), y.numpy())
    weights = torch.tensor(found.coef_[0]) / scale

    def accuracy(x, labels):
        return (found.predict(((x - mean) / scale).numpy()) == labels.numpy()).mean()

    return accuracy, weights


def effects(sae, f: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (f[y].mean(0) - f[~y].mean(0)) * (sae.W_dec @ weights)


def best(effect: torch.Tensor, n: int) -> list[int]:
    order = effect.argsort(descending=True)[:n].tolist()
    return [i for i in order if effect[i] > 0]


def halves(n: int, seed: int) -> torch.Tensor:
    test = torch.zeros(n, dtype=torch.bool)
    test[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]] = True
    return test


def test_tpp_is_its_definition_in_loops(model, sae):
    listed, _, pets = texts()
    found = targeted_probe_perturbation(model, sae, listed, pets, ns=(1, 4), seed=3)
    acts = [activations(model, text) for text in listed]
    x, f = torch.stack([a.mean(0) for a in acts]), torch.stack([sae.encode(a).mean(0) for a in acts])
    test, rng = halves(len(listed), 3), torch.Generator().manual_seed(3)
    probes, data, ranked = {}, {}, {}
    for pet in sorted(set(pets)):
        y = torch.tensor([one == pet for one in pets])
        drawn = []
        for part in (~test, test):
            own, others = (part & y).nonzero()[:, 0], (part & ~y).nonzero()[:, 0]
            n = min(len(own), len(others))
            drawn.append(torch.cat([ids[torch.randperm(len(ids), generator=rng)[:n]] for ids in (own, others)]))
        train, data[pet] = drawn
        probes[pet], weights = probe_of(x[train], y[train])
        ranked[pet] = effects(sae, f[train], y[train], weights).clamp_min(0)
        assert found.accuracy[pet] == pytest.approx(probes[pet](x[data[pet]], y[data[pet]]))
    for n in (1, 4):
        falls = {True: [], False: []}
        for pet, effect in ranked.items():
            ids = best(effect, n)
            assert list(found.features[pet][:n]) == ids
            without = torch.stack([ablated(sae, a, ids) for a in acts])
            for other in probes:
                y = torch.tensor([one == other for one in pets])[data[other]]
                then = probes[other](without[data[other]], y)
                assert found.ablated[n][pet][other] == pytest.approx(then), (n, pet, other)
                falls[pet == other].append(found.accuracy[other] - then)
        assert found.scores[n] == pytest.approx(np.mean(falls[True]) - np.mean(falls[False]))
    assert list(found.to_pandas().columns) == ["n", "tpp", "intended", "unintended"]


def test_scr_is_its_definition_in_loops(model, sae):
    listed, colours, pets = texts(200)
    two = [(t, c, p) for t, c, p in zip(listed, colours, pets, strict=True) if p != "bird"]
    listed, colours, pets = (list(part) for part in zip(*two, strict=True))
    found = spurious_correlation_removal(model, sae, listed, colours, pets, ns=(2, 6), seed=1)
    acts = [activations(model, text) for text in listed]
    x, f = torch.stack([a.mean(0) for a in acts]), torch.stack([sae.encode(a).mean(0) for a in acts])
    a, b = torch.tensor([c == "red" for c in colours]), torch.tensor([p == "dog" for p in pets])
    test, rng = halves(len(listed), 1), torch.Generator().manual_seed(1)
    balanced = []
    for part in (~test, test):
        pairs = [(part & (a == i) & (b == j)).nonzero()[:, 0] for i in (False, True) for j in (False, True)]
        n = min(map(len, pairs))
        balanced.append(torch.cat([ids[torch.randperm(len(ids), generator=rng)[:n]] for ids in pairs]))
    train, held = balanced
    together = (~test & (a == b)).nonzero()[:, 0]
    biased, _ = probe_of(x[together], a[together])
    clean, ranked = [], []
    for y in (a, b):
        accuracy, weights = probe_of(x[train], y[train])
        clean.append(accuracy(x[held], y[held]))
        ranked.append(effects(sae, f[train], y[train], weights).abs())
    before = [biased(x[held], y[held]) for y in (a, b)]
    assert found.clean == pytest.approx(clean) and found.biased == pytest.approx(before)
    for n in (2, 6):
        for i, y in enumerate((a, b)):
            without = torch.stack([ablated(sae, one, best(ranked[1 - i], n)) for one in acts])
            then = biased(without[held], y[held])
            assert found.ablated[n][i] == pytest.approx(then)
            if clean[i] > before[i]:
                assert found.directions[n][i] == pytest.approx((then - before[i]) / (clean[i] - before[i]))
        assert found.scores[n] == found.directions[n][0 if before[0] <= before[1] else 1] or np.isnan(found.scores[n])


def test_features_of_single_concepts_have_a_high_score_and_random_ones_do_not(model):
    """A dictionary of the pets' own directions against one of random directions."""
    listed, _, pets = texts(240)
    x = torch.stack([activations(model, text).mean(0) for text in listed])
    means = torch.stack([x[torch.tensor([one == pet for one in pets])].mean(0) for pet in PETS])
    own = torch.linalg.pinv(means - x.mean(0)).T  # what reads each pet and not the others
    written = means - x.mean(0)
    made = SAE(
        W_enc=own.T, W_dec=written, b_enc=-(own @ x.mean(0)) + 0.3, b_dec=torch.zeros(x.shape[1]).double(),
        apply_b_dec_to_input=False, hook_name=HOOK,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.normalize(torch.randn(3, x.shape[1], generator=rng, dtype=torch.float64), dim=1)
    random = SAE(W_enc=noise.T, W_dec=noise, apply_b_dec_to_input=False, hook_name=HOOK)
    scores = [targeted_probe_perturbation(model, one, listed, pets, ns=(1,)).scores[1] for one in (made, random)]
    assert scores[0] > 0.15 and scores[0] > scores[1] + 0.1, scores


def test_what_has_no_score_is_refused(model, sae):
    listed, _, pets = texts(40)
    with pytest.raises(ValueError, match="two classes or more"):
        targeted_probe_perturbation(model, sae, listed, ["one"] * 40)
    with pytest.raises(ValueError, match="5 texts in either part"):
        targeted_probe_perturbation(model, sae, listed, ["a"] * 3 + ["b"] * 37)
    with pytest.raises(ValueError, match="n be 1 or more"):
        targeted_probe_perturbation(model, sae, listed, pets, ns=(0,))
    with pytest.raises(ValueError, match="two values"):
        spurious_correlation_removal(model, sae, listed, pets, pets)
    with pytest.raises(ValueError, match="each pair of values needs 5 texts"):
        two = ["a", "b"] * 20
        spurious_correlation_removal(model, sae, listed, two, two)
    normed = dictionary_at(HOOK, model.cfg.d_model, input_norm="layer_norm")
    with pytest.raises(ConfigError, match="no input norm of each row"):
        targeted_probe_perturbation(model, normed, listed, pets)
