"""`scaler-wizard schedule SPEC`: what a job will do over its tokens, and what each stage takes; starts nothing.

Owns what is printed. Must not compute: every figure comes from the engine. Its exit code is 0 whatever the verdict is,
as that of `estimate`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output
from scaler_tui.machines import machine_for

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate
    from engine.jobs.spec import JobSpec
    from scaler_tui.schedule_text import Look


def schedule(arguments: argparse.Namespace) -> int:
    """The schedule of a spec file."""
    from engine.corpus.named_files import require_files
    from engine.jobs.spec_toml import load_spec, naming_lines, with_absolute_paths

    spec = with_absolute_paths(load_spec(arguments.spec), arguments.spec.parent.absolute())
    if not spec.needs_data:
        raise EngineError(
            "schedule.nothing",
            f'task = "{spec.task.value}" trains nothing: there is no schedule.',
            next_step=f"Its plan: scaler-wizard estimate {shlex.quote(str(arguments.spec))}",
        )
    with naming_lines(arguments.spec):
        require_files(spec)
        job = estimate_of(spec, arguments.gpu)
    if arguments.json:
        from engine.advise.schedule_figures import to_json

        output.emit_json(to_json(job))
        return int(ExitCode.DONE)
    from scaler_tui.schedule_text import job_lines

    for line in job_lines(job, look_of_stdout()):
        output.say(line)
    return int(ExitCode.DONE)


def estimate_of(spec: JobSpec, gpu: str = "") -> JobEstimate:
    """A spec with absolute file names, stage by stage, on this machine or on a named card. Raises EngineError."""
    from engine.advise.spec_stages import estimate_job
    from engine.advise.trainable import check_trainable
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model
    from scaler_tui.preflight import text_of

    ref = resolve_model(spec.model.source, revision=spec.model.revision)
    check_trainable(spec, ref)
    text, notes = text_of(spec, ref.path)
    for note in notes:
        output.note(note)
    return estimate_job(spec, ref, analyze_model(ref), machine_for(gpu), text, base_on_disk=ref.has_weights)


def look_of_stdout() -> Look:
    """Blocks where the character set has them."""
    from scaler_tui.schedule_text import Look

    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return Look(ascii=True)
    return Look()
