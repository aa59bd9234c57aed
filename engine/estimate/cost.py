"""Money: rent by the hour, or electricity for one's own machine.

Owns the arithmetic of cost. Must not know how hours or prices were found.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.cards import DeviceSpeed
from engine.estimate.estimate import Estimate, Origin, Part, Range

DEFAULT_TARIFF = Range(0.12, 0.30, 0.45)
"""US dollars per kWh for households: cheap (US south), European middle, dear. A rough guide; enter your own."""
HOST_WATTS = 100.0
"""The rest of a workstation. Source: general experience, 80 to 120 W."""
CARD_SHARE_OF_TDP = Range(0.75, 0.88, 1.0)
"""A 4090 (450 W) was seen at about 400 W while training."""
RENT_SET_UP_HOURS = Range(0.1, 0.25, 0.75)
"""A rented machine is paid while it boots and installs. Own estimate."""
UNKNOWN_RENT = Range(0.2, 1.0, 4.0)
"""US dollars per hour for a card nobody listed."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """What an hour costs: a rented price, or electricity."""

    rented: bool
    usd_per_hour: float | None = None
    """A price the user knows; it wins over the profile's range."""
    usd_per_kwh: float | None = None
    cards: int = 1


def estimate_cost(hours: Estimate, device: DeviceSpeed, tariff: Tariff) -> Estimate:
    """US dollars of `hours` on `device`; the parts sum to `likely`."""
    return _rent(hours, device, tariff) if tariff.rented else _electricity(hours, device, tariff)


def hourly_rent(device: DeviceSpeed, tariff: Tariff) -> Range:
    """US dollars per hour for all cards together."""
    if tariff.usd_per_hour is not None:
        return Range(tariff.usd_per_hour, tariff.usd_per_hour, tariff.usd_per_hour)
    single = device.rent_usd_per_hour or UNKNOWN_RENT
    return Range(single.low * tariff.cards, single.likely * tariff.cards, single.high * tariff.cards)


def _rent(hours: Estimate, device: DeviceSpeed, tariff: Tariff) -> Estimate:
    """(hours + set-up) x price."""
    price = hourly_rent(device, tariff)
    if tariff.usd_per_hour is not None:
        source = "the price of this machine"
    else:
        source = device.rent_source if device.rent_usd_per_hour else "nobody listed this card"
    parts = (
        Part("running", hours.likely * price.likely, f"{hours.likely:.3g} h x ${price.likely:.2f}", source),
        Part(
            "set-up",
            RENT_SET_UP_HOURS.likely * price.likely,
            f"booting and installing, {60 * RENT_SET_UP_HOURS.likely:.0f} min",
            "own estimate",
        ),
    )
    return Estimate(
        (hours.low + RENT_SET_UP_HOURS.low) * price.low,
        sum(part.amount for part in parts),
        (hours.high + RENT_SET_UP_HOURS.high) * price.high,
        "usd",
        Origin.FORMULA,
        parts,
    )


def machine_watts(device: DeviceSpeed, cards: int = 1) -> Range:
    """Power of the whole machine while it trains: cards x share of their limit + host; a CPU's figure has its host in.

    Source: the card's own limit where the driver told it, else its datasheet.
    """
    host = 0.0 if device.is_cpu else HOST_WATTS
    share = CARD_SHARE_OF_TDP
    low, likely, high = (device.watts * cards * part + host for part in (share.low, share.likely, share.high))
    return Range(low, likely, high)


def _electricity(hours: Estimate, device: DeviceSpeed, tariff: Tariff) -> Estimate:
    """hours x machine watts / 1000 x price per kWh."""
    price, source = DEFAULT_TARIFF, "household prices from $0.12 to $0.45 per kWh"
    if tariff.usd_per_kwh is not None:
        price, source = Range(tariff.usd_per_kwh, tariff.usd_per_kwh, tariff.usd_per_kwh), "your tariff"
    watts = machine_watts(device, tariff.cards)
    likely = hours.likely * watts.likely / 1000 * price.likely
    text = f"{hours.likely:.3g} h x {watts.likely / 1000:.2f} kW x ${price.likely:.2f} per kWh"
    return Estimate(
        hours.low * watts.low / 1000 * price.low,
        likely,
        hours.high * watts.high / 1000 * price.high,
        "usd",
        Origin.FORMULA,
        (Part("electricity", likely, text, source),),
    )
