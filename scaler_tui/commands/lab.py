"""`lab`: approaches held against each other.

Owns its text and JSON, and how a lab's runs are checked and watched. Must not know how arms are sized or judged
(`engine.lab`).
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.units import format_count, format_duration
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec
    from engine.lab.drive import Outcome
    from engine.lab.folder import LabFolder
    from engine.lab.lab_file import Lab
    from engine.lab.report import Report
    from scaler_tui.follow import Interrupts


def lab(arguments: argparse.Namespace) -> int:
    """List, size, run or report. Raises EngineError."""
    from engine.lab.folder import folder_of, make
    from engine.lab.ready import find_lab

    if arguments.list:
        return _list(as_json=arguments.json)
    if not arguments.lab:
        raise EngineError("usage", "Say which lab.", next_step="Give a LAB.toml or a name from `lab --list`.")
    found = find_lab(arguments.lab)
    folder = folder_of(found)
    if arguments.dry_run:
        return _dry_run(found, folder, as_json=arguments.json)
    if arguments.report:
        return _report(found, folder, as_json=arguments.json)
    return _run(found, make(folder), as_json=arguments.json)


def _list(*, as_json: bool) -> int:
    from engine.lab.ready import ready_labs

    labs = [one.file for one in ready_labs()]
    if as_json:
        output.emit_json(
            [{"name": one.name, "title": one.title, "question": one.question, "arms": [a.name for a in one.arms],
              "seeds": one.seeds} for one in labs]
        )  # fmt: skip
        return int(ExitCode.DONE)
    output.table(
        ["NAME", "ARMS", "SEEDS", "TITLE"],
        [[one.name, str(len(one.arms)), str(len(one.seeds)), one.title] for one in labs],
        right=(1, 2),
    )
    output.note("Run one: scaler-wizard lab NAME   |   what it will take: scaler-wizard lab NAME --dry-run")
    return int(ExitCode.DONE)


def _dry_run(lab: Lab, folder: LabFolder, *, as_json: bool) -> int:
    from engine.lab.sizing import Counter, sizes_of
    from scaler_tui.lab_text import with_long_names, wrapped

    record = folder.record()
    sizes = record.sizes if record is not None else sizes_of(lab, Counter(lab))
    seeds = len(lab.file.seeds)
    seconds = seeds * sum(size.seconds for size in sizes.arms)
    if as_json:
        arms = [
            {"name": size.name, "parameters": size.parameters, "steps": size.steps, "tokens": round(size.tokens),
             "flops": size.flops, "seconds": round(size.seconds, 1)} for size in sizes.arms
        ]  # fmt: skip
        output.emit_json(
            {"name": lab.file.name, "directory": str(folder.path), "budget": lab.file.budget, "how": sizes.how,
             "seeds": lab.file.seeds, "runs": seeds * len(sizes.arms), "seconds": round(seconds, 1), "arms": arms}
        )  # fmt: skip
        return int(ExitCode.DONE)
    for line in (*wrapped(lab.file.title), *wrapped(lab.file.question), ""):
        output.say(line)
    output.table(
        ["ARM", "PARAMETERS", "STEPS", "TOKENS", "FLOPS", "TIME"],
        with_long_names([
            [size.name, format_count(size.parameters), f"{size.steps:,}", f"{size.tokens:,.0f}", f"{size.flops:.3g}",
             format_duration(size.seconds)] for size in sizes.arms
        ]),
        right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    output.say()
    runs, with_seeds = seeds * len(sizes.arms), f"{seeds} seed{'s' if seeds > 1 else ''}"
    goals = [f"Goal: {goal.name} ({goal.figure})" for goal in lab.file.goals]
    takes = f"{runs} runs ({with_seeds}), one after the other: about {format_duration(seconds)} here."
    untuned = "Learning rates are those that the lab gives; none is tuned per arm."
    for text in (sizes.how, *goals, untuned, takes):
        for line in wrapped(text, "", "  "):
            output.say(line)
    return int(ExitCode.DONE)


def _run(lab: Lab, folder: LabFolder, *, as_json: bool) -> int:
    from engine.lab.drive import carry_out
    from engine.lab.report import make_report, write_report
    from scaler_tui.follow import Interrupts

    output.note(
        f"Lab {folder.path.name}: {len(lab.arms)} arms, {len(lab.file.seeds)} seeds. Ctrl+C stops after saving."
    )
    with Interrupts() as interrupts:
        outcome = carry_out(lab, folder, _Front(interrupts, lab.base, quiet=as_json))
    if folder.record() is not None:
        report = make_report(lab, folder)
        write_report(folder, report)
        _show(report, folder, as_json=as_json)
    return _end(lab, outcome)


def _end(lab: Lab, outcome: Outcome) -> int:
    if outcome.complete:
        return int(ExitCode.DONE)
    again = f"scaler-wizard lab {shlex.quote(str(lab.path))}"
    output.note(f"{outcome.finished} of {outcome.total} runs are finished. Go on with: {again}")
    return int(ExitCode.INTERRUPTED if outcome.interrupted else ExitCode.RUN_FAILED)


def _report(lab: Lab, folder: LabFolder, *, as_json: bool) -> int:
    from engine.lab.report import make_report, write_report

    report = make_report(lab, folder)
    write_report(folder, report)
    _show(report, folder, as_json=as_json)
    return int(ExitCode.DONE)


def _show(report: Report, folder: LabFolder, *, as_json: bool) -> None:
    from engine.lab.folder import REPORT_PAGE
    from scaler_tui.lab_text import report_lines

    if as_json:
        output.emit_json(report)
        return
    for line in report_lines(report):
        output.say(line)
    output.note(f"The report as a page: {folder.path / REPORT_PAGE}")


class _Front:
    """How this command checks and watches the runs of a lab."""

    def __init__(self, interrupts: Interrupts, base: Path, *, quiet: bool) -> None:
        self._interrupts, self._base, self._quiet = interrupts, base, quiet
        self._said: set[str] = set()

    def check(self, spec: JobSpec) -> JobSpec:
        """As for `run`; what is noted of a spec is said once. Raises EngineError."""
        from scaler_tui.preflight import check

        checked = check(spec, base=self._base, force=False)
        for text in checked.notes:
            if text not in self._said:
                self._said.add(text)
                self.say(text)
        return checked.spec

    def follow(self, run_dir: Path) -> bool:
        """Until it ends; Ctrl+C asks it to save and stop."""
        from scaler_tui.follow import follow

        follow(run_dir, self._interrupts, quiet=self._quiet)
        return self._interrupts.count == 0

    def say(self, text: str) -> None:
        """On stderr, so that the report alone is on stdout."""
        output.note(text)
