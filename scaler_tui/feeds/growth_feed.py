"""Plans expansions off the interface thread: reads the model's headers, asks the planner, tries operators.

Owns the threads and the message that brings the answer. Plans are the engine's; nothing is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.advise.growth import GrowthOption, Setting
    from engine.advise.operator_options import OperatorOption
    from engine.expansion.planner import Source


class GrowthPlanned(Message):
    """The planner has answered: plans, or why there are none."""

    def __init__(
        self,
        asked: int,
        source: Source | None,
        options: tuple[GrowthOption, ...],
        error: EngineError | None,
    ) -> None:
        super().__init__()
        self.asked = asked
        """Number of the question, so that a late answer can be told from the newest."""
        self.source = source
        self.options = options
        self.error = error


class OperatorsTried(Message):
    """What each operator would mean for a plan."""

    def __init__(self, options: tuple[OperatorOption, ...], error: EngineError | None) -> None:
        super().__init__()
        self.options = options
        self.error = error


def plan_in_thread(target: MessagePump, asked: int, setting: Setting, source: Source | None, size: str) -> None:
    """Plan for `size` ("7B", "2x", "" as answered) and post GrowthPlanned. `source` None reads the model first."""

    def work() -> None:
        from engine.advise.growth import growth_options
        from engine.expansion.asked import source_of
        from engine.expansion.planner import parse_target
        from engine.models.resolve import resolve_model

        read = source
        try:
            if read is None:
                read = source_of(resolve_model(setting.answers.model, offline=True), setting.architecture)
            wanted = parse_target(size, read.parameters) if size else 0
            target.post_message(GrowthPlanned(asked, read, growth_options(setting, read, wanted), None))
        except Exception as error:  # a bug in planning must not leave the screen waiting
            target.post_message(GrowthPlanned(asked, read, (), _told(error)))

    _start("plans", work)


def rechoose_in_thread(
    target: MessagePump,
    asked: int,
    setting: Setting,
    source: Source,
    options: tuple[GrowthOption, ...],
    changed: tuple[str, Mapping[str, str]],
) -> None:
    """The same plans, the one called `changed[0]` grown by other operators; posts GrowthPlanned."""

    def work() -> None:
        from engine.advise.growth import rechosen

        name, operators = changed
        try:
            new = tuple(
                rechosen(setting, source, option, operators) if option.choice.id == name else option
                for option in options
            )
            target.post_message(GrowthPlanned(asked, source, new, None))
        except Exception as error:
            target.post_message(GrowthPlanned(asked, source, options, _told(error)))

    _start("operators", work)


def try_operators_in_thread(target: MessagePump, source: Source, option: GrowthOption) -> None:
    """Every operator for every axis of a plan; posts OperatorsTried."""

    def work() -> None:
        from engine.advise.operator_options import operator_options

        try:
            found = operator_options(source.layout, source.config, option.choice.plan)
            target.post_message(OperatorsTried(found, None))
        except Exception as error:
            target.post_message(OperatorsTried((), _told(error)))

    _start("operators", work)


def _told(error: Exception) -> EngineError:
    """The error for people; anything unexpected becomes one too."""
    if isinstance(error, EngineError):
        return error
    return EngineError(
        "internal.feed",
        f"Planning failed: {type(error).__name__}: {error}",
        next_step="This is a fault of the program; another plan or size may work.",
    )


def _start(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()
