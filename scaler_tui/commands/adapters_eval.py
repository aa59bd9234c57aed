"""`eval BASE --adapter A --adapter B`: a base and adapters, measured one after the other on one base in memory.

Owns reading the flags, the table and the JSON. Must not import torch: the measuring is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.units import format_duration
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.chat_lines import SideOrder
    from engine.jobs.retention_report import Abilities, AdaptersReport


def evaluate_adapters(arguments: argparse.Namespace, tasks: list[str]) -> int:
    """Measure, print, and write what was asked for. Raises EngineError."""
    import msgspec

    from scaler_tui.commands.evaluate import write_file

    for flag, given in (("--against", arguments.against), ("--html", arguments.html)):
        if given:
            raise EngineError(
                "evaluation.two_kinds",
                f"{flag} and --adapter do not go together.",
                cause="With --adapter every adapter is compared with the base it stands on.",
                next_step=f"Leave {flag} out, or measure one adapter at a time.",
            )
    report = _measured(arguments, tasks, _sides(arguments))
    if arguments.out is not None:
        write_file(arguments.out.expanduser(), msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if arguments.json:
        output.emit_json({"verdict": report.verdict, "report": report})
        return int(ExitCode.DONE)
    _print(report)
    if arguments.out is not None:
        output.say(f"Report  {arguments.out}")
    return int(ExitCode.DONE)


def _sides(arguments: argparse.Namespace) -> tuple[SideOrder, ...]:
    """The base, then the adapters; a MODEL that is itself an adapter is the first of them."""
    from scaler_tui.chat_sides import BASE, ChatAsked, chat_sides

    def found(compare: tuple[str, ...]) -> tuple[SideOrder, ...]:
        asked = ChatAsked(
            arguments.model, compare, tuple(arguments.adapter), arguments.base, arguments.quantization
        )  # fmt: skip
        return chat_sides(asked).sides

    sides = found(())
    return found((BASE,)) if sides[0].base else sides


def _measured(arguments: argparse.Namespace, tasks: list[str], sides: tuple[SideOrder, ...]) -> AdaptersReport:
    import msgspec

    from engine.jobs.layout import write_atomic
    from engine.jobs.retention_report import AdaptersReport
    from engine.paths import ensure_writable, state_home
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.commands.abilities import asked_words
    from scaler_tui.commands.evaluate import interrupted
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    encoded = msgspec.json.encode(sides)
    words = [*asked_words(arguments, tasks), "--dtype", arguments.dtype]
    key = hashlib.sha256(b"\n".join([b"adapters", encoded, *(word.encode() for word in words)])).hexdigest()[:16]
    work = ensure_writable(state_home() / "evaluations" / key)
    path, log, orders = work / "report.json", work / "cells.jsonl", work / "sides.json"
    if not arguments.resume:
        log.unlink(missing_ok=True)
    write_atomic(orders, encoded)
    failing = Failing(
        "evaluation.failed", "Go on with the same flags and --resume.", own_exit_code=True, patience_seconds=2.0
    )
    try:
        with ends_when_told(), growth_view(quiet=arguments.json) as view:
            flags = ["--sides", str(orders), *words, "--log", str(log), "--out", str(path)]
            run_module(
                "engine.chat.measure", flags, work / "evaluation.log", "measuring", shown_by(view), failing=failing
            )
    except KeyboardInterrupt:
        raise interrupted(arguments) from None
    report = msgspec.json.decode(path.read_bytes(), type=AdaptersReport)
    for file in (path, log, orders):
        file.unlink(missing_ok=True)
    return report


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _print(report: AdaptersReport) -> None:
    from scaler_tui.abilities_text import ordered, report_figures, score_text, sentence

    output.say(report.verdict)
    models = (report.base, *(one.abilities for one in report.adapters))
    heads = [model.model for model in models]
    right = tuple(range(1, len(models) + 1))
    if report.base.suites:
        output.say()
        rows = [[suite.name, *(_bits(model, suite.name) for model in models)] for suite in report.base.suites]
        output.table(["BITS PER BYTE", *heads], rows, right=right)
    if report.base.benchmarks:
        output.say()
        rows = []
        for asked in report.base.benchmarks:
            cells = []
            for model in models:
                one = next((b for b in model.benchmarks if (b.task, b.metric) == (asked.task, asked.metric)), None)
                shown = "-" if one is None else score_text(one.metric, one.value, one.standard_error, unicode=False)
                cells.append(shown)
            rows.append([f"{asked.task} {asked.metric}", *cells])
        output.table(["BENCHMARK", *heads], rows, right=right)
    for adapter in report.adapters:
        output.say()
        output.say(f"{adapter.abilities.model}, against {report.base.model}")
        for retained in ordered(adapter.retention):
            output.say(f"  {retained.verdict:<8} {sentence(retained.words)}")
            output.say(f"           {report_figures(retained, unicode=False)}")
    output.say()
    output.say(f"Measured in {format_duration(report.seconds)}; intervals of 95 % by paired bootstrap.")


def _bits(model: Abilities, name: str) -> str:
    one = next((suite for suite in model.suites if suite.name == name), None)
    return "-" if one is None else f"{one.bits_per_byte:.4f}"
