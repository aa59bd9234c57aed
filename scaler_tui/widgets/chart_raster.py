"""Turns loss series into a grid of characters: braille, blocks or ASCII, with axes whose numbers are never cut.

Owns the geometry of the chart. The x axis doubles its capacity instead of sliding, the y axis ends on round numbers and
leaves out huge outliers (they are marked at the edge), so a new step changes only the newest columns.
Must not know Textual, colours, files or where a series comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, pairwise

from engine.jobs.series import Bucket

SMALLEST_CAPACITY = 16
"""Steps the x axis holds at least, unless the whole run is shorter."""

OUTLIER_SPREADS = 3.0
"""A value this many spreads (5th to 95th percentile, at least the median) outside of them is off the chart."""

BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BLOCKS = {0: " ", 1: "▀", 2: "▄", 3: "█"}


class ChartMode(StrEnum):
    """What the terminal can draw."""

    BRAILLE = "braille"
    BLOCKS = "blocks"
    ASCII = "ascii"

    @property
    def dots(self) -> tuple[int, int]:
        """Dots per cell: across, down."""
        return {"braille": (2, 4), "blocks": (1, 2), "ascii": (1, 1)}[self.value]


class Role(StrEnum):
    """What a cell shows; style sheets give each role its colour."""

    BLANK = "blank"
    AXIS = "axis"
    LABEL = "label"
    LOSS = "loss"
    EVAL = "eval"
    OUTLIER = "outlier"
    LINE1 = "line1"
    LINE2 = "line2"
    LINE3 = "line3"
    LINE4 = "line4"
    LINE5 = "line5"
    LINE6 = "line6"


LINE_ROLES = (Role.LINE1, Role.LINE2, Role.LINE3, Role.LINE4, Role.LINE5, Role.LINE6)
"""Of `ChartData.lines`, in their order; more lines begin again."""
Cell = tuple[str, Role]
EMPTY: Cell = (" ", Role.BLANK)


@dataclass(frozen=True, slots=True)
class Marks:
    """Characters that differ between the Unicode and the ASCII chart."""

    evaluation: str
    above: str
    below: str
    not_a_number: str
    axis: str
    tick: str
    corner: str
    line: str
    line_tick: str


UNICODE_MARKS = Marks("◆", "▲", "▼", "×", "│", "┤", "└", "─", "┴")
ASCII_MARKS = Marks("o", "^", "v", "x", "|", "+", "+", "-", "+")


def marks_of(mode: ChartMode) -> Marks:
    """The characters for `mode`."""
    return ASCII_MARKS if mode is ChartMode.ASCII else UNICODE_MARKS


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One of several lines; its letter stands at its newest point, so that it can be told without colour."""

    letter: str
    buckets: Sequence[Bucket]


@dataclass(frozen=True, slots=True)
class ChartData:
    """What to draw: training loss as a line, evaluation loss as marks over it; or several lines."""

    loss: Sequence[Bucket] = ()
    evaluation: Sequence[Bucket] = ()
    total_steps: int = 0
    noun: str = "step"
    """What the x axis counts."""
    empty: str = "The curve appears after the first step."
    lines: Sequence[ChartLine] = ()
    tick: Callable[[int], str] = "{:,}".format
    """The words for a place on the x axis."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The drawn chart and what it spans."""

    rows: tuple[tuple[Cell, ...], ...]
    capacity: int = 0
    low: float = 0.0
    high: float = 0.0

    @property
    def lines(self) -> tuple[str, ...]:
        """The characters, row by row."""
        return tuple("".join(character for character, _ in row) for row in self.rows)


def capacity_steps(last_step: int, total_steps: int) -> int:
    """Steps the x axis holds: doubles until `last_step` fits, and never goes beyond the run's own end."""
    capacity = SMALLEST_CAPACITY
    while capacity < last_step:
        capacity *= 2
    return min(capacity, max(total_steps, last_step)) if total_steps > 0 else capacity


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def robust_range(values: Iterable[float]) -> tuple[float, float]:
    """(low, high) of the finite `values` without huge outliers; a constant is given room around it."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return 0.0, 1.0
    bottom, middle, top = (_quantile(ordered, share) for share in (0.05, 0.5, 0.95))
    room = OUTLIER_SPREADS * max(top - bottom, abs(middle), 1e-12)
    kept = [value for value in ordered if bottom - room <= value <= top + room]
    low, high = kept[0], kept[-1]
    if high - low <= 1e-9 * max(abs(high), 1e-3):
        margin = max(abs(high) * 0.1, 1e-3)
        return low - margin, high + margin
    return low, high


def nice_step(span: float, wanted: int) -> float:
    """A round distance (1, 2, 2.5 or 5 times a power of ten) that cuts `span` into about `wanted` parts."""
    rough = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if rough <= factor * power * 1.0000001:
            return factor * power
    return 10.0 * power


def axis_ends(low: float, high: float, wanted: int) -> tuple[float, float]:
    """The axis in full round steps, so that it only changes when the data leaves it; `wanted` steps or so."""
    step = nice_step(high - low, wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step


def axis_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values on an axis from `low` to `high`; at least two, so that they name a distance."""
    while True:
        step = nice_step(high - low, wanted)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            return [index * step for index in range(first, last + 1)]
        wanted += 1


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, with exactly the decimals their distance needs."""
    step = ticks[1] - ticks[0]
    if max(abs(ticks[0]), abs(ticks[-1])) >= 1e5 or step < 1e-5:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**decimals, 6) != round(step * 10**decimals):
        decimals += 1
    return [f"{tick + 0.0:.{decimals}f}" for tick in ticks]


def column_values(buckets: Sequence[Bucket], columns: int, capacity: int) -> list[float | None]:
    """One value per column: the mean of what falls there, a straight line between, None outside of the data."""
    sums, counts = [0.0] * columns, [0] * columns
    for bucket in buckets:
        if math.isfinite(bucket.mean):
            column = _column((bucket.first_step + bucket.last_step) / 2, columns, capacity)
            sums[column] += bucket.mean * bucket.count
            counts[column] += bucket.count
    values: list[float | None] = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    known = [column for column, count in enumerate(counts) if count]
    for left, right in pairwise(known):
        start, end = sums[left] / counts[left], sums[right] / counts[right]
        for column in range(left + 1, right):
            values[column] = start + (end - start) * (column - left) / (right - left)
    return values


def _column(step: float, columns: int, capacity: int) -> int:
    return min(max(int(step * columns / max(capacity, 1)), 0), columns - 1)


class _Plot:
    """The inner area while it is being drawn."""

    def __init__(self, width: int, height: int, mode: ChartMode, low: float, high: float, capacity: int) -> None:
        self.width, self.height, self.mode, self.capacity = width, height, mode, capacity
        self.low, self.high = low, high
        self.cells: list[list[Cell]] = [[EMPTY] * width for _ in range(height)]
        self.marks = marks_of(mode)
        self._bits = [[0] * width for _ in range(height)]
        """Dots drawn so far: where lines cross, both stay."""

    def level(self, value: float) -> int:
        """Dot row of `value`, counted from the top."""
        levels = self.height * self.mode.dots[1]
        share = (self.high - value) / (self.high - self.low)
        return min(max(round(share * (levels - 1)), 0), levels - 1)

    def row(self, value: float) -> int:
        """Cell row of `value`."""
        return self.level(value) // self.mode.dots[1]

    def line(self, buckets: Sequence[Bucket], role: Role = Role.LOSS, letter: str = "*") -> None:
        """A line in `role`; of `letter`s where there are only letters."""
        across, down = self.mode.dots
        columns = self.width * across
        touched: set[tuple[int, int]] = set()
        previous: int | None = None
        for column, value in enumerate(column_values(buckets, columns, self.capacity)):
            if value is None:
                previous = None
                continue
            level = self.level(value)
            start = level if previous is None or previous == level else previous + (1 if level > previous else -1)
            for dot in range(min(start, level), max(start, level) + 1):
                y, x = dot // down, column // across
                self._bits[y][x] |= self._bit(dot % down, column % across)
                touched.add((y, x))
            previous = level
        for y, x in touched:
            self.cells[y][x] = (self._character(self._bits[y][x], letter), role)

    def letters(self, lines: Sequence[ChartLine]) -> None:
        """Each line's letter at its newest point, or beside it where another one stands."""
        taken: set[tuple[int, int]] = set()
        for line, role in zip(lines, cycle(LINE_ROLES), strict=False):
            finite = [bucket for bucket in line.buckets if math.isfinite(bucket.mean)]
            if not finite:
                continue
            y = self.row(finite[-1].mean)
            x = _column(finite[-1].last_step, self.width, self.capacity)
            while (y, x) in taken and x > 0:
                x -= 1
            taken.add((y, x))
            self.cells[y][x] = (line.letter, role)

    def _bit(self, down: int, across: int) -> int:
        return BRAILLE_DOTS[down][across] if self.mode is ChartMode.BRAILLE else 1 << down

    def _character(self, bits: int, letter: str) -> str:
        if self.mode is ChartMode.BRAILLE:
            return chr(0x2800 + bits)
        return BLOCKS[bits] if self.mode is ChartMode.BLOCKS else letter

    def evaluations(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            if math.isfinite(bucket.mean):
                x = _column((bucket.first_step + bucket.last_step) / 2, self.width, self.capacity)
                self.cells[self.row(bucket.mean)][x] = (self.marks.evaluation, Role.EVAL)

    def outliers(self, buckets: Sequence[Bucket]) -> None:
        """Mark at the edge what is off the chart, and what is not a number."""
        slack = (self.high - self.low) * 1e-6
        for bucket in buckets:
            x = _column((bucket.first_step + bucket.last_step) / 2, self.width, self.capacity)
            if not math.isfinite(bucket.mean):
                self.cells[0][x] = (self.marks.not_a_number, Role.OUTLIER)
            elif bucket.high > self.high + slack:
                self.cells[0][x] = (self.marks.above, Role.OUTLIER)
            elif bucket.low < self.low - slack:
                self.cells[-1][x] = (self.marks.below, Role.OUTLIER)


def draw(data: ChartData, width: int, height: int, mode: ChartMode) -> Picture:
    """Draw `data` into exactly `width` x `height` cells; too small an area stays blank rather than cut a number."""
    series = [*data.loss, *data.evaluation, *(bucket for line in data.lines for bucket in line.buckets)]
    if not series or width < 8 or height < 2:
        return _message(data.empty if not series else "", width, height)
    axis_rows = 2 if height >= 6 else 0
    plot_height = height - axis_rows
    low, high = axis_ends(*robust_range([bucket.mean for bucket in series]), min(max(plot_height - 2, 2), 10))
    ticks = axis_ticks(low, high, min(max(round(plot_height / 2.5), 2), 6))
    labels = tick_labels(ticks)
    gutter = max(len(label) for label in labels) + 1
    plot_width = width - gutter - 1
    if plot_width < 4:
        return _message("", width, height)
    last_step = max(bucket.last_step for bucket in series)
    plot = _Plot(plot_width, plot_height, mode, low, high, capacity_steps(last_step, data.total_steps))
    plot.line(data.loss)
    for line, role in zip(data.lines, cycle(LINE_ROLES), strict=False):
        plot.line(line.buckets, role, line.letter)
    plot.outliers(series)
    plot.evaluations(data.evaluation)
    plot.letters(data.lines)
    rows = _with_y_axis(plot, ticks, labels, gutter)
    if axis_rows:
        rows += _x_axis(plot, gutter, width, data)
    return Picture(tuple(tuple(row) for row in rows), plot.capacity, plot.low, plot.high)


def _with_y_axis(plot: _Plot, ticks: Sequence[float], labels: Sequence[str], gutter: int) -> list[list[Cell]]:
    at_row: dict[int, str] = {}
    for tick, label in zip(ticks, labels, strict=True):
        at_row.setdefault(plot.row(tick), label)
    rows: list[list[Cell]] = []
    for y, cells in enumerate(plot.cells):
        label = at_row.get(y, "")
        axis = plot.marks.tick if label else plot.marks.axis
        gutter_cells = [(character, Role.LABEL) for character in f"{label:>{gutter - 1}} "]
        rows.append([*gutter_cells, (axis, Role.AXIS), *cells])
    return rows


def _x_axis(plot: _Plot, gutter: int, width: int, data: ChartData) -> list[list[Cell]]:
    line: list[Cell] = [EMPTY] * gutter + [(plot.marks.corner, Role.AXIS)] + [(plot.marks.line, Role.AXIS)] * plot.width
    labels: list[Cell] = [EMPTY] * width
    free_from = 0
    # The ends first: they must be there; the middle ones where room is left.
    last = data.tick(plot.capacity)
    last_start = width - len(last)
    for quarter in (0, 1, 2, 3, 4):
        step = plot.capacity * quarter // 4
        x = gutter + 1 + min(plot.width * quarter // 4, plot.width - 1)
        text = data.tick(step) if quarter else f"{data.noun} 0"
        start = last_start if quarter == 4 else max(x - (len(text) // 2 if quarter else 1), 0)
        if start < free_from or (quarter < 4 and start + len(text) >= last_start):
            continue
        line[x] = (plot.marks.line_tick, Role.AXIS)
        labels[start : start + len(text)] = [(character, Role.LABEL) for character in text]
        free_from = start + len(text) + 2
    return [line[:width], labels]


def _message(text: str, width: int, height: int) -> Picture:
    rows: list[list[Cell]] = [[EMPTY] * width for _ in range(height)]
    if text and len(text) <= width and height > 0:
        start = (width - len(text)) // 2
        rows[height // 2][start : start + len(text)] = [(character, Role.LABEL) for character in text]
    return Picture(tuple(tuple(row) for row in rows))
