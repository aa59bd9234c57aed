"""What can be chosen for a longer window, as lists: lengths, methods with their measured figures, ways of training.

Owns the wording for the screen and for `--plain`. Must not plan, measure or estimate: figures are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.jobs.heat_grid import percent
from engine.jobs.spec_context import AUTO
from engine.units import format_bytes, format_hours
from scaler_tui.race_state import RaceState, needle_share
from scaler_tui.race_table import change_text, perplexity_text
from scaler_tui.spec_context_text import NO_TRAINING, TITLES, WINDOWS
from scaler_tui.window import TRAININGS
from scaler_tui.window_facts import MethodFacts, WindowFacts

if TYPE_CHECKING:
    from engine.advise.matrix import ApproachRow

TIMES = (2, 4, 8, 16)
"""The window is offered at so many times what it is."""
AUTO_WORDS = "every method that needs no search is measured on your model without training, the best is taken"


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a field."""

    value: str
    title: str
    words: str
    """What it means, in a line or two."""
    figures: str = ""
    """What is known in figures; "" where nothing is."""
    brief: str = ""
    """The words in short, for one line."""
    why_not: str = ""
    """ "" for one that can be chosen."""
    tone: str = ""
    """Of the figures."""


def length_options(original: int, target: int) -> tuple[Option, ...]:
    """Multiples of the window, and what was typed or answered."""
    lengths = sorted({*(original * times for times in TIMES), target})
    return tuple(
        Option(str(length), f"{length:,} tokens", f"{length / original:.3g} times the window of {original:,}")
        for length in lengths
    )


def method_options(facts: WindowFacts, race: RaceState, way_to_search: str) -> tuple[Option, ...]:
    """The measuring, then every method; those that cannot be chosen say why, and how a search is begun here."""
    won = race.decided.method if race.decided is not None else ""
    figures = f"{won} won: {figures_words(race, won, facts.target)}" if won else ""
    options = [Option(AUTO, AUTO, AUTO_WORDS, figures, "all but searched ones are measured, the best is taken")]
    return (*options, *(_method_option(one, race, facts.target, way_to_search) for one in facts.methods))


def _method_option(facts: MethodFacts, race: RaceState, target: int, way_to_search: str) -> Option:
    method = facts.method
    why_not = f"{facts.why_not}: {way_to_search}" if facts.needs_search else facts.why_not
    figures = figures_words(race, method.id, target)
    return Option(method.id, method.id, method.summary, figures, method.title, why_not)


def figures_words(race: RaceState, method: str, target: int) -> str:
    """ "needles 98 %, perplexity 15.70, short text +4.0 %" of a measured method."""
    report = race.report(method)
    if report is None:
        return ""
    parts = []
    share = needle_share(report, target)
    if share is not None:
        parts.append(f"needles {percent(share)} %")
    last = max(report.perplexity, key=lambda point: point.length, default=None)
    if last is not None:
        parts.append(f"perplexity {perplexity_text(last.perplexity)}")
    if report.short is not None:
        parts.append(f"short text {change_text(report.short.change)}")
    return ", ".join(parts)


def training_options(rows: Mapping[str, ApproachRow]) -> tuple[Option, ...]:
    """Every way of training with what it takes here."""
    return tuple(_training_option(how, rows.get(how)) for how in TRAININGS)


def _training_option(how: str, row: ApproachRow | None) -> Option:
    words = NO_TRAINING if how == "none" else WINDOWS[how]
    if row is None:
        return Option(how, TITLES[how], words)
    on_gpu = row.vram.likely > 0
    memory = row.vram if on_gpu else row.ram
    tone = {"fits": "good", "tight": "warn", "no": "bad"}[row.verdict.value]
    verdict = {"fits": "fits", "tight": "fits tightly", "no": "does not fit"}[row.verdict.value]
    hours = format_hours(row.hours.likely)
    figures = f"{verdict}: {format_bytes(memory.likely)} of {'VRAM' if on_gpu else 'RAM'}, {hours}"
    return Option(how, TITLES[how], words, figures, tone=tone)
