"""Every tensor seen alike: planes of rows of columns, and the cells that an output's runs cut it into.

Owns geometry only, in whole numbers. Must not know numpy or files. A stack of experts has a plane for each, a matrix
has one plane, a vector one column; a plain copy of any shape is one column.

    column runs      copy 0..6   free 2
    row run 0..4   [   cell    | cell  ]       a cell is filled in one way throughout
    row run 4..6   [   cell    | cell  ]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from engine.errors import EngineError
from engine.expansion.maps import AxisMap, Fill, Run, cut, identity, is_identity, length
from engine.expansion.recipe import Recipe
from engine.models.headers import TensorHeader

HOLE_BYTES = 1 << 20
"""Runs of zero rows from this size on are kept apart, so that they need not be written."""
_STRONGEST = (Fill.ZERO, Fill.FREE, Fill.MEAN, Fill.COPY)
"""The fill of an element whose runs differ: the first of these that is among them."""


@dataclass(frozen=True, slots=True)
class Planes:
    """An output tensor and what it is made from, both as (planes, rows, columns)."""

    new: tuple[int, int, int]
    old: tuple[int, int, int]
    maps: tuple[AxisMap, AxisMap, AxisMap]
    flat: bool = False
    """A plain copy, seen as one column."""

    @property
    def columns_stay(self) -> bool:
        """Whether whole rows move as they are."""
        return is_identity(self.maps[2], self.old[2])


@dataclass(frozen=True, slots=True)
class Band:
    """Consecutive output rows of one plane that one row run fills."""

    plane: Run
    rows: Run
    first: int
    """Output row it begins at."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The part of a band that one column run fills."""

    band: Band
    columns: Run
    first: int
    """Output column it begins at."""

    @property
    def runs(self) -> tuple[Run, Run, Run]:
        """Along planes, rows and columns."""
        return self.band.plane, self.band.rows, self.columns

    @property
    def fill(self) -> Fill:
        """What the elements hold."""
        fills = {run.fill for run in self.runs}
        return next(fill for fill in _STRONGEST if fill in fills)

    @property
    def scale(self) -> float:
        """Product of the runs' scales."""
        return prod(run.scale for run in self.runs if run.fill in (Fill.COPY, Fill.MEAN))

    @property
    def moves(self) -> bool:
        """Whether old elements are taken as they are."""
        return all(run.fill is Fill.COPY and run.scale == 1.0 and not run.noise for run in self.runs)


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `begin` to `end` of a plane, written in one go."""

    plane: int
    begin: int
    end: int
    zero: bool = False


def planes_of(recipe: Recipe, sources: Sequence[TensorHeader]) -> Planes:
    """The geometry of a recipe. Raises EngineError `surgery.shape` when maps, shape and sources do not agree."""
    for source in sources:
        if source.shape != sources[0].shape or len(source.shape) != len(recipe.shape):
            raise _disagree(recipe, f"'{source.name}' has the shape {source.shape}")
    if sources and recipe.is_plain_copy and sources[0].shape == recipe.shape:
        count = prod(recipe.shape)
        return Planes((1, count, 1), (1, count, 1), (identity(1), identity(count), identity(1)), flat=True)
    if len(recipe.shape) > 3:
        raise _disagree(recipe, f"it has {len(recipe.shape)} axes, and at most three can be grown")
    maps = recipe.maps or tuple((Run(Fill.FREE, extent),) for extent in recipe.shape)
    if tuple(map(length, maps)) != recipe.shape:
        raise _disagree(recipe, f"its maps give {tuple(map(length, maps))}")
    new, old = _padded(recipe.shape), _padded(sources[0].shape) if sources else (0, 0, 0)
    planes = Planes(new, old, _padded_maps(maps))
    if sources:
        _check_reach(recipe, planes)
    return planes


def bands(planes: Planes, plane: int, begin: int, end: int) -> Iterator[Band]:
    """The bands of output rows `begin` to `end`."""
    (plane_run,) = cut(planes.maps[0], plane, plane + 1)
    row = begin
    for run in cut(planes.maps[1], begin, end):
        yield Band(plane_run, run, row)
        row += run.count


def cells(band: Band, columns: Iterable[tuple[int, Run]]) -> Iterator[Cell]:
    """The cells of a band for column runs with their first columns."""
    for first, run in columns:
        yield Cell(band, run, first)


def placed(axis: AxisMap) -> tuple[tuple[int, Run], ...]:
    """The runs that are not empty, each with its first new entry."""
    starts = accumulate((run.count for run in axis), initial=0)
    return tuple((start, run) for start, run in zip(starts, axis, strict=False) if run.count)


def slices(planes: Planes, itemsize: int, chunk_bytes: int, *, all_zero: bool = False) -> Iterator[Slice]:
    """The whole output in order, in pieces of at most `chunk_bytes` (but at least a row)."""
    row_bytes = max(1, planes.new[2] * itemsize)
    step = max(1, chunk_bytes // row_bytes)
    for plane in range(planes.new[0]):
        (plane_run,) = cut(planes.maps[0], plane, plane + 1)
        for begin, end, zero in _stretches(planes, row_bytes, all_zero or plane_run.fill is Fill.ZERO):
            for low in range(begin, end, step):
                yield Slice(plane, low, min(end, low + step), zero)


def _stretches(planes: Planes, row_bytes: int, all_zero: bool) -> list[tuple[int, int, bool]]:
    """Rows as (begin, end, all of them zero)."""
    if all_zero:
        return [(0, planes.new[1], True)]
    found: list[tuple[int, int, bool]] = []
    row = 0
    for run in planes.maps[1]:
        zero = run.fill is Fill.ZERO and run.count * row_bytes >= HOLE_BYTES
        if found and found[-1][2] == zero:
            found[-1] = (found[-1][0], row + run.count, zero)
        elif run.count:
            found.append((row, row + run.count, zero))
        row += run.count
    return found


def _padded(shape: tuple[int, ...]) -> tuple[int, int, int]:
    match shape:
        case ():
            return (1, 1, 1)
        case (rows,):
            return (1, rows, 1)
        case (rows, columns):
            return (1, rows, columns)
        case (planes, rows, columns):
            return (planes, rows, columns)
    raise ValueError(shape)


def _padded_maps(maps: tuple[AxisMap, ...]) -> tuple[AxisMap, AxisMap, AxisMap]:
    one = identity(1)
    match maps:
        case ():
            return (one, one, one)
        case (rows,):
            return (one, rows, one)
        case (rows, columns):
            return (one, rows, columns)
        case (planes, rows, columns):
            return (planes, rows, columns)
    raise ValueError(maps)


def _check_reach(recipe: Recipe, planes: Planes) -> None:
    for axis, extent in zip(planes.maps, planes.old, strict=True):
        for run in axis:
            if run.fill is Fill.COPY and (run.start < 0 or run.start + run.count > extent):
                raise _disagree(recipe, f"it takes entries {run.start} to {run.start + run.count} of {extent}")
            if not 0 <= run.source < max(1, len(recipe.sources)):
                raise _disagree(recipe, f"it takes entries from source {run.source} of {len(recipe.sources)}")


def _disagree(recipe: Recipe, how: str) -> EngineError:
    return EngineError(
        "surgery.shape",
        f"The recipe for '{recipe.name[:80]}' of shape {recipe.shape} cannot be carried out: {how}.",
        cause="The plan was made for other weights.",
        next_step="Check the model with `scaler-wizard inspect`, then plan again.",
    )
