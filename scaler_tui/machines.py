"""The machine a command plans for: this one, a what-if, a rented one. Asks the engine; computes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.hardware.machine import Machine


def machine_for(gpu: str, answers: Answers | None = None) -> Machine:
    """This machine; or the card `gpu` names; or the one the answers about hardware name, with its rent when rented."""
    from engine.hardware.detect import detect
    from engine.hardware.simulate import simulate

    machine = detect()
    elsewhere = answers is not None and answers.text("hardware") != "this"
    card = gpu or (answers.text("card") if answers is not None and elsewhere else "")
    if not card:
        return machine
    planned = simulate(card, machine)
    return with_price(planned) if answers is not None and answers.rented else planned


def with_price(machine: Machine) -> Machine:
    """`machine` at the typical rental price of its cards; unchanged when no price is known."""
    from engine.hardware.simulate import price_range

    prices = price_range(machine)
    return machine if prices is None else replace(machine, price_usd_per_hour=prices.typical_usd_per_hour)
