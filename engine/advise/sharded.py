"""One job on several cards: how its steps are divided, and what 1, 2, 4 and 8 cards would give.

Owns the choice between whole copies and shares of the model, and the table. Must not know launchers or processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from engine.advise.amounts import Load, cost_with, device_of, hours_with
from engine.advise.devices import Devices
from engine.advise.fit import Plan, estimate_memory_on, memory_bounds_on
from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.roofline import step_seconds
from engine.estimate.speed import estimate_tokens_per_second
from engine.estimate.workload import Method, OptimizerKind, Purpose, Workload
from engine.hardware.machine import Machine

COUNTS = (1, 2, 4, 8)
"""Cards of one machine."""


class Strategy(StrEnum):
    """How cards share a job."""

    ONE = "one"
    DDP = "ddp"
    """A whole copy each; gradients are added up."""
    FSDP2 = "fsdp2"
    """A share of weights, gradients and states each; layers are gathered as they are needed."""


@dataclass(frozen=True, slots=True)
class CardCount:
    """The job on so many cards like the one it is planned for."""

    cards: int
    strategy: Strategy
    memory: Estimate
    """Bytes on each card."""
    verdict: Verdict
    """Of that memory."""
    tokens_per_second: Estimate
    """Of all cards together."""
    hours: Estimate
    cost_usd: Estimate
    exchange_share: float
    """Of a step: how long cards wait for each other's data."""
    speedup: float
    """Tokens per second over those of one card, or of the fewest cards that hold the job; 0 where these do not."""
    edits: tuple[tuple[str, str], ...] = ()
    """Keys of the spec that must change for this row, and their values."""


def spread(work: Workload, cards: int, strategy: Strategy, nodes: int = 1) -> Workload:
    """`work` on each of `cards` cards: the sequences of a step are divided evenly, so that a step stays what it is.

    Where a step holds fewer micro-batches than there are cards, micro-batches become smaller.
    """
    if cards == 1:
        return work
    sequences = -(-work.batch * work.accumulation // cards)
    batch = min(work.batch, sequences)
    shares = strategy is Strategy.FSDP2
    return replace(
        work,
        batch=batch,
        accumulation=-(-sequences // batch),
        shards=cards if shares else 1,
        replicas=1 if shares else cards,
        nodes=nodes,
    )


def can_be_sharded(work: Workload) -> bool:
    """Whether FSDP2 takes the job: partly frozen matrices are not divided, nor are the states of 8-bit optimizers."""
    return work.method in (Method.ADAPTER, Method.FULL) and work.optimizer not in _EIGHT_BIT


_EIGHT_BIT = (OptimizerKind.ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT)


def with_plain_states(work: Workload) -> Workload:
    """The same job with torch's AdamW, whose states can be divided."""
    if work.optimizer not in _EIGHT_BIT:
        return work
    mixed = work.method is not Method.ADAPTER and work.compute_bytes == 2
    return replace(work, optimizer=OptimizerKind.ADAMW_MIXED if mixed else OptimizerKind.ADAMW)


def strategy_for(
    work: Workload, cards: int, devices: Devices, calibration: Calibration | None = None, nodes: int = 1
) -> Strategy:
    """Whole copies where they fit, since they exchange least; shares where only those may."""
    if cards == 1:
        return Strategy.ONE
    if not can_be_sharded(work):
        return Strategy.DDP
    fits = _copies_fit(work, cards, devices, calibration, nodes)
    return Strategy.DDP if fits else Strategy.FSDP2


def _copies_fit(work: Workload, cards: int, devices: Devices, calibration: Calibration | None, nodes: int = 1) -> bool:
    bounds = memory_bounds_on(spread(work, cards, Strategy.DDP, nodes), calibration)
    return devices.verdict(*bounds) is Verdict.FITS


def card_counts(plan: Plan, machine: Machine, load: Load, counts: tuple[int, ...] = COUNTS) -> tuple[CardCount, ...]:
    """What each number of cards like the plan's first one would give; () without a GPU, and where nothing trains."""
    if plan.devices.on_cpu or plan.work.purpose is not Purpose.TRAIN:
        return ()
    single = replace(
        plan.work,
        shards=1,
        replicas=1,
        nodes=1,
        accumulation=plan.work.accumulation * plan.work.cards,
    )
    gpu = plan.devices.gpus[0]
    rows: list[CardCount] = []
    for cards in counts:
        if cards > single.batch * single.accumulation:
            break  # a step has fewer sequences than there would be cards
        devices = Devices((gpu,) * cards, plan.devices.free_bytes, plan.devices.total_bytes)
        job = single
        if cards > 1 and not _copies_fit(single, cards, devices, plan.calibration):
            job = with_plain_states(single)  # where copies do not fit, shares may, and those need plain states
        strategy = strategy_for(job, cards, devices, plan.calibration)
        row = _row(plan, machine, load, spread(job, cards, strategy), devices, strategy)
        rows.append(row if job is single else replace(row, edits=(("training.optimizer", "adamw"),)))
    running = next((row for row in rows if row.verdict is not Verdict.NO), None)
    base = running.tokens_per_second.likely if running is not None else 0.0
    return tuple(
        row if row.verdict is Verdict.NO else replace(row, speedup=row.tokens_per_second.likely / base) for row in rows
    )


def _row(plan: Plan, machine: Machine, load: Load, work: Workload, devices: Devices, strategy: Strategy) -> CardCount:
    device, calibration = device_of(plan, machine), plan.calibration
    memory = estimate_memory_on(work, calibration)
    hours = hours_with(load, work, device, calibration)
    price = load.tariff.usd_per_hour  # of a machine with the cards that were planned; more cards cost as much more
    price = price * work.cards / plan.work.cards if price is not None else None
    tariff = replace(load.tariff, cards=work.cards, usd_per_hour=price)
    seconds = step_seconds(work, device, "likely")
    return CardCount(
        cards=work.cards,
        strategy=strategy,
        memory=memory,
        verdict=devices.verdict(memory.low, memory.likely, memory.high),
        tokens_per_second=estimate_tokens_per_second(
            work, device, calibration=calibration, width=load.width, fill=load.fill
        ),
        hours=hours,
        cost_usd=cost_with(replace(load, tariff=tariff), hours, device),
        exchange_share=seconds.transfers / seconds.total if seconds.total else 0.0,
        speedup=0.0,
    )


def words_of(row: CardCount) -> str:
    """ "4 cards, a whole copy each: 3.4x as fast"."""
    how = {Strategy.ONE: "1 card", Strategy.DDP: f"{row.cards} cards, a whole copy each"}
    words = how.get(row.strategy, f"{row.cards} cards, a share of the model each")
    if row.verdict is Verdict.NO:
        return f"{words}: does not fit"
    return words if row.speedup == 1.0 else f"{words}: {row.speedup:.1f}x as fast"
