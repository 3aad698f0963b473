"""One HTML file of sentences, pictures and a table, in the look of a report's page; it needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROWS = 500  # of the table


def table_page(title: str, lines: Sequence[str], pictures: Mapping[str, bytes], table: pd.DataFrame) -> str:
    """The page as text.

    Args:
        lines: sentences at its head.
        pictures: PNG files by their names, which readers of screens are told.
        table: of which the first 500 rows are shown.
    """
    said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    drawn = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in pictures.items()
    )
    rows = table.head(ROWS).to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")
    left = f"<p>{len(table) - ROWS:,} further rows: write the table to a file.</p>" if len(table) > ROWS else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"{_STYLE}</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{said}{drawn}{rows}{left}\n</body>\n</html>\n"
    )


_STYLE = """<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  :root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --rule: #e3e5e8; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --paper: #17191d; --rule: #33373e; } }
  body { font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: var(--ink);
         background: var(--paper); max-width: 84rem; margin: 0 auto; padding: 2rem clamp(1rem, 3vw, 2.5rem) 4rem; }
  h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
  p { max-width: 48rem; overflow-wrap: anywhere; } figure { margin: 1rem 0; } img { max-width: 100%; }
  table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--rule); }
</style>
"""
