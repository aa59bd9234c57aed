"""Steps of the real model on the real device: warm-up, peaks, times, and the longest sequence under a cap.

Owns the order of a step, the same as the dry run's and the worker's. Must not know where orders come from.
"""

from __future__ import annotations

import gc
import re
import statistics
import time
from typing import Any

import msgspec
import torch

from engine.estimate.rehearsal import Rehearsal
from engine.evaluation.head import SelectiveHead, summed_loss
from engine.rehearsal import build
from engine.rehearsal.gauges import CpuGauge, CudaGauge, Gauge, Reading, workspace_bytes
from engine.rehearsal.orders import Attempt, Edge, EdgeFound, Measurement, Order
from engine.rehearsal.real_model import real_model
from engine.train.environment import library_versions
from engine.units import GIB

WARM_UP_STEPS = 2
"""The first makes the optimizer's states; from the second on a step repeats itself."""
FEWEST_TIMED = 3
ROWS_PER_PACK = 4
"""Texts that a packed row is made of."""
GRANULE = 64
"""Sequences are tried in multiples of this many tokens."""
MOST_ATTEMPTS = 16
LEARNING_RATE = 1e-5


class Trial:
    """One model on one device. Everything that may run out of memory happens in its methods."""

    def __init__(self, order: Order, device: torch.device) -> None:
        self.order, self.device, self.rehearsal = order, device, order.rehearsal
        self.model, base = real_model(order.rehearsal, device)
        self.vocabulary = int(base.config.vocab_size)
        self.head = SelectiveHead(base)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = None if order.rehearsal.evaluate else _optimizer(self.parameters, order)

    def step(self, rehearsal: Rehearsal, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """One optimizer step, or one evaluation batch; the loss stays on the device."""
        if self.optimizer is None:
            return self._evaluate(rehearsal, inputs)
        for _ in range(rehearsal.accumulation):
            loss, kept = build.step_loss(self.model, self.head, rehearsal, inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            shown = loss.detach()
            del loss, kept
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return shown

    def _evaluate(self, rehearsal: Rehearsal, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            logits, targets = build.evaluation_logits(self.model, self.head, rehearsal, inputs)
        return summed_loss(logits, targets) / targets.numel()

    def inputs(self, rehearsal: Rehearsal) -> dict[str, torch.Tensor]:
        """Random tokens. Positions of a packed row restart with every text, which is what makes transformers mask."""
        made = build.make_inputs(rehearsal, str(self.device), self.vocabulary)
        if rehearsal.masked:
            text = max(rehearsal.sequence // ROWS_PER_PACK, 1)
            made["position_ids"] = made["position_ids"] % text
        return made


def measure(order: Order, device: torch.device, before: int = 0) -> Measurement:
    """Run the order. Running out of memory is an answer; other errors of the libraries are raised.

    `before`: bytes in use on the card before this process touched it, 0 when unknown.
    """
    gauge: Gauge = CudaGauge(alone=order.alone, before=before) if device.type == "cuda" else CpuGauge()
    blank = Measurement(device=device.type, card="", versions=library_versions())
    described = {**gauge.describe(), "workspace": workspace_bytes(device)}
    blank = msgspec.structs.replace(blank, **described)
    if order.cap_gib and device.type == "cuda":
        cap(order.cap_gib, blank.total)
    began = time.perf_counter()
    try:
        trial = Trial(order, device)
    except torch.OutOfMemoryError as error:
        return msgspec.structs.replace(blank, out_of_memory="load", asked=asked_bytes(str(error)))
    counts = {
        "build_seconds": time.perf_counter() - began,
        "parameters": _count(trial.model.parameters()),
        "trained": _count(trial.parameters),
    }
    blank = msgspec.structs.replace(blank, **counts)
    if order.edges:
        return msgspec.structs.replace(blank, edges=_edges(trial, blank.total))
    try:
        return _steps(trial, gauge, blank)
    except torch.OutOfMemoryError as error:
        reading = gauge.read()
        return _with(blank, reading, out_of_memory="step", asked=asked_bytes(str(error)))


def _count(parameters: Any) -> int:
    """Elements; a packed matrix counts as many as it stands for."""
    total = 0
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        total += state.shape.numel() if state is not None else parameter.numel()
    return total


def _steps(trial: Trial, gauge: Gauge, blank: Measurement) -> Measurement:
    rehearsal, order = trial.rehearsal, trial.order
    inputs = trial.inputs(rehearsal)
    for _ in range(WARM_UP_STEPS):
        loss = trial.step(rehearsal, inputs)
    resting = gauge.resting()
    gauge.reset()
    loss = trial.step(rehearsal, inputs)
    reading = gauge.read()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < order.steps:
        if len(seconds) >= FEWEST_TIMED and time.perf_counter() - began > order.seconds:
            break
        seconds.append(_timed(trial, inputs))
    # What kernels load on first use is in the process by now.
    after = gauge.read()
    tokens = rehearsal.batch * rehearsal.sequence * (1 if rehearsal.evaluate else rehearsal.accumulation)
    median = statistics.median(seconds) if seconds else 0.0
    return _with(
        blank,
        reading,
        process=after.process,
        process_source=after.source,
        context=after.context,
        resting=resting,
        step_seconds=median,
        fastest_seconds=min(seconds, default=0.0),
        slowest_seconds=max(seconds, default=0.0),
        timed_steps=len(seconds),
        tokens_per_second=tokens / median if median else 0.0,
        loss=float(loss),
    )


def _timed(trial: Trial, inputs: dict[str, torch.Tensor]) -> float:
    _finish(trial.device)
    began = time.perf_counter()
    trial.step(trial.rehearsal, inputs)
    _finish(trial.device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _with(blank: Measurement, reading: Reading, **more: Any) -> Measurement:
    read = {
        "allocated": reading.allocated,
        "requested": reading.requested,
        "reserved": reading.reserved,
        "inactive_split": reading.inactive_split,
        "process": reading.process,
        "process_source": reading.source,
        "context": reading.context,
        "retries": reading.retries,
    }
    return msgspec.structs.replace(blank, **{**read, **more})


def _optimizer(parameters: list[Any], order: Order) -> Any:
    kind = order.rehearsal.optimizer
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE)
    if kind == "adamw 8-bit":
        import bitsandbytes

        eight_bit: Any = bitsandbytes.optim
        made = eight_bit.PagedAdamW8bit if order.paged else eight_bit.AdamW8bit
        return made(parameters, lr=LEARNING_RATE)
    foreach = order.rehearsal.foreach
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, foreach=foreach, fused=not foreach)


def cap(gib: float, total_bytes: int) -> None:
    """Let the allocator hold no more than `gib`; the CUDA context comes on top."""
    torch.cuda.set_per_process_memory_fraction(min(gib * GIB / total_bytes, 1.0))


def asked_bytes(message: str) -> int:
    """The request in torch's out-of-memory message, 0 when it names none."""
    found = re.search(r"Tried to allocate ([\d.]+) (bytes|[KMG]iB)", message)
    units = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    return int(float(found[1]) * units[found[2]]) if found else 0


def _edges(trial: Trial, total_bytes: int) -> tuple[EdgeFound, ...]:
    """The order's edges, as many as its seconds allow."""
    found: list[EdgeFound] = []
    end = time.perf_counter() + trial.order.seconds
    for edge in trial.order.edges:
        if time.perf_counter() < end:
            found.append(find_edge(trial, edge, total_bytes, end))
    return tuple(found)


def find_edge(trial: Trial, edge: Edge, total_bytes: int, end: float) -> EdgeFound:
    """The longest sequence that runs a step under the cap, to one part in a hundred or as near as time allows."""
    tried: list[Attempt] = []
    _warm(trial)
    cap(edge.cap_gib, total_bytes)

    def runs(sequence: int) -> bool:
        tried.append(_attempt(trial, sequence))
        return tried[-1].ran

    low, high = bracket(runs, edge.guess)
    while low and high and high - low > max(GRANULE, low // 100) and len(tried) < MOST_ATTEMPTS:
        if time.perf_counter() > end:
            break
        middle = _whole((low + high) // 2)
        if middle in (low, high):
            break
        low, high = (middle, high) if runs(middle) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return EdgeFound(cap_gib=edge.cap_gib, longest=low, shortest_failed=high, attempts=tuple(tried))


def bracket(runs: Any, guess: int) -> tuple[int, int]:
    """(a length that runs or 0, a length that does not or 0) near `guess`; steps away from it grow."""
    guess = _whole(guess)
    stride = max(_whole(guess // 25), GRANULE)
    if runs(guess):
        low, high = guess, 0
        while not high and low < 64 * guess:
            longer = low + stride
            low, high, stride = (longer, 0, stride * 2) if runs(longer) else (low, longer, stride)
        return low, high
    low, high = 0, guess
    while not low and high > GRANULE:
        shorter = max(_whole(high - stride), GRANULE)
        low, high, stride = (shorter, high, stride) if runs(shorter) else (0, shorter, stride * 2)
    return low, high


def _whole(tokens: int) -> int:
    return max(tokens // GRANULE, 1) * GRANULE


def _warm(trial: Trial) -> None:
    """Optimizer states exist before the first cap, as from the second step of a run on."""
    short = msgspec.structs.replace(trial.rehearsal, sequence=GRANULE)
    for _ in range(WARM_UP_STEPS):
        trial.step(short, trial.inputs(short))


def _attempt(trial: Trial, sequence: int) -> Attempt:
    """One step from an emptied cache, as a fresh process would find it."""
    rehearsal = msgspec.structs.replace(trial.rehearsal, sequence=sequence)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ran = True
    try:
        trial.step(rehearsal, trial.inputs(rehearsal))
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        ran = False
    # Outside the handler: the traceback holds the tensors of the failed step.
    if trial.optimizer is not None:
        trial.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    return Attempt(
        sequence=sequence,
        ran=ran,
        allocated=torch.cuda.max_memory_allocated(),
        reserved=torch.cuda.max_memory_reserved(),
    )
