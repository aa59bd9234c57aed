"""The rows of the matrix and the rules of recommendation, as data.

Owns the shape of `profiles/approaches.toml`. Must not know any model or machine.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

import msgspec

from engine.errors import EngineError
from engine.estimate.workload import Method, OptimizerKind
from engine.profiles import load_profile


class TargetModel(StrEnum):
    """What the approach trains, seen from the base."""

    SAME = "same"
    LARGER = "larger"
    """A pretrained model of the next size."""
    DEEPER = "deeper"
    """The base with inserted blocks."""
    WIDER = "wider"
    """The base with wider layers."""


class OwnTeacher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model learns from itself as it was."""

    capacity: str
    performance: str
    reason: str
    why: str
    """Why it is recommended."""


class Approach(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to get more out of a model."""

    id: str
    title: str
    model: TargetModel
    method: Method
    capacity: str
    performance: str
    reason: str
    runs: bool
    """Whether this version carries it out."""
    packed: bool = False
    rank: int = 0
    """0: the recipe's rank."""
    longer: bool = False
    """Trains beyond the model's own window."""
    growth: float = 1.0
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    tokens: tuple[float, ...] = ()
    """Low, likely and high need; empty: the user's data."""
    shards: bool = False
    """State may be divided over equal cards (ZeRO-3/FSDP)."""
    teacher: bool = False
    text: bool = False
    """Only where large text is trained on."""
    itself: OwnTeacher | None = None
    """Of an approach with a teacher: its words where the model teaches itself."""

    @property
    def of_itself(self) -> Approach:
        """The same with the model as its own teacher."""
        words = self.itself
        if words is None:
            return self
        return msgspec.structs.replace(
            self, capacity=words.capacity, performance=words.performance, reason=words.reason
        )

    @property
    def not_runnable_reason(self) -> str:
        """Why the run button is off, in plain words; "" when it is on."""
        if self.runs:
            return ""
        words = f"This version plans {self.title.lower()} (memory, time, money) but does not carry it out yet."
        return f"{words[:-1]}: it trains on one device." if self.shards else words


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which approach a goal calls for."""

    goal: tuple[str, ...]
    prefer: tuple[str, ...]
    why: str
    source: str
    data: tuple[str, ...] = ()
    """Only with these answers to the question about data; empty: with any."""
    warnings: tuple[str, ...] = ()


class Frank(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must be said before some approaches start; `text` has {figures} to fill in (`engine.advise.frank`)."""

    approaches: tuple[str, ...]
    label: str
    text: str
    source: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    approach: tuple[Approach, ...]
    rule: tuple[Rule, ...]
    frank: tuple[Frank, ...] = ()
    frank_line: str = ""


@lru_cache(maxsize=1)
def _file() -> _File:
    return load_profile("approaches.toml", _File)


def load_approaches() -> tuple[Approach, ...]:
    """Every approach, in the order of the matrix. Raises EngineError when the file is wrong."""
    return _file().approach


def find_approach(approach_id: str) -> Approach:
    """The approach `approach_id`. Raises EngineError `approach.unknown`."""
    for approach in load_approaches():
        if approach.id == approach_id:
            return approach
    known = ", ".join(approach.id for approach in load_approaches())
    raise EngineError("approach.unknown", f"There is no approach '{approach_id}'.", next_step=f"Known: {known}.")


def frank_texts() -> tuple[Frank, ...]:
    """The warnings before growing a model, in the order they are shown."""
    return _file().frank


def frank_line() -> str:
    """The same in one line, for commands."""
    return _file().frank_line


def rule_for(goal: str, data: str = "") -> Rule:
    """The first rule for a goal and the answer about data; the first that asks for no data when none names it."""
    rules = [rule for rule in _file().rule if not rule.data or data in rule.data]
    return next((rule for rule in rules if goal in rule.goal), rules[0])
