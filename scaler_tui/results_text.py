"""What a teacher, a mix of adapters and exports came to, as plain lines: `card ID` prints them.

Owns alignment; the words are `engine.jobs.result_words`'. Must not know Textual.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.jobs import result_words as words
from engine.jobs.card import Card
from engine.jobs.export_report import ExportReport


def sections(card: Card) -> Iterator[tuple[str, list[str]]]:
    """(heading, lines)."""
    if card.mix is not None:
        yield "Mixed from adapters", list(_labelled(words.mix_rows(card.mix)))
    if card.teacher is not None:
        student = card.after.task_loss if card.after is not None and card.after.has_task_loss else None
        yield "Teacher", list(_labelled(words.teacher_rows(card.teacher, student)))
    for report in card.exports:
        yield words.export_title(report), list(export_lines(report))


def export_lines(report: ExportReport) -> Iterator[str]:
    """A line per file, what was compared below it; flags; the next step."""
    for file in report.files:
        yield f"{words.file_words(file)}: {file.path}"
        if file.agreement is not None:
            yield f"  {words.agreement_words(file.agreement)}"
        elif file.not_verified:
            yield f"  {file.not_verified}"
    yield from (f"! {flag}" for flag in report.flags)
    if report.next_step:
        yield f"Next: {report.next_step}"


def _labelled(rows: words.Rows) -> Iterator[str]:
    cells = max(len(label) for label, _ in rows)
    return (f"{label.capitalize():<{cells}}  {text}" for label, text in rows)
