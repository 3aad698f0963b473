"""Figures outside of a report: in notebooks, and of several models."""

import synthetic
from IPython.core.formatters import DisplayFormatter

from introspect import plots
from introspect.experiments.results import Result
from introspect.plots.shifts import headline_lines


def test_a_notebook_shows_a_figure_without_pyplot():
    shown, _ = DisplayFormatter().format(plots.shifts(Result(synthetic.detection())))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_an_overview_of_several_models_says_which_is_which():
    results = [Result(synthetic.detection()) for _ in range(2)]
    (name, *_), *_ = headline_lines(results)
    assert name.startswith("with_info\n")
    assert plots.overview(results).get_suptitle().endswith(results[0].model["name"])
    results[1].model["name"] = "another"
    names = [name for name, *_ in headline_lines(results)]
    assert [name.split(" · ")[0] for name in names] == [results[0].model["name"]] * 2 + ["another"] * 2
    assert "another" not in plots.overview(results).get_suptitle()
