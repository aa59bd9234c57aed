"""A spec as the formulas see it: its workload on a machine, its plan, its load and the promise it is held to.

Owns that translation; what the worker does (`engine.train`) is described here and nowhere else above the line. Must not
know how a spec was made.
"""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec

from engine.advise.amounts import Load, is_on_disk
from engine.advise.answers import answers_of
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import Approach, find_approach
from engine.advise.context import FULL, POSE, measuring_tokens, report_tokens
from engine.advise.context_spec import choice_of
from engine.advise.devices import Devices, capability_of, compute_bytes, equal_devices, single_device, workspace_bytes
from engine.advise.fit import Plan, calibration_for, estimate_memory_on, measured_only, memory_bounds_on
from engine.advise.recipes import choose_recipe
from engine.advise.sharded import Strategy, spread, strategy_for
from engine.advise.spec_growth import SpecGrowth
from engine.advise.taught import may_cache, taught, teacher_shape
from engine.estimate.calibration import Calibration
from engine.estimate.cost import Tariff, machine_watts
from engine.estimate.data_shape import NO_PADDING, PACKED_FILL, DataShape
from engine.estimate.estimate import Estimate
from engine.estimate.speed import NO_ROWS, Measuring, Rows, estimate_tokens_per_second
from engine.estimate.stacks import OURS
from engine.estimate.storage import DiskPlan
from engine.estimate.workload import Attention, DeviceKind, Loss, Method, OptimizerKind, Packing4Bit, Workload
from engine.hardware.machine import Machine
from engine.jobs.spec import ContextSection, Dtype, JobSpec, Optimizer, PredictionSection, Task
from engine.models.architecture import Architecture

UNNAMED_PROMPTS = 4
"""Held-out rows that the card shows answers to when the spec names no prompts."""
DEMO_PROMPTS = 4
_OPTIMIZERS = {
    Optimizer.ADAMW: OptimizerKind.ADAMW,
    Optimizer.ADAMW_8BIT: OptimizerKind.ADAMW_8BIT,
    Optimizer.PAGED_ADAMW_8BIT: OptimizerKind.PAGED_ADAMW_8BIT,
}
_CAPPED_SCORES = ("gemma2",)
"""Families that cap attention scores: SDPA cannot, so the worker computes them eagerly."""


def workload_of(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    *,
    trained_share: float = 1.0,
    growth: SpecGrowth | None = None,
) -> Workload:
    """The spec as the worker carries it out on this machine. Raises EngineError `estimate.value`.

    Frozen weights stay in the compute type (no kbit preparation), adapters are fp32 under autocast, the head computes
    `trained_share` of the positions, and packed or padded rows bring a block-diagonal mask. `growth` is what becomes of
    `architecture` before whole weights are trained.
    """
    devices = single_device(machine)
    trains = spec.task not in (Task.EXTEND, Task.MIX)
    adapter = spec.task.trains_adapter or not trains
    method = Method.ADAPTER if adapter else growth.method(spec.task) if growth else Method.FULL
    packed = spec.quantization_kind != "none" and method is not Method.FULL
    packing = Packing4Bit.NF4_DOUBLE if spec.quantization.double else Packing4Bit.NF4
    width = {Dtype.AUTO: compute_bytes(devices), Dtype.BFLOAT16: 2, Dtype.FLOAT32: 4}[spec.training.dtype]
    sequence = trained_length(spec, architecture)
    chunk, longer = spec.training.loss_chunk_tokens, spec.context != ContextSection()
    work = Workload(
        architecture=growth.architecture if growth else architecture,
        method=method,
        trained_layers=growth.new_layers if growth else 0,
        packing=packing if packed else Packing4Bit.NONE,
        batch=spec.training.batch_size,
        sequence=sequence,
        rank=spec.adapter.rank,
        targets=spec.adapter.targets,
        checkpointing=spec.training.gradient_checkpointing,
        masked=_joins(spec) or spec.training.batch_size > 1,
        attention=attention_of(architecture),
        trained_share=trained_share,
        accumulation=_accumulation(spec, sequence),
        optimizer=_optimizer_of(spec, method, width),
        compute_bytes=width,
        dora=spec.adapter.dora,
        dropout=spec.adapter.dropout > 0,
        loss=Loss.CHUNKED if chunk else Loss.FULL,
        stack=OURS if chunk in (0, OURS.loss_chunk_tokens) else replace(OURS, loss_chunk_tokens=chunk),
        train_embeddings=longer and spec.context.train_embeddings,
        train_norms=longer and spec.context.train_norms,
        measured_tokens=_measured(spec),
        offload_activations=spec.training.offload_activations,
        device=DeviceKind.CPU if devices.on_cpu else DeviceKind.GPU,
        workspace_bytes=workspace_bytes(devices),
        capability=capability_of(devices),
    )
    if not trains:
        return measured_only(work)
    return _divided(spec, taught(spec, work, architecture, devices), devices)


def devices_of(spec: JobSpec, machine: Machine) -> Devices:
    """The cards of this machine that the spec means; another machine's count as its equals."""
    devices = single_device(machine) if spec.distributed.world == 1 else equal_devices(machine)
    return replace(devices, gpus=devices.gpus[:1] * spec.distributed.world) if devices.gpus else devices


def _divided(spec: JobSpec, work: Workload, devices: Devices) -> Workload:
    """The part of one card. Processes on a processor share its cores: together they are as fast as one."""
    section = spec.distributed
    if section.world == 1 or devices.on_cpu:
        return work
    strategy = Strategy(section.strategy) if section.strategy != "auto" else None
    return spread(work, section.world, strategy or strategy_for(work, section.world, devices), section.nodes)


def with_plain_steps(spec: JobSpec, work: Workload) -> JobSpec:
    """The spec with nothing but steps of its longest sequences, for who tries a step: windows, curricula and counted
    tokens as the length, packing and accumulation that `work` has."""
    change, context = msgspec.structs.replace, spec.context
    if not (spec.training.tokens_per_step or context.curriculum or context.window != FULL):
        return spec
    return change(
        spec,
        data=change(spec.data, max_length=work.sequence, packing=_joins(spec)),
        training=change(spec.training, tokens_per_step=0, gradient_accumulation=work.accumulation),
        context=change(context, window=FULL, train_length=0, curriculum=()),
    )


def _joins(spec: JobSpec) -> bool:
    """Whether documents share a sequence; PoSE's never do."""
    return spec.data.packing and not (spec.context.extends and spec.context.window == POSE)


def _measured(spec: JobSpec) -> int:
    """The longest text that the card measures, tokens; 0 for none beyond the rows."""
    return max(spec.evaluation.lengths, default=spec.context.length)


def trained_length(spec: JobSpec, architecture: Architecture) -> int:
    """Tokens of the longest sequence that trains: with PoSE the short one, whatever the target; of mixed windows the
    long one. A job that only extends is asked at its target."""
    section = spec.context
    if spec.task is Task.EXTEND:
        return section.length
    if section.extends and section.window == POSE:
        return min(section.train_length or architecture.context_length or spec.data.max_length, spec.data.max_length)
    return max(section.curriculum, default=spec.data.max_length)


def _accumulation(spec: JobSpec, sequence: int) -> int:
    """Micro-batches per step; where a step counts tokens, as many as full ones make it complete."""
    training = spec.training
    if not training.tokens_per_step:
        return training.gradient_accumulation
    return max(math.ceil(training.tokens_per_step / (training.batch_size * sequence)), 1)


def _optimizer_of(spec: JobSpec, method: Method, width: int) -> OptimizerKind:
    """Whole weights learn in fp32 under autocast, as the worker holds them; adapters are fp32 in any case."""
    kind = _OPTIMIZERS[spec.training.optimizer]
    mixed = method is not Method.ADAPTER and width == 2 and kind is OptimizerKind.ADAMW
    return OptimizerKind.ADAMW_MIXED if mixed else kind


def attention_of(architecture: Architecture) -> Attention:
    """SDPA, except for families that it cannot serve."""
    return Attention.EAGER if architecture.family in _CAPPED_SCORES else Attention.SDPA


def plan_of_spec(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    calibration: Calibration | None = None,
    growth: SpecGrowth | None = None,
) -> Plan:
    """The spec as a plan, so that its verdict and its ways out are the wizard's."""
    work = workload_of(spec, architecture, machine, growth=growth)
    approach, choice = _approach_of(spec, work.method), choice_of(spec)
    answers, learns = answers_of({"model": spec.model.source}), spec.distillation.distils
    recipe = choose_recipe(answers, machine, architecture, longer=choice is not None, taught=learns)
    bounds, devices = memory_bounds_on(work, calibration), devices_of(spec, machine)
    return Plan(
        approach,
        architecture,
        work.architecture,
        work,
        devices,
        recipe,
        bounds,
        calibration,
        context=choice,
        counts_tokens=spec.training.tokens_per_step > 0,
        may_cache=may_cache(spec),
    )


def _approach_of(spec: JobSpec, method: Method) -> Approach:
    """The matrix's; a mix of adapters has no row there."""
    found = find_approach(_approach_id(spec, method))
    if spec.task is Task.MIX:
        return msgspec.structs.replace(found, id="mix", title=f"Mix of {len(spec.adapters)} adapters")
    return found


def _approach_id(spec: JobSpec, method: Method) -> str:
    if spec.context.extends:
        return "context"
    if spec.distillation.distils:
        return "distillation"
    if method is Method.NEW_BLOCKS:
        return "block-expansion"
    if method is Method.FULL:
        return "partial-expansion" if spec.grows or spec.task.needs_growth else "continue"
    return "lora" if spec.quantization_kind == "none" else "qlora"


def load_of_spec(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    tokens_per_epoch: float | tuple[float, float, float],
    *,
    base_on_disk: bool | None = None,
    data: DataShape | None = None,
) -> Load:
    """What the spec has to get through; `base_on_disk` None asks the architecture's source.

    `data` is what was counted: its tokens, padding and held-out rows then stand for the guesses.
    """
    counts = tokens_per_epoch if isinstance(tokens_per_epoch, tuple) else (float(tokens_per_epoch),) * 3
    if data is not None:
        counts = data.tokens
    low, likely, high = (count * spec.training.epochs * spec.task.trains for count in counts)
    here = is_on_disk(architecture) if base_on_disk is None else base_on_disk
    price, section = spec.cost.usd_per_hour or machine.price_usd_per_hour or None, spec.distributed
    teacher = teacher_shape(spec.distillation, architecture) if spec.distillation.distils else architecture
    taught_here = teacher is architecture or is_on_disk(teacher)
    download = sum(
        float(one.weight_bytes or 2 * one.parameters)
        for one, there in ((architecture, here), (teacher, taught_here))
        if not there
    )
    return Load(
        tokens=(low, likely, high),
        disk=DiskPlan(
            architecture,
            here,
            writes_grown_model=spec.grows,
            merged=spec.output.merge,
            checkpoints_kept=spec.checkpoint.keep,
            teacher_on_disk=taught_here,
            epoch_tokens=counts[1] * (data.trained_share if data is not None else 1.0),
        ),
        tariff=Tariff(
            price is not None,
            price * section.nodes if price is not None else None,
            spec.cost.usd_per_kwh or None,
            section.world,
        ),
        steps=spec.training.max_steps,
        epochs=spec.training.epochs,
        fill=data.fill if data is not None else PACKED_FILL if spec.data.packing else NO_PADDING,
        width=data.width if data is not None else 0,
        measuring=measuring_of(spec, data) if data is not None else None,
        checkpoint_every=spec.checkpoint.every_steps,
        rows=Rows(data.row_tokens, data.row_tokens * data.trained_share) if data is not None else NO_ROWS,
        length_tokens=_length_tokens(spec, architecture),
        download_bytes=download,
    )


def _length_tokens(spec: JobSpec, architecture: Architecture) -> float:
    """Read in measuring by length, the race of methods included."""
    choice, prompts = choice_of(spec), spec.evaluation.needle_prompts
    if choice is not None:
        return measuring_tokens(choice, architecture.context_length, prompts)
    return 2 * report_tokens(spec.evaluation.lengths, prompts)


def measuring_of(spec: JobSpec, data: DataShape) -> Measuring:
    """What the worker measures before, during and after training."""
    section = spec.evaluation
    prompts = len(section.sample_prompts) if section.sample_prompts else UNNAMED_PROMPTS
    return Measuring(
        heldout_tokens=data.heldout_tokens,
        base_tokens=data.base_tokens,
        prompts=DEMO_PROMPTS if section.sample_prompts == ("demo",) else prompts,
        new_tokens=section.max_new_tokens,
        every_steps=section.every_steps,
    )


def appraise_spec(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    load: Load,
    *,
    trained_share: float = 1.0,
    memory: Estimate | None = None,
    growth: SpecGrowth | None = None,
) -> Appraisal:
    """The appraisal of a spec; `memory` replaces the formula's figure (dry run, probe)."""
    plan = plan_of_spec(spec, architecture, machine, calibration_for(machine), growth)
    memory = memory or memory_with_share(plan, trained_share)
    processes = spec.distributed.processes
    if plan.devices.on_cpu and processes > 1:  # all of them share the host's memory
        memory = _times(memory, processes)
    return appraise(plan, machine, load, memory=memory)


def _times(memory: Estimate, processes: int) -> Estimate:
    parts = tuple(
        replace(part, amount=part.amount * processes, formula=f"{processes} processes x {part.formula}")
        for part in memory.breakdown
    )
    return replace(
        memory,
        low=memory.low * processes,
        likely=memory.likely * processes,
        high=memory.high * processes,
        breakdown=parts,
    )


def memory_with_share(plan: Plan, trained_share: float) -> Estimate:
    """Likely with the measured share of tokens that carry loss; the upper bound for a batch in which all of them do."""
    if not 0.0 < trained_share < 1.0:
        return estimate_memory_on(plan.work, plan.calibration)
    shared = estimate_memory_on(replace(plan.work, trained_share=trained_share), plan.calibration)
    return replace(shared, high=max(shared.high, plan.bounds[2]))


def predict(
    spec: JobSpec,
    architecture: Architecture,
    machine: Machine,
    *,
    tokens_per_epoch: float | tuple[float, float, float],
    trained_share: float = 1.0,
) -> PredictionSection:
    """Memory of the device that trains (the worker's RAM on a CPU), seconds of the whole run, and tokens per second.

    The weights are taken to be here: what a download takes is not the run's.
    """
    load = load_of_spec(spec, architecture, machine, tokens_per_epoch, base_on_disk=True)
    return prediction_of(appraise_spec(spec, architecture, machine, load, trained_share=trained_share))


def prediction_of(found: Appraisal) -> PredictionSection:
    """An appraisal as the promise that is frozen into a spec."""
    from engine.advise.amounts import device_of

    memory, hours, machine = found.memory, found.hours, found.machine
    device = device_of(found.plan, machine)
    rate = estimate_tokens_per_second(
        found.plan.work,
        device,
        calibration=found.plan.calibration,
        width=found.load.width,
        fill=found.load.fill,
        rows=found.load.rows,
    )
    return PredictionSection(
        memory_bytes_low=round(memory.low),
        memory_bytes_likely=round(memory.likely),
        memory_bytes_high=round(memory.high),
        seconds_low=round(hours.low * 3600, 1),
        seconds_likely=round(hours.likely * 3600, 1),
        seconds_high=round(hours.high * 3600, 1),
        tokens_per_second=round(rate.likely, 1),
        tokens_per_second_low=round(rate.low, 1),
        tokens_per_second_high=round(rate.high, 1),
        origin=memory.origin.value,
        machine=f"{machine.label} (SIM)" if machine.simulated else machine.label,
        watts=round(machine_watts(device, found.plan.work.cards).likely, 1),
    )
