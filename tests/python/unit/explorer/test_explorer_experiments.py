"""The explorer's runs: cells, conversations and reports."""

import pytest
import synthetic
from explorer_server import SCRIPT, TOKEN


def test_a_run_and_a_cell(explorer):
    status, found = explorer.get("api", "run", "run")
    data = synthetic.detection()
    assert status == 200
    (protocol,) = found["protocols"]
    assert protocol["cells"]["n"] == len(data["rows"])
    _, cell = explorer.get("api", "run", "run", "with_info", "0")
    assert cell["injected"]["log_odds"] == pytest.approx(data["rows"][0]["injected"]["log_odds"], rel=1e-4)
    assert any(piece[1] for turn in cell["conversation"] for piece in turn["pieces"]) or not cell["conversation"]
    assert explorer.get("api", "run", "run", "with_info", "100000")[0] == 404


def test_a_report_may_draw_and_reach_nothing(explorer, folder):
    (folder / "run" / "report.html").write_text(SCRIPT)
    status, headers, body = explorer.raw("GET", "/run/run/report", None, {"x-secret-key": TOKEN})
    assert status == 200 and body.decode() == SCRIPT
    policy = headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'") and "connect-src" not in policy
