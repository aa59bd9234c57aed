"""`eval`: what a model is worth at every length, measured: perplexity, needles, short text against its base.

Owns reading the flags, the text and the JSON. Must not import torch: the measuring is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, parse_length
from scaler_tui import context_text, output

if TYPE_CHECKING:
    from engine.jobs.length_report import LengthReport

TASKS = ("needle", "multi-needle", "key-value", "variables")
_OUTPUTS = ("output/merged", "output/model")
"""Where a run keeps a whole model."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A folder to measure, and what to compare its short text with."""

    folder: Path
    name: str
    base: Path | None = None


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for. Raises EngineError."""
    names = _list(arguments.tasks)
    benchmarks = [name for name in names if name not in (*TASKS, "none") and not _is_slip(name)]
    if benchmarks or arguments.suite or arguments.against or arguments.adapter:
        from scaler_tui.commands.abilities import evaluate_abilities, needles_and_benchmarks

        needles = [name for name in names if name in TASKS]
        if needles:
            raise needles_and_benchmarks(needles)
        return evaluate_abilities(arguments, benchmarks)
    _check(arguments)
    found = measured_model(arguments.model, arguments.base)
    _check_lengths(arguments, found)
    words = _words(arguments, found)
    report = _measure(arguments, words)
    if arguments.json:
        output.emit_json(_json(report))
        return int(ExitCode.DONE)
    from scaler_tui.commands.extend import print_report

    print_report(report)
    for note in report.notes:
        output.say(f"! {note}")
    for label, path in (("Report", arguments.out), ("Page", arguments.html)):
        if path is not None:
            output.say(f"{label:<7} {path}")
    return int(ExitCode.DONE)


def _is_slip(name: str) -> bool:
    """A needle's name, mistyped; everything else is lm-eval's to know."""
    from difflib import get_close_matches

    return bool(get_close_matches(name, TASKS, n=1, cutoff=0.8))


def require_new(*paths: Path | None) -> None:
    """Before anything is measured for them. Raises EngineError `evaluation.exists`, `output.unwritable`."""
    for path in paths:
        if path is None:
            continue
        _require_writable(path.expanduser().absolute())
        if path.expanduser().exists():
            raise EngineError(
                "evaluation.exists",
                f"{path} exists.",
                cause="Nothing is overwritten.",
                next_step="Choose another name, or remove it first.",
            )


def _require_writable(path: Path) -> None:
    """Tried in the folder that is there already: the others are made when there is something to write."""
    try:
        folder = next(one for one in path.parents if one.exists())
        hidden = folder / f".{path.name}.{os.getpid()}"
        hidden.touch(exist_ok=False)
        hidden.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _check(arguments: argparse.Namespace) -> None:
    require_new(arguments.out, arguments.html)
    unknown = [task for task in _list(arguments.tasks) if task not in (*TASKS, "none")]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], TASKS, n=1)
        raise EngineError(
            "evaluation.unknown_task",
            f"There is no task '{unknown[0][:40]}'.",
            next_step=(f"Did you mean {near[0]}? " if near else "") + f"Choose from {', '.join(TASKS)}; or none.",
        )


def _check_lengths(arguments: argparse.Namespace, found: Measured) -> None:
    """What no loading could help. Raises EngineError `evaluation.lengths`, `evaluation.no_room`."""
    from engine.advise.devices import free_words
    from engine.extension.needs import needs_of
    from engine.hardware.detect import detect
    from engine.jobs.length_report import SHORTEST_LENGTH
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model

    lengths = [parse_length(word) for word in _list(arguments.lengths)]
    if not lengths:
        return
    if min(lengths) < SHORTEST_LENGTH:
        raise EngineError(
            "evaluation.lengths",
            f"{min(lengths)} tokens are too few to measure anything.",
            next_step=f"Choose --lengths of {SHORTEST_LENGTH} and more.",
        )
    longest, architecture = max(lengths), analyze_model(resolve_model(str(found.folder)))
    needs = needs_of(architecture, detect(), longest, dtype=arguments.dtype, quantization=arguments.quantization)
    if not needs.fits:
        raise EngineError(
            "evaluation.no_room",
            f"{longest:,} tokens of {found.name} do not fit this machine.",
            cause=f"Reading them once takes about {format_bytes(needs.memory_bytes.likely)}; "
            f"{free_words(needs.devices)}.",
            next_step="Measure shorter --lengths, or load it smaller: --quantization nf4, --dtype bfloat16.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def _list(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────
def measured_model(named: str, base: str) -> Measured:
    """A model as everywhere, or a run by its id or folder. Raises EngineError `model.*`, `run.*`."""
    from engine.jobs import layout

    run_dir = _run_dir(named)
    if run_dir is not None:
        folder = next((run_dir / name for name in _OUTPUTS if (run_dir / name / "config.json").is_file()), None)
        if folder is None:
            raise EngineError(
                "run.no_model",
                f"Run {run_dir.name} has no whole model to measure.",
                cause="It keeps an adapter only." if (run_dir / layout.OUTPUT / "adapter").is_dir() else "",
                next_step=f"Make one: scaler-wizard merge {run_dir.name}",
            )
        return Measured(folder, run_dir.name, _folder_of(base) if base else _source_of_run(run_dir))
    folder = _folder_of(named)
    return Measured(folder, Path(named).name or named, _folder_of(base) if base else _source_of_extension(folder))


def _run_dir(named: str) -> Path | None:
    """The run that is meant; None where it is a model."""
    from engine.jobs.store import find_run

    if named.lower() == "demo" or (Path(named).expanduser() / "config.json").is_file():
        return None
    try:
        return find_run(named)
    except EngineError:
        return None


def _folder_of(named: str) -> Path:
    from engine.models.resolve import require_weights, resolve_model

    folder = require_weights(resolve_model(named))
    from scaler_tui.commands.extend_plans import require_tokenizer

    require_tokenizer(folder)
    return folder


def _source_of_run(run_dir: Path) -> Path | None:
    """The model that was trained, where it still is here."""
    from engine.jobs import layout
    from engine.jobs.spec_toml import load_spec

    try:
        return _folder_of(load_spec(run_dir / layout.SPEC).model.source)
    except EngineError:
        return None


def _source_of_extension(folder: Path) -> Path | None:
    """What an extended folder was made from, where it still is here."""
    import msgspec

    from engine.context.certificate import read_certificate

    try:
        certificate = read_certificate(folder)
        return None if certificate is None else _folder_of(certificate.source)
    except (msgspec.MsgspecError, EngineError):
        return None


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────
def _words(arguments: argparse.Namespace, found: Measured) -> list[str]:
    """The flags of the measuring process."""
    from scaler_tui.commands.extend_plans import text_named

    words = ["--model", str(found.folder.absolute()), "--name", found.name, "--seed", str(arguments.seed)]
    words += ["--base", str(found.base.absolute())] if found.base is not None else []
    lengths = [str(parse_length(word)) for word in _list(arguments.lengths)]
    words += ["--lengths", ",".join(lengths)] if lengths else []
    words += ["--tasks", ",".join(_list(arguments.tasks))] if arguments.tasks else []
    for name in ("depths", "prompts"):
        value = getattr(arguments, name)
        words += [f"--{name}", str(value)] if value else []
    for name, usual in (("dtype", "auto"), ("quantization", "none")):
        value = getattr(arguments, name)
        words += [f"--{name}", value] if value != usual else []
    text = text_named(arguments.text)
    return [*words, "--text", text] if text else words


def _measure(arguments: argparse.Namespace, words: list[str]) -> LengthReport:
    from engine.extension.steps import measured
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    work = _work_folder(words)
    path, log = work / "report.json", work / "cells.jsonl"
    if not arguments.resume:
        log.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    try:
        with ends_when_told(), growth_view(quiet=arguments.json) as view:
            report = measured([*words, "--log", str(log)], path, work / "evaluation.log", shown_by(view))
    except KeyboardInterrupt:
        raise interrupted(arguments) from None
    try:
        if arguments.out is not None:
            write_file(arguments.out.expanduser(), path.read_bytes())
        if arguments.html is not None:
            _write_page(arguments.html.expanduser(), report)
    except EngineError as error:
        error.next_step += " What was measured is kept: give the same flags with other files and --resume."
        raise
    for file in (path, log):
        file.unlink(missing_ok=True)
    return report


def interrupted(arguments: argparse.Namespace) -> EngineError:
    """How to go on."""
    again = ["scaler-wizard", "eval", arguments.model, "--resume"]
    return EngineError(
        "interrupted",
        "Interrupted; what was measured is kept.",
        next_step=f"Go on with the same flags and --resume: {shlex.join(again)} ...",
        exit_code=ExitCode.INTERRUPTED,
    )


def _work_folder(words: list[str]) -> Path:
    """Where a measurement with these flags keeps its log, so that --resume finds it."""
    from engine.paths import ensure_writable, state_home

    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    return ensure_writable(state_home() / "evaluations" / key)


def write_file(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises EngineError `output.unwritable`."""
    from engine.jobs.layout import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        "output.unwritable",
        f"{path} cannot be written.",
        cause=error.strerror or str(error),
        next_step="Choose a file in a folder you can write to.",
    )


def _write_page(path: Path, report: LengthReport) -> None:
    from engine.jobs.card_html import length_page

    write_file(path, length_page(report).encode())


def _json(report: LengthReport) -> dict[str, Any]:
    from engine.jobs.length_verdict import verdict

    found = verdict(report)
    shown = context_text.report_json(report) or {}
    return {
        "model": report.model,
        "window": report.window,
        "original": report.original,
        "verdict": found.words,
        "effective_length": found.effective,
        **shown,
        "report": report,
    }
