"""What the page says about length: the verdict, perplexity by length, needles as a heat map, short text, who reads it.

Owns the section's words. Must not know how anything was measured. Everything that came from a model or a file goes
through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from engine.jobs.card import Card, Reader
from engine.jobs.heat_grid import HeatGrid, heat_grid, percent, short_length, tasks_of
from engine.jobs.length_plots import heat_plot, perplexity_plot
from engine.jobs.length_report import LengthReport
from engine.jobs.length_verdict import verdict

STYLE = """
.heat-cell.none { fill:var(--rule) } .heat-figure { font:13px system-ui,sans-serif; font-variant-numeric:tabular-nums }
.heat-cell.level4 { fill:#1b6e7c } .heat-cell.level3 { fill:#63a7b2 } .heat-cell.level2 { fill:#f2d9a8 }
.heat-cell.level1 { fill:#e0906b } .heat-cell.level0 { fill:#a93c2f }
.heat-figure.level4, .heat-figure.level0 { fill:#fff } .heat-figure.level3, .heat-figure.level2,
.heat-figure.level1 { fill:#1d2327 }
.dot.now { fill:var(--accent) } .maps { display:grid; grid-template-columns:repeat(auto-fit,minmax(300px,1fr));
  gap:18px } .maps h3 { font-size:14px; font-weight:500; margin:0 0 6px } .verdict { font-size:18px; margin:0 0 4px }
.exact { color:var(--good) } .lost { color:var(--bad) } .approximate { color:var(--held) }
"""
"""Figures stand in every square, so that the map reads without colour too."""


def length_section(card: Card) -> str:
    """HTML of what a run changed about length; empty for one that measured none."""
    if card.lengths_after is None:
        return ""
    return report_section(card.lengths_after, card.lengths_before, card.readers)


def report_section(after: LengthReport, before: LengthReport | None = None, readers: Sequence[Reader] = ()) -> str:
    """HTML of one report, beside the same of the model it was made from."""
    parts = [_verdict(after, before), _perplexity(after, before), _maps(after, before), _readers(readers)]
    return f"<section><h2>Length</h2>{''.join(parts)}</section>"


def _verdict(after: LengthReport, before: LengthReport | None) -> str:
    found = verdict(after)
    tone = "good" if found.effective >= after.window else "bad"
    words = f'<p class="verdict {tone}">{_sentence(found.words)}</p>'
    if before is not None:
        words += f'<p class="quiet">Before: {escape(verdict(before).words)}</p>'
    pairs = [("Window", _window(after)), ("Method", escape(after.method)), ("Short text", _short(after))]
    pairs += [("Measured on", escape(_measured_on(after)))]
    pairs += [("Note", escape(note)) for note in after.notes]
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in pairs if text)
    return f'<div class="panel">{words}<dl>{listed}</dl></div>'


def _sentence(words: str) -> str:
    return escape(f"{words[:1].upper()}{words[1:]}.")


def _window(report: LengthReport) -> str:
    if report.original == report.window:
        return f"{report.window:,} tokens"
    return f"{report.original:,} → {report.window:,} tokens ({report.window / report.original:g} times)"


def _short(report: LengthReport) -> str:
    short = report.short
    if short is None:
        return ""
    change = short.change
    tone = "bad" if not math.isfinite(change) or change > 0.05 else "quiet" if change > 0.01 else "good"
    return (
        f'perplexity {short.perplexity_before:.2f} → {short.perplexity_after:.2f} <span class="{tone}">{change:+.1%}'
        f"</span> on {short.tokens:,} tokens, {short.length:,} at a time"
    )


def _measured_on(report: LengthReport) -> str:
    documents = f"{report.documents:,} documents" if report.documents else ""
    style = f"needles asked as {report.style}" if report.needles and report.style else ""
    return ", ".join(part for part in (report.text, documents, style, f"seed {report.seed}") if part)


def _perplexity(after: LengthReport, before: LengthReport | None) -> str:
    if not after.perplexity:
        return ""
    legend = '<span><i></i>after</span><span><i class="held"></i>before</span>' if before else "<span><i></i></span>"
    plot = perplexity_plot(after, before)
    earlier = {point.length: point for point in before.perplexity} if before else {}
    head = "<tr><th>tokens of context</th>" + ("<th>before</th>" if before else "") + "<th>after</th><th></th></tr>"
    rows = []
    for point in after.perplexity:
        was = earlier.get(point.length)
        change = f"{point.perplexity / was.perplexity - 1:+.1%}" if was and was.perplexity > 0 else ""
        cells = f"<td>{point.length:,}</td>" + (f"<td>{was.perplexity:.2f}</td>" if was else "<td></td>" * bool(before))
        rows.append(f'<tr>{cells}<td>{point.perplexity:.2f}</td><td class="quiet">{change}</td></tr>')
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    what = "Perplexity of the same closing tokens with more and more text before them: it should fall."
    words = f'<p class="quiet">{what}</p>'
    drawn = f'<div class="legend">{legend}</div><div class="wide plot">{plot}</div>{words}{table}'
    return f'<h2>Perplexity by length</h2><div class="panel">{drawn}</div>'


def _maps(after: LengthReport, before: LengthReport | None) -> str:
    maps = []
    for task in tasks_of(after.needles):
        grids = [("before", before.needles if before else ()), ("after", after.needles)]
        for name, needles in grids:
            grid = heat_grid(needles, task)
            if grid is not None:
                title = f"{task}, {name}" if before is not None else task
                maps.append(f"<div><h3>{escape(title)}</h3>{heat_plot(grid, _spoken(grid, title))}</div>")
    if not maps:
        return ""
    words = (
        "Share of right answers in per cent by length (across) and by where the fact stood (down; 0 % is the start)."
    )
    if not after.informative:
        words += " The model cannot do these tasks within its own window either, so they say nothing about length."
    shown = f'<div class="maps">{"".join(maps)}</div>'
    return f'<h2>Needles</h2><div class="panel"><p class="quiet">{words}</p>{shown}</div>'


def _spoken(grid: HeatGrid, title: str) -> str:
    """The map in a sentence, for those who cannot see it."""
    shares = ((length, grid.at_length(index)) for index, length in enumerate(grid.lengths))
    told = [f"{percent(share)} % at {short_length(length)}" for length, share in shares if share is not None]
    return f"{title}: {', '.join(told)}"


def _readers(readers: Sequence[Reader]) -> str:
    if not readers:
        return ""
    rows = "".join(
        f'<tr><td>{escape(reader.program)}</td><td class="{escape(reader.verdict, quote=True)}">'
        f"{escape(reader.verdict)}</td><td>{escape(reader.why)}</td></tr>"
        for reader in readers
    )
    return f'<h2>Who reads it</h2><div class="panel"><table>{rows}</table></div>'
