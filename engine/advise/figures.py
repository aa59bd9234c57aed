"""An appraisal as the object of `estimate --json`: ranges, verdict, ways out, and where every figure is from.

Owns the keys of that object, which scripts rely on. Must not compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.advise.appraisal import Appraisal
from engine.advise.compare import settings_words
from engine.advise.fixes import Fix, fixes_for, savings_for
from engine.advise.inverse import Largest
from engine.advise.rented import Offer
from engine.advise.sharded import CardCount
from engine.estimate.estimate import Estimate, Origin, Part, Verdict
from engine.units import format_bytes, format_range


def to_json(
    found: Appraisal,
    *,
    asked: Sequence[Largest] = (),
    offer: Offer | None = None,
    counts: Sequence[CardCount] | None = None,
) -> dict[str, Any]:
    """The object; `asked` and `offer` are answers to questions the other way round, `counts` other numbers of cards."""
    plan, machine = found.plan, found.machine
    fixes = fixes_for(found) or savings_for(found)
    document: dict[str, Any] = {
        "model": plan.final.name,
        "approach": plan.approach.id,
        "machine": machine.label,
        "simulated": machine.simulated,
        "settings": settings_words(plan),
        "memory": {**_whole(found.memory), "breakdown": breakdown(found.memory)},
        "ram": {**_whole(found.ram), "breakdown": breakdown(found.ram)},
        "disk": {**_whole(found.disk), "breakdown": breakdown(found.disk)},
        "hours": {**_range(found.hours), "breakdown": _parts(found.hours)},
        "cost_usd": {**_range(found.cost_usd), "breakdown": _parts(found.cost_usd)},
        "verdict": found.verdict.value,
        "verdict_reason": found.judgement.reason,
        "free_bytes": plan.devices.free_bytes,
        "total_bytes": plan.devices.total_bytes,
        "limiting": found.limiting,
        "fixes": [_fix(fix) for fix in fixes],
        "origin": found.memory.origin.value,
        "origins": {
            name: estimate.origin.value
            for name, estimate in (
                ("memory", found.memory),
                ("ram", found.ram),
                ("disk", found.disk),
                ("hours", found.hours),
                ("cost_usd", found.cost_usd),
            )
        },
        "formulas": {part.name: part.formula for part in found.memory.breakdown},
        "sources": {part.name: part.source for part in found.memory.breakdown},
    }
    if asked:
        document["largest"] = {answer.question.value: _largest(answer) for answer in asked}
    if offer is not None:
        document["cheapest_card"] = _offer(offer)
    if counts is not None:
        document["cards"] = [_card_count(row) for row in counts]
    return document


def _card_count(row: CardCount) -> dict[str, Any]:
    return {
        "cards": row.cards,
        "strategy": row.strategy.value,
        "memory_bytes_each": _whole(row.memory),
        "verdict": row.verdict.value,
        "tokens_per_second": _range(row.tokens_per_second),
        "hours": _range(row.hours),
        "cost_usd": _range(row.cost_usd),
        "exchange_share": row.exchange_share,
        "speedup": row.speedup,
        "edits": dict(row.edits),
    }


@dataclass(frozen=True, slots=True)
class Refined:
    """What `estimate --dry-run` or `--probe` answered."""

    memory: Estimate
    hours: Estimate
    cost_usd: Estimate
    verdict: Verdict
    reason: str

    @property
    def sentence(self) -> str:
        """ "likely 806 MiB (790 MiB-1.10 GiB) [dry run]; fits: at most 1.10 GiB; ..."."""
        span = format_range(format_bytes(self.memory.low), format_bytes(self.memory.high))
        figure = f"likely {format_bytes(self.memory.likely)} ({span}) [{self.memory.origin.value}]"
        return f"{figure}; {self.verdict.value}: {self.reason}"


def refined_from_json(document: Mapping[str, Any]) -> Refined:
    """The object of `to_json`, read back as far as a screen shows it."""
    origins = document["origins"]
    memory = document["memory"]
    parts = tuple(
        Part(name, amount, document["formulas"].get(name, ""), document["sources"].get(name, ""))
        for name, amount in memory["breakdown"].items()
    )
    return Refined(
        memory=Estimate(*_ends(memory), "bytes", Origin(origins["memory"]), parts),
        hours=Estimate(*_ends(document["hours"]), "hours", Origin(origins["hours"])),
        cost_usd=Estimate(*_ends(document["cost_usd"]), "usd", Origin(origins["cost_usd"])),
        verdict=Verdict(document["verdict"]),
        reason=document["verdict_reason"],
    )


def _ends(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    return float(figure["low"]), float(figure["likely"]), float(figure["high"])


def breakdown(estimate: Estimate) -> dict[str, int]:
    """Parts in whole bytes that add up to the rounded likely figure: the largest part takes what rounding left over."""
    whole = {part.name: round(part.amount) for part in estimate.breakdown}
    if whole:
        largest = max(whole, key=lambda name: whole[name])
        whole[largest] += round(estimate.likely) - sum(whole.values())
    return whole


def _whole(estimate: Estimate) -> dict[str, int]:
    return {"low": round(estimate.low), "likely": round(estimate.likely), "high": round(estimate.high)}


def _range(estimate: Estimate) -> dict[str, float]:
    return {"low": estimate.low, "likely": estimate.likely, "high": estimate.high}


def _parts(estimate: Estimate) -> dict[str, float]:
    return {part.name: part.amount for part in estimate.breakdown}


def _fix(fix: Fix) -> dict[str, Any]:
    return {
        "id": fix.id,
        "change": fix.change,
        "price": fix.words,
        "sentence": fix.sentence,
        "verdict": fix.verdict.value,
        "memory": _whole(fix.memory),
        "hours": _range(fix.hours),
        "cost_usd": _range(fix.cost_usd),
        "set": dict(fix.edits),
    }


def _largest(answer: Largest) -> dict[str, Any]:
    return {
        "value": answer.value,
        "name": answer.name,
        "memory": None if answer.memory is None else _whole(answer.memory),
        "note": answer.note,
    }


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "card": offer.card.name,
        "count": offer.count,
        "memory": _whole(offer.memory),
        "hours": _range(offer.hours),
        "cost_usd": _range(offer.cost_usd),
    }
