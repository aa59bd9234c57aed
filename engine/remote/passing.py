"""What is asked of a mirror, asked of the run itself: pause, stop, checkpoint, resume, merge.

Owns passing a command on and seeing to the tail afterwards. The host decides; its refusal is ours. Must not know
screens: they ask the mirror as they would ask any run (`engine.jobs.control`).
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.jobs import elsewhere
from engine.jobs.elsewhere import RemoteRecord
from engine.remote import tail
from engine.remote.begin import call

RESUMED = "resume"


def pass_on(run_dir: Path, command: str) -> Any:
    """The host's answer as JSON. Raises EngineError: its refusal, or that it cannot be reached."""
    record = required_record(run_dir)
    far = tail.far_of(record)
    run_id = PurePosixPath(record.directory).name
    answer = call(far, [*record.program, command, run_id, "--json"], record.environment)
    if command == RESUMED:
        now = time.time()
        link = elsewhere.link_of(run_dir)
        elsewhere.write_link(
            run_dir, msgspec.structs.replace(link, heard=now, looked=now, connected=True, working=True)
        )
    tail.start(run_dir)
    return answer


def required_record(run_dir: Path) -> RemoteRecord:
    """Where the run really is. Raises EngineError `run.not_elsewhere`."""
    record = elsewhere.record_of(run_dir)
    if record is None:
        raise EngineError(
            "run.not_elsewhere",
            f"Run {run_dir.name} is one of this machine's own.",
            cause="There is no other machine that has anything of it.",
            next_step="Runs of other machines are started with scaler-wizard remote HOST SPEC.",
        )
    return record
