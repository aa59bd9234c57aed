"""The pictures about lengths as inline SVG: perplexity by length, before and after, and the needle heat map.

Owns scales, ticks and shapes. Must not know colours (classes name roles; the page's style sheet paints them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from engine.jobs.card_plots import nice_ticks
from engine.jobs.heat_grid import HeatCell, HeatGrid, depth_words, percent, short_length
from engine.jobs.length_report import LengthPerplexity, LengthReport

WIDTH, HEIGHT = 860, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 14, 40
_CELL_WIDTH, _CELL_HEIGHT, _LABELS = 74, 34, 64
_MARGIN = 1.04
_LEAST_SPAN = 1.5
"""The scale spans a factor of at least this much: a difference of a few per cent looks like one."""
_BROKEN_SHARE = 12.0
"""A perplexity this many times the lowest one is drawn at the upper edge: a broken model would flatten the rest."""


class _Scale:
    """Lengths on a logarithmic axis, perplexities on a logarithmic one too: both span factors."""

    def __init__(self, points: Sequence[LengthPerplexity]) -> None:
        lengths = [point.length for point in points]
        values = [point.perplexity for point in points if math.isfinite(point.perplexity)]
        low, high = min(values, default=1.0), max(values, default=2.0)
        high = max(min(high, low * _BROKEN_SHARE), low * _LEAST_SPAN)
        low, high = low / _MARGIN, high * _MARGIN
        self.ticks = [tick for tick in nice_ticks(low, high, 6) if low <= tick <= high]
        self.low, self.high = math.log(low), math.log(high)
        self.first, self.last = math.log2(min(lengths)), math.log2(max(lengths))

    def x(self, length: float) -> float:
        span = self.last - self.first or 1.0
        return _LEFT + 14 + (math.log2(length) - self.first) / span * (WIDTH - _LEFT - _RIGHT - 28)

    def y(self, value: float) -> float:
        """Pixels from the top; what is off the scale sits on its edge."""
        shown = math.log(value) if 0 < value < math.inf else math.inf
        share = (self.high - min(max(shown, self.low), self.high)) / (self.high - self.low or 1.0)
        return _TOP + share * (HEIGHT - _TOP - _BOTTOM)

    def beyond(self, value: float) -> bool:
        """Whether it is higher than the scale."""
        return not math.isfinite(value) or math.log(max(value, 1e-9)) > self.high + 1e-9


def perplexity_plot(after: LengthReport, before: LengthReport | None) -> str:
    """SVG: the model's perplexity by length as a line, the one it was made from as a dashed line."""
    points = [*after.perplexity, *(before.perplexity if before else ())]
    if not points:
        return ""
    scale = _Scale(points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Perplexity by length">',
        *_axes(scale, points),
    ]
    parts += _window(scale, after)
    if before is not None:
        parts += _curve(scale, before.perplexity, "before", "line held", "dot")
    parts += _curve(scale, after.perplexity, "after", "line", "dot now")
    return "\n".join([*parts, "</svg>"])


def _axes(scale: _Scale, points: Sequence[LengthPerplexity]) -> list[str]:
    parts: list[str] = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for length in sorted({point.length for point in points}):
        x = scale.x(length)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{short_length(length)}</text>"
        )
    middle = (WIDTH + _LEFT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">tokens of context</text>')
    return parts


def _window(scale: _Scale, report: LengthReport) -> list[str]:
    """A mark where the model's own window ended."""
    at = math.log2(max(report.original, 1))
    if not report.original < report.window or not scale.first <= at <= scale.last:
        return []
    x = scale.x(report.original)
    return [
        f'<line class="likely" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>',
        f'<text class="tick" x="{x + 6:.1f}" y="{_TOP + 12}">window before</text>',
    ]


def _curve(scale: _Scale, points: Sequence[LengthPerplexity], name: str, line: str, dot: str) -> list[str]:
    if not points:
        return []
    placed = [(scale.x(point.length), scale.y(point.perplexity), point) for point in points]
    path = " L".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
    parts = [f'<path class="{line}" d="M{path}"/>']
    for x, y, point in placed:
        figure = f"{point.perplexity:.2f}" if math.isfinite(point.perplexity) else "not a finite number"
        title = f"<title>{name}, {point.length:,} tokens: perplexity {figure}</title>"
        if scale.beyond(point.perplexity):
            shape = f'<path class="{dot}" d="M{x - 5:.1f},{y + 8:.1f} L{x:.1f},{y:.1f} L{x + 5:.1f},{y + 8:.1f} Z">'
            parts.append(f"{shape}{title}</path>")
        else:
            parts.append(f'<circle class="{dot}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>')
    return parts


def heat_plot(grid: HeatGrid, label: str) -> str:
    """SVG: a square per depth and length with its share of right answers in figures; darker is better."""
    width = _LABELS + _CELL_WIDTH * len(grid.lengths)
    height = _CELL_HEIGHT * (len(grid.depths) + 2)
    parts = [
        f'<svg class="heat" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(label, quote=True)}">',
        f'<text class="tick" x="{_LABELS - 10}" y="22" text-anchor="end">depth</text>',
    ]
    for column, length in enumerate(grid.lengths):
        x = _LABELS + (column + 0.5) * _CELL_WIDTH
        parts.append(f'<text class="tick" x="{x:.0f}" y="22" text-anchor="middle">{short_length(length)}</text>')
    for row, depth in enumerate(grid.depths):
        y = (row + 1) * _CELL_HEIGHT
        parts.append(_row_label(depth_words(depth), y))
        for column, cell in enumerate(grid.rows[row]):
            parts.append(_square(cell, column, y, f"{grid.lengths[column]:,} tokens, depth {depth_words(depth)}"))
    y = (len(grid.depths) + 1) * _CELL_HEIGHT
    parts.append(_row_label("all", y))
    for column in range(len(grid.lengths)):
        mean = grid.at_length(column)
        if mean is not None:
            parts.append(_figure(column, y, percent(mean), "tick"))
    return "\n".join([*parts, "</svg>"])


def _row_label(text: str, y: float) -> str:
    return f'<text class="tick" x="{_LABELS - 10}" y="{y + _CELL_HEIGHT / 2 + 4:.0f}" text-anchor="end">{text}</text>'


def _figure(column: int, y: float, text: str, role: str) -> str:
    x = _LABELS + (column + 0.5) * _CELL_WIDTH
    return f'<text class="{role}" x="{x:.0f}" y="{y + _CELL_HEIGHT / 2 + 5:.0f}" text-anchor="middle">{text}</text>'


def _square(cell: HeatCell | None, column: int, y: float, where: str) -> str:
    x = _LABELS + column * _CELL_WIDTH
    role = "none" if cell is None else f"level{cell.level}"
    box = f'x="{x + 1}" y="{y + 1}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="3"'
    words = f"{where}: not measured"
    if cell is not None:
        right = round(cell.accuracy * cell.prompts)
        words = f"{where}: {right} of {cell.prompts} right, {cell.nll:.2f} nats per answer token"
    text = "" if cell is None else _figure(column, y, cell.percent, f"heat-figure {role}")
    return f'<g><rect class="heat-cell {role}" {box}><title>{escape(words)}</title></rect>{text}</g>'
