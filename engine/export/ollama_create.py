"""`ollama create`, where the program is installed.

Owns starting it. Must not know Modelfiles, numpy or torch.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from engine.errors import EngineError, ExitCode
from engine.export.runtime import without_tokens
from engine.jobs.export_report import ExportReport

_PATIENCE_SECONDS = 3600.0


def create(command: Sequence[str]) -> bool:
    """Run it where Ollama is installed; False where it is not. Raises EngineError `export.ollama`."""
    program = shutil.which(command[0])
    if program is None:
        return False
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            env=without_tokens(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        failure = "" if not ended.returncode else (ended.stderr.strip().splitlines() or ["no words"])[-1][:300]
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        raise EngineError(
            "export.ollama",
            "`ollama create` failed; the files are written.",
            cause=failure,
            next_step=f"Start Ollama and run it yourself: {shlex.join(command)}",
            exit_code=ExitCode.RUN_FAILED,
        )
    return True


def create_from(report: ExportReport) -> tuple[str, ...]:
    """The names under which Ollama has the exported sizes now; () where the program is not here. Raises EngineError
    `export.ollama`."""
    commands: list[list[str]] = [[]]
    for word in shlex.split(report.next_step):
        commands[-1].append(word) if word != "&&" else commands.append([])
    return tuple(command[2] for command in commands if create(command))
