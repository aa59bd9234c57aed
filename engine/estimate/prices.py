"""What cards cost to rent: the figures every estimate uses, each with its source, its day and its age.

Owns the quotes for people and JSON, and the refresh on request. Must not know how figures are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from engine.errors import EngineError
from engine.hardware.gpu_profiles import GpuProfile, load_gpu_profiles, matching_profiles, near_names
from engine.hardware.price_catalog import Catalogue, fetch_prices, open_catalogue
from engine.hardware.prices import PriceList, age_days, read_prices, write_prices

OLD_DAYS = 30
"""Marketplaces move hourly; after a month a price is a rumour."""


@dataclass(frozen=True, slots=True)
class PriceQuote:
    """One card's rental price, US dollars per hour and card."""

    id: str
    card: str
    low: float
    typical: float
    high: float
    providers: tuple[str, ...]
    source: str
    read_on: str
    """ISO date."""
    age_days: int
    refreshed: bool
    """Whether it is from a list refreshed here, not from the shipped snapshot."""


def price_quotes(card: str = "", *, today: date | None = None) -> tuple[PriceQuote, ...]:
    """All known prices, cheapest first; with `card`, those of the cards it can mean.

    Raises EngineError `prices.card` with the nearest names, `prices.unknown` when nobody lists that card, and
    `prices.damaged` when a refreshed list cannot be read.
    """
    read_prices()
    profiles = matching_profiles(card) if card else load_gpu_profiles()
    if not profiles:
        raise EngineError(
            "prices.card",
            f"There is no card called '{card}'.",
            next_step="Did you mean " + ", ".join(near_names(card)) + "?",
        )
    quotes = [quote for profile in profiles if (quote := _quote(profile, today)) is not None]
    if not quotes:
        raise EngineError(
            "prices.unknown",
            f"No rental price is known for the {profiles[0].name}.",
            next_step="Refresh the list (--refresh), or enter your own price in the wizard.",
        )
    return tuple(sorted(quotes, key=lambda quote: (quote.typical, quote.card)))


def refresh_prices(catalogue: Catalogue | None = None, *, today: date | None = None) -> PriceList:
    """Fetch a fresh list and use it from now on.

    Raises EngineError `prices.*`, which says how old the prices are that stay in use.
    """
    try:
        prices = fetch_prices(open_catalogue() if catalogue is None else catalogue, today=today)
    except EngineError as error:
        raise EngineError(
            error.code,
            error.what,
            cause=error.cause,
            next_step=f"{error.next_step} The prices in use stay: {_in_use_words(today)}.",
            exit_code=error.exit_code,
        ) from error
    write_prices(prices)
    return prices


def _in_use_words(today: date | None) -> str:
    newest = max(profile.rent_read_on for profile in load_gpu_profiles())
    return price_age_words(newest, today=today)


def price_age_words(read_on: str, *, today: date | None = None) -> str:
    """ "read today", "read on 2026-11-23, 3 days ago", with a warning when it is old."""
    days = age_days(read_on, today)
    if days == 0:
        return "read today"
    ago = f"read on {read_on}, {days} {'day' if days == 1 else 'days'} ago"
    return f"{ago}; refresh them" if days > OLD_DAYS else ago


def _quote(profile: GpuProfile, today: date | None) -> PriceQuote | None:
    low, typical, high = (
        profile.rent_low_usd_per_hour,
        profile.rent_typical_usd_per_hour,
        profile.rent_high_usd_per_hour,
    )
    if low is None or typical is None or high is None:
        return None
    return PriceQuote(
        id=profile.id,
        card=profile.name,
        low=low,
        typical=round(typical, 4),
        high=high,
        providers=profile.rent_providers,
        source=profile.rent_source,
        read_on=profile.rent_read_on,
        age_days=age_days(profile.rent_read_on, today),
        refreshed=profile.refreshed is not None,
    )
