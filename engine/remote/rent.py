"""The rented machine a spec asks for: card, count, memory, disk and price, from its estimate or from the card named.

Owns the choice and the names the cloud tools have for cards (`profiles/clouds.toml`). Must not know their job files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from engine.advise.appraisal import Appraisal
from engine.advise.refusal import refusal_of
from engine.advise.rented import offers
from engine.errors import EngineError, ExitCode
from engine.estimate.estimate import Estimate, Verdict
from engine.hardware.gpu_profiles import GpuProfile, load_gpu_profiles
from engine.profiles import load_profile
from engine.units import GIB

SYSTEM_DISK_GIB = 40
"""The system, CUDA's libraries and the program's environment."""
ROOM = 1.5
"""Above the estimate's upper bound, for RAM and disk: both are sold in steps and cost little."""
LEAST_RAM_GIB = 16
CORES_PER_CARD = 4
PRICE_ROOM = 1.5
"""Above the highest price known: a machine beyond it is not taken."""


class _Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sky: tuple[str, ...] = ()
    dstack: str = ""


class _Clouds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    read_on: str
    card: dict[str, _Names]


@dataclass(frozen=True, slots=True)
class Rent:
    """One machine."""

    card: GpuProfile
    count: int
    ram_gib: int
    disk_gib: int
    usd_per_hour: float
    """Typical, of the whole machine; 0 where no price is known."""
    most_usd_per_hour: float
    hours: Estimate

    @property
    def words(self) -> str:
        """ "2x A100 80GB at about $3.12 an hour, 4 to 6 hours"."""
        name = self.card.name if self.count == 1 else f"{self.count}x {self.card.name}"
        return f"{name} at about ${self.usd_per_hour:.2f} an hour" if self.usd_per_hour else name


def sky_names(card: GpuProfile) -> tuple[str, ...]:
    """SkyPilot's names of a card, in the order they are tried. Raises EngineError `export.card`."""
    names = _names(card).sky
    if not names:
        raise _no_name(card, "SkyPilot")
    return names


def dstack_name(card: GpuProfile) -> str:
    """Raises EngineError `export.card`."""
    name = _names(card).dstack
    if not name:
        raise _no_name(card, "dstack")
    return name


def rent_for(found: Appraisal, processes: int, *, named: bool, force: bool = False, known: str = "sky") -> Rent:
    """The card that was named, or the cheapest of the catalogue on which the estimate's upper bound fits and which the
    tool called `known` has a name for. Raises EngineError `export.no_card`, or the refusal where the named one does not
    fit, unless `force`."""
    if named:
        if found.verdict is Verdict.NO and not force:
            raise refusal_of(found, "fit.no", spec_keys=True)
        gpus = found.plan.devices.gpus
        card = next(profile for profile in load_gpu_profiles() if profile.name == gpus[0].name)
        return _rent(card, max(processes, 1), found, found.hours)
    listed = [offer for offer in offers(found) if getattr(_names(offer.card), known)]
    fitting = [offer for offer in listed if offer.count == processes] or [o for o in listed if o.count == 1]
    if not fitting:
        raise EngineError(
            "export.no_card",
            "No rented card of the catalogue takes this job.",
            cause=found.judgement.reason,
            next_step='Name one yourself (--gpu "H100 SXM 80GB"), or see scaler-wizard estimate SPEC --gpu CARD.',
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    return _rent(fitting[0].card, max(processes, 1), found, fitting[0].hours)


def _rent(card: GpuProfile, count: int, found: Appraisal, hours: Estimate) -> Rent:
    ram = found.ram.high if not found.plan.devices.on_cpu else 2 * found.memory.high
    return Rent(
        card=card,
        count=count,
        ram_gib=max(math.ceil(ROOM * ram / GIB), LEAST_RAM_GIB),
        disk_gib=SYSTEM_DISK_GIB
        + math.ceil(ROOM * (found.disk.high + 2 * found.plan.work.architecture.parameters) / GIB),
        usd_per_hour=round(count * (card.rent_typical_usd_per_hour or 0.0), 4),
        most_usd_per_hour=round(PRICE_ROOM * count * (card.rent_high_usd_per_hour or 0.0), 2),
        hours=hours,
    )


def _names(card: GpuProfile) -> _Names:
    return load_profile("clouds.toml", _Clouds).card.get(card.id, _Names())


def _no_name(card: GpuProfile, tool: str) -> EngineError:
    return EngineError(
        "export.card",
        f"It is not known what {tool} calls the {card.name}.",
        next_step="Name another card with --gpu; profiles/clouds.toml has those with a name.",
    )
