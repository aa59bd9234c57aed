"""Answers that a student writes itself before it learns on them: how many at a time, and what is asked of the device.

Owns that workload, which memory and time both read. Must not know seconds or moments.
"""

from __future__ import annotations

from dataclasses import replace

from engine.estimate.workload import Purpose, Workload

PROMPTS_PER_BATCH = 32
"""Prompts that are answered together at most (`engine.distill.onpolicy`)."""
SHARES_WRITTEN = (0.3, 0.7, 1.0)
"""Of the tokens that an answer may have, low, likely, high, where nobody knows how long answers are."""
LONGEST_OF_A_BATCH = 1.5
"""Times the mean answer: a batch is done when its longest answer is. Seen in rows of the demo: 1.2 to 1.6."""


def writing_of(work: Workload) -> Workload | None:
    """One batch of answers while it is written, at the widest: its prompts, and keys and values of all their tokens.
    None where a job learns on none."""
    own = work.own_answers
    if own is None or not own.share or work.purpose is not Purpose.TRAIN:
        return None
    sequences = work.batch * work.accumulation
    prompts = PROMPTS_PER_BATCH if own.joined else min(sequences, PROMPTS_PER_BATCH)
    row = min(work.sequence, -(-sequences * work.sequence // prompts))
    return asking(work, prompts, min(row + own.tokens, work.sequence))


def asking(work: Workload, prompts: int, length: int, purpose: Purpose = Purpose.GENERATE) -> Workload:
    """The student alone, asked `prompts` at a time; no position but the last of each meets the head."""
    return replace(
        work,
        purpose=purpose,
        batch=prompts,
        sequence=length,
        accumulation=1,
        masked=True,
        trained_share=1.0 / length,
        teacher=None,
        own_answers=None,
        measured_tokens=0,
    )


def new_tokens(work: Workload, answer_tokens: float = 0.0) -> tuple[float, float, float]:
    """Passes of the model per batch of answers: low, likely, high. `answer_tokens`: the mean answer of the data, which
    the student learns to give; 0 where it is not known."""
    assert work.own_answers is not None
    most = float(max(min(work.own_answers.tokens, work.sequence - 1), 1))
    if not answer_tokens:
        low, likely, high = (share * most for share in SHARES_WRITTEN)
        return low, likely, high
    return min(answer_tokens, most), min(LONGEST_OF_A_BATCH * answer_tokens, most), most
