"""Fresh rental prices from gpuhunt, the maintained catalogue of the dstack project; only when somebody asks for them.

Owns the way from a catalogue's offers to a `PriceList`. Must not know where lists are kept nor who reads them.
gpuhunt is an optional library: it is imported here and nowhere else.
"""

from __future__ import annotations

import logging
import socket
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Protocol

from engine.errors import EngineError
from engine.hardware.gpu_profiles import find_gpu_profile
from engine.hardware.prices import CardPrice, PriceList
from engine.units import GIB

TIMEOUT_SECONDS = 30.0
INSTALL = "Install it: pip install 'scaler-wizard[prices]'."
_GPU_VENDORS = ("nvidia", "amd")


class Offer(Protocol):
    """What is read of a gpuhunt `CatalogItem`."""

    @property
    def provider(self) -> str: ...
    @property
    def price(self) -> float: ...
    @property
    def gpu_count(self) -> int: ...
    @property
    def gpu_name(self) -> str | None: ...
    @property
    def gpu_memory(self) -> float | None: ...
    @property
    def spot(self) -> bool: ...
    @property
    def flags(self) -> list[str]: ...


class Catalogue(Protocol):
    """What is used of a gpuhunt `Catalog`."""

    def load(self) -> None: ...
    def query(self, *, min_gpu_count: int, spot: bool) -> Sequence[Offer]: ...


def open_catalogue() -> Catalogue:
    """gpuhunt's catalogue of published offers, not loaded yet. Raises EngineError `prices.no_gpuhunt`."""
    try:
        import gpuhunt
    except ImportError as error:
        raise EngineError(
            "prices.no_gpuhunt",
            "Refreshing prices needs the library gpuhunt, which is not installed.",
            next_step=INSTALL,
        ) from error
    catalogue: Catalogue = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
    return catalogue


def fetch_prices(catalogue: Catalogue, *, today: date | None = None) -> PriceList:
    """Load the catalogue and sum it up. Raises EngineError `prices.unreachable` or `prices.empty`."""
    try:
        with _patient_and_quiet():
            catalogue.load()
            offers = catalogue.query(min_gpu_count=1, spot=False)
    except Exception as error:  # the library raises its own kinds, urllib's, requests' and zipfile's
        raise EngineError(
            "prices.unreachable",
            "The price catalogue cannot be read.",
            cause=_innermost(error),
            next_step="Try again with a network.",
        ) from error
    return summed_up(offers, today=today)


def summed_up(offers: Iterable[Offer], *, today: date | None = None) -> PriceList:
    """Low, typical and high per card: of each provider's cheapest on-demand offer the least, the median, the greatest.

    Offers with conditions (flags), spot offers and cards without a profile are left out; a machine's price is divided
    by its cards. Raises EngineError `prices.empty`.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for offer in offers:
        card = _card_of(offer)
        if card:
            found[card][offer.provider].append(offer.price / offer.gpu_count)
    if not found:
        raise EngineError(
            "prices.empty",
            "The price catalogue has no offer for any card this program knows.",
            next_step="Try again later.",
        )
    return PriceList(
        read_on=(today or date.today()).isoformat(),
        source="gpuhunt catalogue",
        cards={card: _price(by_provider) for card, by_provider in sorted(found.items())},
    )


def _price(by_provider: dict[str, list[float]]) -> CardPrice:
    cheapest = [min(prices) for prices in by_provider.values()]
    return CardPrice(
        low=round(min(cheapest), 4),
        typical=round(statistics.median(cheapest), 4),
        high=round(max(cheapest), 4),
        providers=tuple(sorted(by_provider)),
        offers=sum(len(prices) for prices in by_provider.values()),
    )


def _card_of(offer: Offer) -> str:
    """The id of the offer's card in `profiles/gpus.toml`; "" when it is none of them."""
    if offer.spot or offer.flags or offer.price <= 0 or offer.gpu_count < 1 or not offer.gpu_name:
        return ""
    vendor = getattr(getattr(offer, "gpu_vendor", None), "value", "nvidia")
    if vendor not in _GPU_VENDORS:
        return ""
    profile = find_gpu_profile(offer.gpu_name, round((offer.gpu_memory or 0) * GIB) or None)
    return profile.id if profile is not None else ""


@contextmanager
def _patient_and_quiet() -> Iterator[None]:
    """The library sets no time limit and logs tracebacks of providers it cannot reach."""
    logger, before = logging.getLogger("gpuhunt"), socket.getdefaulttimeout()
    level = logger.level
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        logger.setLevel(level)


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
