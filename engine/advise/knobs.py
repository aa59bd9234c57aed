"""Settings that trade memory for time or quality, each as a ladder of steps from gentle to harsh.

Owns the ladders, their price in words, and the keys of a spec they mean. Only steps that the program carries out for
the approach at hand are on them. Must not know what is free, nor whether a step is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from engine.advise.context import MIXED, POSE, measured_lengths
from engine.advise.fit import Plan
from engine.advise.longer import pose_lengths
from engine.advise.taught import IN_SPECS, live_forms
from engine.estimate.state import teacher_bytes
from engine.estimate.workload import Loss, Method, OptimizerKind, Packing4Bit, Purpose, TeacherHeld, Workload

MINIMUM_RANK = 4
MINIMUM_LENGTH = 256
LENGTH_GRAIN = 128
CHUNKS = (1024, 256)
"""Tokens per piece of a chunked loss."""
Edit = tuple[str, str | int | float | bool | tuple[int, ...]]
"""A key of the spec and its new value: ("training.batch_size", 1)."""


class Price(IntEnum):
    """What is given up, cheapest first."""

    TIME = 0
    """The same result, later."""
    LITTLE = 1
    """Hardly any quality."""
    CAPACITY = 2
    """The adapter learns less."""
    DATA = 3
    """Long rows are cut."""
    MONEY = 4
    MODEL = 5
    """Another, less able model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One setting of a knob."""

    change: str
    apply: Callable[[Workload], Workload]
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting that can be turned down."""

    id: str
    price: Price
    words: str
    """The price in words."""
    steps: tuple[Step, ...]
    """Gentlest first; each needs less memory than the one before."""


def knobs_of(plan: Plan) -> tuple[Knob, ...]:
    """Every knob with room left, cheapest first."""
    if plan.work.purpose is Purpose.EVALUATE:
        makers = [_measured, _target]
    else:
        makers = [_checkpointing, _micro_batch, _chunked_loss, _offload_activations, _optimizer]
        makers += [_teacher_form, _cached_teacher, _measured, _frozen_embeddings, _rank, _four_bits, _pose, _length]
    if not plan.approach.runs:  # our worker has neither; where it only plans, they are part of the plan
        makers[2:2] = [_offload_optimizer, _bf16_adapters]
    found = [knob for make in makers if (knob := make(plan)) is not None and knob.steps]
    return tuple(sorted(found, key=lambda knob: knob.price))


def _checkpointing(plan: Plan) -> Knob | None:
    if plan.work.checkpointing:
        return None
    step = Step(
        "gradient checkpointing",
        lambda work: replace(work, checkpointing=True),
        (("training.gradient_checkpointing", True),),
    )
    return Knob("checkpointing", Price.TIME, "the same result; each layer is computed twice", (step,))


def _micro_batch(plan: Plan) -> Knob | None:
    effective = plan.work.batch * plan.work.accumulation
    steps, batch = [], plan.work.batch
    while batch > 1:
        batch //= 2
        steps.append(_batch_step(batch, max(effective // batch, 1), counts_tokens=plan.counts_tokens))
    return Knob("micro-batch", Price.TIME, "the same result; the card is less busy", tuple(steps))


def _batch_step(batch: int, accumulation: int, *, counts_tokens: bool) -> Step:
    return Step(
        f"micro-batch {batch} with {accumulation} accumulated",
        lambda work: replace(work, batch=batch, accumulation=accumulation),
        batch_edits(batch, accumulation, counts_tokens=counts_tokens),
    )


def batch_edits(batch: int, accumulation: int, *, counts_tokens: bool) -> tuple[Edit, ...]:
    """The keys of that micro-batch; where a step counts tokens (`Plan.counts_tokens`) the accumulation follows."""
    size: tuple[Edit, ...] = (("training.batch_size", batch),)
    return size if counts_tokens else (*size, ("training.gradient_accumulation", accumulation))


def _optimizer(plan: Plan) -> Knob | None:
    on_nvidia = bool(plan.devices.gpus) and plan.devices.gpus[0].vendor == "nvidia"
    small = (OptimizerKind.ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT, OptimizerKind.SGD)
    if not on_nvidia or plan.work.optimizer in small[1:]:
        return None
    keys = {OptimizerKind.ADAMW_8BIT: "adamw_8bit", OptimizerKind.PAGED_ADAMW_8BIT: "paged_adamw_8bit"}
    kinds = [kind for kind in small[:2] if kind is not plan.work.optimizer]
    steps = tuple(_optimizer_step(kind, keys[kind]) for kind in kinds)
    return Knob("optimizer", Price.LITTLE, "states rounded to 8 bits; hardly measurable", steps)


def _optimizer_step(kind: OptimizerKind, name: str) -> Step:
    return Step(kind.value, lambda work: replace(work, optimizer=kind), (("training.optimizer", name),))


def _chunked_loss(plan: Plan) -> Knob | None:
    work = plan.work
    present = work.tokens if work.loss is Loss.FULL else work.stack.loss_chunk_tokens
    if work.loss is Loss.FUSED:
        return None
    steps = tuple(_chunk_step(tokens) for tokens in CHUNKS if tokens < present)
    return Knob("chunked-loss", Price.TIME, "the same result; logits come a piece at a time", steps)


def _chunk_step(tokens: int) -> Step:
    def apply(work: Workload) -> Workload:
        return replace(work, loss=Loss.CHUNKED, stack=replace(work.stack, loss_chunk_tokens=tokens))

    return Step(f"loss in chunks of {tokens:,} tokens", apply, (("training.loss_chunk_tokens", tokens),))


def _offload_activations(plan: Plan) -> Knob | None:
    if plan.work.offload_activations or plan.devices.on_cpu:
        return None
    step = Step(
        "layers' inputs kept in host RAM",
        lambda work: replace(work, offload_activations=True, checkpointing=True),
        (("training.gradient_checkpointing", True), ("training.offload_activations", True)),
    )
    return Knob("offload-activations", Price.TIME, "the same result; waits for the bus", (step,))


def _frozen_embeddings(plan: Plan) -> Knob | None:
    if not plan.work.train_embeddings:
        return None
    step = Step(
        "embeddings frozen", lambda work: replace(work, train_embeddings=False), (("context.train_embeddings", False),)
    )
    return Knob("frozen-embeddings", Price.LITTLE, "a little behind at length (LongLoRA); norms still learn", (step,))


def _teacher_form(plan: Plan) -> Knob | None:
    """A teacher that takes less of the card: each form needs less than the one before."""
    work, forms = plan.work, live_forms(plan.devices)[1:]
    if work.teacher is None or work.teacher_held not in (TeacherHeld.RESIDENT, TeacherHeld.PACKED):
        return None
    steps, least = [], teacher_bytes(work)
    for held in forms:
        needs = teacher_bytes(work, held)
        if needs < least:
            steps.append(_teacher_step(held))
            least = needs
    if not steps:
        return None
    return Knob("teacher", Price.LITTLE, "the teacher a little blurred, or slower", tuple(steps))


def _teacher_step(held: TeacherHeld) -> Step:
    words = "hold the teacher in 4 bits" if held is TeacherHeld.PACKED else "keep the teacher in host RAM"
    edits: tuple[Edit, ...] = (("distillation.held", IN_SPECS[held].value),)
    return Step(words, lambda work: replace(work, teacher_held=held), edits)


def _cached_teacher(plan: Plan) -> Knob | None:
    if plan.work.teacher is None or not plan.may_cache or plan.work.teacher_held is TeacherHeld.CACHED:
        return None
    step = Step(
        "cache the teacher's logits",
        lambda work: replace(work, teacher_held=TeacherHeld.CACHED),
        (("distillation.held", IN_SPECS[TeacherHeld.CACHED].value),),
    )
    return Knob("cached-teacher", Price.LITTLE, "only its likeliest tokens; they take room on disk", (step,))


def _offload_optimizer(plan: Plan) -> Knob | None:
    if plan.work.optimizer_on_host or plan.devices.on_cpu or plan.work.method is Method.ADAPTER:
        return None
    step = Step("optimizer in host RAM", lambda work: replace(work, optimizer_on_host=True))
    return Knob("offload-optimizer", Price.TIME, "the same result; every step waits for the processor", (step,))


def _bf16_adapters(plan: Plan) -> Knob | None:
    work = plan.work
    if work.method is not Method.ADAPTER or work.adapter_bytes == 2 or work.compute_bytes != 2:
        return None
    step = Step("adapters in bf16", lambda item: replace(item, adapter_bytes=2))
    return Knob("bf16-adapters", Price.LITTLE, "small updates round away", (step,))


def _rank(plan: Plan) -> Knob | None:
    if plan.work.method is not Method.ADAPTER:
        return None
    steps, rank = [], plan.work.rank
    while rank > MINIMUM_RANK:
        rank = max(rank // 2, MINIMUM_RANK)
        steps.append(_rank_step(rank))
    return Knob("rank", Price.CAPACITY, "a less capable adapter", tuple(steps))


def _rank_step(rank: int) -> Step:
    return Step(f"rank {rank}", lambda work: replace(work, rank=rank), (("adapter.rank", rank),))


def _four_bits(plan: Plan) -> Knob | None:
    if plan.work.method is not Method.ADAPTER or plan.work.packed:
        return None
    step = Step(
        "QLoRA: the base in 4 bits",
        lambda work: replace(work, packing=Packing4Bit.NF4_DOUBLE),
        (("task", "qlora"), ("quantization.kind", "auto")),
    )
    return Knob("qlora", Price.LITTLE, "within about a point of LoRA in the QLoRA paper", (step,))


def _pose(plan: Plan) -> Knob | None:
    """PoSE instead of full length: what a step holds is a window of the model's own length, or shorter."""
    choice = plan.context
    if choice is None or choice.window == POSE or choice.curriculum:
        return None
    lengths = pose_lengths(plan.base.context_length, choice.length)
    steps = tuple(_pose_step(length) for length in lengths if length < plan.work.sequence)
    return Knob("pose", Price.CAPACITY, "full reach with skipped positions, never a whole text", steps)


def _pose_step(length: int) -> Step:
    return Step(
        f"PoSE on {length:,} tokens",
        lambda work: replace(work, sequence=length),
        (("context.window", POSE), ("context.train_length", length), ("data.max_length", length)),
    )


def _length(plan: Plan) -> Knob | None:
    choice = plan.context
    if choice is not None and choice.curriculum:
        return None
    pose = choice is not None and choice.window == POSE
    least = 2 * plan.base.context_length if choice is not None and choice.window == MIXED else MINIMUM_LENGTH
    steps, length = [], plan.work.sequence
    while length > least:
        length = max(int(length * 0.75) // LENGTH_GRAIN * LENGTH_GRAIN, least)
        steps.append(_length_step(length, pose=pose))
    words = "longer rows are cut" if choice is None else "trained on shorter pieces than the window"
    return Knob("length", Price.DATA, words, tuple(steps))


def _length_step(length: int, *, pose: bool) -> Step:
    own: tuple[Edit, ...] = (("context.train_length", length),) if pose else ()
    return Step(
        f"at most {length:,} tokens per row",
        lambda work: replace(work, sequence=length),
        (*own, ("data.max_length", length)),
    )


def _measured(plan: Plan) -> Knob | None:
    """Shorter texts in the length report: keys and values of the longest are in memory twice."""
    choice = plan.context
    if choice is None:
        return None
    lengths = choice.measured or measured_lengths(plan.base.context_length, choice.length)
    steps = tuple(_measured_step(lengths[:count]) for count in range(len(lengths) - 1, 0, -1))
    return Knob("measured-lengths", Price.LITTLE, "what lies beyond is not measured", steps)


def _measured_step(lengths: tuple[int, ...]) -> Step:
    return Step(
        f"measured up to {lengths[-1]:,} tokens",
        lambda work: replace(work, measured_tokens=lengths[-1]),
        (("evaluation.lengths", lengths),),
    )


def _target(plan: Plan) -> Knob | None:
    """Of a job that only extends and measures: a nearer target."""
    steps, length = [], plan.context.length // 2 if plan.context is not None else 0
    while length > plan.base.context_length:
        steps.append(_target_step(length))
        length //= 2
    return Knob("target", Price.DATA, "a shorter window", tuple(steps))


def _target_step(length: int) -> Step:
    def apply(work: Workload) -> Workload:
        return replace(work, sequence=min(work.sequence, length), measured_tokens=min(work.measured_tokens, length))

    return Step(f"a window of {length:,} tokens", apply, (("context.length", length),))
