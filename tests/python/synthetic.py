"""Results made by hand, with numbers whose statistics are known."""

import math

MASS = 0.9  # of yes and no together
NULL_SHIFTS = [0.1, -0.2, 0.3, 0.0, -0.1, 0.2, -0.3, 0.4, -0.4, 0.05]
CONTROLS = [("Is 1 greater than 2?", 0.2), ("Does water burn?", 0.4), ("Is ice hot?", 0.6)]


def side(log_odds, tokens=None, text=None):
    p_yes = MASS / (1 + math.exp(-log_odds))
    reading = {"log_odds": log_odds, "p_yes": p_yes, "p_no": MASS - p_yes}
    if tokens is not None:
        reading["tokens"] = tokens
    if text is not None:
        reading["text"] = text
    return reading


def row(concept, kind, question, question_kind, base, injected, null_index=-1, strength=0.1, layers=(8, 16)):
    return {
        "concept": concept,
        "strength": strength,
        "first_layer": layers[0],
        "last_layer": layers[1],
        "question": question,
        "question_kind": question_kind,
        "kind": kind,
        "null_index": null_index,
        "asked_in": "own",
        "base": base,
        "injected": injected,
    }


def result(name, read, rows, n_layers=24):
    return {
        "schema": 1,
        "model": {
            "name": "qwen2.5-coder-0.5b-instruct",
            "hash": "ab" * 32,
            "architecture": "qwen2",
            "n_layers": n_layers,
            "dtype": "float32",
            "device": "cpu",
        },
        "protocol": {"name": name, "hash": "cd" * 32, "read": read, "yes_token": " yes", "no_token": " no"},
        "settings": {
            "seed": 0,
            "nulls": len(NULL_SHIFTS),
            "strength_unit": "residual",
            "threads": 2,
            "versions": {"introspect": "0.1.0", "torch": "2.13.0"},
        },
        "rows": rows,
    }


def detection(name="with_info", shifts=None, base=1.7):
    """Concepts' shifts on the own question; controls shift by 0.2, 0.4 and 0.6; null k shifts its own question by
    NULL_SHIFTS[k] and every control by half of that."""
    rows = []
    for concept, shift in (shifts or {"cat": 1.0, "bread": 0.3}).items():
        own = "Do you detect an injected thought?"
        rows.append(row(concept, "introspection", own, "introspection", side(base), side(base + shift)))
        for question, moved in CONTROLS:
            rows.append(row(concept, "control", question, "control", side(-2.0), side(-2.0 + moved)))
        for k, null in enumerate(NULL_SHIFTS):
            rows.append(row(concept, "random", own, "introspection", side(base), side(base + null), k))
            for question, _ in CONTROLS:
                rows.append(row(concept, "random", question, "control", side(-2.0), side(-2.0 + null / 2), k))
    return result(name, "yes_no", rows)


def tokens(concepts, gains=None, ranks=None):
    """Unspaced and spaced token of every concept, at log-probabilities -8 and -9 plus the gain."""
    listed = []
    for i, concept in enumerate(concepts):
        for spaced in (0, 1):
            listed.append(
                {
                    "token": " " * spaced + concept,
                    "id": 10 * i + spaced,
                    "log_prob": -8.0 - spaced + (gains or {}).get(concept, 0.0),
                    "rank": (ranks or {}).get(concept, 700) + spaced,
                }
            )
    return listed


def content(concepts=("cat", "bread")):
    """The injected concept gains 5 nats and climbs to rank 3, the others gain 0.5, null k gains NULL_SHIFTS[k]."""
    rows = []
    question = "Trial 1: what is the injected thought about?"
    for concept in concepts:
        base = side(1.7, tokens(concepts))
        gains = {other: 5.0 if other == concept else 0.5 for other in concepts}
        injected = side(2.0, tokens(concepts, gains, {concept: 3}))
        rows.append(row(concept, "introspection", question, "introspection", base, injected))
        for k, null in enumerate(NULL_SHIFTS):
            random = side(1.7 + null, tokens(concepts, dict.fromkeys(concepts, null), {concept: 680 + k}))
            rows.append(row(concept, "random", question, "introspection", base, random, k))
    return result("content_report", "content", rows)


def sample():
    """The concept gives a text that a page must escape; the first null gives another."""
    question = "What are you thinking about right now?"
    base, injected = side(0.0, text=" the weather."), side(0.1, text=" cats, and <b>naps</b>.")
    random = side(0.1, text=" the sky.")
    rows = [
        row("cat", "introspection", question, "introspection", base, injected),
        row("cat", "random", question, "introspection", base, random, 0),
    ]
    return result("top_of_mind", "sample", rows)


def sweep(concepts, strengths, ranges, shift, noise, nulls=10, name="with_info", n_layers=24):
    """A detection sweep: shift(concept, strength, first, last) gives (introspection shift, control shift); null k has
    noise(k, strength, first, last) in the same form."""
    own, control = "Do you detect an injected thought?", "Is ice hot?"
    rows = []
    for concept in concepts:
        for strength in strengths:
            for layers in ranges:
                at = {"strength": strength, "layers": layers}
                versions = [(-1, shift(concept, strength, *layers))]
                versions += [(k, noise(k, strength, *layers)) for k in range(nulls)]
                for k, moved in versions:
                    asked = ((own, "introspection", 1.7), (control, "control", -2.0))
                    for (question, kind, base), value in zip(asked, moved, strict=True):
                        shown = kind if k < 0 else "random"
                        rows.append(row(concept, shown, question, kind, side(base), side(base + value), k, **at))
    made = result(name, "yes_no", rows, n_layers)
    made["settings"]["nulls"] = nulls
    return made
