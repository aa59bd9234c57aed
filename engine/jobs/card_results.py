"""What the page says about a teacher, a mix of adapters and what was written for other programs.

Owns the sections; their words are `engine.jobs.result_words`'. Everything that came from a file or a model goes through
`escape`.
"""

from __future__ import annotations

from html import escape

from engine.jobs import result_words as words
from engine.jobs.card import Card
from engine.jobs.export_report import ExportedFile, ExportReport
from engine.units import format_bytes


def result_sections(card: Card) -> str:
    """HTML of all of it; empty for a card without any."""
    return "\n".join(part for part in (_teacher(card), _mix(card), _exports(card)) if part)


def _teacher(card: Card) -> str:
    if card.teacher is None:
        return ""
    student = card.after.task_loss if card.after is not None and card.after.has_task_loss else None
    return _section("Learned from a teacher", _listed(words.teacher_rows(card.teacher, student)))


def _mix(card: Card) -> str:
    if card.mix is None:
        return ""
    return _section("Mixed from adapters", _listed(words.mix_rows(card.mix)))


def _exports(card: Card) -> str:
    if not card.exports:
        return ""
    return _section("Written for other programs", "".join(export_table(report) for report in card.exports))


def export_table(report: ExportReport) -> str:
    """A row per file: kind, size, perplexity, and how it agrees with transformers; then flags and the next step."""
    head = "<tr><th></th><th>kind</th><th>size</th><th>perplexity</th><th>against transformers</th></tr>"
    rows = "".join(_file(file) for file in report.files)
    flags = "".join(f'<p class="off">{escape(flag)}</p>' for flag in report.flags)
    step = f"<p>Next: <code>{escape(report.next_step)}</code></p>" if report.next_step else ""
    title = escape(words.export_title(report))
    return f'<h3 class="part">{title}</h3><div class="wide"><table>{head}{rows}</table></div>{flags}{step}'


def _file(file: ExportedFile) -> str:
    found = file.agreement
    perplexity, said = "", escape(file.not_verified)
    if found is not None:
        tone = "good" if found.perplexity_change < 0.01 else "off"
        change = f'<span class="{tone}">{escape(words.change_words(found))}</span>'
        perplexity = f"{found.perplexity:.3f} {change}"
        said = escape(words.agreement_words(found))
        said = said if words.is_sound(found) else f'<span class="bad">{said}</span>'
    size = format_bytes(file.size_bytes) if file.size_bytes else ""
    return (
        f"<tr><td>{escape(words.file_name(file))}</td><td>{escape(file.kind)}</td><td>{size}</td>"
        f'<td>{perplexity}</td><td class="quiet">{said}</td></tr>'
    )


def _section(title: str, inner: str) -> str:
    return f'<section><h2>{title}</h2><div class="panel">{inner}</div></section>'


def _listed(rows: words.Rows) -> str:
    listed = "".join(f"<dt>{escape(label.capitalize())}</dt><dd>{escape(text)}</dd>" for label, text in rows)
    return f"<dl>{listed}</dl>"
