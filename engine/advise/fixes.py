"""What would make a job fit that does not, or cheaper when it does: each way with its new estimate and its price.

Owns those proposals and their order: cheapest first. Must not change a plan itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from engine.advise.amounts import cost_with, device_of, hours_with
from engine.advise.appraisal import Appraisal
from engine.advise.catalogue import known_architecture
from engine.advise.fit import Plan, estimate_memory_on, memory_bounds_on, shrink_to_fit
from engine.advise.knobs import Edit, Knob, Price, Step, batch_edits, knobs_of
from engine.advise.rented import offers
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.workload import Method, Packing4Bit, Purpose, Workload
from engine.models.model_profiles import ModelProfile, load_model_profiles
from engine.units import format_bytes, format_count, format_hours, format_range, format_usd

WORTH = 0.05
"""A saving below 5 % of the hours and of the money is not worth a line."""
LARGER_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Fix:
    """One way out, or one way to save."""

    id: str
    change: str
    """What to change: "rank 8"."""
    words: str
    """What it costs in quality or time: "a less capable adapter"."""
    price: Price
    memory: Estimate
    """The new estimate on the device that trains."""
    hours: Estimate
    cost_usd: Estimate
    verdict: Verdict
    edits: tuple[Edit, ...] = ()
    """Keys of the spec and their new values; empty for another machine or what is only planned."""

    @property
    def sentence(self) -> str:
        """ "rank 8: 10.2 GiB (up to 11.0 GiB), 3 h 10 min; a less capable adapter"."""
        need = f"{format_bytes(self.memory.likely)} (up to {format_bytes(self.memory.high)})"
        return f"{self.change}: {need}, {format_hours(self.hours.likely)}; {self.words}"


def fixes_for(found: Appraisal) -> tuple[Fix, ...]:
    """Ways that make the job fit, cheapest first; two changes together where none alone is enough.

    What only makes it tight is offered where nothing on this machine makes it fit. A job that fits gets none.
    """
    if found.judgement.memory is Verdict.FITS:
        return ()
    knobs = knobs_of(found.plan)
    single = [fix for knob in knobs if (fix := _single(found, knob)) is not None]
    fitting = [fix for fix in single if fix.verdict is Verdict.FITS]
    if not fitting:
        fitting = _together(found, knobs) or (single if found.judgement.memory is Verdict.NO else [])
    elsewhere = [fix for fix in (_rented(found), _smaller_model(found)) if fix is not None]
    return tuple(sorted([*fitting, *elsewhere], key=lambda fix: (fix.price, fix.hours.likely, fix.id)))


def savings_for(found: Appraisal) -> tuple[Fix, ...]:
    """What would make a job that fits faster or cheaper and still fit, best saving first."""
    if found.judgement.memory is not Verdict.FITS:
        return ()
    candidates = [*_faster(found), *([rented] if (rented := _rented(found)) is not None else [])]
    worth = [fix for fix in candidates if fix.verdict is Verdict.FITS and _saves(found, fix) > WORTH]
    return tuple(sorted(worth, key=lambda fix: -_saves(found, fix)))


def _saves(found: Appraisal, fix: Fix) -> float:
    """The larger share of hours or, where the machine is paid for, money that a fix saves."""
    hours = 1 - fix.hours.likely / found.hours.likely if found.hours.likely else 0.0
    if not found.load.tariff.rented:
        return hours if not fix.id.startswith("rented") else 0.0
    money = 1 - fix.cost_usd.likely / found.cost_usd.likely if found.cost_usd.likely else 0.0
    return max(hours, money) if not fix.id.startswith("rented") else money


def _single(found: Appraisal, knob: Knob) -> Fix | None:
    """The gentlest step that fits, else the gentlest that is tight."""
    step = _gentlest(found, knob, found.plan.work, Verdict.FITS) or _gentlest(
        found, knob, found.plan.work, Verdict.TIGHT
    )
    return None if step is None else _fix(found, (knob,), (step,))


def _together(found: Appraisal, knobs: tuple[Knob, ...]) -> list[Fix]:
    """Two changes that fit together; three where no two do. One proposal for each kind of price."""
    for size in (2, 3):
        chosen: dict[Price, Fix] = {}
        for group in sorted(combinations(knobs, size), key=_prices):
            dearest = max(knob.price for knob in group)
            if dearest not in chosen and (steps := _gentlest_together(found, group)) is not None:
                chosen[dearest] = _fix(found, group, steps)
        if chosen:
            return list(chosen.values())
    return []


def _prices(group: tuple[Knob, ...]) -> tuple[Price, ...]:
    return tuple(sorted((knob.price for knob in group), reverse=True))


def _gentlest_together(found: Appraisal, group: tuple[Knob, ...]) -> tuple[Step, ...] | None:
    """With all others at their harshest, each knob in turn goes back as far as it can, the dearest first."""
    steps = {knob.id: knob.steps[-1] for knob in group}
    for knob in sorted(group, key=lambda knob: -knob.price):
        work = found.plan.work
        for other in group:
            if other is not knob:
                work = steps[other.id].apply(work)
        step = _gentlest(found, knob, work, Verdict.FITS)
        if step is None:
            return None
        steps[knob.id] = step
    return tuple(steps[knob.id] for knob in group)


def _gentlest(found: Appraisal, knob: Knob, work: Workload, wanted: Verdict) -> Step | None:
    """The first step of the ladder that gives `wanted`; steps need less and less memory."""
    free = found.plan.devices.free_bytes
    which = 2 if wanted is Verdict.FITS else 1

    def fits(step: Step) -> bool:
        return memory_bounds_on(step.apply(work), found.plan.calibration)[which] <= free

    if not fits(knob.steps[-1]):
        return None
    return knob.steps[bisect_left(knob.steps, True, key=fits)]


def _fix(found: Appraisal, knobs: tuple[Knob, ...], steps: tuple[Step, ...]) -> Fix:
    work = found.plan.work
    for step in steps:
        work = step.apply(work)
    runs = found.plan.approach.runs
    return _judged(
        found,
        work,
        ids=tuple(knob.id for knob in knobs),
        change=" and ".join(step.change for step in steps),
        words=", ".join(dict.fromkeys(knob.words for knob in knobs)),
        price=max(knob.price for knob in knobs),
        edits=tuple(edit for step in steps for edit in step.edits) if runs else (),
    )


def _judged(
    found: Appraisal,
    work: Workload,
    *,
    ids: tuple[str, ...],
    change: str,
    words: str,
    price: Price,
    edits: tuple[Edit, ...],
) -> Fix:
    device = device_of(found.plan, found.machine)
    memory = estimate_memory_on(work, found.plan.calibration)
    hours = hours_with(found.load, work, device, found.plan.calibration)
    verdict = found.plan.devices.verdict(memory.low, memory.likely, memory.high)
    cost = cost_with(found.load, hours, device)
    return Fix("+".join(ids), change, words, price, memory, hours, cost, verdict, edits)


def _rented(found: Appraisal) -> Fix | None:
    """The rented machine that does the whole job for the least money."""
    best = next(iter(offers(found)), None)
    if best is None:
        return None
    span = format_range(format_usd(best.cost_usd.low), format_usd(best.cost_usd.high))
    return Fix(
        id="rented",
        change=f"a rented {best.name} for about {format_usd(best.cost_usd.likely)} ({span})",
        words="the same result on another machine",
        price=Price.MONEY,
        memory=best.memory,
        hours=best.hours,
        cost_usd=best.cost_usd,
        verdict=Verdict.FITS,
    )


def _smaller_model(found: Appraisal) -> Fix | None:
    """The largest known model that fits, of the same series if there is one."""
    plan = found.plan
    if plan.approach.model not in ("same", "larger"):
        return None
    profiles = load_model_profiles()
    own = next((m.series for m in profiles if plan.final.name in (m.id, m.hub_id)), "")
    smaller = [m for m in profiles if m.parameters < 0.9 * plan.final.parameters and _reads(m, plan)]
    for model in sorted(smaller, key=lambda m: (m.series != own, -m.parameters)):
        work = _with_model(found, model)
        if memory_bounds_on(work, plan.calibration)[2] <= plan.devices.free_bytes:
            return _judged(
                found,
                work,
                ids=("model",),
                change=f"{model.hub_id} ({format_count(model.parameters)})",
                words="a less able model",
                price=Price.MODEL,
                edits=_model_edits(plan, work, model) if plan.approach.runs else (),
            )
    return None


def _reads(model: ModelProfile, plan: Plan) -> bool:
    """Whether rows need not be cut for the model; context scaling needs one whose window is shorter than the target."""
    known = known_architecture(model.id)
    if plan.context is not None:
        return 0 < known.context_length < plan.context.length and known.rope.kind != "none"
    return known.context_length >= plan.work.sequence


def _with_model(found: Appraisal, model: ModelProfile) -> Workload:
    plan = found.plan
    work = replace(plan.work, architecture=known_architecture(model.id))
    return shrink_to_fit(work, plan.devices.free_bytes, work.batch * work.accumulation, plan.calibration)[0]


def _model_edits(plan: Plan, after: Workload, model: ModelProfile) -> tuple[Edit, ...]:
    before = plan.work
    edits: list[Edit] = [("model.source", model.hub_id)]
    if after.checkpointing != before.checkpointing:
        edits.append(("training.gradient_checkpointing", after.checkpointing))
    if after.batch != before.batch:
        edits += batch_edits(after.batch, after.accumulation, counts_tokens=plan.counts_tokens)
    return tuple(edits)


def _faster(found: Appraisal) -> Iterator[Fix]:
    """The same job without checkpointing, with fuller micro-batches, or unpacked, where that still fits."""
    plan, runs = found.plan, found.plan.approach.runs
    if plan.work.purpose is Purpose.EVALUATE:
        return
    if plan.work.offload_activations:
        yield _judged(
            found,
            replace(plan.work, offload_activations=False),
            ids=("no-offload",),
            change="layers' inputs kept on the card",
            words="the same result, faster",
            price=Price.TIME,
            edits=(("training.offload_activations", False),) if runs else (),
        )
    elif plan.work.checkpointing:
        yield _judged(
            found,
            replace(plan.work, checkpointing=False),
            ids=("no-checkpointing",),
            change="no gradient checkpointing",
            words="the same result, faster",
            price=Price.TIME,
            edits=(("training.gradient_checkpointing", False),) if runs else (),
        )
    if plan.work.accumulation > 1:
        yield from _fuller(found)
    if plan.work.packed and plan.work.method is Method.ADAPTER and plan.approach.model == "same":
        yield _judged(
            found,
            replace(plan.work, packing=Packing4Bit.NONE),
            ids=("lora",),
            change="LoRA: the base unquantised",
            words="nothing is quantised, and faster",
            price=Price.TIME,
            edits=(("task", "lora"), ("quantization.kind", "auto")) if runs else (),
        )


def _fuller(found: Appraisal) -> Iterator[Fix]:
    work, runs = found.plan.work, found.plan.approach.runs
    best = None
    for _ in range(LARGER_BATCHES):
        if work.accumulation % 2:
            break
        work = replace(work, batch=work.batch * 2, accumulation=work.accumulation // 2)
        if memory_bounds_on(work, found.plan.calibration)[2] > found.plan.devices.free_bytes:
            break
        best = work
    if best is not None:
        edits = batch_edits(best.batch, best.accumulation, counts_tokens=found.plan.counts_tokens)
        yield _judged(
            found,
            best,
            ids=("fuller-batch",),
            change=f"micro-batch {best.batch}",
            words="the same result, a busier card",
            price=Price.TIME,
            edits=edits if runs else (),
        )
