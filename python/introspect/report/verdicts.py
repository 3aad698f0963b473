"""What came out of an experiment, in one word that claims no more than the random rotations allow.

The rule. A setting is a concept, a strength and a range of blocks. Its word is

"failed"    where no number is finite;
"unclear"   where it cannot be told: there is no random rotation to compare with; the model answers neither yes nor no
            there, with the injection or even without it; the control questions were asked in another conversation. And
            where it would be a yes without doubts such as these: fewer than LEAST_RANDOMS rotations; fewer than
            LEAST_CONTROLS control questions; controls that are not clean, which means that they move by more than
            SHARED of what the introspection question moves by, or that most of them leave the format of the answer;
            readings that are not finite;
"yes"       where the shift towards yes, less the mean shift of the controls, is above that of every rotation;
"no"        where it is not.

A concept's word is the one that more than half of its settings have, and "unclear" where none has; so is a result's, of
its concepts. In a content report the gain of the concept's own token stands in the place of the shift, and there are no
controls; in a localisation it is whether the right passages are named more often than chance names them.

Chance. If the direction made no difference, a vector and its n rotations would be exchangeable, and the vector would be
above all of them once in n + 1 times: 9 in 100 with ten. More than half of s settings are so at most s / m times as
often, with m the least number that is more than half (Markov's inequality, however alike the settings are): twice as
often at most, and the same again for the concepts of a result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..experiments.detections import LEAST_MASS, NOT_RECORDED, Compared, Detection, Identification, Setting, failed

if TYPE_CHECKING:
    from ..experiments.results import Result

WORDS = ("yes", "unclear", "no", "failed")
LEAST_RANDOMS = 10
LEAST_CONTROLS = 3
SHARED = 0.5
LEAST_ANSWERS = 20  # of a localisation
LEVEL = 0.05  # of its binomial test
LISTED = 8  # settings of a concept in a summary
NOT_FINITE = "The readings are no finite numbers: the injection is too strong for the model's dtype."


@dataclass(frozen=True)
class Verdict:
    """What came out: ``word`` is "yes", "unclear", "no" or "failed", ``sentence`` says it, ``reasons`` say why."""

    word: str
    sentence: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.word}: {self.sentence}"


def of_detection(detection: Detection) -> Verdict:
    """The verdict on the yes-or-no question in one setting."""
    shown, controls = detection.headline, detection.control_mean
    if not math.isfinite(shown.value):
        return Verdict("failed", NOT_FINITE)
    doubts = []
    if detection.mass_base < LEAST_MASS:
        doubts.append(f"even without injection yes and no have only {percent(detection.mass_base)} of the probability")
    if detection.leaves_format:
        before, after = percent(detection.mass_base), percent(detection.mass)
        doubts.append(f"the injection takes the probability of yes and no from {before} to {after}")
    if not shown.nulls:
        doubts.append("there is no random direction to compare with")
    if controls is not None and detection.controls not in ("own", NOT_RECORDED):
        doubts.append(f"the controls were asked in another conversation ({detection.controls})")
    less = " less that of the controls" if controls else ""
    if doubts:
        return Verdict("unclear", f"It cannot be told: {'; '.join(doubts)}.", tuple(doubts))
    if not shown.above_all:
        return _not_above(f"the shift towards yes{less}", shown)
    doubts = _too_few(shown)
    if controls is not None and detection.controls == NOT_RECORDED:
        doubts.append("it is not recorded in which conversation the controls were asked")
    if controls is None or detection.n_controls < LEAST_CONTROLS:
        doubts.append(f"control questions asked: {detection.n_controls}, {LEAST_CONTROLS} are needed")
    elif abs(controls.value) > SHARED * abs(detection.shift.value):
        doubts.append(
            f"the control questions move as well, by {controls.value:+.2f} beside {detection.shift.value:+.2f} nats"
        )
    if 2 * detection.n_controls_leaving > detection.n_controls:
        doubts.append("at most control questions the model answers neither yes nor no under the injection")
    if detection.n_failed:
        doubts.append(f"{detection.n_failed} of {detection.n_readings} readings are no finite numbers")
    return _above(f"the shift towards yes{less}", shown, doubts)


def of_identification(one: Identification) -> Verdict:
    """The verdict on the concept's own token in one setting of a content report."""
    what = f"the gain of the token {one.token!r}"
    if not math.isfinite(one.gain.value):
        return Verdict("failed", NOT_FINITE)
    if not one.gain.nulls:
        doubt = "there is no random direction to compare with"
        return Verdict("unclear", f"It cannot be told: {doubt}.", (doubt,))
    return _above(what, one.gain, _too_few(one.gain)) if one.gain.above_all else _not_above(what, one.gain)


def of_settings(result: Result) -> dict[Setting, Verdict]:
    """The verdict on every setting; empty where a protocol reads nothing that one could be given on."""
    read = result.protocol["read"]
    if read == "sample" or result.protocol.get("answers"):
        return {}
    if read == "yes_no":
        return {detection.setting: of_detection(detection) for detection in result.detections()}
    found = {one.setting: of_identification(one) for one in result.identifications()}
    broken = Verdict("failed", NOT_FINITE)
    return {setting: found.get(setting, broken) for setting in result.groups}


def of_result(result: Result) -> Verdict:
    """The verdict on a whole result."""
    name = result.protocol["name"]
    if not result.rows:
        return Verdict("unclear", "There are no readings.")
    if left := result.unfinished:
        said = f"The run is not finished: {left[0]:,} of {left[1]:,} readings are there"
        return Verdict("unclear", f"{said}, so nothing is said of them yet.", (f"{said}.",))
    if result.protocol.get("answers"):
        return _of_localisation(result)
    settings = of_settings(result)
    if not settings:
        return Verdict("unclear", f"{name} samples texts: read them, nothing is counted.")
    concepts = {concept: _most(_words(settings, concept)) for concept in result.concepts}
    word = _most(list(concepts.values()))
    reasons = tuple(_concept_reason(settings, concept, concepts[concept]) for concept in result.concepts)
    return Verdict(word, _sentence(result, word, settings, concepts), reasons)


def chance(result: Result) -> float:
    """How often, at most, a result as this one is a yes by chance: see the rule."""
    counts = [len(compared.nulls) for compared in _compared(result).values() if compared.nulls]
    if not counts:
        return math.nan
    n_concepts = len(result.concepts)
    n_settings = max(sum(setting.concept == concept for setting in result.groups) for concept in result.concepts)
    factor = n_settings / (n_settings // 2 + 1) * n_concepts / (n_concepts // 2 + 1)
    return min(1.0, factor / (min(counts) + 1))


def summary(result: Result) -> str:
    """A result in plain text: the verdict, and a table of concepts and settings with the word for each."""
    verdict = of_result(result)
    lines = [
        f"{result.protocol['name']} on {result.model['name']}: {verdict.word.upper()}",
        verdict.sentence,
        *(f"- {reason}" for reason in verdict.reasons),
    ]
    settings = of_settings(result)
    if settings:
        lines += ["", *_table(result, settings)]
    if failures := result.failures():
        n, total = (sum(column) for column in zip(*failures.values(), strict=True))
        lines += [
            "",
            f"{n} of {total} readings in {len(failures)} settings are not finite: failed, and averaged nowhere.",
        ]
    return "\n".join(lines)


def percent(p: float) -> str:
    if not math.isfinite(p):
        return "–"
    return f"{100 * p:.3g}%" if p >= 1e-5 else f"{100 * p:.1e}%"


# ---- settings


def _too_few(shown: Compared) -> list[str]:
    n = len(shown.nulls)
    if n >= LEAST_RANDOMS:
        return []
    lost = f" ({shown.n_failed} more gave no finite numbers)" if shown.n_failed else ""
    return [f"only {n} random directions were run{lost}, {LEAST_RANDOMS} are needed"]


def _above(what: str, shown: Compared, doubts: list[str]) -> Verdict:
    n = len(shown.nulls)
    everyone = "the one random direction" if n == 1 else f"all {n} random directions"
    above = f"{what} ({shown.value:+.2f} nats) is above {everyone}"
    if doubts:
        return Verdict("unclear", f"{_upper(above)}, but {'; '.join(doubts)}.", tuple(doubts))
    return Verdict("yes", f"{_upper(above)}. Chance alone does this once in {n + 1} times.", (above,))


def _not_above(what: str, shown: Compared) -> Verdict:
    where = "inside the range of" if shown.inside else "below"
    n = len(shown.nulls)
    everyone = "the one random direction" if n == 1 else f"the {n} random directions"
    reason = f"{what} ({shown.value:+.2f} nats) is {where} {everyone}"
    return Verdict("no", f"{_upper(reason)}.", (reason,))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _compared(result: Result) -> dict[Setting, Compared]:
    if result.protocol["read"] == "yes_no":
        return {detection.setting: detection.headline for detection in result.detections()}
    return {one.setting: one.gain for one in result.identifications()}


# ---- concepts and results


def _words(settings: dict[Setting, Verdict], concept: str) -> list[str]:
    return [verdict.word for setting, verdict in settings.items() if setting.concept == concept]


def _most(words: Sequence[str]) -> str:
    """The word of more than half; "unclear" where there is none."""
    word, n = Counter(words).most_common(1)[0]
    return word if 2 * n > len(words) else "unclear"


def _concept_reason(settings: dict[Setting, Verdict], concept: str, word: str) -> str:
    found = {setting: verdict for setting, verdict in settings.items() if setting.concept == concept}
    if len(found) == 1:
        return f"“{concept}”: {next(iter(found.values()))}"
    counts = Counter(verdict.word for verdict in found.values())
    listed = ", ".join(f"{name} in {counts[name]}" for name in WORDS if counts[name])
    return f"“{concept}”: {word} ({listed} of {len(found)} settings)"


def _sentence(result: Result, word: str, settings: dict[Setting, Verdict], concepts: dict[str, str]) -> str:
    is_report = result.protocol["read"] == "content"
    n_yes = list(concepts.values()).count("yes")
    of_them = "" if len(concepts) == 1 else f" ({n_yes} of {len(concepts)} concepts)"
    if word == "yes":
        odds = f"chance alone gives such a yes in at most {100 * chance(result):.0f} of 100 results"
        did = "raises the concept's own token" if is_report else "moves the model's answer towards yes"
        return f"The injection {did} more than any random direction does{of_them}; {odds}."
    if word == "no":
        did = "raises the concept's own token" if is_report else "moves the model's answer towards yes"
        return f"The injection {did} no more than random directions do{of_them}."
    if word == "failed":
        return NOT_FINITE
    doubts = Counter(reason for one in settings.values() if one.word == "unclear" for reason in one.reasons)
    if len(settings) == 1 and doubts:
        return next(iter(settings.values())).sentence
    if doubts:
        most, n = doubts.most_common(1)[0]
        return f"It cannot be told{of_them}: {most}" + (f" (in {n} of {len(settings)} settings)." if n > 1 else ".")
    counts = Counter(one.word for one in settings.values())
    listed = ", ".join(f"{name} in {counts[name]}" for name in WORDS if counts[name])
    return f"The settings do not agree: {listed} of {len(settings)}{of_them}."


def _of_localisation(result: Result) -> Verdict:
    """Whether the right passage is named more often than by chance, as one binomial test on all readings."""
    if all(map(failed, result.rows)):
        return Verdict("failed", NOT_FINITE)
    counts = result.localisation().corrected
    right, total, k = int(counts.trace()), int(counts.sum()), len(counts)
    found = f"the right passage was named in {right} of {total} readings (chance: one in {k})"
    if total < LEAST_ANSWERS:
        doubt = f"{LEAST_ANSWERS} readings are needed"
        return Verdict("unclear", f"It cannot be told: {found}, and {doubt}.", (found, doubt))
    p = sum(math.comb(total, i) * (k - 1) ** (total - i) for i in range(right, total + 1)) / k**total
    odds = f"chance alone names as many with a probability of {p:.2g}"
    return Verdict("yes" if p < LEVEL else "no", f"{_upper(found)}; {odds}.", (found, odds))


# ---- the table


def _table(result: Result, settings: dict[Setting, Verdict]) -> list[str]:
    is_report = result.protocol["read"] == "content"
    unit = " x residual" if result.settings.get("strength_unit") == "residual" else ""
    has_dose = any(result.dose_kl(setting) is not None for setting in settings)
    header = ["concept", "strength", *(["KL"] if has_dose else []), "blocks"]
    header += ["gain", "place", "rank"] if is_report else ["shift", "controls", "less them", "place", "p(yes or no)"]
    rows = [[*header, "word"]]
    compared = _compared(result)
    cells = _report_cells(result) if is_report else _detection_cells(result)
    left_out = 0
    for concept in result.concepts:
        shown = [setting for setting in settings if setting.concept == concept]
        if len(shown) > LISTED:
            left_out += len(shown) - LISTED
            shown.sort(key=lambda setting: -compared[setting].value if _has_value(compared, setting) else math.inf)
        for setting in shown[:LISTED]:
            injected = [concept, f"{setting.strength:.4g}{unit}", f"{setting.first_layer}-{setting.last_layer}"]
            if has_dose:
                injected.insert(2, f"{kl:.3g}" if (kl := result.dose_kl(setting)) is not None else "-")
            rows.append([*injected, *cells.get(setting, ["not finite", "-", "-"]), settings[setting].word])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + ([f"and {left_out} settings more, each with a smaller value"] if left_out else [])


def _detection_cells(result: Result) -> dict[Setting, list[str]]:
    """Of every setting the shift, the controls' mean, the difference, its place, and the mass of yes and no."""
    return {
        one.setting: [
            *("-" if shown is None else _number(shown.value) for shown in (one.shift, one.control_mean, one.corrected)),
            _place(one.headline),
            f"{percent(one.mass_base)} -> {percent(one.mass)}",
        ]
        for one in result.detections()
    }


def _report_cells(result: Result) -> dict[Setting, list[str]]:
    """Of every setting the gain of the concept's token, its place, and its rank."""
    return {
        one.setting: [_number(one.gain.value), _place(one.gain), f"{one.rank_base} -> {one.rank}"]
        for one in result.identifications()
    }


def _has_value(compared: dict[Setting, Compared], setting: Setting) -> bool:
    return setting in compared and math.isfinite(compared[setting].value)


def _number(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "not finite"


def _place(compared: Compared) -> str:
    n = len(compared.nulls)
    if not n or not math.isfinite(compared.value):
        return "-"
    return f"{1 + sum(null >= compared.value for null in compared.nulls)} of {n + 1}"
