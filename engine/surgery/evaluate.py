"""A recipe carried out: any rows of an output tensor, from those rows of its sources that they need.

Owns what recipes mean in numbers. Must not know files, shards or threads.

    out[p, r, c] = scale * P.scale * R.scale * C.scale * W[P(p), R(r), C(c)] + shift (+ noise)

Values are computed in float32 for half-precision matrices and in float64 otherwise, and rounded once; what is only
moved keeps its bits. No result depends on how an output is cut into slices: means come from whole tensors, and every
random number belongs to a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.expansion.maps import Fill, Run
from engine.expansion.recipe import Recipe
from engine.models.headers import TensorHeader
from engine.surgery import fresh, numbers
from engine.surgery.gather import Gather, gather_of
from engine.surgery.numbers import Array
from engine.surgery.planes import Band, Cell, Slice, bands, cells, placed, planes_of, slices
from engine.surgery.reader import TensorReader
from engine.surgery.statistics import Statistics

_FREE, _PLANE_NOISE, _ROW_NOISE, _COLUMN_NOISE, _WHOLE_NOISE = range(5)
"""What a random field is for; part of its key."""


class Evaluator:
    """One recipe with its sources and the plan's seed. Raises EngineError `surgery.*` when they do not fit together."""

    def __init__(self, recipe: Recipe, reader: TensorReader, seed: int) -> None:
        self.recipe, self.reader, self.seed = recipe, reader, seed
        self.sources: tuple[TensorHeader, ...] = tuple(reader.find(source) for source in recipe.sources)
        self.planes = planes_of(recipe, self.sources)
        self.storage = numbers.storage(recipe.dtype)
        vector = len(recipe.shape) <= 1
        self.work = np.dtype(np.float64) if vector else numbers.work_type(recipe.dtype)
        self.statistics = Statistics(reader)
        self.selects = any(run.source for axis in self.planes.maps for run in axis)
        self.moves = self._moves()
        self.columns = placed(self.planes.maps[2])
        self.gather = self._gather()

    def _gather(self) -> Gather | None:
        if self.selects or len(self.sources) != 1 or self.recipe.noise:
            return None
        return gather_of(self.planes.maps[2])

    def _moves(self) -> bool:
        """Whether cells may take their elements bit by bit."""
        recipe = self.recipe
        one = self.selects or (len(self.sources) == 1 and recipe.sources[0].weight == 1.0)
        plain = recipe.scale == 1.0 and recipe.shift == 0.0 and recipe.noise == 0.0
        return one and plain and all(source.dtype == recipe.dtype for source in self.sources)

    @property
    def all_zero(self) -> bool:
        """Whether every element is zero."""
        return self.recipe.constant == 0.0

    def slices(self, chunk_bytes: int) -> Iterator[Slice]:
        """The output in order, in pieces of about `chunk_bytes`."""
        return slices(self.planes, self.storage.itemsize, chunk_bytes, all_zero=self.all_zero)

    def fill(self, part: Slice, target: Array) -> None:
        """Write the rows of `part` into `target` (rows, columns), in the stored type. Raises EngineError `weights.nan`
        for sources that are not finite, `surgery.overflow` for results that the type cannot hold."""
        if self.recipe.constant is not None:
            target[...] = numbers.to_stored(np.array([self.recipe.constant]), self.recipe.dtype)[0]
            return
        for band in bands(self.planes, part.plane, part.begin, part.end):
            rows = target[band.first - part.begin : band.first - part.begin + band.rows.count]
            loaded = _Loaded(self, part.plane, band)
            if self.moves and self.planes.columns_stay and loaded.moves:
                loaded.read_into(rows)
                continue
            for cell in cells(band, self._gather_columns(loaded, rows, stored=True)):
                self._store(cell, loaded, rows[:, cell.first : cell.first + cell.columns.count])

    def origin(self, part: Slice) -> tuple[int, int] | None:
        """(open file, offset) of the bytes that `part` is a copy of; None when it is not one."""
        if self.recipe.constant is not None or not (self.moves and self.planes.columns_stay):
            return None
        found = list(bands(self.planes, part.plane, part.begin, part.end))
        loaded = _Loaded(self, part.plane, found[0])
        if len(found) > 1 or not loaded.moves:
            return None
        return self.reader.place(*loaded.place, self.storage.itemsize)

    def values(self, part: Slice) -> Array:
        """The rows of `part` before rounding, as floats (rows, columns)."""
        count = part.end - part.begin
        result = np.empty((count, self.planes.new[2]), dtype=self.work)
        if self.recipe.constant is not None:
            result[...] = self.recipe.constant
            return result
        for band in bands(self.planes, part.plane, part.begin, part.end):
            rows = result[band.first - part.begin : band.first - part.begin + band.rows.count]
            loaded = _Loaded(self, part.plane, band)
            for cell in cells(band, self._gather_columns(loaded, rows, stored=False)):
                rows[:, cell.first : cell.first + cell.columns.count] = self._floats(cell, loaded)
        return result

    def leading(self, begin: int, end: int) -> Array:
        """Entries `begin` to `end` along the first axis before rounding, (end - begin, *shape[1:])."""
        shape = self.recipe.shape
        if len(shape) == 3 and not self.planes.flat:
            planes = [self.values(Slice(plane, 0, shape[1])) for plane in range(begin, end)]
            return np.stack(planes) if planes else np.empty((0, *shape[1:]), dtype=self.work)
        stride = self.planes.new[1] // max(1, shape[0]) if shape else 1
        return self.values(Slice(0, begin * stride, end * stride)).reshape(end - begin, *shape[1:])

    # ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _gather_columns(self, loaded: _Loaded, target: Array, *, stored: bool) -> tuple[tuple[int, Run], ...]:
        """Fills the columns that can be taken all at once; returns the others."""
        gather, band = self.gather, loaded.band
        if gather is None or not loaded.gathers:
            return self.columns
        if stored and self.moves and gather.moves and loaded.moves:
            target[:, gather.new] = loaded.raw(0)[:, gather.old]
            return gather.rest
        recipe = self.recipe
        factor = recipe.sources[0].weight * recipe.scale * band.plane.scale * band.rows.scale
        values = loaded.floats(0, gather.old) * (gather.scale * factor).astype(self.work)
        if recipe.shift:
            values += self.work.type(recipe.shift)
        target[:, gather.new] = self._rounded(values) if stored else values
        return gather.rest

    def _rounded(self, values: Array) -> Array:
        stored = numbers.to_stored(values, self.recipe.dtype)
        if numbers.find_not_finite(np.ascontiguousarray(stored), self.recipe.dtype):
            raise EngineError(
                "surgery.overflow",
                f"'{self.recipe.name}' would hold a number that {self.recipe.dtype} cannot express.",
                cause="The source's type has a wider range.",
                next_step="Choose --dtype bfloat16 or float32.",
            )
        return stored

    def _store(self, cell: Cell, loaded: _Loaded, target: Array) -> None:
        if cell.fill is Fill.ZERO:
            target[...] = 0
        elif cell.fill is Fill.COPY and self.moves and cell.moves:
            first = cell.columns.start
            target[...] = loaded.raw(_source_of(cell))[:, first : first + cell.columns.count]
        else:
            target[...] = self._rounded(self._floats(cell, loaded))

    def _floats(self, cell: Cell, loaded: _Loaded) -> Array:
        """A cell's values, (rows, columns) or broadcasting to it."""
        if cell.fill is Fill.ZERO:
            return np.zeros((1, 1), dtype=self.work)
        if cell.fill is Fill.FREE:
            return self._free(cell, loaded)
        recipe = self.recipe
        if self.selects or len(self.sources) == 1:
            chosen = _source_of(cell)
            weight = 1.0 if self.selects else recipe.sources[0].weight
            values = self._base(chosen, cell, loaded) * self.work.type(weight * recipe.scale * cell.scale)
        else:
            factor = recipe.scale * cell.scale
            values = sum(
                self._base(index, cell, loaded) * self.work.type(source.weight * factor)
                for index, source in enumerate(recipe.sources)
            )
        if recipe.shift:
            values = values + self.work.type(recipe.shift)
        if cell.fill is Fill.COPY and (recipe.noise or any(run.noise for run in cell.runs)):
            values = values + self._noise(cell, loaded)
        return np.asarray(values, dtype=self.work)

    def _base(self, source: int, cell: Cell, loaded: _Loaded) -> Array:
        """What stands for W in a cell."""
        count = cell.columns.count
        taken = slice(cell.columns.start, cell.columns.start + count)
        if cell.band.rows.fill is Fill.MEAN:
            row = loaded.mean_row(source)
            part = row[taken] if cell.columns.fill is Fill.COPY else row.mean(keepdims=True)
            return np.broadcast_to(part.astype(self.work), (cell.band.rows.count, count))
        if cell.columns.fill is Fill.MEAN:
            return np.broadcast_to(loaded.row_means(source), (cell.band.rows.count, count))
        return loaded.floats(source, taken)

    def _free(self, cell: Cell, loaded: _Loaded) -> Array:
        recipe, width = self.recipe, cell.columns.count
        if recipe.fresh_value is not None or recipe.fresh_std == 0.0:
            return np.full((1, 1), recipe.fresh_value or 0.0, dtype=self.work)
        key = fresh.field_key(self.seed, recipe.name, _FREE, loaded.plane, cell.first)
        drawn = fresh.normal(key, cell.band.first * width, cell.band.rows.count * width, self.work)
        drawn *= self.work.type(recipe.fresh_std)
        return drawn.reshape(-1, width)

    def _noise(self, cell: Cell, loaded: _Loaded) -> Array:
        """Noise belongs to old entries along the axis whose run asks for it, and to new ones along the others."""
        plane, rows, columns = cell.runs
        across = slice(cell.first, cell.first + columns.count)
        width = self.planes.new[2]
        total = np.zeros((rows.count, columns.count), dtype=self.work)
        if columns.noise:
            old = self.planes.old[2]
            field = loaded.field((_COLUMN_NOISE, columns.noise_key, loaded.plane), cell.band.first, old)
            total += field[:, columns.start : columns.start + columns.count] * self.work.type(columns.noise)
        if rows.noise:
            field = loaded.field((_ROW_NOISE, rows.noise_key, loaded.plane), rows.start, width)
            total += field[:, across] * self.work.type(rows.noise)
        if plane.noise:
            field = loaded.field((_PLANE_NOISE, plane.noise_key, plane.start), cell.band.first, width)
            total += field[:, across] * self.work.type(plane.noise)
        if self.recipe.noise:
            field = loaded.field((_WHOLE_NOISE, self.recipe.noise_key, loaded.plane), cell.band.first, width)
            total += field[:, across] * self.work.type(self.recipe.noise)
        root = self.statistics.root_mean_square(self.sources[_source_of(cell)])
        return total * self.work.type(root * abs(self.recipe.scale))


class _Loaded:
    """What the cells of one band share: source rows, their means, drawn noise. Read when first asked for."""

    def __init__(self, owner: Evaluator, plane: int, band: Band) -> None:
        self.owner, self.plane, self.band = owner, plane, band
        self._raw: dict[tuple[int, int], Array] = {}
        self._fields: dict[tuple[int, ...], Array] = {}
        self._means: dict[int, Array] = {}

    @property
    def moves(self) -> bool:
        runs: tuple[Run, Run] = (self.band.plane, self.band.rows)
        return all(run.fill is Fill.COPY and run.scale == 1.0 and not run.noise for run in runs)

    @property
    def place(self) -> tuple[TensorHeader, int]:
        """Where whole rows come from: the source and its first element."""
        source = max(self.band.plane.source, self.band.rows.source, self.owner.planes.maps[2][0].source)
        return self.owner.sources[source], self._start(self.band.plane.start)

    def read_into(self, target: Array) -> None:
        """Whole rows, bit by bit."""
        self.owner.reader.read(*self.place, target)

    def raw(self, source: int, plane: int | None = None) -> Array:
        """Stored rows of a source, (rows, old columns)."""
        plane = self.band.plane.start if plane is None else plane
        if (source, plane) not in self._raw:
            header = self.owner.sources[source]
            rows = np.empty((self.band.rows.count, self.owner.planes.old[2]), dtype=numbers.storage(header.dtype))
            self.owner.reader.read(header, self._start(plane), rows)
            self._raw = {key: value for key, value in self._raw.items() if key[1] == plane}
            self._raw[source, plane] = rows
        return self._raw[source, plane]

    @property
    def gathers(self) -> bool:
        """Whether its columns may be taken all at once."""
        runs = (self.band.plane, self.band.rows)
        return all(run.fill is Fill.COPY and not run.noise for run in runs)

    def floats(self, source: int, columns: slice | Array) -> Array:
        """Columns of a source's rows as floats; averaged over the planes where the plane run is a mean."""
        dtype, work = self.owner.sources[source].dtype, self.owner.work
        if self.band.plane.fill is not Fill.MEAN:
            return numbers.to_float(self.raw(source)[:, columns], dtype, work)
        planes = range(self.owner.planes.old[0])
        total: Any = sum(numbers.to_float(self.raw(source, plane)[:, columns], dtype, work) for plane in planes)
        return np.asarray(total / len(planes), dtype=work)

    def row_means(self, source: int) -> Array:
        """The mean over the old columns of each row, (rows, 1)."""
        if source not in self._means:
            everything = self.floats(source, slice(0, self.owner.planes.old[2]))
            self._means[source] = everything.mean(axis=1, keepdims=True, dtype=np.float64).astype(self.owner.work)
        return self._means[source]

    def mean_row(self, source: int) -> Array:
        """The mean over the old rows, (old columns,), float64."""
        owner = self.owner
        planes = [self.band.plane.start] if self.band.plane.fill is not Fill.MEAN else range(owner.planes.old[0])
        _, rows, columns = owner.planes.old
        means = [owner.statistics.mean_row(owner.sources[source], plane, rows, columns) for plane in planes]
        return np.asarray(sum(means) / len(means))

    def field(self, key: tuple[int, int, int], first: int, width: int) -> Array:
        """Rows from `first` on of a random field, (rows, width)."""
        if key not in self._fields:
            owner = self.owner
            # tensors that are copies of one source and share a key are twins: their noise must be the same
            name = owner.sources[0].name if key[0] == _WHOLE_NOISE else owner.recipe.name
            drawn = fresh.normal(
                fresh.field_key(owner.seed, name, *key), first * width, self.band.rows.count * width, owner.work
            )
            self._fields[key] = drawn.reshape(-1, width)
        return self._fields[key]

    def _start(self, plane: int) -> int:
        _, rows, columns = self.owner.planes.old
        return (plane * rows + self.band.rows.start) * columns


def _source_of(cell: Cell) -> int:
    return max(run.source for run in cell.runs)


def evaluate_whole(recipe: Recipe, reader: TensorReader, seed: int) -> Array:
    """All values before rounding, in `recipe.shape`: float32 for half-precision matrices, else float64."""
    evaluator = Evaluator(recipe, reader, seed)
    parts = [evaluator.values(part) for part in evaluator.slices(1 << 22)]
    whole = np.concatenate(parts) if parts else np.zeros(0, dtype=evaluator.work)
    return whole.reshape(recipe.shape)


def store_whole(recipe: Recipe, reader: TensorReader, seed: int, chunk_bytes: int = 1 << 22) -> Array:
    """All values as they are written, in `recipe.shape` and the storage type."""
    evaluator = Evaluator(recipe, reader, seed)
    _, rows, columns = evaluator.planes.new
    whole = np.empty((evaluator.planes.new[0], rows, columns), dtype=evaluator.storage)
    for part in evaluator.slices(chunk_bytes):
        evaluator.fill(part, whole[part.plane, part.begin : part.end])
    return whole.reshape(recipe.shape)
