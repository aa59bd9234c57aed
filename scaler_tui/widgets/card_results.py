"""The card's parts about a teacher, a mix of adapters and exports, drawn for a width.

Owns alignment; the words are `engine.jobs.result_words`'. Must not judge beyond a tone.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.jobs import result_words as words
from engine.jobs.card import Card
from engine.jobs.export_report import ExportedFile, ExportReport
from engine.units import format_bytes
from scaler_tui.widgets.evaluation_words import wrapped
from scaler_tui.widgets.status_line import clip, toned

KIND_CELLS = 8
SIZE_CELLS = 9
PERPLEXITY_CELLS = 17
MUCH_WORSE = 0.01
"""A perplexity that rose by more than this share is marked."""


def teacher_lines(card: Card, width: int) -> Content:
    """Who taught, how, and what it took."""
    if card.teacher is None:
        return Content("")
    student = card.after.task_loss if card.after is not None and card.after.has_task_loss else None
    return rows_content(words.teacher_rows(card.teacher, student), width)


def mix_lines(card: Card, width: int) -> Content:
    """What was mixed, and how exact it is."""
    return Content("") if card.mix is None else rows_content(words.mix_rows(card.mix), width)


def export_lines(exports: Sequence[ExportReport], width: int, *, unicode: bool) -> Content:
    """Every export with its files."""
    return (
        Content("\n")
        .join(line for report in exports for line in [*_report_lines(report, width, unicode=unicode), Content("")])
        .rstrip()
    )


def _report_lines(report: ExportReport, width: int, *, unicode: bool) -> list[Content]:
    lines = [toned(words.export_title(report), "strong")]
    for file in report.files:
        lines += file_lines(file, width, unicode=unicode)
    for flag in report.flags:
        first, *rest = wrapped(flag, width - 4)
        lines.append(Content.assemble(toned("! ", "warn"), first))
        lines += [Content(f"  {text}") for text in rest]
    if report.next_step:
        lines += _labelled("next", report.next_step, width)
    return lines


def file_lines(file: ExportedFile, width: int, *, unicode: bool) -> list[Content]:
    """Kind, size and perplexity in a line; what was compared, or why nothing was, below."""
    size = format_bytes(file.size_bytes) if file.size_bytes else ""
    head = f"  {file.kind:<{KIND_CELLS}} {size:>{SIZE_CELLS}}"
    found = file.agreement
    room = width - len(head) - 2
    if found is None:
        name = clip(words.file_name(file), max(room, 10), unicode=unicode)
        lines = [Content.assemble(head, "  ", toned(name, "quiet"))]
        why = wrapped(file.not_verified, width - 4) if file.not_verified else []
        return [*lines, *(toned(f"    {text}", "quiet") for text in why)]
    tone = "warn" if found.perplexity_change > MUCH_WORSE else "good"
    figure = f"{found.perplexity:.3f} {words.change_words(found)}"
    name_room = room - PERPLEXITY_CELLS - 2
    name = clip(words.file_name(file), name_room, unicode=unicode) if name_room >= 8 else ""
    lines = [
        Content.assemble(head, "  ", toned(f"{figure:<{PERPLEXITY_CELLS}}", tone), "  ", toned(name, "quiet")).rstrip()
    ]
    tone = "quiet" if words.is_sound(found) else "bad"
    return [*lines, *(toned(f"    {text}", tone) for text in wrapped(words.agreement_words(found), width - 4))]


def rows_content(rows: Sequence[tuple[str, str]], width: int) -> Content:
    """Labels with their words wrapped beside them."""
    cells = max(len(label) for label, _ in rows) + 2
    return Content("\n").join(line for label, text in rows for line in _labelled(label, text, width, cells))


def _labelled(label: str, text: str, width: int, cells: int = 6) -> list[Content]:
    first, *rest = wrapped(text, max(width - cells, 20)) or [""]
    return [
        Content.assemble(toned(f"{label:<{cells}}", "quiet"), first),
        *(Content(" " * cells + line) for line in rest),
    ]
