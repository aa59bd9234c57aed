"""Printing and parsing of quantities, in one place: bytes, parameters, tokens, durations, money.

Owns the words and roundings users see. Must not know what a quantity is of.
Bytes are binary (GiB); parameters and tokens are decimal (7.2B, 12.5M).
"""

from __future__ import annotations

import re

from engine.errors import EngineError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_BYTE_STEPS = ((1024**4, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
_COUNT_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_SIZE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?b?)\s*$", re.IGNORECASE)


def _significant(value: float) -> str:
    """Three significant digits below 100, whole numbers from there on: 1.25, 12.5, 125."""
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def format_bytes(count_bytes: float) -> str:
    """`16_106_127_360` -> "15.0 GiB"."""
    sign = "-" if count_bytes < 0 else ""
    magnitude = abs(count_bytes)
    for step, name in _BYTE_STEPS:
        if magnitude >= step:
            return f"{sign}{_significant(magnitude / step)} {name}"
    return f"{sign}{magnitude:.0f} B"


def format_count(count: float) -> str:
    """`7_615_616_512` -> "7.62B"; for parameters and tokens."""
    for step, name in _COUNT_STEPS:
        if abs(count) >= step:
            return f"{_significant(count / step)}{name}"
    return f"{count:.0f}"


def format_duration(seconds: float) -> str:
    """`5025` -> "1 h 24 min"; `42.3` -> "42 s"; days from 48 hours on, then months and years."""
    if seconds < 0.95:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    if days < 14:
        return f"{days} d {hours} h"
    if days < 90:
        return f"{round(days + hours / 24)} days"
    if days < 730:
        return f"{days / 30.44:.0f} months"
    return f"{days / 365.25:,.0f} years"


def format_hours(hours: float) -> str:
    """Hours as a duration; `0.02` -> "72 s"."""
    return format_duration(hours * 3600)


def format_usd(usd: float) -> str:
    """`0` -> "$0", `0.034` -> "$0.03", `1234.5` -> "$1,234"; below half a cent says "<$0.01"."""
    if usd <= 0:
        return "$0"
    if usd < 0.005:
        return "<$0.01"
    if usd < 100:
        return f"${usd:.2f}"
    return f"${usd:,.0f}"


def format_range(low: str, high: str) -> str:
    """Two printed figures as a range; the unit is written once when both share it."""
    if low == high:
        return high
    low_number, _, low_unit = low.partition(" ")
    _, _, high_unit = high.partition(" ")
    if low_unit and low_unit == high_unit and " " not in low_unit:
        return f"{low_number}–{high}"
    return f"{low}–{high}"


def parse_bytes(text: str) -> int:
    """ "24G", "24 GiB", "512M", "1.5t" -> bytes; G and GB mean GiB, as graphics cards are sold. Raises EngineError."""
    match = _SIZE.match(text)
    if match is None:
        raise EngineError(
            "units.bytes", f"'{text}' is not a size.", next_step="Write a number with a unit, for example 24G or 512M."
        )
    number, prefix, _ = match.groups()
    power = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[prefix.lower()]
    return int(float(number) * 1024**power)


def parse_count(text: str) -> int:
    """ "7B", "1.5m", "32k", "4096" -> a decimal count; "32k" is 32,000 here. Raises EngineError."""
    match = re.match(r"^\s*([0-9][0-9_,]*\.?[0-9]*)\s*([kmbt]?)\s*$", text, re.IGNORECASE)
    if match is None:
        raise EngineError(
            "units.count", f"'{text}' is not a count.", next_step="Write a number, for example 7B, 1.5M or 4096."
        )
    number, suffix = match.groups()
    factor = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[suffix.lower()]
    return round(float(number.replace(",", "").replace("_", "")) * factor)


def parse_length(text: str) -> int:
    """ "32k", "1M", "4096", "4,096" -> tokens; k and M are binary here, as windows are named. Raises EngineError."""
    match = re.match(r"^\s*([0-9][0-9_,]*\.?[0-9]*)\s*(k|m|ki|mi)?\s*$", text, re.IGNORECASE)
    if match is None:
        raise EngineError(
            "units.length",
            f"'{text}' is not a length in tokens.",
            next_step="Write a number, for example 32k or 32768.",
        )
    number, suffix = match.groups()
    factor = {"": 1, "k": 1 << 10, "m": 1 << 20}[(suffix or "").lower()[:1]]
    return round(float(number.replace(",", "").replace("_", "")) * factor)
