"""The command line as a stranger meets it: real processes, both streams, the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def environment(**changes: str) -> dict[str, str]:
    """This test's environment, with the checkout importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def command(*words: str) -> list[str]:
    """How the program is started."""
    return [sys.executable, "-m", "scaler_tui", *words]


def cli(
    *words: str,
    stdin: str | bytes = "",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = 120,
) -> Result:
    """Run a command to its end."""
    result = subprocess.run(
        command(*words),
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        cwd=cwd or ROOT,
        env=environment(**(env or {})),
        timeout=seconds,
        check=False,
    )
    return Result(result.returncode, result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace"))


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return value
