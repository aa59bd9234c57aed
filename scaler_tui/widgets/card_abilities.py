"""The card's parts about abilities, drawn for a width: retention, texts, benchmarks, stages, recoveries.

Owns alignment; wording is in `scaler_tui.abilities_text`. Must not judge: verdicts and intervals come with the card.
"""

from __future__ import annotations

from textual.content import Content

from engine.jobs.card import Card
from scaler_tui import abilities_text
from scaler_tui.widgets.evaluation_words import recovery_lines, report_lines, wrapped
from scaler_tui.widgets.status_line import clip, toned

LEAST_NAME = 13
"""Cells for names: the heading of the table of texts fits."""


def retention_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """Why it was held back, and every ability against the parent model, what was lost first."""
    lines: list[Content] = []
    if card.held:
        held = wrapped(f"Not promoted: {card.held} It lies in {card.adapter.path}.", width - 2)
        lines = [Content.assemble(toned(f"{'✗' if unicode else 'x'} ", "bad"), toned("\n  ".join(held), "strong"))]
    if card.retention:
        lines += report_lines(card.retention, width, unicode=unicode)
        note = "Intervals of 95 % by paired bootstrap over the same questions or documents."
        lines += [toned(text, "quiet") for text in wrapped(note, width)]
    return Content("\n").join(lines)


def text_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """Bits per byte of every text."""
    rows = abilities_text.text_rows(card)
    if not rows:
        return Content("")
    cells = max(min(max(len(row[0]) for row in rows), width - 30), LEAST_NAME)
    lines = [toned(f"{'bits per byte':<{cells}}  {'before':>7}  {'after':>7}  {'change':>8}", "quiet")]
    for name, was, now, change in rows:
        tone = "warn" if change.startswith("+") else "good"
        lines.append(
            Content.assemble(
                f"{clip(name, cells, unicode=unicode):<{cells}}  ", toned(f"{was:>7}  ", "quiet"),
                toned(f"{now:>7}", "strong"), toned(f"  {change:>8}", tone),
            )
        )  # fmt: skip
    return Content("\n").join(lines)


def benchmark_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """Every metric before and after, with standard errors."""
    rows = abilities_text.benchmark_rows(card, unicode=unicode)
    if not rows:
        return Content("")
    was, now = (max(len(row[side]) for row in rows) for side in (1, 2))
    was, now = max(was, 6), max(now, 5)
    cells = min(max(len(row[0]) for row in rows), max(width - was - now - 4, 10))
    lines = [toned(f"{'':<{cells}}  {'before':>{was}}  {'after':>{now}}", "quiet")]
    for name, before, after, asked in rows:
        line = Content.assemble(
            f"{clip(name, cells, unicode=unicode):<{cells}}  ", toned(f"{before:>{was}}  ", "quiet"),
            toned(f"{after:>{now}}", "strong"),
        )  # fmt: skip
        fits = line.cell_length + 2 + len(asked) <= width
        lines.append(Content.assemble(line, toned(f"  {asked}", "quiet")) if fits else line)
    return Content("\n").join(lines)


def stage_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """What each stage did; of a job without stages only where it streamed."""
    found = {one.stage: one for one in card.stages}
    lines: list[Content] = []
    for figures in abilities_text.told_stages(card):
        title, *parts = abilities_text.stage_words(figures, found.get(figures.stage), unicode=unicode)
        lines.append(toned(title, "strong"))
        lines += [Content(f"  {text}") for part in parts if part for text in wrapped(part, width - 2)]
    if lines and card.ranks is not None:
        ranks = card.ranks
        lines.append(toned(f"{ranks.world} processes, {ranks.strategy} over {ranks.backend}", "quiet"))
    return Content("\n").join(lines)


def trouble_lines(card: Card, width: int) -> Content:
    """What the run went through by itself."""
    return Content("\n").join(recovery_lines(card.recoveries, width)) if card.recoveries else Content("")
