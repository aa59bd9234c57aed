"""Run directories of jobs that grow a model: a recorded certificate, and journals of growing, growing again, trained.

The certificate is a real one: `scaler-wizard expand demo OUT --to 2x --plan mixed`, only its source renamed.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.expansion.certificate import CERTIFICATE_NAME, Certificate
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL, RUNNER_JOURNAL
from engine.jobs.liveness import current_boot_id, process_start
from engine.jobs.spec import ExpansionSection, JobSpec, Task
from engine.jobs.store import create_run

RECORDED = Path(__file__).resolve().parents[1] / "data" / "expansion" / "demo-mixed.json"
MIB = 1024**2


@dataclass(frozen=True)
class GrowthRun:
    """What the journal should say."""

    phase: str = "writing"
    done_bytes: int = 6 * MIB
    total_bytes: int = 14 * MIB
    seconds: float = 4.0
    """Since the phase began."""
    proven: bool = False
    keeps_certificate: bool = True
    outcome: str = ""
    stages: int = 0


def grown_folder(folder: Path) -> Path:
    """A folder with the recorded certificate in it."""
    folder.mkdir(parents=True)
    shutil.copy(RECORDED, folder / CERTIFICATE_NAME)
    return folder


def recorded() -> Certificate:
    """The certificate itself."""
    return msgspec.json.decode(RECORDED.read_bytes(), type=Certificate)


def growth_spec() -> JobSpec:
    """Growth of the demo model, its added blocks trained afterwards."""
    return JobSpec(task=Task.NEW_BLOCKS, name="deeper-demo", expansion=ExpansionSection(layers=10))


def write_growth_run(run: GrowthRun, *, now: float | None = None) -> Path:
    """Make the run directory; returns it. A live run names this process as runner and worker."""
    run_dir = create_run(growth_spec())
    now = time.time() if now is None else now
    began = now - run.seconds - 2
    pid, started = os.getpid(), process_start(os.getpid()) or 0.0
    with JournalWriter(run_dir / RUNNER_JOURNAL) as runner:
        runner.write(ev.RunnerStart(t=began - 0.5, pid=pid, process_start=started, boot_id=current_boot_id()))
        runner.write(ev.WorkerStart(t=began - 0.2, pid=pid, process_start=started, attempt=1))
        runner.write(ev.Heartbeat(t=now))
        if run.outcome:
            runner.write(ev.RunnerEnd(t=now, outcome=run.outcome))
    with JournalWriter(run_dir / JOURNAL) as journal:
        for event in _events(run, began, now):
            journal.write(event)
    if run.proven and run.keeps_certificate:
        grown_folder(run_dir / "output" / "model")
    return run_dir


def _events(run: GrowthRun, began: float, now: float) -> list[ev.AnyEvent]:
    certificate = recorded()
    sizes = {
        "parameters_before": certificate.parameters_before,
        "parameters_after": certificate.parameters_after,
    }
    out: list[ev.AnyEvent] = [ev.Start(t=began, attempt=1, pid=os.getpid(), device="cpu, 2 threads")]
    if run.stages:
        out.append(ev.Stage(t=began, index=2, count=run.stages, name="grow", task="new_blocks"))
    out.append(ev.Phase(t=began, name="growing"))
    out.append(ev.Growth(t=began, phase="planning", **sizes))
    out.append(ev.Growth(t=now - run.seconds, phase=run.phase, total_bytes=run.total_bytes, **sizes))
    out.append(
        ev.Growth(
            t=now,
            phase=run.phase,
            done_bytes=run.done_bytes,
            total_bytes=run.total_bytes,
            words="writing weights",
            **sizes,
        )
    )
    if run.proven:
        assert certificate.proof is not None
        out.append(
            ev.ProofReady(
                t=now,
                proof=msgspec.convert(msgspec.to_builtins(certificate.proof), ev.ProofReport),
                model="output/model",
                operators=certificate.operators,
                exact=certificate.exact,
                bytes_written=certificate.bytes_written,
                peak_rss_bytes=certificate.peak_rss_bytes,
                seconds=certificate.seconds,
                **sizes,
            )
        )
    if run.outcome:
        out.append(ev.End(t=now, outcome=run.outcome))
    return out
