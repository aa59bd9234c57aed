"""Asks a headless twin: a subcommand in a process of its own, its JSON or its error as values.

Owns that process. What takes long, or reads the user's files, happens there: the interface thread never waits and
never holds the rows in memory, and the wizard does exactly what the command line does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from engine.errors import EngineError, ExitCode


def ask_twin(*words: str) -> dict[str, Any]:
    """The JSON of `scaler-wizard WORDS` (which ask for `--json`). Raises EngineError: the command's own, or
    `twin.failed`."""
    first = words[0]
    command = [sys.executable, "-m", "scaler_tui", *words]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as failure:
        raise EngineError("twin.failed", f"`{first}` could not be started.", cause=str(failure)) from failure
    try:
        document: dict[str, Any] = json.loads(result.stdout)
    except json.JSONDecodeError:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise EngineError("twin.failed", f"`{first}` ended without an answer.", cause=last) from None
    error = document.get("error")
    if error is not None:
        known = result.returncode in set(ExitCode)
        raise EngineError(
            error["code"],
            error["what"],
            cause=error["cause"],
            next_step=error["next_step"],
            exit_code=ExitCode(result.returncode) if known else ExitCode.RUN_FAILED,
        )
    return document
