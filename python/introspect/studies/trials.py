"""Sampled trials: what the model says, many times, under each injection and without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..experiments.arguments import Arguments
from ..experiments.rotations import rotations
from ..steering.training import ControlVector
from .setup import NOTHING
from .together import Experiment, run_together
from .variants import edited

if TYPE_CHECKING:
    import pandas

    from ..model import Model

SETTING = ("concept", "strength", "first_layer", "last_layer", "null_index", "question")


@dataclass(frozen=True)
class Trial:
    """One text.

    Attributes:
        concept: what was injected; "(nothing)" without an injection.
        strength, first_layer, last_layer, question, seed: of the reading.
        null_index: -1 of the concept's own vector, 0 and on of random rotations of it.
        text: what the model said.
        label: what a grader or judge made of it; None: nothing.
    """

    concept: str
    strength: float
    first_layer: int
    last_layer: int
    null_index: int
    question: str
    seed: int
    text: str
    label: str | None = None


@dataclass(frozen=True)
class Trials:
    """Sampled trials of one protocol."""

    trials: tuple[Trial, ...]

    def graded(self, grader: Callable[[str], str | None]) -> Trials:
        """The same with each text's label by a grader: a function of the text, such as ``grade`` with its answers."""
        return self.labelled([grader(trial.text) for trial in self.trials])

    def labelled(self, labels: Sequence[str | None]) -> Trials:
        """The same with these labels, in their order. Raises ValueError for another number of them."""
        if len(labels) != len(self.trials):
            raise ValueError(f"Trials: there must be {len(self.trials)} labels, got {len(labels)}")
        return Trials(tuple(Trial(**{**vars(t), "label": label}) for t, label in zip(self.trials, labels, strict=True)))

    def rates(self, label: str) -> pandas.DataFrame:
        """How often texts have a label, by what was injected: n, k, rate and its exact 95 % interval."""
        import pandas

        from ..statistics import proportion

        table = self.to_pandas()
        rows = []
        for key, group in table.groupby(list(SETTING), sort=False):
            k, n = int((group["label"] == label).sum()), len(group)
            rate = proportion(k, n)
            counts = {"n": n, "k": k, "rate": rate.value, "low": rate.interval.low, "high": rate.interval.high}
            rows.append({**dict(zip(SETTING, key, strict=True)), **counts})
        return pandas.DataFrame(rows)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a trial."""
        import pandas

        return pandas.DataFrame([vars(trial) for trial in self.trials])


def sample_trials(
    model: Model,
    protocol: Any,
    vectors: Mapping[str, ControlVector],
    *,
    n: int,
    temperature: float = 1.0,
    max_new_tokens: int = 40,
    top_p: float = 1.0,
    seed: int = 0,
    questions: Any = (),
    store: Any = None,
    progress: Callable[[str, int, int], None] | bool | None = None,
    **options: Any,
) -> Trials:
    """Texts after a protocol's question, ``n`` of each setting and as many without an injection.

    Trial i draws with the seed ``seed + i``, the same one for every setting. All of them share one prefill, and are
    drawn in batches over the branches.

    Args:
        protocol: see ``load_protocol``; it is read as text whatever it reads otherwise.
        n: texts of each setting and question.
        questions: control questions that are asked too; none by default.
        temperature, max_new_tokens, top_p: of sampling.
        options: of ``run_experiment``: strengths, layers, nulls and others.

    Raises:
        ValueError: n below 1, or a temperature of 0 for more than one trial: they would all be one text.
        TypeError, IndexError, ShapeError, ConfigError, Error: as ``run_experiment`` does.
    """
    if n < 1:
        raise ValueError(f"sample_trials: n must be 1 or more, got {n}")
    if n > 1 and temperature <= 0:
        raise ValueError(f"sample_trials: {n} trials need a temperature above 0, got {temperature}")
    given = Arguments("sample_trials").protocol(protocol)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    asked = edited(given, "sampled", read="sample", sampling=sampling)
    more = {"nulls": 0, "questions": questions, "dose": False, **options}
    n_rotations = int(more["nulls"])
    found: list[Trial] = []
    runs = [Experiment(asked, vectors, **{**more, "seed": seed + i}) for i in range(n)]
    if n_rotations and n > 1:  # rotations are those of the first seed in every trial
        runs = [one.changed(nulls=0, null_vectors=rotations(vectors, n_rotations, seed)) for one in runs]
    for i, result in enumerate(run_together(model, runs, store=store, progress=progress)):
        unsteered = {row["question"]: row["base"]["text"] for row in result.rows}
        found += [Trial(NOTHING, 0.0, -1, -1, -1, question, seed + i, text) for question, text in unsteered.items()]
        for row in result.rows:
            setting = {name: row[name] for name in SETTING}
            found.append(Trial(**setting, seed=seed + i, text=row["injected"]["text"]))
    return Trials(tuple(found))
