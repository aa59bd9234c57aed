"""Reads training data through the headless twin, `scaler-wizard data check`, in a process of its own.

Owns the process and the message that brings its report: a large file takes a while, and a terminal must not wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError

DataKey = tuple[str, str, int]
"""File, model, longest row in tokens."""


class DataChecked(Message):
    """The process has answered: a report, or an error."""

    def __init__(self, key: DataKey, report: dict[str, Any] | None, error: EngineError | None) -> None:
        super().__init__()
        self.key = key
        self.report = report
        self.error = error


def run_check(key: DataKey) -> tuple[dict[str, Any] | None, EngineError | None]:
    """Run the twin and read its JSON."""
    data_file, model, max_length = key
    command = [sys.executable, "-m", "scaler_tui", "data", "check", "--model", model, "--json"]
    command += ["--max-length", str(max_length)] if max_length else []
    result = subprocess.run(
        [*command, "--", data_file], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    try:
        document = json.loads(result.stdout)
    except json.JSONDecodeError:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        return None, EngineError("data.check", "The data check ended without a report.", cause=last)
    if "error" in document:
        error = document["error"]
        return None, EngineError(error["code"], error["what"], cause=error["cause"], next_step=error["next_step"])
    return document, None


def check_in_thread(target: MessagePump, key: DataKey) -> None:
    """Check off the interface thread and post DataChecked to `target`."""

    def work() -> None:
        try:
            report, error = run_check(key)
        except OSError as failure:
            report, error = None, EngineError("data.check", "The data check could not be started.", cause=str(failure))
        target.post_message(DataChecked(key, report, error))

    threading.Thread(target=work, name="data check", daemon=True).start()
