"""Reads training data through the headless twin, `scaler-wizard data check`, in a process of its own.

Owns the process and the message that brings its report: a large file takes a while, and a terminal must not wait.
"""

from __future__ import annotations

import threading
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from scaler_tui.feeds.twin import ask_twin

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
    """The twin's report, or its error."""
    data_file, model, max_length = key
    length = ("--max-length", str(max_length)) if max_length else ()
    try:
        return ask_twin("data", "check", "--json", "--model", model, *length, "--", data_file), None
    except EngineError as error:
        return None, error


def check_in_thread(target: MessagePump, key: DataKey) -> None:
    """Check off the interface thread and post DataChecked to `target`."""

    def work() -> None:
        target.post_message(DataChecked(key, *run_check(key)))

    threading.Thread(target=work, name="data check", daemon=True).start()
