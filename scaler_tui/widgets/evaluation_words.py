"""What a run screen says of suites, benchmarks, retention and recoveries: tables, sentences, lines for the chart.

Owns wording and alignment. Must not judge: verdicts, intervals and sentences about what was lost are the worker's.
"""

from __future__ import annotations

import math
import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual.content import Content

from engine.jobs.events import BenchmarkScore, Recovery, Retention, RetentionReport
from scaler_tui.abilities_text import gate_words, ordered, recovery_words, report_figures, score_text, sentence
from scaler_tui.widgets.chart_raster import ChartLine
from scaler_tui.widgets.status_line import clip, toned

if TYPE_CHECKING:
    from engine.jobs.state import RunState
    from scaler_tui.feeds.journal_feed import RunSnapshot

RECOVERY_SHOWN_SECONDS = 120.0
"""So long after it happened a recovery stands in the banner; the log and the retention pane keep it."""
WAIT_BUDGET = 0.02
"""Of the step's time: above it, waiting for data is worth a remark."""
SIGNS = {
    "lost": ("✗", "x", "bad"),
    "unclear": ("?", "?", "warn"),
    "gained": ("▲", "+", "good"),
    "kept": ("✓", "=", "good"),
}
"""Verdict -> glyph, ASCII glyph, tone."""


def measures(snapshot: RunSnapshot) -> bool:
    """Whether suites, benchmarks or retention belong to this run, or it went through a recovery."""
    spec, found = snapshot.spec, snapshot.state.findings
    asked = spec is not None and bool(spec.sources or spec.suites or spec.retention or spec.evaluation.tasks)
    return asked or bool(snapshot.suites or found.benchmarks or found.retention or found.recoveries)


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────
def suite_lines(snapshot: RunSnapshot, *, relative: bool) -> tuple[ChartLine, ...]:
    """A line per suite: bits per byte, or with `relative` their change against before training in per cent."""
    lines = []
    for letter, (name, buckets) in zip(string.ascii_lowercase, snapshot.suites, strict=False):
        before = snapshot.state.findings.suites_before.get(name)
        if relative and before is not None and before.bits_per_byte > 0:
            base = before.bits_per_byte
            buckets = tuple(
                replace(b, low=_change(b.low, base), mean=_change(b.mean, base), high=_change(b.high, base))
                for b in buckets
            )
        elif relative:
            continue
        lines.append(ChartLine(letter, buckets))
    return tuple(lines)


def _change(value: float, base: float) -> float:
    return (value / base - 1) * 100


def suite_table(snapshot: RunSnapshot, width: int, most: int, *, unicode: bool) -> Content:
    """A row per suite: its letter, before, now, change; what has no room is counted."""
    found = snapshot.state.findings
    names = [name for name, _ in snapshot.suites]
    if not names:
        return Content("")
    cells = min(max(len(name) for name in names), max(width - 32, 8))
    lines = [toned(f"    {'':<{cells}}  {'before':>7}  {'now':>7}  {'change':>8}", "quiet")]
    shown = names if len(names) <= most - 1 else names[: max(most - 2, 1)]
    for index, name in enumerate(shown):
        letter = string.ascii_lowercase[index] if index < len(string.ascii_lowercase) else " "
        score, before = found.suite_scores.get(name), found.suites_before.get(name)
        now = "-" if score is None else f"{score.bits_per_byte:.4f}"
        was = "-" if before is None else f"{before.bits_per_byte:.4f}"
        change, tone = "", ""
        if score is not None and before is not None and score.step and before.bits_per_byte > 0:
            share = _change(score.bits_per_byte, before.bits_per_byte)
            change, tone = f"{share:+.1f} %", "warn" if share > 0 else "good"
        lines.append(
            Content.assemble(
                toned(f"  {letter} ", "strong"), f"{clip(name, cells, unicode=unicode):<{cells}}  ",
                toned(f"{was:>7}  ", "quiet"), toned(f"{now:>7}", "strong"), toned(f"  {change:>8}", tone),
            )
        )  # fmt: skip
    if len(shown) < len(names):
        lines.append(toned(f"    and {len(names) - len(shown)} more: the log has every figure", "quiet"))
    return Content("\n").join(lines)


def suite_legend(snapshot: RunSnapshot, *, relative: bool) -> str:
    """What the chart shows, and the key that shows it otherwise."""
    if not snapshot.suites:
        return ""
    if relative:
        return "change since before training in %; e: bits per byte"
    return "bits per byte, lower is better; e: change in %"


# ── benchmarks ────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One metric of one task: before, and newest."""

    task: str
    metric: str
    before: BenchmarkScore | None
    now: BenchmarkScore | None
    """None while it was measured before training only."""


def benchmark_rows(scores: Sequence[BenchmarkScore]) -> list[BenchmarkRow]:
    """By task and metric, in the order in which they came."""
    rows: dict[tuple[str, str], BenchmarkRow] = {}
    for score in scores:
        key = score.task, score.metric
        row = rows.get(key, BenchmarkRow(*key, None, None))
        rows[key] = replace(row, before=score) if score.step == 0 else replace(row, now=score)
    return list(rows.values())


def _score(score: BenchmarkScore | None, *, unicode: bool) -> str:
    return "-" if score is None else score_text(score.metric, score.value, score.standard_error, unicode=unicode)


def benchmark_lines(scores: Sequence[BenchmarkScore], width: int, *, unicode: bool) -> list[Content]:
    """A table; each row takes a second line where one has not room for it."""
    rows = benchmark_rows(scores)
    texts = [(_score(row.before, unicode=unicode), _score(row.now, unicode=unicode)) for row in rows]
    names = [f"{row.task} {row.metric}" for row in rows]
    if not rows:
        return []
    was, now = (max(len(pair[side]) for pair in texts) for side in (0, 1))
    was, now = max(was, 6), max(now, 3)
    cells = min(max(len(name) for name in names), max(width - was - now - 4, 10))
    lines = [toned(f"{'':<{cells}}  {'before':>{was}}  {'now':>{now}}", "quiet")]
    for row, name, (before, after) in zip(rows, names, texts, strict=True):
        figures = Content.assemble(
            f"{clip(name, cells, unicode=unicode):<{cells}}  ", toned(f"{before:>{was}}  ", "quiet"),
            toned(f"{after:>{now}}", "strong"),
        )  # fmt: skip
        remark = _asked(row.now or row.before)
        if figures.cell_length + 2 + len(remark) <= width:
            lines.append(Content.assemble(figures, toned(f"  {remark}", "quiet")))
        else:
            lines += [figures, toned(f"  {remark}", "quiet")]
    return lines


def _asked(score: BenchmarkScore | None) -> str:
    if score is None:
        return ""
    part = " of them asked" if score.part else " questions"
    return f"{score.questions:,}{part}, step {score.step:,}" if score.questions else f"step {score.step:,}"


# ── retention ─────────────────────────────────────────────────────────────────────────────────────────────────────
def lost(retention: Retention | None) -> int:
    """How many abilities were lost."""
    return 0 if retention is None else sum(report.verdict == "lost" for report in retention.reports)


def report_lines(reports: Sequence[RetentionReport], width: int, *, unicode: bool) -> list[Content]:
    """The sentence of each, its figures under it."""
    lines: list[Content] = []
    for report in ordered(reports):
        glyph, ascii_glyph, tone = SIGNS.get(report.verdict, ("·", "-", ""))
        said = wrapped(sentence(report.words), width - 2)
        lines.append(Content.assemble(toned(f"{glyph if unicode else ascii_glyph} ", tone), toned(said[0], "strong")))
        lines += [toned(f"  {text}", "strong") for text in said[1:]]
        lines += [toned(f"  {text}", "quiet") for text in wrapped(report_figures(report, unicode=unicode), width - 2)]
    return lines


def retention_content(snapshot: RunSnapshot, width: int, *, unicode: bool) -> Content:
    """The retention pane: against the parent model, the gate, benchmarks, recoveries."""
    found = snapshot.state.findings
    blocks = [_against_parent(snapshot, width, unicode=unicode)]
    table = benchmark_lines(found.benchmarks, width, unicode=unicode)
    if table:
        blocks.append([toned("Benchmarks, with standard errors", "quiet"), *table])
    if found.recoveries:
        blocks.append([toned("Trouble it went through", "quiet"), *recovery_lines(found.recoveries, width)])
    return Content("\n\n").join(Content("\n").join(block) for block in blocks if block)


def _against_parent(snapshot: RunSnapshot, width: int, *, unicode: bool) -> list[Content]:
    retention = snapshot.state.findings.retention
    if retention is None:
        when = "Compared with the parent model as soon as something was measured both before and after."
        return [*(toned(text, "quiet") for text in wrapped(when, width)), *_limits(snapshot, width)]
    lines = [toned(f"Against the parent model at step {retention.step:,}; intervals of 95 %, paired", "quiet")]
    lines += report_lines(retention.reports, width, unicode=unicode)
    if retention.gate:
        lines += [toned(text, "bad") for text in wrapped(f"Gate: {retention.gate}", width)]
    return [*lines, *_limits(snapshot, width)]


def _limits(snapshot: RunSnapshot, width: int) -> list[Content]:
    if snapshot.spec is None:
        return []
    return [
        toned(text, "quiet")
        for one in snapshot.spec.retention
        for text in wrapped(gate_words(one.on, one.most_lost, one.action), width)
    ]


# ── recoveries, waiting, processes ────────────────────────────────────────────────────────────────────────────────
def recovery_lines(recoveries: Sequence[Recovery], width: int) -> list[Content]:
    """The newest first."""
    lines: list[Content] = []
    for recovery in reversed(recoveries):
        lines.append(
            Content.assemble(toned("! ", "warn"), toned(f"step {recovery.step:,}: {recovery.trouble}", "strong"))
        )
        lines += [Content(f"  {text}") for text in wrapped(recovery_words(recovery), width - 2)]
    return lines


def fresh_recovery(state: RunState) -> Recovery | None:
    """The newest recovery while it is news."""
    recoveries = state.findings.recoveries
    if not recoveries or not state.state.is_live or state.updated is None:
        return None
    newest = recoveries[-1]
    return newest if state.updated - newest.t <= RECOVERY_SHOWN_SECONDS else None


def wait_text(state: RunState) -> str:
    """ "0.4 %": the share of a step's time that the device waits for data."""
    share = state.wait_share * 100
    return f"{share:.1f} %" if math.isfinite(share) else "-"


def ranks_text(state: RunState) -> str:
    """ "4 processes on 2 machines, fsdp2 over nccl"; "" for a job of one process."""
    ranks = state.findings.ranks
    if ranks is None:
        return ""
    hosts = len(set(ranks.hosts))
    where = f" on {hosts} machines" if hosts > 1 else ""
    return f"{ranks.world} processes{where}, {ranks.strategy} over {ranks.backend}"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells; an empty text is one empty line."""
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False) or [""]
