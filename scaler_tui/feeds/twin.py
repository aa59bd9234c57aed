"""Asks a headless twin: a subcommand in a process of its own, its JSON or its error as values.

Owns that process. What takes long, or reads the user's files, happens there: the interface thread never waits and
never holds the rows in memory, and the wizard does exactly what the command line does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from engine.errors import EngineError, ExitCode
from scaler_tui.growth_progress import FOLLOWED

Say = Callable[[str], None]


def ask_twin(
    *words: str, say: Say | None = None, begun: Callable[[subprocess.Popen[str]], None] = lambda _: None
) -> dict[str, Any]:
    """The JSON of `scaler-wizard WORDS` (which ask for `--json`); `say` is given every line the command notes beside
    it, from another thread, as it comes; `begun` the process, so that it can be ended.
    Raises EngineError: the command's own, or `twin.failed`."""
    first = words[0]
    command = [sys.executable, "-m", "scaler_tui", *words]
    environment = {**os.environ, FOLLOWED: "1"} if say is not None else None
    noted: deque[str] = deque(maxlen=1)
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment,
        ) as process:
            begun(process)
            assert process.stdout is not None
            assert process.stderr is not None
            ear = threading.Thread(target=_listen, args=(process.stderr, noted, say), name=f"{first} notes")
            ear.start()
            answer = process.stdout.read()
            ear.join()
            code = process.wait()
    except OSError as failure:
        raise EngineError("twin.failed", f"`{first}` could not be started.", cause=str(failure)) from failure
    try:
        document: dict[str, Any] = json.loads(answer)
    except json.JSONDecodeError:
        last = noted[-1] if noted else "no output"
        raise EngineError("twin.failed", f"`{first}` ended without an answer.", cause=last) from None
    error = document.get("error")
    if error is not None:
        raise EngineError(
            error["code"],
            error["what"],
            cause=error["cause"],
            next_step=error["next_step"],
            exit_code=ExitCode(code) if code in set(ExitCode) else ExitCode.RUN_FAILED,
        )
    return document


def _listen(notes: IO[str], noted: deque[str], say: Say | None) -> None:
    """To the end of what is noted; the last line may be why there is no answer."""
    for line in notes:
        if line.strip():
            noted.append(line.strip())
            if say is not None:
                say(line.strip())
