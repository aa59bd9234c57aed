"""The race as a table: methods down; perplexity by length, needles and short text across, as they are measured.

Owns which columns there is room for, and how figures are written: whole columns go, figures are never cut.
Must not know Textual, nor how a winner is picked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.jobs.heat_grid import level_of, percent, short_length
from engine.jobs.length_report import LengthReport
from scaler_tui.heat_layout import TONES, Line, Piece
from scaler_tui.race_state import RaceState, needle_share

COLUMN_CELLS = 8
UNTOUCHED = "none"
"""The model as it is, measured beside the methods."""
SHORT_NOTICED, SHORT_BAD = 0.01, 0.05


@dataclass(frozen=True, slots=True)
class Column:
    """One figure per method."""

    kind: str
    """ "perplexity", "needles" or "short"."""
    length: int = 0

    @property
    def heading(self) -> str:
        """Second line of the heading."""
        return "text" if self.kind == "short" else short_length(self.length)


def columns_for(lengths: Sequence[int], needle_lengths: Sequence[int], target: int, width: int) -> tuple[Column, ...]:
    """The columns that fit beside the names, in the order perplexity, needles, short text.

    What decides comes first: needles and perplexity at the target, then short text, then the other lengths by turns.
    """
    longest = target if target in needle_lengths or not needle_lengths else max(needle_lengths)
    wanted = [Column("needles", longest), Column("perplexity", max(lengths, default=target)), Column("short")]
    rest = [Column("perplexity", length) for length in sorted(lengths, reverse=True)]
    other = [Column("needles", length) for length in sorted(needle_lengths, reverse=True)]
    for index in range(max(len(rest), len(other))):
        wanted += [*other[index : index + 1], *rest[index : index + 1]]
    kept = list(dict.fromkeys(wanted))[: max(width // COLUMN_CELLS, 1)]
    order = ("perplexity", "needles", "short")
    return tuple(sorted(kept, key=lambda column: (order.index(column.kind), column.length)))


def figure(column: Column, report: LengthReport) -> Piece:
    """One cell; a dot while it is not measured."""
    nothing = Piece(f"{'.':>{COLUMN_CELLS}}", "quiet")
    if column.kind == "perplexity":
        found = next((point for point in report.perplexity if point.length == column.length), None)
        return nothing if found is None else Piece(f"{perplexity_text(found.perplexity):>{COLUMN_CELLS}}")
    if column.kind == "needles":
        share = needle_share(report, column.length)
        return nothing if share is None else Piece(f"{percent(share) + ' %':>{COLUMN_CELLS}}", TONES[level_of(share)])
    if report.short is None:
        return nothing
    return Piece(f"{change_text(report.short.change):>{COLUMN_CELLS}}", short_tone(report.short.change))


def perplexity_text(value: float) -> str:
    """Three or four digits: "9.87", "128", "3e+05"."""
    if not math.isfinite(value):
        return "broken"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 100_000 else f"{value:.0e}"


def change_text(change: float) -> str:
    """ "+0.4 %", "+130 %", "x 38": relative change of perplexity."""
    if not math.isfinite(change):
        return "broken"
    if change >= 9.995:
        return f"x {change + 1:.0f}"
    return f"{change * 100:+.1f} %" if abs(change) < 0.0995 else f"{change * 100:+.0f} %"


def short_tone(change: float) -> str:
    """How much short text may lose before it is said with a colour."""
    return "bad" if not change <= SHORT_BAD else "warn" if change > SHORT_NOTICED else "good"


def name_cells(state: RaceState) -> int:
    """Cells of the names with their mark."""
    return max((len(contender.method) for contender in state.contenders), default=8) + 3


@dataclass(frozen=True, slots=True)
class Look:
    """How the table is drawn."""

    star: str
    """Before the winner."""
    arrow: str
    """Before the method the rest of the screen is about."""
    most: int = 99
    """Methods shown at once: those around the pointer."""
    ways: Mapping[str, str] = field(default_factory=dict)
    """Method -> how its search is begun, told instead of its missing."""


def race_lines(state: RaceState, width: int, pointer: int, look: Look) -> list[Line]:
    """Two lines of heading, a line per method."""
    names = name_cells(state)
    started = state.started
    if started is None:
        return []
    columns = columns_for(started.lengths, started.needle_lengths, started.target, width - names)
    lines = _headings(columns, names)
    contenders = state.contenders
    first = min(max(pointer - look.most // 2, 0), max(len(contenders) - look.most, 0))
    for index, contender in list(enumerate(contenders))[first : first + look.most]:
        won = state.decided is not None and state.decided.method == contender.method
        mark = f"{look.arrow if index == pointer else ' '}{look.star if won else ' '}"
        name = Piece(f"{mark}{contender.method:<{names - 2}}", "strong" if won else "")
        why = look.ways.get(contender.method, contender.why_not) if contender.needs_search else contender.why_not
        lines.append((name, *_row(state, contender.method, why, columns, width - names - 2)))
    return lines


def _headings(columns: Sequence[Column], names: int) -> list[Line]:
    under = "".join(f"{column.heading:>{COLUMN_CELLS}}" for column in columns)
    return [
        (Piece(" " * names + _joined(columns), "quiet"),),
        (Piece(f"{'  method':<{names}}{under}", "quiet"),),
    ]


_GROUPS = {"perplexity": "perplexity", "needles": "needles", "short": "short"}


def _joined(columns: Sequence[Column]) -> str:
    """The groups' names, each at the right end of its columns."""
    line = ""
    for kind, name in _GROUPS.items():
        cells = COLUMN_CELLS * sum(column.kind == kind for column in columns)
        line += f"{name if len(name) < cells else name[: max(cells - 1, 0)]:>{cells}}" if cells else ""
    return line


def _row(state: RaceState, method: str, why: str, columns: Sequence[Column], room: int) -> Line:
    """Figures, or in a few words why there are none."""
    row = state.rows.get(method)
    why = why or (row.problem if row is not None else "")
    if why:
        return (Piece("  " + (why if len(why) <= room else f"{why[: max(room - 4, 0)]} ..."), "quiet"),)
    if row is None:
        at_work = state.running and state.now is not None and state.now.method == method
        return (Piece("  measuring" if at_work else "  waits" if state.running else "  -", "quiet"),)
    return tuple(figure(column, row.report) for column in columns)
