"""Needle results as a grid for people: depths down, lengths across, how much of the answers was right in each place.

Owns the arrangement and the words for a share; the terminal and the page draw the same grid. Must not know either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.jobs.length_report import NeedleCell

GOOD = 0.9
"""From this share of right answers on a place counts as read (the bar that the effective length uses)."""
POOR = 0.5
"""Below it, it counts as lost."""
LEVELS = 5
_LEVEL_FROM = (0.0, 0.25, POOR, 0.75, GOOD)


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One length and depth."""

    accuracy: float
    nll: float
    prompts: int

    @property
    def level(self) -> int:
        """0 (lost) to LEVELS - 1 (read)."""
        return level_of(self.accuracy)

    @property
    def percent(self) -> str:
        """ "95"; 100 only where every answer was right, 0 only where none was."""
        return percent(self.accuracy)


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """One task, or several taken together."""

    task: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    """0 is the beginning of the prompt."""
    rows: tuple[tuple[HeatCell | None, ...], ...]
    """One row per depth, one cell per length; None where nothing was measured (yet)."""

    def at_length(self, index: int) -> float | None:
        """Share of right answers at a length, over all depths; None where nothing was measured."""
        cells = [row[index] for row in self.rows]
        found = [cell for cell in cells if cell is not None]
        prompts = sum(cell.prompts for cell in found)
        return sum(cell.accuracy * cell.prompts for cell in found) / prompts if prompts else None


def level_of(share: float) -> int:
    """0 to LEVELS - 1."""
    return max(index for index, least in enumerate(_LEVEL_FROM) if share >= least or index == 0)


def percent(share: float) -> str:
    """Whole per cent without claiming perfection or failure that was not seen."""
    rounded = round(share * 100)
    if share < 1 and rounded == 100:
        rounded = 99
    if share > 0 and rounded == 0:
        rounded = 1
    return str(rounded)


def tasks_of(needles: Iterable[NeedleCell]) -> tuple[str, ...]:
    """The tasks that were measured, in their order."""
    return tuple(dict.fromkeys(cell.task for cell in needles))


def heat_grid(needles: Sequence[NeedleCell], task: str = "") -> HeatGrid | None:
    """The grid of a task; of all tasks together with "". None where there is nothing."""
    cells = [cell for cell in needles if not task or cell.task == task]
    if not cells:
        return None
    lengths = tuple(sorted({cell.length for cell in cells}))
    depths = tuple(sorted({cell.depth for cell in cells}))
    found: dict[tuple[float, int], list[NeedleCell]] = {}
    for cell in cells:
        found.setdefault((cell.depth, cell.length), []).append(cell)
    rows = tuple(tuple(_together(found.get((depth, length), [])) for length in lengths) for depth in depths)
    return HeatGrid(task or ", ".join(tasks_of(cells)), lengths, depths, rows)


def _together(cells: Sequence[NeedleCell]) -> HeatCell | None:
    prompts = sum(cell.prompts for cell in cells)
    if not prompts:
        return None
    accuracy = sum(cell.accuracy * cell.prompts for cell in cells) / prompts
    nll = sum(cell.nll * cell.prompts for cell in cells) / prompts
    return HeatCell(accuracy, nll, prompts)


def short_length(tokens: int) -> str:
    """ "32k" for 32,768, "256" for 256: lengths as people say them."""
    if tokens >= 1 << 20 and tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    if tokens >= 1024 and tokens % 1024 == 0:
        return f"{tokens >> 10}k"
    if tokens >= 10_000:
        return f"{tokens / 1024:.0f}k" if tokens >= 100 * 1024 else f"{tokens / 1024:.1f}k"
    return str(tokens)


def depth_words(depth: float) -> str:
    """ "50 %"."""
    return f"{round(depth * 100)} %"
