"""Other processes of an expansion or extension: the ones that need torch, started and listened to.

Owns starting them, their progress lines and their failures. Must not know what they compute. Each prints JSON lines:
{"phase", "done", "total", "words"} as it works, {"error": {...}} when it gives up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine import helper_process
from engine.errors import EngineError, ExitCode

_TAIL_BYTES = 2000
_REPORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an expansion is."""

    phase: str
    """ "checks", "layers", "weights", "proof", "done"."""
    done_bytes: int
    """Bytes, or steps in the phases "layers" and "proof"."""
    total_bytes: int
    words: str


Report = Callable[[Progress], None]
Hear = Callable[[bytes], None]
"""Takes a line as the process printed it."""


@dataclass(frozen=True, slots=True)
class Failing:
    """What is said of a process that ended badly without a word of its own."""

    code: str = "surgery.helper_failed"
    next_step: str = "Use --resume to try that step again; finished weights are kept."
    own_exit_code: bool = False
    """Its exit code says what kind of error it printed; else every one counts as a failed run."""
    patience_seconds: float = 20.0
    """A process that was asked to end gets this long."""


GROWING = Failing()


class Ticker:
    """Progress of the weights, said about ten times a second."""

    def __init__(self, report: Report, total_bytes: int, done_bytes: int) -> None:
        self._report, self._total, self._done = report, total_bytes, done_bytes
        self._last = 0.0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            self._report(Progress("weights", self._done, self._total, "writing weights"))


def run_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    phase: str,
    report: Report,
    *,
    failing: Failing = GROWING,
    hear: Hear | None = None,
) -> None:
    """Run `python -m module` to its end; `hear` gets every line too. Raises the EngineError it printed, or one of
    `failing`'s code. Nothing is written to its input: when that ends, this process is gone, and a module that calls
    `helper_process.leave_with_the_asker` ends too."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, helper_process.ASKER: helper_process.ON_INPUT},
        )  # fmt: skip
        failure: EngineError | None = None
        try:
            for raw in process.stdout or ():
                failure = _heard(raw, phase, report, failing) or failure
                if hear is not None:
                    hear(raw)
            code = process.wait()
        finally:
            _end(process, failing.patience_seconds)
    if failure is not None:
        if failing.own_exit_code and code in set(ExitCode):
            failure.exit_code = ExitCode(code)
        raise failure
    if code:
        raise EngineError(
            failing.code,
            f"{module} ended with exit code {code}.",
            cause=_tail(log) or ("It was killed; memory may have run out." if code < 0 else ""),
            next_step=failing.next_step,
            exit_code=ExitCode.RUN_FAILED,
        )


def _heard(raw: bytes, phase: str, report: Report, failing: Failing) -> EngineError | None:
    try:
        line: Any = msgspec.json.decode(raw)
    except msgspec.MsgspecError:
        return None
    if not isinstance(line, dict):
        return None
    error = line.get("error")
    if isinstance(error, dict):
        texts = {key: str(error.get(key, "")) for key in ("code", "what", "cause", "next_step")}
        return EngineError(
            texts["code"] or failing.code,
            texts["what"] or "A step failed.",
            cause=texts["cause"],
            next_step=texts["next_step"],
            exit_code=ExitCode.RUN_FAILED,
        )
    if "total" in line:
        report(Progress(phase, _whole(line.get("done")), _whole(line.get("total")), str(line.get("words", ""))))
    return None


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _end(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """After Ctrl+C: the terminal told the process too; give it a moment, then insist."""
    try:
        if process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
