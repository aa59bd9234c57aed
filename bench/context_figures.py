"""What `bench.context` keeps of a length report, and the file it keeps it in.

Owns the figures and their reading. Must not measure anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.jobs.length_report import LengthReport


@dataclass(frozen=True, slots=True)
class Figures:
    """One model at every length. Keys are lengths as text, as JSON wants them."""

    perplexity: dict[str, float]
    """Of the same closing tokens with so many tokens in all."""
    needles: dict[str, dict[str, float]]
    """Length -> depth -> share answered."""
    needle_nll: dict[str, float]
    """Nats per answer token, over all depths."""
    short: float
    """Perplexity of pieces as long as the original window."""

    def needle(self, length: int) -> float:
        """Share answered over all depths."""
        return mean(self.needles[str(length)].values())


def figures_of(report: LengthReport) -> Figures:
    """The figures of a complete report."""
    lengths = sorted({cell.length for cell in report.needles})
    cells = {length: [cell for cell in report.needles if cell.length == length] for length in lengths}
    assert report.short is not None
    return Figures(
        perplexity={str(entry.length): round(entry.perplexity, 4) for entry in report.perplexity},
        needles={str(length): {f"{cell.depth:g}": cell.accuracy for cell in cells[length]} for length in lengths},
        needle_nll={str(length): round(mean(cell.nll for cell in cells[length]), 4) for length in lengths},
        short=round(report.short.perplexity_after, 4),
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def figures_in(lines: Iterable[dict[str, Any]]) -> list[Figures]:
    """The figures of the lines, one per seed."""
    return [Figures(**line["figures"]) for line in lines]


def average(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return mean(values) if values else float("nan")
