"""A heat map of needles as text: one column per length, one row per depth, a shade and a percentage in each cell.

Owns the grid and how it is written, with or without colour and beyond ASCII. Must not know where lines go: commands
print them, widgets style the pieces. The percentage is always there, so that shade and colour only repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.jobs.length_report import NeedleCell

GOOD, FAIR = 0.9, 0.5
"""Shares of answered prompts from which a cell counts as good, and as fair."""
_SHADES, _ASCII_SHADES = ("█", "▓", "▒", "░", "·"), ("#", "+", "=", "-", ".")
_STEPS = (0.9, 0.7, 0.4, 0.1)
_ANSI = {"good": "32", "fair": "33", "bad": "31", "": ""}
_DEPTH_CELLS = 6


@dataclass(frozen=True, slots=True)
class Heat:
    """One task's grid."""

    task: str
    lengths: tuple[int, ...]
    """Columns, tokens, rising."""
    depths: tuple[float, ...]
    """Rows, 0 first."""
    cells: tuple[tuple[float | None, ...], ...]
    """Share of answered prompts by row and column; None where it was not measured."""
    prompts: int = 0
    """Per cell, the most."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one tone."""

    text: str
    tone: str = ""
    """ "good", "fair", "bad", or "" for headings."""


def tasks_of(cells: Iterable[NeedleCell]) -> tuple[str, ...]:
    """The tasks among the cells, in the order they appear."""
    return tuple(dict.fromkeys(cell.task for cell in cells))


def heat_of(cells: Iterable[NeedleCell], task: str) -> Heat:
    """The grid of one task; of several measurements of one cell the last counts."""
    found = {(cell.length, cell.depth): cell for cell in cells if cell.task == task}
    lengths = tuple(sorted({length for length, _ in found}))
    depths = tuple(sorted({depth for _, depth in found}))
    rows = tuple(
        tuple(found[length, depth].accuracy if (length, depth) in found else None for length in lengths)
        for depth in depths
    )
    return Heat(task, lengths, depths, rows, max((cell.prompts for cell in found.values()), default=0))


def tone_of(accuracy: float) -> str:
    """ "good", "fair" or "bad"."""
    return "good" if accuracy >= GOOD else "fair" if accuracy >= FAIR else "bad"


def length_words(tokens: int) -> str:
    """`32768` -> "32k"; what is no multiple of 1024 is written out: "1,000"."""
    if tokens >= 1 << 20 and tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    return f"{tokens >> 10}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"


def depth_words(depth: float) -> str:
    """`0.25` -> "25 %"."""
    return f"{depth * 100:.0f} %"


def heat_pieces(heat: Heat, *, ascii_only: bool = False) -> list[list[Piece]]:
    """The grid as lines of pieces: a heading of lengths, then a line per depth."""
    widths = [max(7, len(length_words(length)) + 2) for length in heat.lengths]
    heading = "".join(length_words(length).rjust(width) for length, width in zip(heat.lengths, widths, strict=True))
    lines = [[Piece("depth".ljust(_DEPTH_CELLS) + heading)]]
    for depth, row in zip(heat.depths, heat.cells, strict=True):
        line = [Piece(depth_words(depth).rjust(_DEPTH_CELLS - 1) + " ")]
        line += [_cell(value, width, ascii_only=ascii_only) for value, width in zip(row, widths, strict=True)]
        lines.append(line)
    return lines


def heat_lines(heat: Heat, *, color: bool = False, ascii_only: bool = False) -> list[str]:
    """The grid as text; with `color` each cell is wrapped in ANSI codes of its tone."""
    return [
        "".join(_painted(piece) if color else piece.text for piece in line).rstrip()
        for line in heat_pieces(heat, ascii_only=ascii_only)
    ]


def _cell(value: float | None, width: int, *, ascii_only: bool) -> Piece:
    if value is None:
        return Piece("?".rjust(width))
    shades = _ASCII_SHADES if ascii_only else _SHADES
    step = sum(value < bound for bound in _STEPS)
    return Piece(f"{shades[step] * 2} {_percent(value):>3}".rjust(width), tone_of(value))


def _percent(value: float) -> int:
    """Rounded, but 100 only where every prompt was answered, and 0 only where none was."""
    if 0 < value < 1:
        return min(max(round(value * 100), 1), 99)
    return round(value * 100)


def _painted(piece: Piece) -> str:
    code = _ANSI[piece.tone]
    return f"\x1b[{code}m{piece.text}\x1b[0m" if code else piece.text
