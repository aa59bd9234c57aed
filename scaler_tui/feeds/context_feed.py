"""Works out off the interface thread what a longer window means for a model: methods, why not, who can read the result.

Owns the thread and the message that brings its answer. Plans are the engine's; nothing is written.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError

if TYPE_CHECKING:
    from scaler_tui.window_facts import WindowFacts


@dataclass(frozen=True, slots=True)
class WindowAsked:
    """A question: which model, which window."""

    model: str
    target: int
    factors: str = ""
    """File with searched factors; "" where there is none."""


class WindowPlanned(Message):
    """The answer: methods and who reads them, or why there are none."""

    def __init__(self, asked: WindowAsked, facts: WindowFacts | None, error: EngineError | None) -> None:
        super().__init__()
        self.asked = asked
        self.facts = facts
        self.error = error


def plan_window_in_thread(target: MessagePump, asked: WindowAsked) -> None:
    """Plan and post WindowPlanned."""

    def work() -> None:
        from scaler_tui.window_facts import window_facts

        try:
            target.post_message(WindowPlanned(asked, window_facts(asked.model, asked.target, asked.factors), None))
        except EngineError as error:
            target.post_message(WindowPlanned(asked, None, error))
        except Exception as error:  # a bug in planning must not leave the screen waiting
            told = EngineError(
                "internal.feed",
                f"Planning failed: {type(error).__name__}: {error}",
                next_step="This is a fault of the program; another length may work.",
            )
            target.post_message(WindowPlanned(asked, None, told))

    threading.Thread(target=work, name="window", daemon=True).start()
