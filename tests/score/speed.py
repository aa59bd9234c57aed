"""Tokens per second of a row beside the formula's.

Owns the reading of throughput units. Must not know memory. Rows whose real lengths are not printed have no rate.
"""

from __future__ import annotations

import re
from dataclasses import replace

from engine.estimate.cards import gpu_speed
from engine.estimate.speed import estimate_tokens_per_second
from engine.hardware.simulate import gpu_from_profile
from tests.score.rows import Row, card_profile
from tests.score.workloads import Mapped


def rate_error(job: Mapped) -> float | None:
    """Predicted / measured tokens per second - 1, per card or over all cards as the row counts; None without either."""
    row = job.row
    measured, profile = measured_rate(row), card_profile(row)
    if measured is None or profile is None:
        return None
    whole = bool(re.search(r"whole|all gpus|total|machine", row.throughput_unit))
    rate = estimate_tokens_per_second(
        replace(job.work, shards=min(job.work.shards, row.gpus)),
        gpu_speed(gpu_from_profile(profile)),
        cards=row.gpus,
        compiled=row.compiled.startswith("yes"),
    ).likely
    return rate / (1 if whole else row.gpus) / measured - 1


def measured_rate(row: Row) -> float | None:
    """Tokens per second as printed; seconds per step and samples per second hide accumulation and lengths."""
    if row.frontier or row.out_of_memory or not row.throughput_unit.startswith("tokens/s"):
        return None
    return row.tokens_per_second
