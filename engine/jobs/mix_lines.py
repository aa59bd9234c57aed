"""What the process that scores mixes of adapters is asked and says, line by line, and the report of a sweep.

Owns the shape. Must not know models: front ends and the process both read it.
"""

from __future__ import annotations

import msgspec

from engine.jobs.spec_mix import MixSection


class AskedMix(msgspec.Struct, frozen=True, kw_only=True):
    """One wish. A newer one makes older ones stale: they are given up."""

    id: int
    weights: tuple[float, ...]
    mix: MixSection = MixSection()
    seed: int = 17


class Scorer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ready"):
    """The base and all adapters are loaded."""

    adapters: tuple[str, ...]
    rows: int
    tokens: int
    """Trained ones, over which the mean is taken."""
    data: str
    device: str
    seconds: float


class Scored(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="scored"):
    id: int
    weights: tuple[float, ...]
    loss: float
    """Nats per trained token."""
    seconds: float


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="dropped"):
    """It was not measured to the end: a newer one came."""

    id: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="refused"):
    """This one cannot be measured; the process goes on."""

    id: int
    what: str
    next_step: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="tried"):
    """A sweep measured one set of weights."""

    number: int
    total: int
    what: str
    """ "base", "alone", "equal", "sum", "spread", "refined"."""
    weights: tuple[float, ...]
    loss: float
    best: tuple[float, ...]
    best_loss: float
    eta_seconds: float | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Weights with their loss on the rows that were searched on and on those that were not."""

    weights: tuple[float, ...]
    loss: float
    check_loss: float | None = None


class SweepReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="swept"):
    """What a search over weights found. The best were fitted to the rows of `loss`; `check_loss` is on other rows."""

    adapters: tuple[str, ...]
    method: str
    base: Measured
    alone: tuple[Measured, ...]
    """In the order of the adapters, each at weight 1."""
    equal: Measured | None
    """The mean of them; None where there is one adapter only."""
    best: Measured
    tries: int
    rows: int
    tokens: int
    check_rows: int
    check_tokens: int
    data: str
    seconds: float

    @property
    def helps(self) -> bool:
        """Whether the chosen weights beat the base and every adapter alone on rows that were not searched on."""
        if self.best.check_loss is None:
            return False
        others = [one.check_loss for one in (self.base, *self.alone)]
        return all(other is not None and self.best.check_loss < other for other in others)


Line = Scorer | Scored | Dropped | Refused | Tried | SweepReport


def decode_line(raw: bytes) -> Line | None:
    """A line of the process; None for any other."""
    try:
        found: Line = msgspec.json.decode(raw, type=Line)
    except msgspec.MsgspecError:
        return None
    return found
