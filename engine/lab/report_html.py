"""A lab's report as one self-contained page: answers first, then curves, figures, costs and runs.

Owns the page's sections and its plot; the frame and its style are the card's. Must not know how figures were made.
Everything that came from a file goes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from engine.jobs.card_html import document
from engine.jobs.card_plots import HEIGHT, WIDTH, nice_ticks
from engine.lab.figures import written, written_difference
from engine.lab.report import ArmRow, CurveOf, Report
from engine.lab.report_markdown import figure_words
from engine.lab.verdicts import Comparison, Verdict
from engine.units import format_count, format_duration

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 38
COLOURS = ("#0b7285", "#c2550a", "#2b7a3d", "#7b4ea3", "#b3261e", "#8a6d00", "#3b5bdb", "#a61e6b")
_DARK = ("#56c2d6", "#f0a05a", "#79c98a", "#c09be0", "#f28b82", "#d9bf5b", "#91a7ff", "#f06595")
_DASHES = ("", "7 4", "2 3", "10 3 2 3")
_UNITS = {
    "tokens": (1e3, "thousand tokens"),
    "flops": (1e12, "10¹² FLOPs of training"),
    "wall-clock": (1.0, "seconds of training"),
}


def render(report: Report) -> str:
    """The page as text, UTF-8."""
    state = "" if report.complete else f" · {report.finished} of {report.total} runs finished"
    subtitle = f"{escape(report.model)} · {escape(report.machine)} · {report.day}{state}"
    sections = [
        _style(len(report.arms)),
        f'<p class="question">{escape(report.question)}</p>' if report.question else "",
        _answers(report),
        _curves(report),
        _figures(report),
        _comparisons(report),
        _arms(report),
        _runs(report),
    ]
    return document(escape(report.title), f"{escape(report.title)} · lab", subtitle, sections)


def _style(arms: int) -> str:
    """Colours repeat after eight arms; dashes tell those apart."""
    rules, dark = [], []
    for index in range(arms):
        dash = _DASHES[index // len(COLOURS) % len(_DASHES)]
        rules.append(f".arm{index} {{ color:{COLOURS[index % len(COLOURS)]}; stroke-dasharray:{dash or 'none'} }}")
        dark.append(f".arm{index} {{ color:{_DARK[index % len(_DARK)]} }}")
    return (
        "<style>.arm { fill:none; stroke:currentColor; stroke-width:2.2; stroke-linejoin:round } "
        ".seed { opacity:.25; stroke-width:1 } .arm-name { font-weight:600 } .question { margin:18px 0 0 } "
        ".answer { margin:0 0 10px } .answer b { font-weight:650 } "
        ".swatch { display:inline-block; width:18px; border-top:3px solid currentColor; vertical-align:4px; "
        "margin-right:7px } .win { font-weight:650 } "
        + " ".join(rules)
        + " @media (prefers-color-scheme: dark) { "
        + " ".join(dark)
        + " }</style>"
    )


def _answers(report: Report) -> str:
    lines = "".join(
        f'<p class="answer"><b>{escape(verdict.goal)}</b>: {escape(verdict.words)}</p>' for verdict in report.verdicts
    )
    return f'<section><h2>Which approach won</h2><div class="panel">{lines}</div></section>'


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _curves(report: Report) -> str:
    curves = [curve for curve in report.curves if len(curve.spent) > 1]
    if not curves:
        return ""
    order = [arm.name for arm in report.arms]
    legend = "".join(
        f'<span><i class="swatch arm{order.index(curve.arm)}"></i>{escape(curve.arm)}</span>' for curve in curves
    )
    return (
        '<section><h2>Held-out loss</h2><div class="panel wide plot">'
        f'<div class="legend" style="flex-wrap:wrap">{legend}</div>{curves_plot(curves, order, report.spent_in)}'
        '<p class="sub">Thick: mean over seeds; thin: each seed. Log scale.</p></div></section>'
    )


def curves_plot(curves: Sequence[CurveOf], order: Sequence[str], spent_in: str) -> str:
    """An SVG of held-out loss (log scale) against what was spent."""
    unit, name = _UNITS[spent_in]
    most = max(curve.spent[-1] for curve in curves) / unit
    losses = [loss for curve in curves for line in (curve.mean, *curve.seeds) for loss in line if loss > 0]
    low, high = math.log(min(losses)), math.log(max(losses))
    high = high if high - low > 1e-6 else low + 0.1

    def x(spent: float) -> float:
        return _LEFT + spent / unit / most * (WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        return _TOP + (high - math.log(max(loss, 1e-12))) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Held-out loss over {name}">']
    bottom = HEIGHT - _BOTTOM
    for value in _log_ticks(math.exp(low), math.exp(high)):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in nice_ticks(0, most, 6):
        if value <= most * 1.0001:
            place = x(value * unit)
            anchor = "end" if place > WIDTH - _RIGHT - 14 else "middle"
            parts.append(
                f'<text class="tick" x="{place:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{value:g}</text>'
            )
    middle = (WIDTH + _LEFT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{name}</text>')
    for curve in curves:
        style = f"arm arm{order.index(curve.arm)}"
        for line, more in [*((seed, " seed") for seed in curve.seeds if len(curve.seeds) > 1), (curve.mean, "")]:
            points = " L".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(curve.spent, line, strict=True))
            parts.append(f'<path class="{style}{more}" d="M{points}"><title>{escape(curve.arm)}</title></path>')
    return "\n".join([*parts, "</svg>"])


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten; finer where fewer than three of them lie between."""
    power = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [round(factor * 10.0**p, 10) for p in power for factor in factors if low <= factor * 10.0**p <= high]
        if len(ticks) >= 3:
            return ticks
    return [tick for tick in nice_ticks(low, high, 5) if low <= tick <= high]


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _figures(report: Report) -> str:
    heads = ["arm", *(f"{verdict.label} {'↑' if verdict.higher_is_better else '↓'}" for verdict in report.verdicts)]
    rows = []
    for index, arm in enumerate(report.arms):
        cells = [_arm_cell(index, arm.name)]
        for verdict in report.verdicts:
            figure = next(one for one in verdict.arms if one.arm == arm.name)
            values = ", ".join(
                f"seed {seed}: {written(value, verdict.figure, verdict.per)}" for seed, value in figure.values.items()
            )
            win = ' class="win"' if verdict.winner == arm.name else ""
            cells.append(f'<td{win} title="{escape(values)}">{escape(figure_words(verdict, figure))}</td>')
        rows.append(cells)
    return f"<section><h2>Figures</h2>{_table(heads, rows)}<p class='sub'>{escape(report.method)}</p></section>"


def _comparisons(report: Report) -> str:
    rows = [
        [_cell(verdict.goal), _cell(verdict.best), _cell(one.arm), *_comparison(verdict, one)]
        for verdict in report.verdicts
        for one in verdict.comparisons
    ]
    if not rows:
        return ""
    heads = ["goal", "best mean", "against", "difference", "interval", "seeds", "certain"]
    return f"<section><h2>The best against the others</h2>{_table(heads, rows)}</section>"


def _comparison(verdict: Verdict, one: Comparison) -> list[str]:
    def told(value: float) -> str:
        return written_difference(value, verdict.figure, verdict.per)

    span = f"{told(one.low)} to {told(one.high)}" if one.low is not None and one.high is not None else "none"
    return [_cell(told(one.difference)), _cell(span), _cell(str(one.seeds)), _cell("yes" if one.better else "no")]


def _arms(report: Report) -> str:
    heads = ["arm", "task", "parameters", "trained", "steps", "tokens", "FLOPs", "training", "working time"]
    if any(arm.usd is not None for arm in report.arms):
        heads.append("cost")
    rows = [[_arm_cell(index, arm.name), *map(_cell, _arm_words(arm))] for index, arm in enumerate(report.arms)]
    how = f"<p class='sub'>{escape(' '.join((report.how, *report.notes)))}</p>"
    return f"<section><h2>Arms and what they cost</h2>{_table(heads, rows)}{how}</section>"


def _arm_words(arm: ArmRow) -> list[str]:
    words = [
        arm.task if arm.start == "model" else f"{arm.task}, from random weights",
        format_count(arm.parameters),
        format_count(arm.trainable_parameters),
        f"{arm.steps:,}",
        f"{arm.tokens:,.0f}",
        written(arm.flops, "flops"),
        format_duration(arm.training_seconds) if arm.training_seconds is not None else "",
        format_duration(arm.hours * 3600) if arm.hours is not None else "",
    ]
    return [*words, written(arm.usd, "usd")] if arm.usd is not None else words


def _runs(report: Report) -> str:
    rows = [
        [_cell(run.arm), _cell(str(run.seed)), _cell(run.run_id), _cell(run.state), _cell(run.what)]
        for run in report.runs
    ]
    return f"<section><h2>Runs</h2>{_table(['arm', 'seed', 'run', 'state', ''], rows)}</section>"


def _arm_cell(index: int, name: str) -> str:
    return f'<td><i class="swatch arm{index}"></i><span class="arm-name">{escape(name)}</span></td>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="panel wide"><table><tr>{head}</tr>{body}</table></div>'
