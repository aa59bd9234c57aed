"""One type for every figure the wizard promises: a range, a unit, an origin and the parts that make it up.

Owns the shape of an estimate. Must not know how any of them is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Origin(StrEnum):
    """How a figure came to be; later ones are better."""

    PUBLISHED = "published"
    FORMULA = "formula"
    DRY_RUN = "dry run"
    PROBE = "probe"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Part:
    """One component of an estimate. `amount` is in the estimate's unit."""

    name: str
    """A word users understand: "weights", "adapter", "logits and loss"."""
    amount: float
    formula: str = ""
    """The arithmetic with symbols, for the explain pane."""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """low <= likely <= high, in `unit`; the parts sum to `likely`."""

    low: float
    likely: float
    high: float
    unit: str
    """ "bytes", "hours", "usd", "tokens/s"."""
    origin: Origin
    breakdown: tuple[Part, ...] = ()

    def scaled(self, factor: float) -> Estimate:
        """The same estimate times `factor`, parts included."""
        parts = tuple(Part(p.name, p.amount * factor, p.formula, p.source) for p in self.breakdown)
        return Estimate(self.low * factor, self.likely * factor, self.high * factor, self.unit, self.origin, parts)


@dataclass(frozen=True, slots=True)
class Range:
    """low <= likely <= high of one quantity."""

    low: float
    likely: float
    high: float


class Verdict(StrEnum):
    """Does it fit? Judged by the high end against free memory."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "no"
