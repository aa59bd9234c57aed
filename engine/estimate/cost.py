"""Money: rent by the hour, or electricity for one's own machine.

Owns the arithmetic of cost. Must not know how hours or prices were found.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.cards import DeviceSpeed, Range
from engine.estimate.estimate import Estimate, Origin, Part

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
        source = "price range in profiles/gpus.toml" if device.rent_usd_per_hour else "nobody listed this card"
    parts = (
        Part("running", hours.likely * price.likely, f"{hours.likely:.3g} h x ${price.likely:.2f}", source),
        Part("set-up", RENT_SET_UP_HOURS.likely * price.likely, "booting and installing, 15 min", "own estimate"),
    )
    return Estimate(
        (hours.low + RENT_SET_UP_HOURS.low) * price.low,
        sum(part.amount for part in parts),
        (hours.high + RENT_SET_UP_HOURS.high) * price.high,
        "usd",
        Origin.FORMULA,
        parts,
    )


def _electricity(hours: Estimate, device: DeviceSpeed, tariff: Tariff) -> Estimate:
    """hours x (cards x watts + host) x price per kWh."""
    kwh_price = DEFAULT_TARIFF
    if tariff.usd_per_kwh is not None:
        kwh_price = Range(tariff.usd_per_kwh, tariff.usd_per_kwh, tariff.usd_per_kwh)
    host = 0.0 if device.is_cpu else HOST_WATTS

    def kilowatts(share: float) -> float:
        return (device.watts * share * tariff.cards + host) / 1000

    likely = hours.likely * kilowatts(CARD_SHARE_OF_TDP.likely) * kwh_price.likely
    text = f"{hours.likely:.3g} h x {kilowatts(CARD_SHARE_OF_TDP.likely):.2f} kW x ${kwh_price.likely:.2f} per kWh"
    source = "your tariff" if tariff.usd_per_kwh is not None else "household prices from $0.12 to $0.45 per kWh"
    return Estimate(
        hours.low * kilowatts(CARD_SHARE_OF_TDP.low) * kwh_price.low,
        likely,
        hours.high * kilowatts(CARD_SHARE_OF_TDP.high) * kwh_price.high,
        "usd",
        Origin.FORMULA,
        (Part("electricity", likely, text, source),),
    )
