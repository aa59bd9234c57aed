"""Exports that are added to a run's card, whenever they are made.

Owns adding them. Must not know formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.jobs import layout
from engine.jobs.card_io import read_card, write_card
from engine.jobs.export_report import ExportReport


def add_exports(run_dir: Path, reports: Sequence[ExportReport], notes: Sequence[str] = ()) -> bool:
    """Put `reports` on the card, each in place of an earlier one of the same files; whether there is a card. Raises
    EngineError `card.damaged`, `disk.full`."""
    if not (run_dir / layout.CARD).is_file():
        return False
    card = read_card(run_dir)
    reports = [inside(report, run_dir) for report in reports]
    written = {_place(report) for report in reports}
    kept = tuple(report for report in card.exports if _place(report) not in written)
    told = tuple(note for note in notes if note not in card.notes)
    write_card(run_dir, msgspec.structs.replace(card, exports=(*kept, *reports), notes=(*card.notes, *told)))
    return True


def inside(report: ExportReport, run_dir: Path) -> ExportReport:
    """`report` with files of the run directory named relative to it, so that it can be moved."""
    files = tuple(msgspec.structs.replace(file, path=_relative(Path(file.path), run_dir)) for file in report.files)
    return msgspec.structs.replace(report, files=files, source=_relative(Path(report.source), run_dir))


def _relative(path: Path, run_dir: Path) -> str:
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else str(path)


def _place(report: ExportReport) -> tuple[str, ...]:
    return (report.destination, *sorted(file.path for file in report.files))
