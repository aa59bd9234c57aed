"""`prices`: what cards cost to rent, where from and how old; a fresh list on request only.

Owns its text and JSON. Must not compute: every figure comes from the engine.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from engine.errors import ExitCode
from engine.units import format_usd
from scaler_tui import output

if TYPE_CHECKING:
    from engine.estimate.prices import PriceQuote


FEW = 3
"""So many cards are shown with the full source of their price; `--json` has it for all."""


def prices(arguments: argparse.Namespace) -> int:
    """Show the prices in use; with --refresh fetch them first."""
    from engine.estimate.prices import price_quotes, refresh_prices

    if arguments.refresh:
        fresh = refresh_prices()
        output.note(f"Refreshed: {len(fresh.cards)} cards from the {fresh.source}.")
    quotes = price_quotes(arguments.card)
    if arguments.json:
        output.emit_json({"unit": "usd_per_hour", "prices": quotes})
    else:
        _print(quotes)
    return int(ExitCode.DONE)


def _print(quotes: tuple[PriceQuote, ...]) -> None:
    from engine.estimate.prices import price_age_words

    output.table(
        ["CARD", "LOW", "TYPICAL", "HIGH", "READ ON", "AGE", "PROVIDERS"],
        [
            [
                quote.card,
                format_usd(quote.low),
                format_usd(quote.typical),
                format_usd(quote.high),
                quote.read_on,
                f"{quote.age_days} d",
                ", ".join(quote.providers),
            ]
            for quote in quotes
        ],
        right=(1, 2, 3, 5),
    )
    output.say()
    if len(quotes) <= FEW:
        for quote in quotes:
            output.say(f"{quote.card}: {quote.source}")
    shipped = [quote for quote in quotes if not quote.refreshed]
    if shipped:
        age = price_age_words(shipped[0].read_on)
        output.say(f"US dollars per hour and card. {len(shipped)} from the shipped snapshot, {age}.")
        output.say("Refresh: scaler-wizard prices --refresh")
    else:
        output.say(f"US dollars per hour and card, {price_age_words(quotes[0].read_on)}.")
