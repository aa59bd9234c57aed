"""An appraisal as text of 80 columns: a bar per part, formula and source, verdict, ways out.

Owns the wording and the bars. Must not compute a figure: all of them are the engine's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.units import format_bytes, format_hours, format_range, format_usd

if TYPE_CHECKING:
    from engine.advise.appraisal import Appraisal
    from engine.advise.rented import Offer
    from engine.advise.sharded import CardCount
    from engine.estimate.estimate import Estimate

WIDTH = 80
LABEL_CELLS = 10
NAME_CELLS = 22
BAR_CELLS = 30


def estimate_lines(found: Appraisal) -> Iterator[str]:
    """The whole answer."""
    from engine.advise.compare import settings_words
    from engine.advise.fixes import fixes_for, savings_for

    plan, machine = found.plan, found.machine
    sim = "  SIM: not this machine" if machine.simulated else ""
    yield from _labelled("Job", f"{plan.approach.title} on {plan.final.name}, {machine.label}{sim}")
    yield from _labelled("Assumes", settings_words(plan))
    yield from _labelled("Memory", f"{_bytes(found.memory)}  [{found.memory.origin.value}]")
    yield from _parts(found.memory)
    yield from _labelled("Limit", found.limiting)
    yield from _labelled("Fits?", f"{found.verdict.value}: {found.judgement.reason}")
    if not plan.devices.on_cpu:
        yield from _labelled("RAM", _bytes(found.ram))
    yield from _labelled("Disk", _bytes(found.disk))
    hours, cost = found.hours, found.cost_usd
    span = format_range(format_hours(hours.low), format_hours(hours.high))
    yield from _labelled("Time", f"likely {format_hours(hours.likely)} ({span})  [{hours.origin.value}]")
    span = format_range(format_usd(cost.low), format_usd(cost.high))
    yield from _labelled("Cost", f"likely {format_usd(cost.likely)} ({span})")
    fixes, savings = fixes_for(found), savings_for(found)
    if fixes or savings:
        yield ""
        yield "What would make it fit, cheapest first" if fixes else "What would make it faster or cheaper"
        for number, fix in enumerate(fixes or savings, start=1):
            tight = " (tight)" if fix.verdict == "tight" else ""
            yield from textwrap.wrap(
                f"{fix.sentence}{tight}", WIDTH, initial_indent=f"  {number}. ", subsequent_indent="     "
            )


def offer_line(offer: Offer, limit: str) -> str:
    """The cheapest card that is done in time."""
    span = format_range(format_usd(offer.cost_usd.low), format_usd(offer.cost_usd.high))
    return (
        f"Cheapest card that is done within {limit}: {offer.name}, about {format_usd(offer.cost_usd.likely)} ({span}), "
        f"likely {format_hours(offer.hours.likely)} (up to {format_hours(offer.hours.high)})"
    )


def card_count_lines(counts: Sequence[CardCount]) -> Iterator[str]:
    """A line per number of cards: memory on each, verdict, speed, time, money, waiting for each other."""
    yield ""
    yield "On several such cards  [formula]"
    head = ("cards", "how", "each", "fits?", "tokens/s", "time", "cost", "waits", "speed")
    yield "  {:>5} {:<6} {:>9} {:<6} {:>9} {:>8} {:>9} {:>6} {:>6}".format(*head)
    for row in counts:
        speed = f"{row.speedup:.1f}x" if row.speedup else "-"
        yield (
            f"  {row.cards:>5} {row.strategy.value:<6} {format_bytes(row.memory.likely):>9} {row.verdict.value:<6} "
            f"{row.tokens_per_second.likely:>9,.0f} {format_hours(row.hours.likely):>8} "
            f"{format_usd(row.cost_usd.likely):>9} {row.exchange_share:>6.0%} {speed:>6}"
        )
    notes = "ddp: a whole copy each; fsdp2: a share each; waits: share of a step spent on each other's data."
    for row in counts:
        if row.edits:
            keys = ", ".join(f'{key} = "{value}"' for key, value in row.edits)
            notes += f" From {row.cards} cards on with {keys}."
            break
    yield from textwrap.wrap(notes, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _labelled(label: str, words: str) -> list[str]:
    return textwrap.wrap(
        f"{label:<{LABEL_CELLS}}{words}", WIDTH, subsequent_indent=" " * LABEL_CELLS, break_on_hyphens=False
    )


def _bytes(estimate: Estimate) -> str:
    span = format_range(format_bytes(estimate.low), format_bytes(estimate.high))
    return f"likely {format_bytes(estimate.likely)} ({span})"


def _parts(estimate: Estimate) -> Iterator[str]:
    """Name, amount, bar; below it the formula and its source."""
    most = max((part.amount for part in estimate.breakdown), default=0.0)
    for part in estimate.breakdown:
        cells = round(BAR_CELLS * part.amount / most) if most else 0
        bar = "#" * max(cells, 1 if part.amount > 0 else 0)
        yield f"  {part.name:<{NAME_CELLS}}{format_bytes(part.amount):>9}  {bar}".rstrip()
        about = f"{part.formula}{f'  [{part.source}]' if part.source else ''}"
        yield from textwrap.wrap(about, WIDTH, initial_indent="      ", subsequent_indent="      ")
