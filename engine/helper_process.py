"""What the processes have in common that need torch for a while: environment, standard output, how they give up.

Owns the frame of `python -m engine.{proof,evaluation,rotary}`; what they compute is theirs. Must not import torch:
libgomp reads its waiting policy once, when torch is loaded, so `prepare` comes before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError, ExitCode

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}
"""Defaults; whatever the user has set stays."""


ASKER, ON_INPUT = "SCALER_WIZARD_ASKER", "input"
"""Set for a process whose standard input ends when whoever started it is gone."""
_LEAVING_SECONDS = 10.0


def leave_with_the_asker() -> None:
    """End this process when the one that started it is gone, be it by a kill: a killed command leaves nobody that goes
    on with its work. It ends by SystemExit in the main thread, so that processes it started itself are ended too; what
    cannot be interrupted is given ten seconds. Without `ASKER` in the environment it does nothing."""
    if os.environ.pop(ASKER, "") != ON_INPUT:
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    def watch() -> None:
        while os.read(0, 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LEAVING_SECONDS)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=watch, daemon=True).start()


def run(work: Callable[[], None], out_of_memory: Callable[[str], EngineError]) -> int:
    """Do `work`; returns the exit code. An EngineError becomes one {"error"} line; memory that ran out becomes what
    `out_of_memory` makes of the library's words."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        work()
    except EngineError as error:
        return _told(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _told(out_of_memory(" ".join(str(error).split())[:300]))
    return int(ExitCode.DONE)


def _told(error: EngineError) -> int:
    LineOut().write(json.dumps({"error": error.as_dict()}).encode() + b"\n")
    return int(error.exit_code)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the card or of this machine, in the words of torch and of Python."""
    text = str(error)
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


class LineOut:
    """Standard output, line by line. A reader that went away is no reason to stop: the file is the result."""

    def __init__(self) -> None:
        self._heard = True

    def write(self, line: bytes) -> None:
        """One whole line, at once."""
        if not self._heard:
            return
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        except BrokenPipeError:
            self._heard = False
            # What Python still holds for the pipe would raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(path: Path, value: object) -> None:
    """A struct as a file of JSON, complete or not there."""
    import msgspec

    staged = path.with_name(path.name + ".part")
    staged.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
    staged.replace(path)


def words(text: str) -> list[str]:
    """ "a,b c" as a list."""
    return [word for word in text.replace(",", " ").split() if word]


def tokens(text: str) -> int:
    """ "32k" as tokens; k is 1,024. Raises ValueError."""
    return int(text[:-1]) * 1024 if text[-1:] in ("k", "K") else int(text)
