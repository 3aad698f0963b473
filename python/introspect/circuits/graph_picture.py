"""An attribution graph as a picture: tokens along x, layers along y, a glyph a node, a line an edge."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .._C import AttributionGraph, GraphNode

MOST_NODES, MOST_EDGES = 600, 4000
STEP, LINE, ROW, MARGIN, ASIDE = 20, 20, 22, 14, 64  # between glyphs, lines of one cell, layers; around; for names
RADIUS, GAP = 6, 6
THICKEST = 4.0
TEXT = 12  # characters of a token or target
UP, DOWN = "#2b6cb0", "#c05621"
FILL = {
    "feature": "#90cdf4",
    "error": "#e2e8f0",
    "token": "#edf2f7",
    "bias": "#edf2f7",
    "injection": "#fbd38d",
    "logit": "#c6f6d5",
}


def svg(graph: AttributionGraph) -> str:
    """The picture; a line's width is the edge's share of its target's in-edges, its colour the sign.

    Raises:
        ValueError: more than 600 nodes or 4,000 edges.
    """
    if graph.n_nodes > MOST_NODES or graph.n_edges > MOST_EDGES:
        raise ValueError(
            f"AttributionGraph.svg: a picture has at most {MOST_NODES} nodes and {MOST_EDGES:,} edges, got "
            f"{graph.n_nodes:,} and {graph.n_edges:,}; prune it first"
        )
    nodes = graph.nodes
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        cells[_row(node), node.position].append(number)
    columns = sorted({position for _, position in cells} | set(range(len(graph.token_texts))))
    rows = sorted({row for row, _ in cells})

    # A cell is at most as wide as it is high; a column is as wide as its widest cell.
    per_line = {at: max(2, _ceil_sqrt(len(of))) if at[0] < _LOGITS else len(of) for at, of in cells.items()}
    width = {
        column: max(
            [STEP * min(per_line[at], len(of)) for at, of in cells.items() if at[1] == column and at[0] < _LOGITS]
            + [7 * min(TEXT, _length(graph, column, cells)) + 8, 2 * STEP]
        )
        + STEP
        for column in columns
    }
    height = {
        row: ROW + LINE * max(-(-len(of) // per_line[at]) for at, of in cells.items() if at[0] == row) for row in rows
    }
    left, x = MARGIN + ASIDE, {}
    for column in columns:
        x[column] = left + width[column] / 2
        left += width[column]
    top, y = MARGIN, {}
    for row in reversed(rows):
        y[row] = top + height[row] / 2
        top += height[row]
    left = max(left, MARGIN + ASIDE + sum(_wide(node) + GAP for node in nodes if node.kind == "logit"))
    places: dict[int, tuple[float, float]] = {}
    for at, of in cells.items():
        lines = [of[i : i + per_line[at]] for i in range(0, len(of), per_line[at])]
        for number, line in enumerate(lines):
            for place, one in enumerate(line):
                places[one] = (
                    x[at[1]] + STEP * (place - (len(line) - 1) / 2),
                    y[at[0]] + LINE * (number - (len(lines) - 1) / 2),
                )

    right = left
    for number, node in reversed(list(enumerate(nodes))):  # targets side by side, up to the right edge
        if node.kind == "logit":
            places[number] = (right - _wide(node) / 2, y[_LOGITS])
            right -= _wide(node) + GAP

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" '
        f'width="{left + MARGIN:.0f}" height="{top + MARGIN:.0f}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for row in rows:
        out.append(f'<text x="{MARGIN}" y="{y[row] + 4:.1f}" fill="#4a5568">{_row_name(row)}</text>')
    out += _lines(graph, places)
    for number, node in enumerate(nodes):
        out.append(_glyph(node, *places[number]))
    return "\n".join([*out, "</svg>\n"])


_LOGITS = 10**6  # a row above all layers


def _row(node: GraphNode) -> int:
    """Rows from below: tokens, then what is in each layer by depth, targets above all."""
    if node.kind == "logit":
        return _LOGITS
    return node.depth + (1 if node.kind == "bias" and node.layer >= 0 else 0)  # beside its layer's features


def _row_name(row: int) -> str:
    if row == _LOGITS:
        return "targets"
    return "tokens" if row < 0 else f"layer {row // 4}{_WITHIN[row % 4]}" if row % 4 != 2 else "injected"


_WITHIN = (" heads", "", "", " stream")


def _length(graph: AttributionGraph, column: int, cells: dict[tuple[int, int], list[int]]) -> int:
    """Characters of the longest text in a column."""
    texts = [
        graph.nodes[number].name for at, of in cells.items() if at[1] == column and at[0] < _LOGITS for number in of
    ]
    return max((len(text) for text in texts), default=0)


def _lines(graph: AttributionGraph, places: dict[int, tuple[float, float]]) -> list[str]:
    native = graph
    targets = torch.repeat_interleave(torch.tensor(native.targets, dtype=torch.long), native.offsets.diff())
    weights = native.weights.double()
    sums = torch.zeros(graph.n_nodes, dtype=torch.float64).index_add_(0, targets, weights.abs()).clamp(min=1e-10)
    shares = weights.abs() / sums[targets]
    out = []
    for edge in shares.argsort().tolist():  # the strongest on top
        source, target = int(native.sources[edge]), int(targets[edge])
        (x1, y1), (x2, y2) = places[source], places[target]
        middle, share, weight = (y1 + y2) / 2, shares[edge].item(), weights[edge].item()
        out.append(
            f'<path fill="none" stroke="{DOWN if weight < 0 else UP}" stroke-opacity="{0.15 + 0.65 * share:.2f}" '
            f'stroke-width="{0.4 + (THICKEST - 0.4) * share:.2f}" d="M{x1:.1f} {y1:.1f} C{x1:.1f} {middle:.1f} '
            f'{x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"><title>{_said(graph.nodes[source])} to '
            f"{_said(graph.nodes[target])}: {weight:.4g}, {share:.0%}</title></path>"
        )
    return out


def _glyph(node: GraphNode, x: float, y: float) -> str:
    fill, r = FILL[node.kind], RADIUS
    title = f"<title>{_said(node)}</title>"
    style = f'fill="{fill}" stroke="#4a5568"'
    if node.kind in ("token", "logit"):
        text, wide = _short(node.name), _wide(node)
        return (
            f'<g>{title}<rect x="{x - wide / 2:.1f}" y="{y - 8:.1f}" width="{wide}" height="16" rx="3" {style}/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{_shown(text)}</text></g>'
        )
    if node.kind == "feature":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {style}>{title}</circle>'
    corners = {
        "error": [(0, -r), (r, 0), (0, r), (-r, 0)],
        "bias": [(-r, r), (r, r), (0, -r)],
        "injection": [(-r, -r), (r, -r), (0, r)],
    }[node.kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" {style}>{title}</polygon>'


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _wide(node: GraphNode) -> int:
    """Of the box of a token or target."""
    return max(7 * len(_short(node.name)) + 6, 2 * RADIUS)


def _said(node: GraphNode) -> str:
    if node.kind == "token":
        return f"token {_shown(repr(node.name))} at {node.position}"
    if node.kind == "logit":
        return f"{_shown(repr(node.name))} ({node.value:.3f})"
    if node.kind == "feature":
        return f"{_at(node)}feature {node.feature} of layer {node.layer} at {node.position}, {node.value:.3g}"
    return f"{_at(node)}{node.kind} of layer {node.layer}" + (f" at {node.position}" if node.position >= 0 else "")


def _at(node: GraphNode) -> str:
    return "" if node.site == "mlp" else f"{node.site} "


def _shown(text: str) -> str:
    """Text for XML: without what it cannot hold, spaces and line ends seen."""
    return escape("".join("↵" if c == "\n" else c if c.isprintable() else "�" for c in text))


def _ceil_sqrt(n: int) -> int:
    root = int(n**0.5)
    return root if root * root >= n else root + 1
