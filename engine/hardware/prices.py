"""The refreshed list of rental prices: where it is kept, its form, and how old it is.

Owns `prices.json` in the state folder, which takes the place of the snapshot in `profiles/gpus.toml`. Must not know
catalogues (`engine.hardware.price_catalog`) nor estimates. Prices are US dollars per hour and card.
"""

from __future__ import annotations

import contextlib
import os
from datetime import date
from functools import lru_cache
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.paths import ensure_writable, state_home

FILE = "prices.json"

_HOMES = ("SCALER_WIZARD_HOME", "XDG_STATE_HOME", "HOME")

PriceStamp = tuple[str, int, int]
"""Path, time and size of the list: a key for what was derived from it. Time 0 when there is none."""


class CardPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one card costs: the range over all offers, and who made them."""

    low: float
    typical: float
    """The median offer."""
    high: float
    providers: tuple[str, ...]
    offers: int


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices read on one day, by the ids of `profiles/gpus.toml`."""

    read_on: str
    """ISO date."""
    source: str
    cards: dict[str, CardPrice]
    version: int = 1


def prices_path() -> Path:
    """Where a refreshed list is kept."""
    return state_home() / FILE


def price_stamp() -> PriceStamp:
    """Changes when the list does; costs one look at the disk."""
    path = _path_text(*(os.environ.get(name) for name in _HOMES))
    try:
        status = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _path_text(*homes: str | None) -> str:
    """Asked for every card of every estimate, so it is worked out once per set of variables that decide it."""
    del homes
    return str(prices_path())


def read_prices(stamp: PriceStamp | None = None) -> PriceList | None:
    """The refreshed list, None when there is none. Raises EngineError `prices.damaged`."""
    return _read(stamp or price_stamp())


@lru_cache(maxsize=4)
def _read(stamp: PriceStamp) -> PriceList | None:
    path, modified, _ = stamp
    if not modified:
        return None
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=PriceList)
        date.fromisoformat(found.read_on)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise EngineError(
            "prices.damaged",
            f"The list of prices {path} cannot be read.",
            cause=str(error),
            next_step="Remove it: the prices that ship with the program are used again.",
        ) from error
    return found


def write_prices(prices: PriceList) -> Path:
    """Keep a refreshed list; it appears whole or not at all. Raises EngineError `home.unwritable`."""
    folder = ensure_writable(state_home())
    path, part = folder / FILE, folder / f".{FILE}.{os.getpid()}"
    try:
        with part.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(prices), indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise EngineError(
            "home.unwritable",
            f"Cannot write {path}.",
            cause=error.strerror or str(error),
            next_step="Free some space there, or set SCALER_WIZARD_HOME to another folder.",
        ) from error
    return path


def age_days(read_on: str, today: date | None = None) -> int:
    """Whole days since `read_on` (ISO date); 0 for a date that is still to come."""
    return max(((today or date.today()) - date.fromisoformat(read_on)).days, 0)
