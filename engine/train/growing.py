"""Growth as a step of a run: planned, carried out with progress in the journal, and its proof written down.

Owns the way between the spec's [expansion], `engine.surgery.expand` and the journal. Must not know training. Killed at
any moment, the same call goes on: finished weight files are kept in the staging folder beside the output.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.advise.growth_plan import PlannedGrowth, plan_growth, shape_of
from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import CERTIFICATE_NAME, Certificate, read_certificate
from engine.jobs import control, layout
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import ExpansionSection
from engine.surgery.expand import ExpandRequest, Progress, expand
from engine.surgery.staging import ORDER, staging_folder
from engine.train.signals import PauseRequested

_PHASES = {"checks": "planning", "layers": "making layers", "weights": "writing", "proof": "proving", "done": "done"}
_SECONDS_BETWEEN_WORDS = 0.25
_RECORD = "growth.json"
_GB = 1_000_000_000


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """`stages/NN/growth.json`: written before the first byte, so that a later attempt knows the output as its own."""

    target: str


@dataclass(frozen=True, slots=True)
class GrowthStep:
    """One growth of a run."""

    run_dir: Path
    journal: JournalWriter
    folder: Path
    """`stages/NN`, for the record."""
    source: Path
    target: Path
    section: ExpansionSection


def grow(step: GrowthStep) -> Certificate:
    """The grown model at `step.target`, made now or by an earlier attempt. Raises EngineError, PauseRequested."""
    step.folder.mkdir(parents=True, exist_ok=True)
    begun = (step.folder / _RECORD).is_file()
    if begun and (made := read_certificate(step.target)) is not None and not staging_folder(step.target).exists():
        tell_proof(step, made)
        return made
    step.journal.write(ev.Phase(t=time.time(), name="growing", detail=f"to {step.target.name}"))
    step.journal.write(ev.Growth(t=time.time(), phase="planning", words="reading the source"))
    if not begun:
        require_free(step.target)
        record = _Record(target=str(step.target))
        layout.write_atomic(step.folder / _RECORD, msgspec.json.format(msgspec.json.encode(record)))
    _discard_unordered(staging_folder(step.target))
    growth = plan_growth(step.section, shape_of(step.source))
    step.target.parent.mkdir(parents=True, exist_ok=True)
    listener = _Listener(step, growth)
    proof_text = step.section.proof_text
    request = ExpandRequest(
        step.source,
        step.target,
        growth.choice.plan,
        shard_bytes=round(step.section.shard_gb * _GB),
        proof=step.section.proof,
        proof_text=None if proof_text in ("", "demo") else Path(proof_text),
        resume=staging_folder(step.target).exists(),
    )
    try:
        certificate = expand(request, listener)
    except EngineError as error:
        if error.code == "expansion.not_exact":
            _tell_failed_proof(step)
        raise
    tell_proof(step, certificate)
    return certificate


def require_free(target: Path) -> None:
    """Nothing is overwritten, nor mixed with what another expansion left. Raises EngineError `expansion.exists`."""
    taken = next((path for path in (target, staging_folder(target)) if path.exists() or path.is_symlink()), None)
    if taken is not None:
        raise EngineError(
            "expansion.exists",
            f"{taken} exists already; nothing is overwritten.",
            next_step="Name another folder in expansion.out, or remove this one.",
            exit_code=ExitCode.BAD_INPUT,
        )


def _discard_unordered(staging: Path) -> None:
    """A staging folder whose order was never written holds nothing."""
    if staging.is_dir() and not (staging / ORDER).is_file() and not (staging / CERTIFICATE_NAME).is_file():
        shutil.rmtree(staging)


class _Listener:
    """Turns the surgery's words into events, and a control file into a pause between two slices of work."""

    def __init__(self, step: GrowthStep, growth: PlannedGrowth) -> None:
        self._step = step
        self._before, self._after = growth.before.parameters, growth.choice.parameters
        self._last = (0.0, "")

    def __call__(self, progress: Progress) -> None:
        now, (then, phase) = time.monotonic(), self._last
        if progress.phase == phase and now - then < _SECONDS_BETWEEN_WORDS:
            return
        self._last = (now, progress.phase)
        journal = self._step.journal
        if progress.phase == "proof" != phase:
            journal.write(ev.Phase(t=time.time(), name="proving"))
        journal.write(
            ev.Growth(
                t=time.time(),
                phase=_PHASES.get(progress.phase, progress.phase),
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
                words=progress.words,
                parameters_before=self._before,
                parameters_after=self._after,
            )
        )
        command = control.take(self._step.run_dir) if progress.phase != "done" else None
        if command in ("pause", "stop"):
            journal.write(ev.Control(t=time.time(), command=command))
            raise PauseRequested("", command)


def tell_proof(step: GrowthStep, certificate: Certificate) -> None:
    """The certificate's findings as an event; nothing where no proof was asked for."""
    if certificate.proof is None:
        return
    report = msgspec.convert(msgspec.to_builtins(certificate.proof), ev.ProofReport)
    step.journal.write(
        ev.ProofReady(
            t=time.time(),
            proof=report,
            model=shown_path(step.target, step.run_dir),
            operators=certificate.operators,
            parameters_before=certificate.parameters_before,
            parameters_after=certificate.parameters_after,
            exact=certificate.exact,
            bytes_written=certificate.bytes_written,
            peak_rss_bytes=certificate.peak_rss_bytes,
            seconds=certificate.seconds,
        ),
        sync=True,
    )


def _tell_failed_proof(step: GrowthStep) -> None:
    found = read_certificate(staging_folder(step.target))
    if found is not None:
        tell_proof(step, found)


def shown_path(path: Path, run_dir: Path) -> str:
    """Relative to the run directory where it lies inside."""
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else str(path)
