"""Evidence and studies made by hand, with a truth that is known."""

import functools
import json

import numpy as np
import synthetic

from introspect.experiments.results import Result
from introspect.studies.evidence import Evidence, Readings
from introspect.studies.study import Study

CONCEPTS = ("cat", "bread", "ocean", "justice", "tree", "mirror", "clock", "river", "salt", "bridge", "cloud", "lamp")
WORDINGS = ("own", "plainly", "formally")
SETTINGS = ("0.1 × 8–16", "0.2 × 8–16")
BASES = {"factual_yes": 5.0, "factual_no": -5.0, "contested": 0.0}
OWN_BASE = -2.0
SMALL = {"settings": ("0.1",), "wordings": ("own",)}  # of `evidence`: one reading a concept and question, for speed
FEW = {**SMALL, "controls": ("rotations",)}
PLACES = 4


def readings(values, rng, *, settings=SETTINGS, wordings=("own",), questions=("q",), base=None, noise=0.1):
    """An arm whose concepts have these means, and readings that scatter around them.

    Args:
        values: {concept: mean}.
        base: question's number -> log-odds without injection.
    """
    rows = [(c, s, w, q) for c in values for s in settings for w in wordings for q in questions]
    value = [values[row[0]] for row in rows] + rng.normal(0, noise, len(rows))
    columns = dict(zip(("concept", "setting", "paraphrase", "question"), zip(*rows, strict=True), strict=True))
    bases = {} if base is None else {"base": [base(questions.index(row[3])) for row in rows]}
    return Readings(value=value.tolist(), **columns, **bases)


def evidence(
    rng,
    *,
    n=10,
    shift=1.0,
    spread=0.8,
    others=None,
    draw=None,
    branches=("detection",),
    places=0.3,
    gain=1.0,
    settings=SETTINGS,
    wordings=WORDINGS,
    controls=("rotations", "equal_dose", "swap", *BASES),
):
    """A study in which every concept has a shift of its own around a true mean.

    Args:
        shift: true mean of the injected arm, nats; spread: standard deviation between concepts.
        others: {arm: true mean}, of the arms in the injection's place and at other questions; 0 if not named.
        draw: (rng, n) -> deviations of the concepts, of mean 0 and standard deviation 1; normal if not given.
        places: true share of right answers above chance; gain: true gain of the concept's word, nats.
        controls: arms beside the injected one.
    """
    draw = draw or (lambda rng, n: rng.normal(0, 1, n))
    concepts, others = CONCEPTS[:n], others or {}

    def means(true):
        return dict(zip(concepts, (true + spread * draw(rng, n)).tolist(), strict=True))

    def about(true):
        return dict.fromkeys(concepts, true)

    arms = {}
    if "detection" in branches:
        same = {"settings": settings, "wordings": wordings}
        arms["injected"] = readings(means(shift), rng, base=lambda i: OWN_BASE, **same)
        for name in [name for name in controls if name not in BASES]:
            arms[name] = readings(about(others.get(name, 0.0)), rng, **same)
        for name, at in [(name, at) for name, at in BASES.items() if name in controls]:
            asked = {"wordings": ("control",), "questions": ("a", "b"), "base": functools.partial(int.__add__, int(at))}
            arms[name] = readings(about(others.get(name, 0.0)), rng, settings=settings, **asked)
    if "content" in branches:
        arms["content"] = readings(means(gain), rng)
        for name in ("no_question", "observer"):
            arms[name] = readings(about(others.get(name, 0.0)), rng)
    if "localisation" in branches:
        for name, true in (("localised", places), ("localised_matched", others.get("localised_matched", 0.0))):
            # The chance of a right answer differs between concepts as shifts do, within what a chance can be.
            right = np.clip(1 / PLACES + true + 0.1 * draw(rng, n), 0, 1)
            rows = [(c, s) for c in concepts for s in SETTINGS for _ in range(12)]
            hits = rng.random(len(rows)) < np.repeat(right, 24)
            arms[name] = Readings([c for c, _ in rows], (hits - 1 / PLACES).tolist(), [s for _, s in rows])
    return Evidence(arms)


def results(rng, *, shifts, others=None, concepts=None, protocol="with_info", model="qwen2.5-coder-0.5b-instruct"):
    """{arm: Result} in the form in which a study holds them.

    Args:
        shifts: {concept: shift of its own direction}; others: {arm or group: shift}.
    """
    others = {"rotations": 0.0, "equal_dose": 0.0, "swap": 0.0, "factual_yes": 0, "factual_no": 0, "contested": 0} | (
        others or {}
    )
    concepts = concepts or list(shifts)

    def rows(
        shift, kind="introspection", question="Do you detect a thought?", base=OWN_BASE, wordings=WORDINGS, **more
    ):
        made = []
        for concept in concepts:
            for strength in (0.1, 0.2) if more.pop("settings", True) else (1.0,):
                for wording in wordings:
                    moved = shift(concept) + rng.normal(0, 0.05)
                    asked = "control" if kind == "control" else "introspection"
                    sides = synthetic.side(base), synthetic.side(base + moved)
                    row = synthetic.row(concept, kind, question, asked, *sides, strength=strength)
                    row |= {"paraphrase": wording, **more}
                    made.append(row)
        return made

    def one(rows, name=protocol):
        data = synthetic.result(name, "yes_no", rows)
        data["model"]["name"], data["model"]["hash"] = model, f"{sum(map(ord, model)):064x}"
        turns = [("user", "A thought may be injected."), ("assistant", "Ok."), ("user", "Do you detect a thought?")]
        turns = [{"role": role, "content": text} for role, text in turns]
        data["protocol"]["definition"] = {"turns": turns, "injected": [1]}
        return Result(data)

    made = {"injected": one(rows(shifts.get))}
    for name in ("rotations", "equal_dose"):
        random = [rows(lambda _, name=name: others[name], "random", null_index=k) for k in range(3)]
        made[name] = one([row for part in random for row in part])
    made["swap"] = one(rows(lambda _: others["swap"]))
    groups = []
    for group, base in BASES.items():
        for i in range(3):
            more = {"wordings": ("control",), "group": group, "base": base + i}
            groups += rows(lambda _, group=group: others[group], "control", f"{group} {i}?", **more)
    made["question_groups"] = one(groups)
    return made


def study(rng, **truth):
    """A Study of ``results``."""
    made = results(rng, **truth)
    own = made["injected"]
    arms = {name: f"what {name} is for" for name in made}
    costs = {
        "arms": {name: {"readings": len(one.rows), "token_layers": 1000 * len(one.rows)} for name, one in made.items()}
    }
    costs["together"] = {"readings": 100, "token_layers": 40_000}
    settings = {**own.settings, "arms": arms}
    return Study(
        made, own.model, own.protocol, json.loads(json.dumps(settings)), costs, {"observer": "it needs a message"}
    )
