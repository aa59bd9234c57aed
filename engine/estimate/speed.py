"""How long: the step, tokens per second, and the hours of a whole run with everything around the training.

Owns the joining of counted work, rates and what a machine has shown (`Calibration`). Must not know prices, nor where
token counts come from. Low is fast for seconds and hours, slow for tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.estimate.calibration import Calibration
from engine.estimate.cards import LINK_BYTES_PER_SECOND, DeviceSpeed
from engine.estimate.data_shape import NO_PADDING
from engine.estimate.estimate import Estimate, Origin, Part, Range
from engine.estimate.flops import (
    attention_flops_per_token,
    matmul_flops_per_token,
    optimizer_traffic_bytes,
    step_tokens,
    step_work,
)
from engine.estimate.own_answers import PROMPTS_PER_BATCH, asking, new_tokens
from engine.estimate.roofline import StepSeconds, step_seconds
from engine.estimate.shapes import shape_of
from engine.estimate.state import trainable_parameters, weight_bytes
from engine.estimate.storage import checkpoint_bytes
from engine.estimate.workload import Method, Packing4Bit, Purpose, TeacherHeld, Workload

DOWNLOAD_BYTES_PER_SECOND = Range(5e6, 30e6, 100e6)
"""Slow, likely, fast connection."""
DISK_BYTES_PER_SECOND = Range(0.12e9, 0.5e9, 2.0e9)
"""Network disk or hard disk, SATA SSD, NVMe."""
EVALUATION_SHARE = Range(0.03, 0.08, 0.25)
"""Measuring before and after, held-out loss and samples, as a share of training time, where nobody said how much."""
IMPORT_SECONDS = Range(6.0, 15.0, 60.0)
"""torch, transformers, peft and bitsandbytes from a warm or a cold disk; the demo starts in about 10 s."""
MEASURING_TOKENS = 4096
"""Tokens per batch of held-out rows, as the worker makes them."""


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured before, during and after training."""

    heldout_tokens: float
    base_tokens: float = 0.0
    prompts: int = 0
    """Fixed prompts answered before, after and at each evaluation."""
    new_tokens: int = 48
    """Tokens per answer, at most."""
    every_steps: int = 0
    """0: only before and after."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The mean row, tokens; 0 where rows were not counted."""

    tokens: float = 0.0
    answer: float = 0.0
    """What of it carries loss."""


NO_ROWS = Rows()


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What surrounds the training steps."""

    tokens: float
    """All tokens of the run: data x epochs, padding not counted."""
    tokens_low: float = 0.0
    """0 means as `tokens`."""
    tokens_high: float = 0.0
    download_bytes: float = 0.0
    cards: int = 1
    """Cards with a copy of the job each or sharing it; the work per micro-step is of all of them."""
    fill: Range = NO_PADDING
    """Share of the computed tokens that are not padding."""
    width: int = 0
    """Mean width of a micro-batch in tokens, padding included; 0 means full sequences."""
    epochs: float = 1.0
    measuring: Measuring | None = None
    """None: `EVALUATION_SHARE` of training."""
    checkpoint_every: int = 0
    """Optimizer steps between checkpoints; 0 means one in every sixth of the run."""
    length_tokens: float = 0.0
    """Read in forward passes over texts of up to `Workload.measured_tokens`, before and after training."""
    rows: Rows = NO_ROWS
    write_bytes: float = 0.0
    """Whole models written before or after training: grown, merged, GGUF."""


# ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────────
def flops_per_token(work: Workload) -> float:
    """All multiplications of one token: full 6M (8M with checkpointing), adapters 4M + 6A, attention on top.

    Frozen weights skip their gradients, the head is not recomputed; see `engine.estimate.flops`.
    """
    dense, slow = matmul_flops_per_token(work)
    teacher = 0.0
    if work.teacher is not None and work.teacher_held is not TeacherHeld.CACHED:
        shape = shape_of(work.teacher)
        teacher = 2.0 * (shape.layers * shape.layer_matmul + shape.head)
    return dense + slow + attention_flops_per_token(work) + teacher


def bytes_per_micro_step(work: Workload) -> float:
    """Least traffic of a micro-step: weights once per pass, unpacked copies, the optimizer's share."""
    counts = step_work(work)
    return counts.weight_read_bytes + counts.unpack_bytes + counts.cache_bytes + optimizer_traffic_bytes(work)


def step_bounds(
    work: Workload, device: DeviceSpeed, *, calibration: Calibration | None = None, compiled: bool = False
) -> tuple[float, float, float]:
    """Seconds of one micro-step on one device: fast, likely, slow; the width is what `calibration` saw, if given."""
    counts = step_work(work)
    likely = step_seconds(work, device, "likely", counts=counts, compiled=compiled).total
    seen = calibration.speed_factor if calibration is not None else None
    if seen is not None:
        return likely / seen.high, likely / seen.likely, likely / seen.low
    fast = step_seconds(work, device, "high", counts=counts, compiled=compiled).total
    slow = step_seconds(work, device, "low", counts=counts, compiled=compiled).total
    return fast, likely, slow


def estimate_step(work: Workload, device: DeviceSpeed, *, calibration: Calibration | None = None) -> Estimate:
    """Seconds of one micro-step in its parts; the parts sum to `likely`."""
    fast, likely, slow = step_bounds(work, device, calibration=calibration)
    seconds = step_seconds(work, device, "likely")
    scale = likely / seconds.total
    parts = tuple(
        Part(name, amount * scale, text, source)
        for name, amount, text, source in _step_parts(seconds, work, device)
        if amount > 0
    )
    return Estimate(fast, likely, slow, "seconds", origin_of(calibration), parts)


def estimate_tokens_per_second(
    work: Workload,
    device: DeviceSpeed,
    *,
    cards: int = 1,
    calibration: Calibration | None = None,
    compiled: bool = False,
    width: int = 0,
    fill: Range = NO_PADDING,
    rows: Rows = NO_ROWS,
) -> Estimate:
    """Tokens per second over all cards, padding not counted; new tokens while generating. Where a student writes
    answers of its own, the time for that is part of the steps, as it is of the worker's."""
    work = _at_width(work, width)
    bounds = step_bounds(work, device, calibration=calibration, compiled=compiled)
    written = _written_step(work, device, rows, fill.likely, calibration)
    fast, likely, slow = (one + more / work.accumulation for one, more in zip(bounds, written, strict=True))
    tokens = step_tokens(work) * copies(work, cards)
    return Estimate(
        tokens * fill.low / slow,
        tokens * fill.likely / likely,
        tokens * fill.high / fast,
        "tokens/s",
        origin_of(calibration),
        (Part("tokens per second", tokens * fill.likely / likely, f"{tokens:,} tokens per micro-step", device.source),),
    )


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def estimate_hours(
    work: Workload, device: DeviceSpeed, plan: RunPlan, *, calibration: Calibration | None = None
) -> Estimate:
    """Hours of the whole run; the parts sum to `likely`."""
    shaped = _at_width(work, plan.width)
    bounds = step_bounds(shaped, device, calibration=calibration)
    per_micro_step = shaped.tokens * copies(shaped, plan.cards)
    counts = (plan.tokens_low or plan.tokens, plan.tokens, plan.tokens_high or plan.tokens)
    fills = (plan.fill.high, plan.fill.likely, plan.fill.low)
    micro_steps = tuple(count / fill / per_micro_step for count, fill in zip(counts, fills, strict=True))
    train = tuple(number * seconds for number, seconds in zip(micro_steps, bounds, strict=True))
    rate = plan.tokens / train[1] if train[1] else 0.0
    over = f" on {plan.cards} cards" if plan.cards > 1 else ""
    steps = tuple(max(number / work.accumulation, 1.0) for number in micro_steps)
    speed_source = calibration.source if calibration is not None and calibration.speed_factor else device.source
    rows = [
        ("training", train, f"{plan.tokens:,.0f} tokens / {rate:,.0f} tokens per second{over}", speed_source),
        ("own answers", *_own_answers(shaped, device, plan, steps, calibration)),
        ("evaluation", *_evaluation(shaped, device, plan, train, steps)),
        ("measuring by length", *_by_length(work, device, plan)),
        ("teacher's logits", *_teacher_pass(work, device, plan)),
        ("checkpoints", *_checkpoints(work, plan, steps)),
        ("start", *_start(work, device)),
        ("download", *_over(plan.download_bytes, DOWNLOAD_BYTES_PER_SECOND, "own estimate")),
        ("writing models", *_over(plan.write_bytes, DISK_BYTES_PER_SECOND, "own estimate")),
    ]
    low, likely, high = (sum(seconds[index] for _, seconds, _, _ in rows) / 3600 for index in range(3))
    parts = tuple(
        Part(name, seconds[1] / 3600, text, source)
        for name, seconds, text, source in rows
        if seconds[1] > 0 or name == "training"
    )
    return Estimate(low, likely, high, "hours", origin_of(calibration), parts)


def copies(work: Workload, cards: int) -> int:
    """How many micro-batches of `work` the cards compute at a time.

    Each card computes its own micro-batch, also where the state is sharded; talking to each other is in the step.
    """
    return max(cards, work.cards, 1)


def origin_of(calibration: Calibration | None) -> Origin:
    """FORMULA unless the speed was seen on this machine."""
    return calibration.origin if calibration is not None and calibration.speed_factor else Origin.FORMULA


_Row = tuple[tuple[float, float, float], str, str]
"""Seconds fast, likely, slow; formula; source."""


def _over(amount_bytes: float, rate: Range, source: str) -> _Row:
    seconds = (amount_bytes / rate.high, amount_bytes / rate.likely, amount_bytes / rate.low)
    return seconds, f"{amount_bytes / 1e9:.1f} GB at {rate.likely / 1e6:,.0f} MB/s", source


def _evaluation(
    work: Workload,
    device: DeviceSpeed,
    plan: RunPlan,
    train: tuple[float, ...],
    steps: tuple[float, ...],
) -> _Row:
    """Held-out rows and base text before and after, held-out rows at each evaluation, answers to prompts."""
    measuring = plan.measuring
    if measuring is None:
        share = EVALUATION_SHARE
        seconds = (train[0] * share.low, train[1] * share.likely, train[2] * share.high)
        return seconds, f"{share.likely:.0%} of training", "own estimate"
    times = tuple(2 + (int(number // measuring.every_steps) if measuring.every_steps else 0) for number in steps)
    forward = _per_token(work, device, Purpose.EVALUATE, max(MEASURING_TOKENS // work.sequence, 1))
    answers = -(-measuring.prompts // PROMPTS_PER_BATCH) * measuring.new_tokens
    asking = _per_step(work, device, Purpose.GENERATE, min(max(measuring.prompts, 1), PROMPTS_PER_BATCH))
    low, likely, high = (
        forward[i] * (times[i] * measuring.heldout_tokens + 2 * measuring.base_tokens)
        + asking[i] * answers * times[i] * (0.3, 0.7, 1.0)[i]
        for i in range(3)
    )
    text = f"{times[1]} x {measuring.heldout_tokens:,.0f} held-out tokens, {measuring.prompts} answers each"
    return (low, likely, high), text, "forward passes and generation with a cache"


def _own_answers(
    work: Workload, device: DeviceSpeed, plan: RunPlan, steps: tuple[float, ...], calibration: Calibration | None
) -> _Row:
    """Written before every step that learns on them."""
    own = work.own_answers
    if own is None:
        return (0.0, 0.0, 0.0), "", ""
    one = _written_step(work, device, plan.rows, plan.fill.likely, calibration)
    tokens = new_tokens(work, plan.rows.answer)
    low, likely, high = (number * seconds for number, seconds in zip(steps, one, strict=True))
    text = f"{own.share * steps[1]:,.0f} steps, answers of up to {tokens[1]:,.0f} tokens ({tokens[2]:,.0f} at most)"
    return (low, likely, high), text, "forward passes and generation with a cache"


def _written_step(
    work: Workload, device: DeviceSpeed, rows: Rows, fill: float, calibration: Calibration | None
) -> tuple[float, float, float]:
    """Seconds for the answers of the mean step: of its prompts in batches a pass over each and one per new token.
    Longer answers than the data's are also more to learn on."""
    own = work.own_answers
    if own is None or work.purpose is not Purpose.TRAIN:
        return 0.0, 0.0, 0.0
    sequences, row = work.batch * work.accumulation, rows.tokens or work.sequence
    prompts = max(round(sequences * work.sequence * fill / row), 1) if own.joined else sequences
    batches, together = -(-prompts // PROMPTS_PER_BATCH), min(prompts, PROMPTS_PER_BATCH)
    length = max(min(round(row), work.sequence), 1)
    tokens = new_tokens(work, rows.answer)
    longest = min(round(length + tokens[2]), max(work.sequence, length))
    reading = step_bounds(asking(work, together, length, Purpose.EVALUATE), device, calibration=calibration)
    writing = step_bounds(asking(work, together, longest), device, calibration=calibration)
    low, likely, high = (
        own.share * batches * (read + count * each) for read, count, each in zip(reading, tokens, writing, strict=True)
    )
    more = prompts * max(tokens[2] - (rows.answer or tokens[2]), 0.0) / work.tokens
    return low, likely, high + own.share * more * step_bounds(work, device, calibration=calibration)[2]


def _by_length(work: Workload, device: DeviceSpeed, plan: RunPlan) -> _Row:
    """Perplexity and needles at every length, each token as dear as in the longest text."""
    if not plan.length_tokens or not work.measured_tokens:
        return (0.0, 0.0, 0.0), "", ""
    long = replace(work, sequence=work.measured_tokens, masked=False)
    forward = _per_token(long, device, Purpose.EVALUATE, 1)
    low, likely, high = (seconds * plan.length_tokens for seconds in forward)
    text = f"{plan.length_tokens:,.0f} tokens in texts of up to {work.measured_tokens:,}"
    return (low, likely, high), text, "forward passes with a cache"


def _teacher_pass(work: Workload, device: DeviceSpeed, plan: RunPlan) -> _Row:
    """Cached logits are made before training: one forward pass of the packed teacher over the data."""
    if work.teacher is None or work.teacher_held is not TeacherHeld.CACHED:
        return (0.0, 0.0, 0.0), "", ""
    asked = Workload(
        work.teacher,
        Method.ADAPTER,
        Packing4Bit.NF4_DOUBLE,
        batch=work.batch,
        sequence=work.sequence,
        purpose=Purpose.EVALUATE,
        targets=(),
        compute_bytes=work.compute_bytes,
        device=work.device,
    )
    fast, likely, slow = step_bounds(asked, device)
    passes = plan.tokens / max(plan.epochs, 1.0) / asked.tokens
    return (passes * fast, passes * likely, passes * slow), "one forward pass over the data", device.source


def _checkpoints(work: Workload, plan: RunPlan, steps: tuple[float, ...]) -> _Row:
    """Trained weights and optimizer state, written every so many steps."""
    one = checkpoint_bytes(work)
    numbers = tuple(max(int(n // plan.checkpoint_every), 1) if plan.checkpoint_every else 6 for n in steps)
    rate = DISK_BYTES_PER_SECOND
    seconds = (numbers[0] * one / rate.high, numbers[1] * one / rate.likely, numbers[2] * one / rate.low)
    return seconds, f"{numbers[1]} x {one / 1e9:.2f} GB at {rate.likely / 1e9:.1f} GB/s", "own estimate"


def _start(work: Workload, device: DeviceSpeed) -> _Row:
    """Imports, then the checkpoint read from disk, and the weights moved to the card."""
    stored = float(work.architecture.weight_bytes or 2 * work.architecture.parameters)
    moved = 0.0 if device.is_cpu else weight_bytes(work)
    if work.teacher is not None and work.teacher_held not in (TeacherHeld.CACHED, TeacherHeld.SHARED):
        stored += float(work.teacher.weight_bytes or 2 * work.teacher.parameters)
    disk, link, imports = DISK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND, IMPORT_SECONDS
    seconds = (
        imports.low + stored / disk.high + moved / link.high,
        imports.likely + stored / disk.likely + moved / link.likely,
        imports.high + stored / disk.low + moved / link.low,
    )
    return seconds, f"imports {imports.likely:.0f} s, {stored / 1e9:.1f} GB read from disk", "own estimate"


def _per_step(work: Workload, device: DeviceSpeed, purpose: Purpose, batch: int) -> tuple[float, float, float]:
    asked = replace(
        work, purpose=purpose, batch=batch, accumulation=1, shards=1, replicas=1, teacher=None, measured_tokens=0
    )
    return step_bounds(asked, device)


def _per_token(work: Workload, device: DeviceSpeed, purpose: Purpose, batch: int) -> tuple[float, float, float]:
    fast, likely, slow = _per_step(work, device, purpose, batch)
    tokens = batch * work.sequence
    return fast / tokens, likely / tokens, slow / tokens


def _at_width(work: Workload, width: int) -> Workload:
    return replace(work, sequence=width) if 0 < width < work.sequence else work


def _step_parts(seconds: StepSeconds, work: Workload, device: DeviceSpeed) -> list[tuple[str, float, str, str]]:
    share = device.kind.matmul_share.likely
    of = f"{share:.0f} GFLOP/s per core" if device.is_cpu else f"{share:.0%} of the 16-bit peak"
    dense, slow = matmul_flops_per_token(work)
    tokens = step_tokens(work)
    return [
        ("arithmetic", seconds.arithmetic, f"{dense + slow:.3g} FLOP x {tokens:,} tokens at {of}", device.source),
        ("attention", seconds.attention, f"{attention_flops_per_token(work):.3g} FLOP x {tokens:,} tokens", "counted"),
        ("memory traffic", seconds.traffic, "norms, activations, loss, unpacking at 80 % of the bandwidth", "counted"),
        ("optimizer", seconds.optimizer, f"{trainable_parameters(work):,} trained parameters", "counted"),
        ("transfers", seconds.transfers, "between host and card, and between cards", "counted"),
        ("waiting for launches", seconds.waiting, f"{step_work(work).kernels:,.0f} kernels", "published short runs"),
    ]
