"""Pages looked at in headless Chromium: what a script in the page finds, at several widths and in both themes."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
OPTIONS += ["--allow-file-access-from-files", "--virtual-time-budget=4000", "--window-size=1500,900"]
HOLDER = """<!doctype html><body><script>
const found = {};
addEventListener("message", event => {
  found[event.data.width] = event.data;
  document.body.setAttribute("data-found", JSON.stringify(found));
});
</script>
%s</body>"""


def looked_at(folder: Path, page: str, probe: str, widths: Iterable[int], scheme: str) -> dict[int, dict]:
    """{width: what the probe says}, each width in a frame of its own.

    Args:
        folder: where the pages are written.
        page: HTML.
        probe: a script element that posts {"width": innerWidth, ...} to the page that holds it.
        scheme: "light" or "dark".
    """
    (folder / "probed.html").write_text(page + probe, encoding="utf-8")
    frames = [f'<iframe src="probed.html" style="width: {w}px; height: 900px; border: 0"></iframe>' for w in widths]
    (folder / "holder.html").write_text(HOLDER % "\n".join(frames), encoding="utf-8")
    theme = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    command = [CHROMIUM, *OPTIONS, theme, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, f"file://{folder / 'holder.html'}"], capture_output=True, text=True, timeout=100)
    found = re.search('data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return {int(width): said for width, said in json.loads(html.unescape(found.group(1))).items()}


def is_dark(background: str) -> bool:
    """Of a computed colour, "rgb(23, 25, 29)"."""
    return sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 200
