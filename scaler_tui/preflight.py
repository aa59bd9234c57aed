"""What is looked at before a spec starts headless: its files, its data, the memory and the disk it will need.

Owns the refusal and the start itself, so that a job forced past the refusal says so in its own journal. The figures
and the ways out are the engine's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes

if TYPE_CHECKING:
    from engine.advise.appraisal import Appraisal
    from engine.advise.spec_growth import SpecGrowth
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from engine.models.source import ModelRef


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


def check(spec: JobSpec, *, base: Path, force: bool) -> Checked:
    """Hold `spec` against this machine. Files named in it are relative to `base`. Raises EngineError; with code 4
    and the ways out when it does not fit, unless `force`."""
    from engine.advise.spec_growth import growth_of
    from engine.advise.spec_plan import appraise_spec, load_of_spec
    from engine.data.load import survey
    from engine.data.shape import data_shape
    from engine.extension.spec_window import reach_of
    from engine.hardware.detect import detect
    from engine.jobs.spec import ContextSection, Task
    from engine.jobs.spec_toml import with_absolute_paths
    from engine.models.analyze import analyze_model
    from engine.paths import ensure_writable, runs_dir

    ensure_writable(runs_dir())  # a disk that nobody can write to is another matter than one that is too full
    spec = with_absolute_paths(spec, base.absolute())
    ref = _model_files(spec)
    assert ref.path is not None
    architecture, machine = analyze_model(ref), detect()
    growth = growth_of(spec, ref, architecture)
    window = reach_of(spec, ref.path).notes if spec.context != ContextSection() else ()
    _require_libraries(spec, machine)
    if growth is not None and not spec.needs_data:
        return _only_growth(spec, ref, growth)
    if spec.task is Task.EXTEND:
        found = appraise_spec(spec, architecture, machine, load_of_spec(spec, architecture, machine, 0.0))
        return _checked(spec, found, [*ref.notes, *window], force=force)
    report = survey(spec.data, ref.path)
    notes = [*ref.notes, *window, *(f"Data: {warning}" for warning in report.warnings)]
    notes += [f"Growth: {warning}" for warning in growth.warnings] if growth else []
    shape = data_shape(report, batch_size=spec.training.batch_size, base_text=spec.data.base_text)
    load = load_of_spec(spec, architecture, machine, shape.tokens, base_on_disk=True, data=shape)
    found = appraise_spec(spec, architecture, machine, load, trained_share=report.train.trained_share, growth=growth)
    if ref.needs_download:
        notes.append(_download_note(ref, architecture, machine))
    return _checked(spec, found, notes, force=force)


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


def _require_libraries(spec: JobSpec, machine: Machine) -> None:
    """What the worker would refuse after its start is refused before it. Raises EngineError."""
    from engine.advise.fit import INSTALL_BITSANDBYTES
    from engine.jobs.spec import Optimizer

    optimizer = spec.training.optimizer
    if optimizer is not Optimizer.ADAMW and not any(gpu.vendor == "nvidia" for gpu in machine.gpus):
        raise EngineError(
            "spec.optimizer_needs_cuda",
            f'optimizer = "{optimizer.value}" needs an NVIDIA card.',
            cause=f"This machine: {machine.label}.",
            next_step='Set training.optimizer = "adamw"; for an adapter it costs little memory.',
        )
    if spec.quantization_kind != "none" and machine.libraries.get("bitsandbytes", "unknown") is None:
        raise EngineError(
            "spec.no_bitsandbytes",
            "4-bit weights need bitsandbytes, which is not installed.",
            next_step=INSTALL_BITSANDBYTES,
        )
