"""The pictures of the card's page as inline SVG: the loss curves, and promises beside what came of them.

Owns scales, ticks and paths. Must not know colours (classes name roles; the page's style sheet paints them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from engine.jobs.card import CurvePoint, FollowedCurve

WIDTH, HEIGHT = 860, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 34
_SMOOTH_FROM_POINTS = 40
_FLAT = 1e-6
_NAMED_RIGHT, _NAME_HEIGHT, _LONGEST_NAME = 150, 14, 20
LINE_KINDS = 6
"""Classes "s1" to "s6" of lines beside each other."""


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover low..high: steps of 1, 2 or 5 times a power of ten."""
    flat = _FLAT * max(abs(low), abs(high), _FLAT)
    if high - low <= flat:
        margin = max(abs(low), abs(high)) * 0.1 or 0.1
        low, high = low - max(margin, _FLAT), high + max(margin, _FLAT)
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start."""
    average, mass, out = 0.0, 0.0, []
    for value in values:
        average = average * weight + value * (1 - weight)
        mass = mass * weight + (1 - weight)
        out.append(average / mass)
    return out


class _Frame:
    """Maps steps and values to pixels."""

    def __init__(self, points: Sequence[CurvePoint], right: int = _RIGHT) -> None:
        self.right = right
        steps = [point.step for point in points]
        values = [point.value for point in points]
        self.x_ticks = [tick for tick in nice_ticks(0, max(steps), 6) if tick <= max(steps)]
        self.y_ticks = nice_ticks(min(values), max(values))
        self.x_low, self.x_high = 0.0, float(max(max(steps), 1))
        self.y_low, self.y_high = self.y_ticks[0], self.y_ticks[-1]

    def x(self, step: float) -> float:
        return _LEFT + (step - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - self.right)

    def y(self, value: float) -> float:
        return _TOP + (self.y_high - value) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)

    def path(self, steps: Sequence[int], values: Sequence[float]) -> str:
        pairs = " L".join(f"{self.x(s):.1f},{self.y(v):.1f}" for s, v in zip(steps, values, strict=True))
        return f"M{pairs}"


def loss_plot(loss: Sequence[CurvePoint], evaluation: Sequence[CurvePoint]) -> str:
    """Training loss as a line, many points pale behind their average; held-out loss as dots."""
    points = [*loss, *evaluation]
    if not points:
        return '<p class="quiet">No curve was recorded.</p>'
    frame = _Frame(points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss over training steps">',
        *_axes(frame),
        *_training_line(frame, loss),
        *_evaluation_line(frame, evaluation),
        "</svg>",
    ]
    return "\n".join(parts)


def _axes(frame: _Frame) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts: list[str] = []
    for value in frame.y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in frame.x_ticks:
        anchor = "end" if frame.x(step) > WIDTH - frame.right - 12 else "middle"
        parts.append(
            f'<text class="tick" x="{frame.x(step):.1f}" y="{bottom + 18}" text-anchor="{anchor}">{step:g}</text>'
        )
    parts.append(f'<text class="tick" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">step</text>')
    return parts


def _training_line(frame: _Frame, loss: Sequence[CurvePoint]) -> list[str]:
    if not loss:
        return []
    steps = [point.step for point in loss]
    values = [point.value for point in loss]
    if len(loss) < _SMOOTH_FROM_POINTS:
        return [f'<path class="line" d="{frame.path(steps, values)}"/>']
    average = smoothed(values, 1 - 2 / (len(values) / 40 + 1))
    return [
        f'<path class="line raw" d="{frame.path(steps, values)}"/>',
        f'<path class="line" d="{frame.path(steps, average)}"/>',
    ]


def _evaluation_line(frame: _Frame, evaluation: Sequence[CurvePoint]) -> list[str]:
    if not evaluation:
        return []
    steps = [point.step for point in evaluation]
    values = [point.value for point in evaluation]
    dots = [
        f'<circle class="dot" cx="{frame.x(s):.1f}" cy="{frame.y(v):.1f}" r="3.5">'
        f"<title>step {s}: held-out loss {v:.4f}</title></circle>"
        for s, v in zip(steps, values, strict=True)
    ]
    return [f'<path class="line held" d="{frame.path(steps, values)}"/>', *dots]


def lines_plot(curves: Sequence[FollowedCurve], label: str) -> str:
    """Several curves over the steps, each with its name at its end, so that no legend and no colour is needed."""
    shown = [(curve.name, _newest(curve.points)) for curve in curves]
    shown = [(name, points) for name, points in shown if points]
    if not shown:
        return ""
    frame = _Frame([point for _, points in shown for point in points], right=_NAMED_RIGHT)
    heights = _apart([frame.y(points[-1].value) for _, points in shown])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">', *_axes(frame)]
    for index, ((name, points), height) in enumerate(zip(shown, heights, strict=True)):
        kind = f"s{index % LINE_KINDS + 1}"
        parts.append(
            f'<path class="line {kind}" d="{frame.path([p.step for p in points], [p.value for p in points])}"/>'
        )
        parts += [
            f'<circle class="{kind}" cx="{frame.x(p.step):.1f}" cy="{frame.y(p.value):.1f}" r="3">'
            f"<title>{escape(name)}, step {p.step}: {p.value:.4f}</title></circle>"
            for p in points
        ]
        x = min(frame.x(points[-1].step) + 8, WIDTH - frame.right + 8)
        parts.append(f'<text class="tick name" x="{x:.1f}" y="{height + 4:.1f}">{escape(name[:_LONGEST_NAME])}</text>')
    return "\n".join([*parts, "</svg>"])


def _newest(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """One point per step: at the end a part of the questions is asked, and then all of them."""
    return list({point.step: point for point in points if math.isfinite(point.value)}.values())


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights moved as little as it takes for names not to cover each other."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    out = list(heights)
    for before, after in pairwise(order):
        out[after] = max(out[after], out[before] + _NAME_HEIGHT)
    over = max((out[order[-1]] - (HEIGHT - _BOTTOM)) if order else 0.0, 0.0)
    return [height - over for height in out]


def delta_bar(low: float, delta: float, high: float, most: float, label: str) -> str:
    """An interval around a change, and where zero is; `most` is the end of the scale on both sides."""
    if not all(math.isfinite(value) for value in (low, delta, high, most)) or most <= 0:
        return ""

    def x(value: float) -> float:
        return 120 + 114 * min(max(value / most, -1.0), 1.0)

    return (
        f'<svg class="bar" viewBox="0 0 240 22" role="img" aria-label="{escape(label, quote=True)}">'
        '<line class="grid" x1="4" x2="236" y1="11" y2="11"/><line class="likely" x1="120" x2="120" y1="2" y2="20"/>'
        f'<rect class="promise" x="{x(low):.1f}" y="6" width="{max(x(high) - x(low), 1.0):.1f}" height="10" rx="3"/>'
        f'<circle class="measured" cx="{x(delta):.1f}" cy="11" r="5"/></svg>'
    )


def range_bar(low: float, likely: float, high: float, measured: float, label: str) -> str:
    """A promised range as a bar with its likely value as a notch, and the measured value as a dot on the same scale."""
    figures = [value for value in (low, likely, high, measured) if math.isfinite(value)]
    top = max(figures, default=0.0) * 1.08
    if top <= 0:
        return ""

    def x(value: float) -> float:
        return 4 + 232 * max(value, 0.0) / top

    return (
        f'<svg class="bar" viewBox="0 0 240 22" role="img" aria-label="{escape(label, quote=True)}">'
        '<line class="grid" x1="4" x2="236" y1="11" y2="11"/>'
        f'<rect class="promise" x="{x(low):.1f}" y="6" width="{max(x(high) - x(low), 1.0):.1f}" height="10" rx="3"/>'
        f'<line class="likely" x1="{x(likely):.1f}" x2="{x(likely):.1f}" y1="3" y2="19"/>'
        + (f'<circle class="measured" cx="{x(measured):.1f}" cy="11" r="5"/>' if math.isfinite(measured) else "")
        + "</svg>"
    )
