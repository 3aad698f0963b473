"""The report page in a browser, where Chromium is there: nothing is wider than the window, in any theme."""

import re

import pytest
import synthetic
from chromium import CHROMIUM, is_dark, looked_at

from introspect import report
from introspect.experiments.results import Result

WIDTHS = (700, 1000, 1400)

# What a page says of itself to the page that holds it: widths, and whatever reaches beyond its own box.
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("td, th, p, li, dd, h1, h2, h4, .canvas, .turn, .legend span")]
    .filter(one => one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1)
    .map(one => one.outerHTML.slice(0, 80));
  const drawn = [...document.querySelectorAll(".canvas")].map(one => one.querySelectorAll(".main-svg").length > 0);
  const colours = [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color];
  parent.postMessage({width: innerWidth, scroll: root.scrollWidth, wide, drawn, colours}, "*");
}, 500));
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    long = "Would a question that is longer than most others and holds averyveryverylongwordwithoutanyspace" + "e" * 60
    detection = synthetic.detection(shifts={"cat": 1.0, "a concept of several words": 0.3})
    for row in detection["rows"]:
        row["question"] = row["question"].replace("Is ice hot?", long)
    turns = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "{ }" + "x" * 300}]
    detection["protocol"]["definition"] = {"turns": turns, "injected": [1]}
    ranges = [(i, i + w) for i in (1, 8) for w in (0, 1, 7)]

    def shift(concept, strength, first, last):
        return 0.1 * first * strength, 0.0

    swept = synthetic.sweep(["cat"], (0.1, 0.2), ranges, shift, lambda k, *at: (0.1 * k, 0.0), name="no_info")
    results = [Result(data) for data in (detection, swept, synthetic.content(), synthetic.sample())]
    pictures = dict.fromkeys(report.drawings(results), b"")  # what matplotlib draws takes longer than all the rest
    (folder / "report.html").write_text(report.html(results, pictures))
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(folder, scheme):
    found = looked_at(folder, (folder / "report.html").read_text(), PROBE, WIDTHS, scheme)
    assert set(found) == set(WIDTHS)
    for width, said in found.items():
        assert said["scroll"] <= width and said["wide"] == [], (width, said["wide"])
        assert said["drawn"] and all(said["drawn"])
        assert is_dark(said["colours"][0]) == (scheme == "dark")


def test_tables_become_cards_where_they_do_not_fit(folder):
    """The page's own rules, for machines without a browser."""
    page = (folder / "report.html").read_text()
    assert "@media (max-width: 76rem)" in page and "content: attr(data-name)" in page
    rows = re.findall(r"<tr[^>]*>(<td>.*?)</tr>", page)
    data = [row for row in rows if "data-name" in row]
    assert data
    for row in data:
        assert row.count("<td") == row.count("data-name=") + 1  # all but the first say what they are
    assert page.count('name="viewport"') == 1
    assert not re.search(
        r"white-space:\s*nowrap",
        page.split("</style>")[0].replace("td:first-child { color: var(--soft); white-space: nowrap; }", ""),
    )
