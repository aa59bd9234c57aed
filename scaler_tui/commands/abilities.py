"""`eval --suite, --tasks, --against`: bits per byte of texts, benchmarks, and what is left of a parent's abilities.

Owns reading the flags and the words. Must not import torch: the measuring is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_duration
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.retention_report import FolderReport
    from scaler_tui.commands.folders import Named


def evaluate_abilities(arguments: argparse.Namespace, tasks: list[str]) -> int:
    """Measure, print, and write what was asked for. Raises EngineError."""
    from scaler_tui.commands.evaluate import require_new, write_file
    from scaler_tui.commands.folders import named_folder

    require_new(arguments.out, arguments.html)
    if arguments.adapter:
        from scaler_tui.commands.adapters_eval import evaluate_adapters

        return evaluate_adapters(arguments, tasks)
    model = named_folder(arguments.model, arguments.base)
    words = _words(arguments, model, tasks)
    report = _measured(arguments, words)
    if arguments.out is not None:
        import msgspec

        write_file(arguments.out.expanduser(), msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if arguments.html is not None:
        from engine.jobs.retention_report import retention_page

        write_file(arguments.html.expanduser(), retention_page(report).encode())
    if arguments.json:
        output.emit_json({"verdict": report.verdict, "report": report})
        return int(ExitCode.DONE)
    _print(report)
    for label, path in (("Report", arguments.out), ("Page", arguments.html)):
        if path is not None:
            output.say(f"{label:<7} {path}")
    return int(ExitCode.DONE)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────
def _words(arguments: argparse.Namespace, model: Named, tasks: list[str]) -> list[str]:
    """The flags of the measuring process."""
    words = ["--model", str(model.folder.absolute()), "--name", model.name]
    words += ["--base", str(model.base.absolute())] if model.base is not None else []
    words += _parent_words(arguments, model)
    words += asked_words(arguments, tasks)
    return [*words, "--dtype", arguments.dtype, "--quantization", arguments.quantization]


def asked_words(arguments: argparse.Namespace, tasks: list[str]) -> list[str]:
    """The flags that say which texts and benchmarks, for any process that measures them. Raises EngineError
    `corpus.not_found`, `benchmarks.no_file` for what is not there: loading a large model first would take minutes."""
    from engine.corpus.files import source_files
    from engine.jobs.benchmark_files import is_file
    from engine.jobs.spec_paths import NOT_FILES

    words = []
    for text in arguments.suite:
        word = suite_word(text)
        name, _, path = word.partition("=")
        if path not in NOT_FILES:
            try:
                source_files(name, path)
            except EngineError as error:
                error.what = f"--suite {text} has no file: there is nothing at {path}."
                error.next_step = "Give a file, a folder with files in it, or a pattern such as 'text/*.jsonl.gz'."
                raise
        words += ["--suite", word]
    for task in tasks:
        file = Path(task).expanduser().absolute()
        if is_file(task) and not file.is_file():
            raise EngineError("benchmarks.no_file", f"There is no file {task}.", next_step="Name a benchmark's .yaml.")
        words += ["--task", str(file) if is_file(task) else task]
    return [*words, *(["--limit", str(arguments.limit)] if arguments.limit else [])]


def _parent_words(arguments: argparse.Namespace, model: Named) -> list[str]:
    from scaler_tui.commands.folders import named_folder

    if arguments.against:
        parent = named_folder(arguments.against)
        base = ["--against-base", str(parent.base.absolute())] if parent.base is not None else []
        return ["--against", str(parent.folder.absolute()), "--against-name", parent.name, *base]
    if model.parent is None:
        return []
    return ["--against", str(model.parent.absolute()), "--against-name", model.parent.name]


def suite_word(text: str) -> str:
    """ "NAME=PATH" with an absolute path; a text without a name is called after its file."""
    from engine.jobs.spec_paths import NOT_FILES

    name, equals, path = text.partition("=")
    path = path if equals else text
    if path not in NOT_FILES:
        path = str(Path(path).expanduser().absolute())
    if not equals:
        name = re.sub(r"[^a-z0-9_-]+", "-", Path(path).stem.lower()).strip("-_") or "text"
    return f"{name}={path}"


def _measured(arguments: argparse.Namespace, words: list[str]) -> FolderReport:
    import msgspec

    from engine.jobs.retention_report import FolderReport
    from engine.paths import ensure_writable, state_home
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.commands.evaluate import interrupted
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    key = hashlib.sha256("\n".join(["abilities", *words]).encode()).hexdigest()[:16]
    work = ensure_writable(state_home() / "evaluations" / key)
    path, log = work / "report.json", work / "cells.jsonl"
    if not arguments.resume:
        log.unlink(missing_ok=True)
    failing = Failing(
        "evaluation.failed", "Go on with the same flags and --resume.", own_exit_code=True, patience_seconds=2.0
    )
    try:
        with ends_when_told(), growth_view(quiet=arguments.json) as view:
            flags = [*words, "--log", str(log), "--out", str(path)]
            run_module(
                "engine.evaluation.compare", flags, work / "evaluation.log", "measuring", shown_by(view),
                failing=failing,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise interrupted(arguments) from None
    report = msgspec.json.decode(path.read_bytes(), type=FolderReport)
    for file in (path, log):
        file.unlink(missing_ok=True)
    return report


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _print(report: FolderReport) -> None:
    from scaler_tui.abilities_text import ordered, report_figures, score_text, sentence

    output.say(report.verdict)
    if report.retention:
        output.say()
    for retained in ordered(report.retention):
        output.say(f"{retained.verdict:<8} {sentence(retained.words)}")
        output.say(f"         {report_figures(retained, unicode=False)}")
    if report.model.suites:
        output.say()
        rows = [[one.name, *_bits(report, one.name)] for one in report.model.suites]
        output.table(["BITS PER BYTE", *_heads(report)], rows, right=(1, 2))
    if report.model.benchmarks:
        output.say()
        rows = [
            [f"{one.task} {one.metric}", *_scores(report, one.task, one.metric, score_text), f"{one.questions:,}"]
            for one in report.model.benchmarks
        ]
        output.table(["BENCHMARK", *_heads(report), "QUESTIONS"], rows, right=(1, 2, 3))
    output.say()
    output.say(f"Measured in {format_duration(report.seconds)}; intervals of 95 % by paired bootstrap.")
    for note in report.notes:
        output.say(f"! {note}")


def _heads(report: FolderReport) -> list[str]:
    return ["NOW"] if report.parent is None else ["PARENT", "NOW"]


def _sides(report: FolderReport) -> list[Any]:
    return [side for side in (report.parent, report.model) if side is not None]


def _bits(report: FolderReport, name: str) -> list[str]:
    found = [next((one for one in side.suites if one.name == name), None) for side in _sides(report)]
    return ["-" if one is None else f"{one.bits_per_byte:.4f}" for one in found]


def _scores(report: FolderReport, task: str, metric: str, text: Any) -> list[str]:
    cells = []
    for side in _sides(report):
        one = next((b for b in side.benchmarks if (b.task, b.metric) == (task, metric)), None)
        cells.append("-" if one is None else text(one.metric, one.value, one.standard_error, unicode=False))
    return cells


def needles_and_benchmarks(error_for: list[str]) -> EngineError:
    """Two kinds of measurement in one command."""
    return EngineError(
        "evaluation.two_kinds",
        f"{', '.join(error_for)}: needles are measured by length, and not together with texts and benchmarks.",
        next_step="Run eval twice: once with needles, once with --suite, benchmarks or --against.",
    )
