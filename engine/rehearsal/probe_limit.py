"""The largest micro-batch of a job that fits, found on the device itself.

Owns the search. On a card memory runs out for real and is recovered from. On a CPU it never may: the machine would swap
or the kernel would kill; so the slope is measured on small steps, the answer follows from it with a margin, and the
largest step that time allows confirms it. Must not know where the model came from.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from engine.evaluation.model import LoadedModel
from engine.hardware.memory import read_ram
from engine.jobs.probes import Largest
from engine.rehearsal.gauges import CpuGauge
from engine.rehearsal.probe_steps import Lesson, one_step
from engine.train.batches import TensorSequence

Step = Callable[[Sequence[TensorSequence]], None]
MOST_ROWS = 4096
SAFE_SHARE = 0.8
"""Of the available RAM a probe takes no more than this."""
MARGIN = 1.15
"""On what a larger step is expected to take, before it is tried."""
NOISE_BYTES = 4 << 20
"""A smaller rise of resident memory says nothing."""


def largest_on_card(
    loaded: LoadedModel, lesson: Lesson, sequence: TensorSequence, *, deadline: float, cap_bytes: int = 0
) -> Largest:
    """Doubled until memory runs out, then halved between; a length when not even one row fits."""
    free, total = torch.cuda.mem_get_info()
    step, batch = one_step(loaded, lesson), lesson.spec.training.batch_size
    if cap_bytes:
        torch.cuda.set_per_process_memory_fraction(min(cap_bytes / total, 1.0))
    try:
        rows, failed = search(lambda count: fits(loaded, step, [sequence] * count), batch, deadline=deadline)
        if rows:
            return Largest(kind="batch", value=rows, tried=rows, smallest_that_failed=failed, free_bytes=float(free))
        length = len(sequence.input_ids) // 2
        while length >= 8 and not fits(loaded, step, [shortened(sequence, length)]):
            length //= 2
        return Largest(
            kind="sequence",
            value=length if length >= 8 else 0,
            tried=length if length >= 8 else 0,
            smallest_that_failed=len(sequence.input_ids),
            free_bytes=float(free),
        )
    finally:
        if cap_bytes:
            torch.cuda.set_per_process_memory_fraction(1.0)


def search(fits_rows: Callable[[int], bool], start: int, *, deadline: float) -> tuple[int, int]:
    """(the most rows that fit or 0, the fewest known not to or 0), to one part in 32 or until time is up."""
    low, high = 0, 0
    count = max(start, 1)
    while count <= MOST_ROWS and (low == 0 or time.perf_counter() < deadline):
        if fits_rows(count):
            low = count
            if high:
                break
            count *= 2
        else:
            high = count
            if low or count == 1:
                break
            count //= 2
    while low and high and high - low > max(low // 32, 1) and time.perf_counter() < deadline:
        middle = (low + high) // 2
        if fits_rows(middle):
            low = middle
        else:
            high = middle
    return low, high


def fits(loaded: LoadedModel, step: Step, sequences: list[TensorSequence]) -> bool:
    """Whether one step of these runs, from an emptied cache as a fresh process would find it."""
    gc.collect()
    torch.cuda.empty_cache()
    ran = True
    try:
        step(sequences)
    except torch.OutOfMemoryError:
        ran = False
    # Outside the handler: its traceback holds the tensors of the failed step.
    loaded.model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    return ran


def shortened(sequence: TensorSequence, length: int) -> TensorSequence:
    """The first `length` tokens."""
    inside = sequence.positions < length - 1
    return TensorSequence(
        input_ids=sequence.input_ids[:length],
        position_ids=sequence.position_ids[:length],
        positions=sequence.positions[inside],
        targets=sequence.targets[inside],
    )


def largest_in_ram(
    loaded: LoadedModel,
    lesson: Lesson,
    sequence: TensorSequence,
    gauge: CpuGauge,
    *,
    seconds: float,
    cap_bytes: int = 0,
    bytes_per_token: float = 0.0,
) -> Largest | None:
    """From the slope between two steps; None when there was no time for the second."""
    length, batch, step = len(sequence.input_ids), lesson.spec.training.batch_size, one_step(loaded, lesson)
    deadline = time.perf_counter() + seconds
    began = time.perf_counter()
    first = _peak(step, sequence, batch, gauge)
    took = time.perf_counter() - began
    free = float(cap_bytes) if cap_bytes else gauge.resting() + SAFE_SHARE * read_ram().available_bytes
    slope, tried = bytes_per_token, batch
    for share in (0.4, 0.9):
        wanted = _affordable(free, first, slope, length, batch)
        in_time = batch * (deadline - time.perf_counter()) * share / max(took, 1e-6)
        rows = min(2 * batch if share < 0.5 else wanted, wanted, int(in_time), MOST_ROWS)
        if rows <= tried or first + (rows - batch) * length * slope * MARGIN > free:
            continue
        peak = _peak(step, sequence, rows, gauge)
        tried = rows
        if peak - first > NOISE_BYTES:
            slope = max((peak - first) / ((rows - batch) * length), 0.5 * bytes_per_token)
    if slope <= 0:
        return None
    value = _affordable(free, first, slope, length, batch)
    return Largest(kind="batch", value=max(value, tried), tried=tried, bytes_per_token=slope, free_bytes=free)


def _affordable(free: float, first: float, slope: float, length: int, batch: int) -> int:
    more = int((free - first) / (slope * length)) if slope > 0 else 0
    return min(max(batch + more, 1), MOST_ROWS)


def _peak(step: Step, sequence: TensorSequence, rows: int, gauge: CpuGauge) -> float:
    """Peak resident bytes of one step."""
    gc.collect()
    gauge.reset()
    step([sequence] * rows)
    return float(gauge.read().process)
