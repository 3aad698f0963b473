"""The injected experiment against transformers with forward hooks, on the same dequantised weights in float32."""

import contextlib
import functools

import pytest
import torch
from reference import transformers_model
from sklearn.decomposition import PCA
from transformers import DynamicCache

import introspect

CONTROL = "Are you a human?"


@pytest.fixture(scope="module")
def models(smollm2):
    theirs = transformers_model(smollm2)
    return introspect.load_model(smollm2), theirs


@pytest.fixture(scope="module")
def vectors(models):
    """Random directions: what is injected does not matter here, only that both sides inject the same."""
    cfg = models[0].cfg
    rng = torch.Generator().manual_seed(1)
    directions = {name: torch.randn(cfg.n_layers, cfg.d_model, generator=rng) for name in ("cat", "bread")}
    return {
        name: introspect.ControlVector("llama", {layer: row / row.norm() for layer, row in enumerate(rows)})
        for name, rows in directions.items()
    }


@contextlib.contextmanager
def hooked(model, directions):
    """Adds directions[layer] to the output of each block."""

    def add(direction):
        def hook(module, args, output):
            return (output[0] + direction, *output[1:]) if isinstance(output, tuple) else output + direction

        return hook

    handles = [model.model.layers[layer].register_forward_hook(add(d)) for layer, d in directions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain_experiment(model, steps, injected, directions):
    """Last logits after prefilling every step into one cache, with the directions added during the injected steps."""
    cache = DynamicCache()
    norms = {}
    for i, step in enumerate(steps):
        added = directions if i in injected else {}
        with hooked(model, added):
            out = model(
                torch.tensor([step]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                output_hidden_states=i in injected,
            )
        if i in injected:
            # hidden_states[l + 1] is the output of block l, for all but the last block.
            for layer, hidden in enumerate(out.hidden_states[1:-1]):
                norms.setdefault(layer, []).append(hidden[0].norm(dim=-1))
    return out.logits[0, -1], {layer: torch.cat(parts).quantile(0.5).item() for layer, parts in norms.items()}


def chat_steps(ours, turns):
    """The messages' tokens, each one cut where ChatML ends a message; the text is written out here."""
    steps = []
    for i, turn in enumerate(turns):
        text = f"<|im_start|>{turn['role']}\n{turn['content']}"
        steps.append(text if i == len(turns) - 1 else text + "<|im_end|>\n")
    return [ours.tokenizer.encode(step, add_special_tokens=False) for step in steps]


def turns_of(protocol, question, controls="own"):
    """The conversation of a question: a control takes the place of the protocol's own question, or of with_info's."""
    if question == protocol.own_question:
        return protocol.turns
    turns = protocol.turns if controls == "own" else introspect.load_protocol(controls).turns
    asked = f'{question} Answer with "The answer is yes" or "The answer is no"'
    return [*turns[:3], {"role": "user", "content": asked}, turns[4]]


def expect(reading, logits, ours):
    (yes,) = ours.tokenizer.encode(" yes", add_special_tokens=False)
    (no,) = ours.tokenizer.encode(" no", add_special_tokens=False)
    log_probs = logits.log_softmax(-1)
    assert reading["log_odds"] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-3)
    assert reading["p_yes"] == pytest.approx(log_probs[yes].exp().item(), rel=5e-3)
    assert reading["p_no"] == pytest.approx(log_probs[no].exp().item(), rel=5e-3)
    for token in reading.get("tokens", []):
        assert token["log_prob"] == pytest.approx(log_probs[token["id"]].item(), abs=2e-3)


@pytest.mark.parametrize(
    ("name", "concepts", "questions", "controls"),
    [
        ("no_info", ["cat", "bread"], [], "own"),
        ("no_info", ["cat"], [CONTROL], "own"),
        ("no_info", ["cat"], [CONTROL], "with_info"),
        ("content_report", ["cat"], [], "own"),
    ],
)
def test_readings_equal_a_plain_implementation(models, vectors, name, concepts, questions, controls):
    ours, theirs = models
    protocol = introspect.load_protocol(name)
    (first, last), strength = (10, 20), 12.0
    result = introspect.run_experiment(
        ours,
        protocol,
        vectors={concept: vectors[concept] for concept in concepts},
        strengths=[strength],
        layers=[(first, last)],
        questions=questions,
        controls=controls,
        nulls=0,
    )
    assert len(result.rows) == len(concepts) * (1 + len(questions))
    bases = {}
    for row in result.rows:
        steps = chat_steps(ours, turns_of(protocol, row["question"], controls))
        if row["question"] not in bases:
            bases[row["question"]], _ = plain_experiment(theirs, steps, {1, 2}, {})
        directions = vectors[row["concept"]].directions
        added = {layer: strength * directions[layer] for layer in range(first, last + 1)}
        injected, _ = plain_experiment(theirs, steps, {1, 2}, added)
        expect(row["base"], bases[row["question"]], ours)
        expect(row["injected"], injected, ours)
    shifts = [abs(row["injected"]["log_odds"] - row["base"]["log_odds"]) for row in result.rows]
    assert max(shifts) > 0.1  # the injection did something, so agreement means something


def test_residual_strengths_equal_a_plain_implementation(models, vectors):
    ours, theirs = models
    protocol = introspect.load_protocol("no_info")
    first, last = 8, 12
    vector = 3 * vectors["cat"]  # directions count as unit vectors
    result = introspect.run_experiment(
        ours,
        protocol,
        vectors={"cat": vector},
        strengths=[0.1],
        layers=[(first, last)],
        questions=[],
        strength_unit="residual",
        nulls=0,
    )
    steps = chat_steps(ours, protocol.turns)
    _, norms = plain_experiment(theirs, steps, {1, 2}, {})
    unit = vectors["cat"].directions
    directions = {layer: 0.1 * norms[layer] * unit[layer] for layer in range(first, last + 1)}
    logits, _ = plain_experiment(theirs, steps, {1, 2}, directions)
    expect(result.rows[0]["injected"], logits, ours)


def test_sampled_text_under_steering_equals_a_plain_implementation(models, vectors):
    ours, theirs = models
    protocol = introspect.load_protocol("top_of_mind")
    strength, (first, last) = 6.0, (10, 20)
    result = introspect.run_experiment(
        ours,
        protocol,
        vectors={"cat": vectors["cat"]},
        strengths=[strength],
        layers=[(first, last)],
        questions=[],
        nulls=0,
    )
    text = ours.apply_chat_template(protocol.turns, continue_final_message=True)
    prompt = torch.tensor([ours.tokenizer.encode(text, add_special_tokens=False)])
    stop = ours.tokenizer.encode("<|im_end|>", add_special_tokens=False)

    def greedy(directions):
        with hooked(theirs, directions):
            out = theirs.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=stop, pad_token_id=stop[0])
        return ours.tokenizer.decode(out[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)

    row = result.rows[0]
    # Greedy ties in float32 may fall either way late in a text: the first dozen words are compared.
    same = 12
    assert row["base"]["text"].split()[:same] == greedy({}).split()[:same]
    directions = {layer: strength * vectors["cat"].directions[layer] for layer in range(first, last + 1)}
    assert row["injected"]["text"].split()[:same] == greedy(directions).split()[:same]


def test_a_localisation_reads_its_answers_under_each_injection(models, vectors):
    """Each sentence alone, against hooks on transformers at the tokens that spell it."""
    ours, theirs = models
    protocol = introspect.load_protocol("localisation")
    strength, layers = 12.0, (10, 20)
    result = introspect.run_experiment(
        ours, protocol, vectors={"cat": vectors["cat"]}, strengths=[strength], layers=[layers], questions=[], nulls=0
    )
    ids = [i for step in chat_steps(ours, protocol.turns) for i in step]
    pieces = [ours.tokenizer.decode([i]) for i in ids]
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    assert len(result.rows) == len(protocol.passages) == 5
    for row, (_, sentence) in list(zip(result.rows, protocol.passages, strict=True))[::2]:
        start = "".join(pieces).index(sentence)
        span = [i for i, end in enumerate(ends) if start < end <= start + len(sentence)]

        def add(module, args, output, *, layer, span=span):
            output = output[0] if isinstance(output, tuple) else output
            output[:, span] += strength * vectors["cat"].directions[layer]

        handles = [
            theirs.model.layers[layer].register_forward_hook(functools.partial(add, layer=layer))
            for layer in range(layers[0], layers[1] + 1)
        ]
        with torch.no_grad():
            log_probs = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        for handle in handles:
            handle.remove()
        assert [one["token"] for one in row["injected"]["answers"]] == protocol.answers
        for one in row["injected"]["answers"]:
            assert one["log_prob"] == pytest.approx(log_probs[one["id"]].item(), abs=2e-3)


@pytest.fixture(scope="module")
def training(models):
    """Pairs, and transformers' hidden states at the last token of each side: [pairs, layers + 1, d_model]."""
    ours, theirs = models
    pairs = introspect.concept_pairs(ours, "cat", introspect.load_suffixes()[:24:2])

    @torch.no_grad()
    def states(text):
        ids = torch.tensor([ours.tokenizer.encode(text, add_special_tokens=False)])
        return torch.stack(theirs.model(ids, output_hidden_states=True).hidden_states)[:, 0, -1].double()

    return pairs, *(torch.stack([states(pair[side]) for pair in pairs]) for side in (0, 1))


@pytest.mark.parametrize("method", ["pca_center", "pca_diff", "mean_diff"])
def test_training_equals_sklearn_on_transformers_hidden_states(models, training, method):
    """repeng's recipe: hidden states at the last token, PCA by sklearn, sign by vote; written out here."""
    ours = models[0]
    pairs, positive, negative = training
    vector = introspect.ControlVector.train(ours, pairs, method=method)
    n_layers, n_compared = ours.cfg.n_layers, 0
    assert vector.layers == list(range(1, n_layers))
    for layer in range(1, n_layers - 1):  # the last of hidden_states is after the final norm
        p, n = positive[:, layer + 1], negative[:, layer + 1]
        ours_direction = vector.directions[layer].double()
        if method == "mean_diff":
            expected = (p - n).mean(0)
            assert torch.allclose(ours_direction, expected, rtol=0, atol=1e-3 * expected.norm())
            continue
        rows = torch.cat([(p - n) / 2, (n - p) / 2]) if method == "pca_center" else p - n
        pca = PCA(n_components=2, svd_solver="full").fit(rows.numpy())
        expected = torch.from_numpy(pca.components_[0])
        larger = ((p @ expected) > (n @ expected)).float().mean()
        if larger < 0.5:
            expected = -expected
        gap = pca.explained_variance_[0] / pca.explained_variance_[1]
        if gap > 1.05 and larger != 0.5:  # a direction that is defined, and a vote that is not even
            assert torch.dot(ours_direction, expected) > 0.999, layer
            n_compared += 1
        assert vector.spectrum[layer][0] == pytest.approx(pca.explained_variance_ratio_[0], rel=1e-3)
    assert method == "mean_diff" or n_compared >= (n_layers - 2) / 2
