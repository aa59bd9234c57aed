"""Shards written: each tensor's slices made, put into the pipeline, and the file sealed under its name.

Owns the walk over shards and tensors. Must not know where they come from or what is recorded about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.surgery.evaluate import Evaluator
from engine.surgery.numbers import Array
from engine.surgery.pipeline import BUFFER_BYTES, OutFile, Pipeline
from engine.surgery.reader import TensorReader
from engine.surgery.shards import Placed, Shard

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished file."""

    name: str
    size_bytes: int
    sha256: str
    written_bytes: int
    """Without holes."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What writing a shard needs besides the shard."""

    folder: Path
    reader: TensorReader
    seed: int
    literals: Mapping[str, bytes]
    """Tensors given as bytes: name -> content."""
    on_bytes: Callable[[int], None]
    """Called with the number of bytes done."""
    on_sealed: Callable[[Sealed], None]
    """Called from a thread when a shard is durable and has its name."""
    computed: Mapping[str, Callable[[], Iterator[Array]]] = field(default_factory=dict)
    """Tensors that no recipe can say: name -> their rows in order and in the storage type, a few MB at a time."""


def write_shards(shards: Iterable[Shard], work: Writing) -> None:
    """Write them in order; returns when all are durable. Raises EngineError from the sources, OSError from the disk."""
    with Pipeline() as pipeline:
        for shard in shards:
            partial = work.folder / f".{shard.name}{PARTIAL}"
            file = pipeline.open(partial, shard.size_bytes)
            pipeline.put_bytes(file, 0, shard.header)
            for index, placed in enumerate(shard.tensors):
                _announce(shard.tensors[index + 1 : index + 2], work.reader)
                _write_tensor(pipeline, file, placed, work)
            pipeline.seal(file, lambda done, shard=shard: _named(done, shard, work))  # type: ignore[misc]


def _announce(coming: Iterable[Placed], reader: TensorReader) -> None:
    for placed in coming:
        for source in placed.recipe.sources:
            reader.ahead(reader.find(source))


def _write_tensor(pipeline: Pipeline, file: OutFile, placed: Placed, work: Writing) -> None:
    literal = work.literals.get(placed.recipe.name)
    if literal is not None:
        pipeline.put_bytes(file, placed.offset_bytes, literal)
        work.on_bytes(len(literal))
        return
    compute = work.computed.get(placed.recipe.name)
    if compute is not None:
        _write_computed(pipeline, file, placed, compute(), work)
        return
    evaluator = Evaluator(placed.recipe, work.reader, work.seed)
    columns, offset = evaluator.planes.new[2], placed.offset_bytes
    for part in evaluator.slices(BUFFER_BYTES):
        rows = part.end - part.begin
        count = rows * columns * evaluator.storage.itemsize
        if part.zero:
            pipeline.put_zeros(file, offset, count)
        else:
            buffer = pipeline.buffer(count)
            evaluator.fill(part, buffer[:count].view(evaluator.storage).reshape(rows, columns))
            pipeline.put(file, offset, buffer, count, evaluator.origin(part))
        offset += count
        work.on_bytes(count)


def _write_computed(pipeline: Pipeline, file: OutFile, placed: Placed, pieces: Iterator[Array], work: Writing) -> None:
    done = 0
    for piece in pieces:
        buffer = pipeline.buffer(piece.nbytes)
        buffer[: piece.nbytes] = piece.reshape(-1).view("u1")
        pipeline.put(file, placed.offset_bytes + done, buffer, piece.nbytes)
        done += piece.nbytes
        work.on_bytes(piece.nbytes)
    assert done == placed.data_bytes, placed.recipe.name


def _named(file: OutFile, shard: Shard, work: Writing) -> None:
    file.path.replace(work.folder / shard.name)
    work.on_sealed(Sealed(shard.name, shard.size_bytes, file.sha256, file.written_bytes))
