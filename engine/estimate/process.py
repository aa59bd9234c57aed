"""From allocated bytes to the process a card must hold: allocator slack and context, or libraries and heap on a CPU.

Owns those constants until a machine has been measured (`Calibration` replaces them). Must not know what was allocated.
"""

from __future__ import annotations

from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Part, Range
from engine.estimate.reserved import replayed
from engine.estimate.workload import DeviceKind, Purpose, Workload
from engine.units import GIB, MIB

CONTEXT_BYTES = Range(0.14 * GIB, 0.45 * GIB, 0.90 * GIB)
"""CUDA context: T4 with lazy loading 141 MiB; V100 with all kernels in 2022 1,343 MB; 0.45 GiB until measured."""
LIBRARY_BYTES = Range(0.40 * GIB, 0.60 * GIB, 1.00 * GIB)
"""Python with torch, transformers, peft, bitsandbytes on a CPU: 387 MiB after import, 0.6 to 0.9 GiB in training."""
SLACK_PACKED = Range(0.05, 0.13, 0.25)
"""Reserved over allocated less 1, NF4 on a T4: 1.06 to 1.25, mean 1.13."""
SLACK_PLAIN = Range(0.03, 0.06, 0.15)
"""Unquantised on a T4: 1.04 to 1.09."""
SLACK_EXPANDABLE = Range(0.01, 0.04, 0.15)
"""With `expandable_segments:True`."""
REPLAY_SHORT = {False: 1.0, True: 1.01}
"""Measured over replayed, mean of the published T4 runs: NF4 kernels ask for a few blocks that are not replayed."""
SLACK_CPU = Range(0.02, 0.12, 0.45)
"""glibc arenas and oneDNN scratch; wide, because no CPU run has been published."""


def slack_of(work: Workload, calibration: Calibration | None = None) -> Range:
    """Reserved over allocated, less 1."""
    if calibration is not None and calibration.slack is not None:
        return calibration.slack
    if work.device is DeviceKind.CPU:
        return SLACK_CPU
    if work.expandable_segments:
        return SLACK_EXPANDABLE
    if work.purpose is Purpose.TRAIN and work.shards == 1:
        return _replayed(work)
    return work.stack.slack or (SLACK_PACKED if work.packed else SLACK_PLAIN)


def _replayed(work: Workload) -> Range:
    """From two replayed steps. Lengths that vary from batch to batch fragment more: `Stack.varied_slack`."""
    found = replayed(work)
    same = found.ratio * REPLAY_SHORT[work.packed]
    likely = max(same, found.state_share + (1 + work.stack.varied_slack) * found.token_share)
    return Range(found.ratio * 0.98 - 1, likely - 1, likely * 1.08 - 1)


def base_of(work: Workload, calibration: Calibration | None = None) -> Range:
    """What the process holds beside the allocator: the CUDA context, or Python and its libraries."""
    if calibration is not None and calibration.context_bytes is not None:
        return calibration.context_bytes
    if work.device is not DeviceKind.GPU:
        return LIBRARY_BYTES
    return work.stack.context_bytes or CONTEXT_BYTES


def process_bounds(
    allocated: float, work: Workload, calibration: Calibration | None = None
) -> tuple[float, float, float]:
    """Process memory low, likely, high: allocated · factor · (1 + slack) + context."""
    slack, base = slack_of(work, calibration), base_of(work, calibration)
    factor = _factor(calibration)
    return (
        allocated * factor.low * (1 + slack.low) + base.low,
        allocated * factor.likely * (1 + slack.likely) + base.likely,
        allocated * factor.high * (1 + slack.high) + base.high,
    )


def base_parts(allocated: float, work: Workload, calibration: Calibration | None = None) -> tuple[Part, ...]:
    """The parts beyond what is allocated; with the others they sum to `likely`."""
    slack, base, factor = slack_of(work, calibration), base_of(work, calibration), _factor(calibration).likely
    measured = calibration.source if calibration is not None else ""
    gpu = work.device is DeviceKind.GPU
    text = f"{base.low / MIB:,.0f} to {base.high / MIB:,.0f} MiB" + ("" if measured else " until measured here")
    context = Part(
        "CUDA context" if gpu else "Python and libraries",
        base.likely,
        text,
        measured or ("T4 and V100, published" if gpu else "measured on a 2-core Linux machine"),
    )
    amount = allocated * (factor * (1 + slack.likely) - 1)
    words = f"{slack.likely:.0%} of what is allocated ({slack.low:.0%} to {slack.high:.0%})"
    if factor != 1.0:
        words += f"; runs here allocated {factor:.3f} of the formula"
    source = measured or ("published T4 runs" if gpu else "own estimate, not measured elsewhere")
    return context, Part("allocator slack", amount, words, source)


def _factor(calibration: Calibration | None) -> Range:
    if calibration is None or calibration.allocated_factor is None:
        return Range(1.0, 1.0, 1.0)
    return calibration.allocated_factor
