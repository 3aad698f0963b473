"""Probes at all layers against a loop of scikit-learn and transformers, in one run.

    python tests/benchmarks/probes.py [GGUF] [--texts 1000] [--nulls 20] [--sample 16] [--study]

1,000 true and false statements about capitals (real labels), probed at every layer with five folds by country.
"cached": both sides get the same activations; scikit-learn runs StandardScaler and LogisticRegression in a loop over
layers and folds, and once more on all texts. "with nulls": the same for shuffled labels, of which scikit-learn runs
one, and its time is multiplied. "from texts": the statements stand after a prompt that they share; transformers runs
every whole text, in batches of equal length, on a random sample whose time is scaled, and scikit-learn's time is
added. The same labels, folds and C on both sides; their AUCs are compared.

--study prints instead the table of a probe study with nulls and saves its picture.
"""

import argparse
import os
import random
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import introspect
from introspect import _C, analysis

MODELS = Path.home() / ".cache/introspect/models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Portugal": "Lisbon", "Austria": "Vienna",
    "Hungary": "Budapest", "Ireland": "Dublin", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad",
    "India": "Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Kenya": "Nairobi", "Canada": "Ottawa", "Belgium": "Brussels",
}  # fmt: skip
TEMPLATES = [
    "The capital of {country} is {city}.",
    "{city} is the capital of {country}.",
    "It is well known that the capital of {country} is {city}.",
    "The capital city of {country} is called {city}.",
    "The government of {country} sits in {city}.",
    "Visitors to {country}'s capital arrive in {city}.",
    "{country} is governed from its capital, {city}.",
    "The parliament of {country} is in {city}.",
    "Everybody knows that {city} is the capital of {country}.",
    "The president or the king of {country} lives in {city}.",
    "In {country}, the seat of government is {city}.",
    "The ministries of {country} stand in {city}.",
    "Ask anyone: {country} has {city} as its capital.",
    "{city} is where the government of {country} works.",
    "The supreme court of {country} meets in {city}.",
    "A map of {country} shows {city} as its capital.",
    "Of all cities of {country}, {city} is the capital.",
]
PROMPT = (
    "You are given one statement about the geography of the world, taken from a long list of such statements. "
    "Some of them are true and some of them are false; they were written by different people at different times, "
    "and nobody has checked them before. Read the statement slowly, remember what you know about the countries of "
    "the world, about their largest towns, and about where their governments and parliaments have their seats, "
    "and then decide whether what it says is right or wrong. Do not be misled by the way in which it is put: a "
    "false statement can sound as sure as a true one, and every country and every town is in as many true as "
    "false ones. The statement is:\n"
)


def statements(n: int, *, seed: int = 0) -> tuple[list[str], list[bool], list[str]]:
    """Texts, whether they are true, and their country.

    A false one has another country's capital: every country and every city is in as many true as false statements of
    each template, so that neither words nor lengths tell them apart.
    """
    countries = list(CAPITALS)
    out = []
    for number, template in enumerate(TEMPLATES):
        for i, country in enumerate(countries):
            for shift in (0, 7 + number):
                city = CAPITALS[countries[(i + shift) % len(countries)]]
                out.append((template.format(country=country, city=city), shift == 0, country))
    texts, labels, groups = zip(*out[:n], strict=True)
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    return [texts[i] for i in order], [labels[i] for i in order], [groups[i] for i in order]


def seconds(call) -> tuple[float, object]:
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def ours(values, labels, groups, folds, nulls):
    return _C.study_probes(
        values,
        ["false", "true"],
        labels,
        folds=folds,
        groups=groups,
        nulls=nulls,
        description=False,
        progress=False,
    )


def theirs(values, labels, folds) -> list[float]:
    """The mean AUC over folds of every layer, and a fit on all texts.

    On one thread, on which scikit-learn is quickest here: with two its BLAS takes twenty times as long.
    """
    with threadpool_limits(1):
        return _theirs(values, labels, folds)


def _theirs(values, labels, folds) -> list[float]:
    out, y, each = [], np.array(labels), np.array(folds)
    for layer in range(values.shape[1]):
        x = values[:, layer].numpy()
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        scores = cross_val_predict(pipeline, x, y, cv=PredefinedSplit(each), method="decision_function")
        pipeline.fit(x, y)
        out.append(statistics.mean(roc_auc_score(y[each == f], scores[each == f]) for f in sorted(set(folds))))
    return out


def unshared(path: Path, model, texts: list[str], sample: int) -> float:
    """Seconds that transformers takes for all layers of every whole text, from a sample of them in batches of 8."""
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    chosen = random.Random(1).sample(texts, sample)
    rows = [model.to_tokens(text)[0, :-2] for text in chosen]
    shortest = min(map(len, rows))
    tokens = torch.stack([row[:shortest] for row in rows])  # of one length: a little less than it would run

    def read():
        with torch.no_grad():
            for batch in tokens.split(8):
                peer.model(batch, output_hidden_states=True, use_cache=False)

    return seconds(read)[0] * len(texts) / sample


def study(model, n: int, nulls: int, out: Path) -> None:
    texts, labels, groups = statements(n)
    table = analysis.probe_layers(model, texts, labels, groups=groups, nulls=nulls, progress=False)
    print(table, f"{len(texts)} texts, {table.n_groups} countries")
    columns = [
        "layer",
        "auc",
        "auc_low",
        "auc_high",
        "accuracy",
        "null_auc_highest",
        "p_auc",
        "selectivity",
        "compression",
    ]
    print(table.to_pandas()[columns].round(3).to_string(index=False))
    for name, row in table.baselines.items():
        print(f"{name}: AUC {row.auc:.3f} [{row.auc_low:.3f}, {row.auc_high:.3f}]")
    table.plot().savefig(out, dpi=120)
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(SMOLLM2))
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--nulls", type=int, default=20)
    parser.add_argument("--sample", type=int, default=16)
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--picture", type=Path, default=Path("probes.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    model = introspect.load_model(arguments.model)
    if arguments.study:
        study(model, arguments.texts, arguments.nulls, arguments.picture)
        return
    texts, truths, countries = statements(arguments.texts)
    labels, names = [int(t) for t in truths], sorted(set(countries))
    groups = [names.index(c) for c in countries]
    folds = _C.stratified_group_folds(labels, groups, 5)
    layers = list(range(model.cfg.n_layers))
    prompted = [PROMPT + text for text in texts]
    t_read, read = seconds(lambda: introspect.collect_activations(model, prompted, layers=layers, progress=False))
    values = read.values
    ours(values[:, :2].contiguous(), labels, groups, folds, 0)
    t_ours, studies = seconds(lambda: ours(values, labels, groups, folds, 0))
    t_nulls, _ = seconds(lambda: ours(values, labels, groups, folds, arguments.nulls))
    t_theirs, aucs = seconds(lambda: theirs(values, labels, folds))
    shuffled = random.Random(2).sample(labels, len(labels))
    t_shuffled, _ = seconds(lambda: theirs(values, shuffled, folds))
    t_passes = unshared(Path(arguments.model), model, prompted, arguments.sample)
    apart = max(abs(s.scores.auc.value - auc) for s, auc in zip(studies, aucs, strict=True))
    tokens = sum(len(model.tokenizer.encode(text)) for text in prompted)
    load = os.getloadavg()[0]
    print(f"\n{model.name}: {len(texts)} texts, {tokens:,} tokens, {len(layers)} layers, 5 folds, load {load:.1f}")
    print(f"AUCs of the two sides differ by at most {apart:.4f}\n")
    rows = [
        ("cached", t_ours, t_theirs),
        (f"cached, {arguments.nulls} nulls", t_nulls, t_theirs + arguments.nulls * t_shuffled),
        ("from texts", t_read + t_ours, t_passes + t_theirs),
        ("  of it passes", t_read, t_passes),
    ]
    print(f"{'':<22}{'ours, s':>10}{'theirs, s':>12}{'times':>8}")
    for name, us, them in rows:
        print(f"{name:<22}{us:>10.1f}{them:>12.1f}{them / us:>8.1f}")


if __name__ == "__main__":
    main()
