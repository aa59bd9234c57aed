"""The wizard's part about a longer window: what was chosen, and what was measured for it. No widgets here.

Owns the choice and the races' states. Must not know formulas or what fits: the engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaler_tui.race_state import RaceState

if TYPE_CHECKING:
    from engine.advise.context import ContextChoice

APPROACH = "context"
TRAININGS = ("full", "pose", "mixed", "none")
"""Ways to train, and not training at all."""
SEARCHED = "longrope2"
"""The method whose factors a search finds."""


@dataclass(frozen=True, slots=True)
class RaceKey:
    """What is measured: equal keys share a log."""

    model: str
    target: int
    method: str = ""
    """ "" races all methods; else the factors of this one are searched."""

    @property
    def words(self) -> tuple[str, ...]:
        """The subcommand, without its log."""
        search = ("--method", self.method) if self.method else ()
        return ("extend", self.model, "--context", str(self.target), *search, "--race", "--json-lines")

    @property
    def log(self) -> Path:
        """Where its lines are kept: what was measured outlasts the screen and the program."""
        import hashlib

        from engine.paths import state_home

        key = hashlib.sha256("\n".join((self.model, str(self.target), self.method)).encode()).hexdigest()[:16]
        return state_home() / "races" / f"{self.method or 'race'}-{self.target}-{key}.jsonl"

    @property
    def factors(self) -> Path:
        """Where the divisors of a finished search are kept, one number per pair."""
        return self.log.with_suffix(".csv")


def _nothing() -> ContextChoice:
    from engine.advise.context import ContextChoice

    return ContextChoice()


@dataclass(slots=True)
class Window:
    """What was decided, and every race so far."""

    choice: ContextChoice = field(default_factory=_nothing)
    races: dict[RaceKey, RaceState] = field(default_factory=dict)

    def race(self, key: RaceKey) -> RaceState:
        """The state of a race; empty before it was begun."""
        return self.races.setdefault(key, RaceState())

    def training(self) -> str:
        """ "full", "pose", "mixed", "none", or "" where it is left to the program."""
        return self.choice.window if self.choice.train else "none"

    def train(self, how: str) -> None:
        """Choose one of TRAININGS."""
        self.choice = trained(self.choice, how)

    def decided(self, model: str, target: int) -> ContextChoice:
        """The choice with what was measured for it: a finished race's winner instead of "auto", so that nothing is
        measured twice, and the file of searched factors where the method takes some."""
        race = self.races.get(RaceKey(model, target))
        won = race.decided.method if race is not None and race.decided is not None else ""
        choice = replace(self.choice, method=won) if self.choice.method == "auto" and won else self.choice
        factors = RaceKey(model, target, SEARCHED).factors
        return replace(choice, factors=str(factors)) if choice.method == SEARCHED and factors.is_file() else choice


def keep_factors(key: RaceKey, divisors: Sequence[float]) -> None:
    """Write the divisors of a finished search where a spec can name them."""
    from engine.jobs.layout import write_atomic

    key.factors.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(key.factors, (",".join(f"{divisor!r}" for divisor in divisors) + "\n").encode())


def trained(choice: ContextChoice, how: str) -> ContextChoice:
    """`choice` with a way of training out of TRAININGS."""
    return replace(choice, train=how != "none", window="" if how == "none" else how)
