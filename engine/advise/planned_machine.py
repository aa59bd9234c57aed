"""The machine that the answers mean: this one, this one paid by the hour, another card, a rented card.

Owns that rule, so that the wizard, its previews and the subcommands agree. Must not detect anything.
"""

from __future__ import annotations

from dataclasses import replace

from engine.advise.answers import Answers
from engine.hardware.machine import Machine


def planned_machine(answers: Answers, detected: Machine) -> Machine:
    """`detected`, or the card of the answers in its place; rented ones with their price. Raises EngineError `gpu.*`."""
    if answers.plans_for_this:
        price = answers.number("price_usd_per_hour") if answers.rented else None
        return replace(detected, price_usd_per_hour=price) if price else detected
    return simulated_machine(answers.text("card"), detected, rented=answers.rented)


def simulated_machine(card: str, detected: Machine, *, rented: bool) -> Machine:
    """`detected` with other cards, at their typical rent where one is known. Raises EngineError `gpu.*`."""
    from engine.hardware.simulate import price_range, simulate

    machine = simulate(card, detected)
    prices = price_range(machine) if rented else None
    return machine if prices is None else replace(machine, price_usd_per_hour=prices.typical_usd_per_hour)
