"""What is looked at before a spec starts headless: its files, its data, the memory and the disk it will need.

Owns the refusal and the start itself, so that a job forced past the refusal says so in its own journal. The figures
and the ways out are the engine's.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.advise.appraisal import Appraisal
    from engine.advise.spec_growth import SpecGrowth
    from engine.advise.spec_stages import JobEstimate, Text
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from engine.models.source import ModelRef
    from engine.schedule.amounts import SourceAmount


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec that may start."""

    spec: JobSpec
    """Absolute file names, and the prediction for this machine."""
    notes: tuple[str, ...]
    """To be shown before the start: what the data report warns of, a tight fit."""
    forced: str
    """Why it would have been refused without `--force`; "" when it fits. It becomes the journal's first line."""
    disk_bytes: int
    """What the run directory will hold."""
    job: JobEstimate | None = None
    """Stage by stage, of a job that streams text or has stages."""


def check(spec: JobSpec, *, base: Path, force: bool) -> Checked:
    """Hold `spec` against this machine. Files named in it are relative to `base`. Raises EngineError, with the key of
    the spec where it is about one; with code 4 and the ways out when it does not fit, unless `force`."""
    from engine.adapters.preflight import check_adapters_of, check_mergeable, heldout_of
    from engine.advise.spec_growth import growth_of
    from engine.advise.spec_plan import appraise_spec, load_of_spec
    from engine.advise.spec_stages import estimate_job
    from engine.advise.trainable import check_trainable
    from engine.corpus.named_files import require_files
    from engine.extension.spec_window import reach_of
    from engine.hardware.detect import detect
    from engine.jobs.spec import ContextSection, Task
    from engine.jobs.spec_toml import with_absolute_paths
    from engine.models.analyze import analyze_model
    from engine.paths import ensure_writable, runs_dir
    from scaler_tui.benchmarks_check import require_benchmarks
    from scaler_tui.export_check import check_export_of
    from scaler_tui.teacher_check import Pupil, teacher_notes

    ensure_writable(runs_dir())  # a disk that nobody can write to is another matter than one that is too full
    spec = with_absolute_paths(spec, base.absolute())
    require_files(spec)
    ref = _model_files(spec)
    assert ref.path is not None
    architecture, machine = analyze_model(ref), detect()
    growth = growth_of(spec, ref, architecture)
    window = reach_of(spec, ref.path).notes if spec.context != ContextSection() else ()
    _require_libraries(spec, machine)
    _require_cards(spec, machine)
    exported = check_export_of(spec, ref, growth, architecture)
    if growth is not None and not spec.needs_data:
        return exported.on(_only_growth(spec, ref, growth))
    check_mergeable(spec, ref, check_adapters_of(spec, ref))
    if spec.task is Task.MIX:
        heldout_of(spec, ref.path)
        _check_named_tasks(spec)
        require_benchmarks(spec)
    if spec.task in (Task.EXTEND, Task.MIX):
        found = appraise_spec(spec, architecture, machine, load_of_spec(spec, architecture, machine, 0.0))
        return exported.on(_checked(spec, found, [*ref.notes, *window], force=force))
    check_trainable(spec, ref)
    _check_named_tasks(spec)
    require_benchmarks(spec)
    text, words = text_of(spec, ref.path)
    tokens = text.rows.tokens[1] * text.rows.trained_share if text.rows is not None else 0.0
    grown = growth.architecture if growth is not None else architecture
    pupil = Pupil(ref, architecture, grown, tokens, text.longest_row)
    words += teacher_notes(spec, pupil, machine)
    job = estimate_job(spec, ref, architecture, machine, text)
    notes = [*ref.notes, *window, *words, *job.warnings]
    if ref.needs_download:
        notes.append(_download_note(ref, architecture, machine))
    checked = exported.on(_checked(spec, job.whole, notes, force=force))
    return replace(checked, job=job if spec.streams or spec.stages else None)


def text_of(spec: JobSpec, model_dir: Path | None) -> tuple[Text, list[str]]:
    """What the spec trains on, and what is to be said of it: sources by a sample of their text, rows counted. Files are
    named absolutely. Raises EngineError `data.*`, `corpus.*`."""
    from engine.advise.spec_stages import Text

    if spec.streams:
        from engine.corpus.sizes import amounts_of

        amounts = amounts_of(spec, model_dir)
        return Text(amounts), [*_text_words(spec, amounts)]
    from engine.data.load import survey
    from engine.data.shape import data_shape

    assert model_dir is not None
    report = survey(spec.data, model_dir)
    if spec.distributed.world > report.sequences:
        raise EngineError(
            "spec.processes",
            f"{spec.distributed.world} processes cannot share {report.sequences} sequences: some would have none.",
            cause=f"{report.train.rows_kept:,} rows of {spec.data.train} fill {report.sequences:,} sequences.",
            next_step="Use fewer processes, or more data.",
            key="distributed.processes",
        )
    shape = data_shape(report, batch_size=spec.training.batch_size, base_text=spec.data.base_text)
    longest = report.lengths[-1].low if report.lengths else 0
    return Text(rows=shape, row_sequences=report.sequences, longest_row=longest), [
        f"Data: {warning}" for warning in report.warnings
    ]


def _checked(spec: JobSpec, found: Appraisal, notes: list[str], *, force: bool) -> Checked:
    """With what is said of the fit. Raises EngineError where it does not and is not forced."""
    from engine.advise.refusal import refusal_of
    from engine.advise.spec_plan import prediction_of
    from engine.estimate.estimate import Verdict

    refusal = ""
    if found.verdict is Verdict.NO:
        error = refusal_of(found, "fit.no", spec_keys=True)
        if not force:
            raise _with_force(error)
        refusal = f"Started with --force although it was refused: {error.what}"
        notes = [*notes, f"Forced: {error.what}"]
    elif found.verdict is Verdict.TIGHT:
        notes = [*notes, f"Tight: {found.judgement.reason}."]
    spec = msgspec.structs.replace(spec, prediction=prediction_of(found))
    return Checked(spec, tuple(notes), refusal, max(round(found.disk.likely), 1))


def _only_growth(spec: JobSpec, ref: ModelRef, growth: SpecGrowth) -> Checked:
    """A job that trains nothing: it needs the model's weights, and disk for the larger one."""
    notes = [*ref.notes, *(f"Growth: {warning}" for warning in growth.warnings)]
    return Checked(spec, tuple(notes), "", max(round(growth.written_bytes), 1))


def _with_force(error: EngineError) -> EngineError:
    return EngineError(
        error.code,
        error.what,
        cause=error.cause,
        next_step=f"{error.next_step} --force starts it all the same, and the journal says so.",
        exit_code=error.exit_code,
    )


def create(checked: Checked) -> Path:
    """The run directory; nothing works in it yet. Raises EngineError when the disk is too full."""
    from engine.jobs import events as ev
    from engine.jobs import layout
    from engine.jobs.journal import JournalWriter
    from engine.jobs.launch import MINIMUM_FREE_BYTES, require_free_disk
    from engine.jobs.store import create_run
    from engine.paths import ensure_writable, runs_dir

    require_free_disk(ensure_writable(runs_dir()), checked.disk_bytes + MINIMUM_FREE_BYTES)
    run_dir = create_run(checked.spec)
    if checked.forced:
        with JournalWriter(run_dir / layout.JOURNAL) as journal:
            journal.write(ev.Warn(t=time.time(), message=checked.forced), sync=True)
    return run_dir


def _model_files(spec: JobSpec) -> ModelRef:
    """The model with at least its config and tokenizer here, fetched when its hub id is known but not cached."""
    from engine.models.resolve import resolve_model

    ref = resolve_model(spec.model.source, revision=spec.model.revision)
    if ref.path is None and ref.repo_id:
        ref = resolve_model(ref.repo_id, revision=spec.model.revision or "main")
    if ref.path is None:
        raise EngineError(
            "model.no_weights",
            f"'{spec.model.source}' names a known shape, not weights that can be trained.",
            next_step="Give a folder or a hub id in [model] source.",
        )
    if not ref.has_weights and not ref.repo_id:
        raise EngineError(
            "model.no_weights",
            f"{ref.path} has no safetensors files.",
            next_step="Put the weights beside config.json.",
        )
    return ref


def _download_note(ref: ModelRef, architecture: Architecture, machine: Machine) -> str:
    """Says what will be fetched. Raises EngineError when the model cache has no room for it."""
    needed = architecture.weight_bytes or 2 * architecture.parameters
    cache = next((disk for disk in machine.disks if disk.purpose == "models"), None)
    if cache is not None and cache.free_bytes < needed:
        raise EngineError(
            "disk.full",
            f"{cache.path} has {format_bytes(cache.free_bytes)} free; {ref.repo_id} takes {format_bytes(needed)}.",
            next_step="Free some space, or set HF_HOME to a folder on a larger disk.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    return f"{ref.repo_id} is downloaded first: {format_bytes(needed)}."


def _text_words(spec: JobSpec, amounts: Sequence[SourceAmount]) -> Iterator[str]:
    """What is odd about the text, as far as a sample tells. Of two documents one is held out, of one none."""
    for one in amounts:
        if one.unreadable:
            yield f"Data: nothing of {one.name} can be read: {one.unreadable}"
        elif spec.stream.heldout_share and spec.stream.heldout_tokens and 0 < one.documents < 1.5:
            yield (
                f"Data: {one.name} seems to be a single document, which is trained on; nothing is left to set aside, "
                "and it has no held-out loss of its own."
            )


def _require_cards(spec: JobSpec, machine: Machine) -> None:
    """A process per card of this machine; processors take any number. Raises EngineError."""
    processes, cards = spec.distributed.processes, len(machine.gpus)
    if cards and processes > cards and spec.distributed.nodes == 1:
        raise EngineError(
            "spec.processes",
            f"distributed.processes = {processes}, but this machine has {cards} card{'s' if cards > 1 else ''}.",
            next_step=f"Set distributed.processes = {cards}, or run it on a machine with more cards.",
            key="distributed.processes",
        )


def _check_named_tasks(spec: JobSpec) -> None:
    """Limits on a benchmark that is none of those the job's own files name. Raises EngineError."""
    from engine.jobs.benchmark_files import is_file
    from engine.jobs.spec_checks_evaluation import DEMO, DEMO_SKILLS

    files = [task for task in spec.evaluation.tasks if is_file(task)]
    others = [task for task in spec.evaluation.tasks if task not in (*files, DEMO)]
    if others or not files:
        return  # what a group of lm-eval's own holds is known when it is loaded, before training
    named = {word for path in files for word in _words_of(Path(path))} | set(DEMO_SKILLS) | {DEMO}
    named |= {"base_text", *(suite.name for suite in spec.suites), *(source.name for source in spec.sources)}
    for number, limit in enumerate(spec.retention, 1):
        if limit.on not in named:
            raise EngineError(
                "spec.conflict",
                f'retention[{number}].on = "{limit.on}" is nothing that this job measures.',
                cause=f"It is not named in {', '.join(files)}.",
                next_step="Name a benchmark, a suite, a source, or base_text.",
                key=f"retention[{number}].on",
            )


def _words_of(path: Path) -> set[str]:
    """Names in a benchmark's file."""
    try:
        return set(re.findall(r"[\w-]+", path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            "benchmark.not_found",
            f"Cannot read the benchmark {path}.",
            cause=str(error),
            next_step="Correct evaluation.tasks.",
            key="evaluation.tasks",
        ) from error


def _require_libraries(spec: JobSpec, machine: Machine) -> None:
    """What the worker would refuse after its start is refused before it. Raises EngineError."""
    from engine.advise.fit import INSTALL_BITSANDBYTES
    from engine.jobs.spec import Optimizer
    from engine.jobs.spec_distillation import Held

    optimizer = spec.training.optimizer
    if optimizer is not Optimizer.ADAMW and not any(gpu.vendor == "nvidia" for gpu in machine.gpus):
        raise EngineError(
            "spec.optimizer_needs_cuda",
            f'optimizer = "{optimizer.value}" needs an NVIDIA card.',
            cause=f"This machine: {machine.label}.",
            next_step='Set training.optimizer = "adamw"; for an adapter it costs little memory.',
            key="training.optimizer",
        )
    if machine.libraries.get("bitsandbytes", "unknown") is not None:
        return
    if spec.distillation.distils and spec.distillation.held is Held.NF4:
        raise EngineError(
            "spec.no_bitsandbytes",
            "A teacher in 4 bits needs bitsandbytes, which is not installed.",
            next_step='Install it: pip install bitsandbytes. Or set distillation.held = "auto".',
            key="distillation.held",
        )
    if spec.quantization_kind != "none":
        raise EngineError(
            "spec.no_bitsandbytes",
            "4-bit weights need bitsandbytes, which is not installed.",
            next_step=INSTALL_BITSANDBYTES,
        )
