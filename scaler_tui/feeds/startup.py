"""What the app reads after its first paint: the machine, the model, the list of runs. Each in a thread of its own.

Owns the messages that bring the results. A slow tool or a dead hub delays nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.hardware.machine import Machine
    from engine.jobs.store import RunSummary
    from engine.models.architecture import Architecture


class StartupNews(Message):
    """Something was read; fields that were not are None."""

    def __init__(
        self,
        *,
        machine: Machine | None = None,
        runs: list[RunSummary] | None = None,
        saved_step: str = "",
        saved_message: str = "",
        model: str = "",
        architecture: Architecture | None = None,
        error: EngineError | None = None,
    ) -> None:
        super().__init__()
        self.machine = machine
        self.runs = runs
        self.saved_step = saved_step
        """Where saved answers stop: "step 3 of 9"; "" when there are none."""
        self.saved_message = saved_message
        """What was wrong with saved answers; "" when nothing was."""
        self.model = model
        """The model that `architecture` or `error` is about; "" when `error` is about something else."""
        self.architecture = architecture
        self.error = error


def read_in_thread(target: MessagePump, name: str, read: Callable[[], StartupNews], *, model: str = "") -> None:
    """Run `read` off the interface thread and post what it returns; a failure becomes news too."""

    def work() -> None:
        try:
            news = read()
        except EngineError as error:
            news = StartupNews(error=error, model=model)
        except Exception as error:  # a bug in a probe must not kill the interface
            news = StartupNews(
                model=model,
                error=EngineError(
                    "internal.feed",
                    f"Reading the {name} failed: {type(error).__name__}: {error}",
                    next_step="Everything else goes on working.",
                ),
            )
        target.post_message(news)

    threading.Thread(target=work, name=name, daemon=True).start()


def read_machine() -> StartupNews:
    """Detect the machine."""
    from engine.hardware.detect import detect

    return StartupNews(machine=detect())


def read_runs() -> StartupNews:
    """List the runs and look for a half-done plan."""
    from engine.advise.questions import load_graph
    from engine.advise.session import Session
    from engine.jobs.store import list_runs

    saved = Session(load_graph())
    begun = saved.load() and any(saved.is_answered(question.id) for question in saved.visible)
    return StartupNews(
        runs=list_runs(), saved_step=saved.position_text().lower() if begun else "", saved_message=saved.message
    )


def read_model(source: str) -> StartupNews:
    """Analyse a model: a local one at once, a hub one over the network."""
    from engine.models.analyze import analyze

    return StartupNews(model=source, architecture=analyze(source))
