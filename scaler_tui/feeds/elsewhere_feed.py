"""Has a job sent to another machine, or a job file written, by the headless twin in a process of its own.

Owns the thread and the messages. The subcommand is `scaler_tui.places`' choice and the engine's work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.places import Place, words_for
from scaler_tui.spec_file import temporary_spec


@dataclass(frozen=True, slots=True)
class Errand:
    """A wish: `where` is a host or a job file."""

    place: Place
    where: str
    spec: JobSpec
    card: str
    kept: str
    force: bool


class ElsewhereSaid(Message):
    """A step of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class ElsewhereDone(Message):
    """It is there, or was refused."""

    def __init__(self, errand: Errand, told: dict[str, Any] | None, error: EngineError | None) -> None:
        super().__init__()
        self.errand = errand
        self.told = told
        self.error = error


def run_errand(errand: Errand, say: Callable[[str], None]) -> dict[str, Any]:
    """The twin's answer. Raises EngineError."""
    with temporary_spec(errand.spec, Path.cwd()) as path:
        words = words_for(errand.place, errand.where, path, card=errand.card, kept=errand.kept, force=errand.force)
        return ask_twin(*words, say=say)


def run_in_thread(target: MessagePump, errand: Errand, if_gone: Callable[[ElsewhereDone], None]) -> None:
    """Do it and post what happens to `target`; `if_gone` is called, in the thread, when that was left meanwhile."""

    def work() -> None:
        try:
            done = ElsewhereDone(errand, run_errand(errand, lambda line: _say(target, line)), None)
        except EngineError as error:
            done = ElsewhereDone(errand, None, error)
        except Exception as failure:  # a fault must not leave the screen waiting
            what = f"It failed: {type(failure).__name__}: {failure}"
            done = ElsewhereDone(errand, None, EngineError("internal.feed", what, next_step="Try it in a shell."))
        if not target.post_message(done):
            if_gone(done)

    threading.Thread(target=work, name="elsewhere", daemon=True).start()


def _say(target: MessagePump, line: str) -> None:
    target.post_message(ElsewhereSaid(line))
