"""`extend --dry-run`: what each method would write for a model and a length, and what measuring it takes.

Owns the table and its JSON. Must not measure or write anything.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_duration
from scaler_tui import context_text, output

if TYPE_CHECKING:
    from engine.context.method import Method
    from engine.context.plan import ContextPlan
    from engine.context.portability import Portability
    from scaler_tui.commands.extend_plans import Wanted


@dataclass(frozen=True, slots=True)
class Offer:
    """One method for this model and length."""

    method: Method
    why_not: str = ""
    plan: ContextPlan | None = None
    readers: tuple[Portability, ...] = ()


def offers(found: Wanted) -> tuple[Offer, ...]:
    """Every method with what it would write, or why it cannot be used."""
    from engine.context.planner import applicable

    return tuple(_offer(found, method, why) for method, why in applicable(found.config, found.order.target))


def _offer(found: Wanted, method: Method, why: str) -> Offer:
    from engine.context.method import Options
    from engine.context.planner import plan_context
    from engine.context.portability import portability

    if why:
        return Offer(method, why)
    options = found.order.options if method.id == found.order.method else Options()
    if method.needs_search and not options.long_divisors:
        return Offer(method, "its factors are searched first: extend --method " + method.id)
    try:
        plan = plan_context(found.config, found.order.target, method.id, options)
    except EngineError as error:
        return Offer(method, error.what)
    if not method.exported:
        return Offer(method, f"not written to a folder. {method.not_exported_reason}", plan)
    return Offer(method, "", plan, portability(found.config, plan))


def dry_run(arguments: argparse.Namespace, found: Wanted) -> int:
    """What each method would be. Nothing is written."""
    listed = offers(found)
    if arguments.json:
        output.emit_json(_dry_json(arguments, found, listed))
        return int(ExitCode.DONE)
    target = found.order.target
    output.say(f"{found.name}: {found.window:,} to {target:,} tokens, {target / found.window:g} times the window")
    output.say()
    rows = [
        [
            offer.method.id,
            context_text.factor_range(offer.plan.scaled.scaling.divisors),
            f"{offer.plan.scaled.scaling.attention_factor:.4g}",
            context_text.portability_short(offer.readers),
        ]
        for offer in listed
        if offer.plan is not None and not offer.why_not
    ]
    output.table(["METHOD", "PAIRS DIVIDED BY", "M", "PROGRAMS"], rows)
    output.say()
    for offer in listed:
        if offer.why_not:
            output.say(f"  {offer.method.id}: {offer.why_not}")
    _say_notes(found, listed)
    _say_needs(found)
    output.say("Nothing was written.")
    return int(ExitCode.DONE)


def _say_notes(found: Wanted, listed: tuple[Offer, ...]) -> None:
    """Of the named method all notes; else those that every method shares."""
    planned = [offer for offer in listed if offer.plan is not None and not offer.why_not]
    named = [offer for offer in planned if offer.method.id == found.order.method]
    if not planned:
        return
    shared = set.intersection(*(set(offer.plan.notes) for offer in planned if offer.plan is not None))
    for offer in named or planned[:1]:
        assert offer.plan is not None
        for note in offer.plan.notes:
            if named or note in shared:
                output.say(f"  ! {note}")
        if named:
            for line in context_text.portability_rows(offer.readers):
                output.say(f"  {line}")


def _say_needs(found: Wanted) -> None:
    memory, seconds = found.needs.memory_bytes, found.measuring_seconds
    simulated = "  SIM: not this machine" if found.machine.simulated else ""
    output.say(
        f"Reading {found.order.target:,} tokens once takes about {format_bytes(memory.likely)} and "
        f"{format_duration(found.needs.seconds.likely)} on {found.machine.label}{simulated}"
        f"{'' if found.needs.fits else ': more than is free'}."
    )
    if seconds is not None:
        usual, low, high = (format_duration(value) for value in (seconds.likely, seconds.low, seconds.high))
        output.say(f"Measuring with these options takes about {usual} ({low} to {high}), by formula.")


def _dry_json(arguments: argparse.Namespace, found: Wanted, listed: tuple[Offer, ...]) -> dict[str, Any]:
    seconds = found.measuring_seconds
    return {
        "source": str(found.folder) if found.folder != Path() else found.name,
        "output": str(arguments.out or ""),
        "method": found.order.method,
        "context_before": found.window,
        "context_after": found.order.target,
        "methods": [_offer_json(offer) for offer in listed],
        "fits": found.needs.fits,
        "memory_bytes": round(found.needs.memory_bytes.likely),
        "measuring_seconds": None if seconds is None else round(seconds.likely, 1),
        "machine": found.machine.label,
    }


def _offer_json(offer: Offer) -> dict[str, Any]:
    return {
        "id": offer.method.id,
        "title": offer.method.title,
        "summary": offer.method.summary,
        "source": offer.method.source,
        "why_not": offer.why_not,
        "factors": None if offer.plan is None else context_text.factors_json(offer.plan),
        "notes": [] if offer.plan is None else list(offer.plan.notes),
        "portability": context_text.portability_json(offer.readers),
    }
