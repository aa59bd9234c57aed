"""The wizard's part about a longer window: what was chosen, and what was measured for it. No widgets here.

Owns the choice and the races' states. Must not know formulas or what fits: the engine does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaler_tui.window_facts import SEARCHED

if TYPE_CHECKING:
    from engine.advise.context import ContextChoice
    from engine.jobs.race_lines import SearchDone
    from scaler_tui.race_state import RaceState

APPROACH = "context"
TRAININGS = ("full", "pose", "mixed", "none")
"""Ways to train, and not training at all."""


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
        """Where its lines are kept: what was measured outlasts the screen and the program, but not the weights."""
        import hashlib

        from engine.paths import state_home

        described = "\n".join((self.model, str(self.target), self.method, _identity(self.model)))
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        return state_home() / "races" / f"{self.method or 'race'}-{self.target}-{key}.jsonl"

    @property
    def factors(self) -> Path:
        """Where what a finished search found is kept, in the form of a config with longrope in it."""
        return self.log.with_suffix(".json")


def _identity(model: str) -> str:
    """What tells a model from another of the same name: a hub commit, else its config with sizes and times of the
    weights; "" where there is none."""
    from engine.errors import EngineError
    from engine.models.resolve import resolve_model

    try:
        found = resolve_model(model, offline=True)
        if found.path is None or found.commit:
            return found.commit
        states = [(path.name, path.stat()) for path in sorted(found.path.glob("*.safetensors"))]
    except (EngineError, OSError):
        return ""
    return "\n".join([str(found.config), *(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)])


@dataclass(slots=True)
class Window:
    """What was decided, and every race so far. Empty until somebody asks: the first paint comes before."""

    chosen: ContextChoice | None = None
    races: dict[RaceKey, RaceState] = field(default_factory=dict)

    @property
    def choice(self) -> ContextChoice:
        """What was decided; everything left to the program where nothing was."""
        if self.chosen is None:
            from engine.advise.context import ContextChoice

            self.chosen = ContextChoice()
        return self.chosen

    @choice.setter
    def choice(self, choice: ContextChoice) -> None:
        self.chosen = choice

    def race(self, key: RaceKey) -> RaceState:
        """The state of a race; empty before it was begun."""
        from scaler_tui.race_state import RaceState

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


def keep_factors(key: RaceKey, found: SearchDone) -> None:
    """Write a finished search's divisors and m where a spec can name them."""
    import json

    from engine.jobs.layout import write_atomic

    document: dict[str, object] = {"long_factor": found.divisors, "attention_factor": found.attention_factor}
    if found.critical_pair:
        document["critical_pair"] = found.critical_pair
    factors = key.factors
    factors.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(factors, (json.dumps(document) + "\n").encode())


def trained(choice: ContextChoice, how: str) -> ContextChoice:
    """`choice` with a way of training out of TRAININGS."""
    return replace(choice, train=how != "none", window="" if how == "none" else how)
