"""From allocated bytes to the process a card must hold: allocator slack and context, or libraries and heap on a CPU.

Owns those constants until a machine has been measured (`Calibration` replaces them). Must not know what was allocated.
"""

from __future__ import annotations

from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Part, Range
from engine.estimate.reserved import replayed
from engine.estimate.state import gradient_bytes
from engine.estimate.walks import logit_share
from engine.estimate.workload import DeviceKind, Method, OptimizerKind, Purpose, Workload
from engine.units import GIB, MIB

CONTEXT_BYTES = Range(0.14 * GIB, 0.45 * GIB, 0.90 * GIB)
"""CUDA context: T4 with lazy loading 141 MiB; V100 with all kernels in 2022 1,343 MB; 0.45 GiB until measured."""
CONTEXTS = {
    7: Range(0.13 * GIB, 0.14 * GIB, 0.45 * GIB),
    9: Range(0.60 * GIB, 0.68 * GIB, 0.80 * GIB),
}
"""By major compute capability: T4 141 MiB on 69 published rows; H200 678 to 696 MiB on 39 rows of
`profiles/measured`, torch 2.11 and CUDA 13."""
LIBRARY_BYTES = Range(0.40 * GIB, 0.60 * GIB, 1.00 * GIB)
"""Python with torch, transformers, peft, bitsandbytes on a CPU: 387 MiB after import, 0.6 to 0.9 GiB in training."""
SLACK_PACKED = Range(0.05, 0.13, 0.25)
"""Reserved over allocated less 1, NF4 on a T4: 1.06 to 1.25, mean 1.13."""
SLACK_PLAIN = Range(0.03, 0.06, 0.15)
"""Unquantised on a T4: 1.04 to 1.09."""
PAGES_BYTES = 60 * MIB
"""Pages of 20 MiB that are mapped and not full, in both pools of an expandable allocator. Measured on an H200."""
PAGES_SHARE = 0.01
LEAST_PAGES_BYTES = 10 * MIB
PASSED_BY = 1.5
"""Logits this much larger than the gradients' places found no room there (5 of 5 measured jobs); others did (2)."""
HOLES_ABOVE = 0.06
"""What holes may be beyond the rule of `_holes`, as a share of what is allocated: the worst of 39 H200 rows is 5 %."""
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
        return _expandable(work)
    if work.purpose is Purpose.TRAIN and work.shards == 1:
        return _replayed(work)
    return work.stack.slack or (SLACK_PACKED if work.packed else SLACK_PLAIN)


def _expandable(work: Workload) -> Range:
    """With `expandable_segments:True` only holes are lost: pages that are not full, and `_holes`.

    On 49 configurations measured on an H200 (`profiles/measured`) reserved memory is met within 2 % on average. The low
    end has no holes: under a cap torch gives them back before it fails, and the longest sequence that ran had all but
    2 % of the cap allocated (12 edges).
    """
    from engine.estimate.memory import peak_of

    peak = peak_of(work)
    allocated = max(peak.allocated, 1.0)
    holes = max(peak.at_loss + _holes(work) - allocated, 0.0) if work.purpose is Purpose.TRAIN else 0.0
    likely = (PAGES_BYTES + holes) / allocated + PAGES_SHARE
    return Range(min(LEAST_PAGES_BYTES / allocated, likely), likely, likely + HOLES_ABOVE)


def _holes(work: Workload) -> float:
    """Free space while the loss is computed that nothing large fits into.

    2·V·N: the 16-bit logits are let go once their fp32 copy stands behind them. With full training also the gradients'
    places of the step before, where the logits (12·V·N) are too large for them: the optimizer's states were put where
    that step's logits had been.
    """
    logits = work.architecture.vocab_size * work.tokens * logit_share(work)
    narrow = work.compute_bytes == 2 and not (work.packed and work.stack.kbit_prepared)
    hole = 2.0 * logits if narrow and not work.stack.holds_output else logits
    if work.method is Method.ADAPTER or work.accumulation > 1:  # gradients stay between micro-batches: no empty places
        return hole
    gradients = gradient_bytes(work)
    if work.optimizer is OptimizerKind.ADAMW_MIXED:
        return max(gradients * 2 / 3, hole)
    passed_by = work.optimizer in _STATES_ON_CARD and 12.0 * logits > PASSED_BY * gradients
    return hole / 2 + (gradients if passed_by else 0.0)


_STATES_ON_CARD = (OptimizerKind.ADAMW, OptimizerKind.ADAMW_8BIT)


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
    return work.stack.context_bytes or CONTEXTS.get(work.capability, CONTEXT_BYTES)


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
        measured or ("T4, V100 published; H200 measured" if gpu else "measured on a 2-core Linux machine"),
    )
    amount = allocated * (factor * (1 + slack.likely) - 1)
    words = f"{slack.likely:.0%} of what is allocated ({slack.low:.0%} to {slack.high:.0%})"
    if factor != 1.0:
        words += f"; runs here allocated {factor:.3f} of the formula"
    source = measured or ("H200 measured, T4 published" if gpu else "own estimate, not measured elsewhere")
    return context, Part("allocator slack", amount, words, source)


def _factor(calibration: Calibration | None) -> Range:
    if calibration is None or calibration.allocated_factor is None:
        return Range(1.0, 1.0, 1.0)
    return calibration.allocated_factor
