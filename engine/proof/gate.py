"""Whether a grown model may have its name, and the reason when not.

Owns the threshold and the words of the certificate. Must not know models or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.expansion.certificate import Drift

LARGEST_RELATIVE_DIFFERENCE = 1e-4
"""Of the range of the source's logits, in float32; for operators that claim to keep the function."""
SAME_LOGITS = 1e-6
"""Two loads of one file: products are summed in another order where memory lies differently. In bfloat16 that may turn
one rounding, so that one unit of the largest logit is allowed instead."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the gate looks at."""

    exact_claimed: bool
    float32: Drift
    arithmetic: Drift | None = None
    generation_identical: bool | None = None
    parted_at_a_tie: bool = False
    """The first different token had a rival as good as itself, within the difference of the logits."""
    reloaded: bool | None = None
    perplexity_after: float = 1.0


def judge(found: Findings) -> tuple[bool, tuple[str, ...]]:
    """(passed, reasons against)."""
    against: list[str] = []
    if found.reloaded is False:
        against.append("Loaded from disk a second time, the model computes other logits.")
    if not found.exact_claimed:
        if not found.perplexity_after < float("inf"):
            against.append("The grown model's perplexity is not a number.")
        return not against, tuple(against)
    judged = found.arithmetic or found.float32
    if not judged.max_rel_logit_diff <= LARGEST_RELATIVE_DIFFERENCE:
        rounding = ", with unrounded weights" if found.arithmetic else ""
        against.append(
            f"The logits differ by {judged.max_rel_logit_diff:.1e} of their range in float32{rounding}; "
            f"an exact operator may differ by {LARGEST_RELATIVE_DIFFERENCE:.0e}."
        )
    if found.generation_identical is False and not found.parted_at_a_tie and found.arithmetic is None:
        against.append("Greedy generation with a KV cache is not the same.")
    return not against, tuple(against)
