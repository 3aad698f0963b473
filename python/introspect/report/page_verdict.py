"""What came out, in one word and one sentence, of all results on a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..experiments.results import Result
from .verdicts import WORDS, Verdict


def judged(result: Result) -> bool:
    """Whether something is counted in this result; sampled texts are for reading."""
    return result.protocol["read"] in ("yes_no", "content")


def overall(results: Sequence[Result]) -> Verdict:
    """The verdict of a page: the protocols' own where they agree, and otherwise that they do not.

    Protocols that ask yes or no decide; reports of what was injected do where nothing else was asked.
    """
    asked = [result for result in results if result.protocol["read"] == "yes_no"]
    counted = [(result, result.verdict()) for result in asked or results if judged(result)]
    if not counted:
        return Verdict("unclear", "Texts were sampled. They are for reading; nothing in them was counted.")
    if len(counted) == 1:
        return counted[0][1]
    said = tuple(f"{result.protocol['name']}: {one}" for result, one in counted)
    words = {one.word for _, one in counted}
    usable = words - {"failed"}
    if len(words) == 1:
        (word,) = words
        sentence = {
            "yes": f"All {len(counted)} protocols show more than random directions of the same size do.",
            "no": f"None of the {len(counted)} protocols shows more than random directions of the same size do.",
            "failed": "The injections break the model's text in every protocol, so its answers say nothing.",
            "unclear": "No protocol shows clearly more than random directions of the same size do, or clearly no more.",
        }[word]
        return Verdict(word, sentence, said)
    if len(usable) == 1 and usable != {"yes"}:
        return Verdict(next(iter(usable)), "That is what the protocols say in which the model's text held.", said)
    counts = Counter(one.word for _, one in counted)
    named = ", ".join(f"{word} in {counts[word]}" for word in WORDS if counts[word])
    return Verdict("unclear", f"The {len(counted)} protocols do not agree: {named}.", said)
