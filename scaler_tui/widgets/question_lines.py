"""Which part of a question gets how many lines of a screen that has too few for all of them.

Owns that order: the options first, then one line of everything, then the matrix, then the rest of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXTS = ("text", "why", "notice", "hint", "recommendation")
SHORTEST_MATRIX = 4
"""Lines below which the matrix says too little to be worth any."""
ROOMY_ROWS = 32
"""From here on there are empty lines between the parts."""
GAPS, GAPS_ROOMY = 1, 7
MOST_LINES = 4
"""No text gets more."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Lines of each part."""

    texts: dict[str, int]
    options: int
    matrix: int
    """Heading included; 0 hides it."""
    roomy: bool


@dataclass(slots=True)
class LineBudget:
    """Lines that are left to give away."""

    spare: int

    def take(self, wanted: int) -> int:
        """As many of `wanted` as there are."""
        given = max(min(wanted, self.spare), 0)
        self.spare -= given
        return given


def share_lines(rows: int, needs: dict[str, int], *, options: int, field: bool, matrix: int) -> Shares:
    """Share `rows` lines; `needs` are the lines each of TEXTS would like, `options` and `matrix` are lines too."""
    roomy = rows >= ROOMY_ROWS
    budget = LineBudget(rows - (GAPS_ROOMY if roomy else GAPS) - int(field))
    lines = dict.fromkeys(TEXTS, 0)
    lines["text"] = budget.take(needs["text"])
    lines["notice"] = budget.take(min(needs["notice"], 3 if roomy else 2))
    for_options = budget.take(options)
    for name in ("recommendation", "hint", "why"):
        lines[name] = budget.take(min(needs[name], 1))
    for_matrix = budget.take(matrix)
    if for_matrix < min(matrix, SHORTEST_MATRIX):
        budget.spare, for_matrix = budget.spare + for_matrix, 0
    for name in ("notice", "recommendation", "hint", "why"):
        lines[name] += budget.take(min(needs[name], MOST_LINES) - lines[name])
    return Shares(lines, for_options, for_matrix, roomy)
