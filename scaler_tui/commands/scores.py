"""`scores`: what was predicted of past runs and what came, and what this machine has taught the formula.

Owns its text and JSON. Must not compute: sums and corrections are the engine's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import ExitCode
from engine.units import format_bytes, format_duration
from scaler_tui import output

if TYPE_CHECKING:
    from engine.advise.track_record import TrackRecord
    from engine.estimate.calibration import Calibration
    from engine.estimate.estimate import Range
    from engine.jobs.scores import Promise

Words = Callable[[float], str]
"""How a figure is written."""
SHOWN = 30
"""Newest runs in the table; `--json` has all of them."""


def scores(arguments: argparse.Namespace) -> int:
    """Every scored run, the errors per machine, and the correction in force here."""
    from engine.advise.track_record import track_record
    from engine.hardware.detect import detect

    record = track_record(detect())
    for note in record.notes:
        output.note(note)
    if arguments.json:
        output.emit_json(_document(record))
    else:
        _print(record)
    return int(ExitCode.DONE)


def _document(record: TrackRecord) -> dict[str, object]:
    return {
        "runs": record.scores,
        "machines": record.summaries,
        "machine": record.machine,
        "calibration": record.calibration,
        "probes": record.probes,
        "scores_file": record.scores_file,
        "probes_folder": record.probes_folder,
        "notes": record.notes,
    }


def _print(record: TrackRecord) -> None:
    if record.scores:
        _table(record)
        output.say()
        for summary in record.summaries:
            output.say(summary.sentence)
        output.say("Errors are predicted over measured, less 1: above 0 when too much was promised.")
    else:
        output.say("No run has been scored yet: every run that ends adds a line here by itself.")
        output.say("Try one: scaler-wizard demo")
    output.say()
    _correction(record)
    output.say(f"Runs are kept in {record.scores_file}, probes in {record.probes_folder}.")


def _table(record: TrackRecord) -> None:
    rows = [
        [
            score.run_id,
            score.model,
            score.origin or "-",
            *_cells(score.process, format_bytes),
            *_cells(score.tokens_per_second, _rate),
            _cells(score.seconds, format_duration)[2],
            score.outcome,
        ]
        for score in record.scores[-SHOWN:]
    ]
    headings = ["RUN", "MODEL", "ORIGIN", "MEMORY", "MEASURED", "ERROR", "TOKENS/S", "MEASURED", "ERROR", "TIME", "END"]
    output.table(headings, rows, right=tuple(range(3, 10)))


def _cells(promise: Promise, words: Words) -> list[str]:
    predicted = words(promise.likely) if promise.likely else "-"
    measured = words(promise.measured) if promise.measured else "-"
    return [predicted, measured, f"{promise.error:+.1%}" if promise.complete else "-"]


def _rate(value: float) -> str:
    return f"{value:,.0f}"


def _correction(record: TrackRecord) -> None:
    calibration = record.calibration
    output.say(f"This machine: {record.machine}")
    if calibration is None:
        output.say("No correction is in force: the formula stands as published.")
        output.say("Measure it: scaler-wizard estimate SPEC --probe")
        return
    output.say(f"Corrections in force, from {calibration.source}:")
    for line in correction_lines(calibration):
        output.say(f"  {line}")
    for probe in record.probes:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(probe.t))
        output.say(f"  probe of {day}: {probe.sentence}")


def correction_lines(calibration: Calibration) -> list[str]:
    """One line per corrected quantity."""
    lines = []
    if calibration.context_bytes is not None:
        lines.append(f"context or libraries {_span(calibration.context_bytes, format_bytes)}")
    if calibration.slack is not None:
        lines.append(f"slack on top of what is allocated {_span(calibration.slack, _percent)}")
    if calibration.allocated_factor is not None:
        lines.append(f"allocated over the formula {_span(calibration.allocated_factor, _factor)}")
    if calibration.speed_factor is not None:
        lines.append(f"tokens per second over the formula {_span(calibration.speed_factor, _factor)}")
    return lines


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _factor(value: float) -> str:
    return f"{value:.3g}"


def _span(values: Range, words: Words) -> str:
    return f"{words(values.likely)} ({words(values.low)} to {words(values.high)})"
