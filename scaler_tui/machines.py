"""The machine a command plans for: this one, a what-if, a rented one. Asks the engine; computes nothing."""

from __future__ import annotations

from dataclasses import replace

from engine.hardware.machine import Machine


def with_price(machine: Machine) -> Machine:
    """`machine` at the typical rental price of its cards; unchanged when no price is known."""
    from engine.hardware.simulate import price_range

    prices = price_range(machine)
    return machine if prices is None else replace(machine, price_usd_per_hour=prices.typical_usd_per_hour)
