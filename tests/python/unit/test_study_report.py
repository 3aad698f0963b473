"""The page of a study and its methods paragraph: what a reader sees, and that it fits the window."""

import html as entities
import json
import re

import pytest
import studies
from chromium import CHROMIUM, is_dark, looked_at
from typer.testing import CliRunner

from introspect.cli.app import app
from introspect.report import study_page
from introspect.studies.methods import methods

WIDTHS = (400, 700, 1400)
PROBE = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const wide = [...document.querySelectorAll("td, th, p, li, dd, h1, h2, .rung, .forest > *, .turn")]
    .filter(one => one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1)
    .map(one => one.outerHTML.slice(0, 80));
  const stands = document.querySelector(".stands").getBoundingClientRect();
  const background = getComputedStyle(document.body).backgroundColor;
  parent.postMessage({width: innerWidth, scroll: document.documentElement.scrollWidth, wide, background,
                      bottom: stands.bottom}, "*");
});
</script>
"""


@pytest.fixture
def study(numpy_rng):
    names = ["averyveryverylongwordwithoutanyspace" + "e" * 30, *studies.CONCEPTS[1:8]]
    shifts = dict(zip(names, numpy_rng.normal(1, 0.1, 8), strict=True))
    made = studies.study(numpy_rng, shifts=shifts, others={"factual_no": 1.5})
    made.certificates = {"batch_equals_single": {"sentence": "batch = single within 2e-5 nats"}}
    made.registration = {"written": "2026-01-01", "sha256": "ab" * 32, "deviations": ["The seed 1 was not run."]}
    return made


def plain(page):
    """The page's text without tags."""
    body = re.sub(r"<(style|svg|script).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", entities.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_what_stands_comes_first_and_what_fells_it_next(study):
    claims, text = study.claims(), plain(study_page.html(study))
    order = [
        claims.strongest,
        claims["questions"].sentence,
        "How far the answer moves",
        "The ladder",
        "Each rung in a sentence",
        "The arms",
        "The concepts",
        "The conversation",
        "Methods",
    ]
    places = [text.find(part) for part in order]
    assert -1 not in places and places == sorted(places)


def test_every_rung_has_a_mark_and_a_word_that_need_no_colour(study):
    text = plain(study_page.html(study))
    for rung in study.claims().rungs:
        assert f"{rung.mark} {rung.verdict} {rung.title[:1].upper()}{rung.title[1:]}" in text
    assert len({rung.mark for rung in study.claims().rungs}) == len({rung.verdict for rung in study.claims().rungs})


def test_numbers_notes_plans_and_certificates_are_there(study):
    text = plain(study_page.html(study))
    assert "batch = single within 2e-5 nats" in text and "The seed 1 was not run." in text
    assert "Together they took 40,000 tokens × layers" in text
    assert "not run: it needs a message" in text  # an arm that could not be had
    study.results["injected"].settings["incomplete"] = {"done": 1, "of": 2}
    assert "The run is not finished: 1 of 2 readings are there." in plain(study_page.html(study))


def test_what_a_file_says_is_escaped(study):
    study.model["name"] = "<script>alert(1)</script>"
    page = study_page.html(study)
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_methods_say_what_ran(study):
    text = methods(study)
    for part in (
        "qwen2.5-coder-0.5b-instruct (qwen2, 24 blocks, float32 on cpu",
        "8 concepts",
        "2 strengths (0.1, 0.2, times the median residual norm)",
        "1 range of blocks (8–16)",
        "3 wordings",
        "rotations (144)",
        "Seed: 0.",
        "one-sided level of 0.025",
        "below 0.2 nats",
        "torch 2.13.0",
    ):
        assert part in text, part
    single = methods(study.results["injected"])
    assert "There are 48 readings." in single


def test_a_saved_study_is_opened_by_the_command(study, tmp_path):
    study.save(tmp_path / "study.json")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "study.json")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "study.html").is_file()
    assert "✗ net of other questions" in done.output
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "study.json"), "--json"])
    assert json.loads(shown.output)["rungs"][0]["name"] == "live"
    (tmp_path / "broken.json").write_text('{"arms": {}, "protocol": {}, "schema": 7}')
    broken = CliRunner().invoke(app, ["report", str(tmp_path / "broken.json")])
    assert broken.exit_code != 0 and "broken.json" in broken.output


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(study, scheme, tmp_path):
    page = study_page.write(study, tmp_path / "study.html").read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page  # nothing is fetched
    found = looked_at(tmp_path, page, PROBE, WIDTHS, scheme)
    assert set(found) == set(WIDTHS)
    for width, said in found.items():
        assert said["scroll"] <= width and said["wide"] == [], (width, said["wide"])
        assert said["bottom"] < 700  # what stands is seen without scrolling
        assert is_dark(said["background"]) == (scheme == "dark")
