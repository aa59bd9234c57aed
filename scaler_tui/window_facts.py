"""What a longer window means for one model: every method, why one cannot be used, and which programs read the result.

Owns the collection; the wizard's screen and `--plain` show the same. Must not measure anything or know formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.context.method import Method
    from engine.context.portability import Portability

SEARCHED = "longrope2"
"""The method whose factors the wizard searches."""


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """One method for one model and target."""

    method: Method
    why_not: str = ""
    """Why no folder can be made with it; "" for one that can."""
    readers: tuple[Portability, ...] = ()
    notes: tuple[str, ...] = ()
    """Lints and what was assumed."""
    needs_search: bool = False
    """Only a search is missing, and the wizard has it."""

    @property
    def usable(self) -> bool:
        """Whether it can be chosen."""
        return not self.why_not


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """All of it."""

    original: int
    """The model's present window, tokens, of a model that was extended before too."""
    target: int
    methods: tuple[MethodFacts, ...]

    def of(self, method: str) -> MethodFacts | None:
        """The facts of a method; None for "auto" and unknown ones."""
        return next((facts for facts in self.methods if facts.method.id == method), None)

    @property
    def usable(self) -> tuple[MethodFacts, ...]:
        """Those that can be chosen."""
        return tuple(facts for facts in self.methods if facts.usable)


@dataclass(frozen=True, slots=True)
class ReaderLine:
    """One program and what it makes of the model."""

    program: str
    verdict: str
    """ "exact", "approximate", "lost", or "depends" while the method is open."""
    words: str
    silent: bool = False


def window_facts(model: str, target: int, factors: str = "") -> WindowFacts:
    """Plan every method. Raises EngineError `model.*`, `context.*` where none can be."""
    from engine.context.planner import applicable, read_window
    from engine.models.resolve import resolve_model

    config = resolve_model(model, offline=True).config
    original = read_window(config)
    methods = tuple(_facts(config, target, method, why_not, factors) for method, why_not in applicable(config, target))
    return WindowFacts(original, target, methods)


def _facts(config: Mapping[str, Any], target: int, method: Method, why_not: str, factors: str) -> MethodFacts:
    from engine.context.factors import read_factors
    from engine.context.method import NEEDS_SEARCH, Options
    from engine.context.planner import plan_context
    from engine.context.portability import portability

    if not method.exported:
        return MethodFacts(method, why_not or method.not_exported_reason)
    if why_not and not method.needs_search:
        return MethodFacts(method, why_not)
    options = Options()
    if method.needs_search:
        if method.id != SEARCHED:
            return MethodFacts(method, f"{NEEDS_SEARCH}, which the command line has: extend --method {method.id}")
        if not factors:
            return MethodFacts(method, NEEDS_SEARCH, needs_search=True)
        options = read_factors(Path(factors)).applied(options)
    try:
        plan = plan_context(config, target, method.id, options)
        return MethodFacts(method, "", portability(config, plan), plan.notes)
    except EngineError as error:
        return MethodFacts(method, f"{error.what} {error.cause}".strip())


def reader_lines(facts: WindowFacts, method: str) -> tuple[ReaderLine, ...]:
    """Per program, what it makes of the result; while the method is open, with which methods it is exact."""
    chosen = facts.of(method)
    if chosen is not None:
        return tuple(ReaderLine(one.consumer, one.verdict, one.why, one.silent) for one in chosen.readers)
    lines: dict[str, dict[str, list[str]]] = {}
    for one in facts.usable:
        for reader in one.readers:
            lines.setdefault(reader.consumer, {}).setdefault(reader.verdict, []).append(one.method.id)
    return tuple(_open_line(program, verdicts) for program, verdicts in lines.items())


def _open_line(program: str, verdicts: Mapping[str, list[str]]) -> ReaderLine:
    if len(verdicts) == 1:
        (verdict,) = verdicts
        return ReaderLine(program, verdict, "whichever method is taken")
    order = [verdict for verdict in ("exact", "approximate", "lost") if verdict in verdicts]
    words = "; ".join(f"{verdict} with {', '.join(verdicts[verdict])}" for verdict in order)
    return ReaderLine(program, "depends", words)
