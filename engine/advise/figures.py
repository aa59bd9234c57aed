"""An appraisal as the object of `estimate --json`: ranges, verdict, ways out, and where every figure is from.

Owns the keys of that object, which scripts rely on. Must not compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.advise.appraisal import Appraisal
from engine.advise.compare import settings_words
from engine.advise.fixes import Fix, fixes_for, savings_for
from engine.advise.inverse import Largest
from engine.advise.rented import Offer
from engine.estimate.estimate import Estimate


def to_json(found: Appraisal, *, asked: Sequence[Largest] = (), offer: Offer | None = None) -> dict[str, Any]:
    """The object; `asked` and `offer` are answers to questions the other way round."""
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
    return document


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
