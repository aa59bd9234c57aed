"""What must hold before the first byte is written, and the source's identity that a resume compares.

Owns the refusals about folders, files and room. Must not know plans.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from engine.errors import EngineError
from engine.expansion.axes import Role
from engine.expansion.layout import Layout
from engine.models.config import CONFIG_NAME
from engine.models.headers import Headers, TensorHeader, read_file_header
from engine.surgery import numbers
from engine.surgery.carry import companions
from engine.surgery.staging import SourceFile, no_room, sha256_of, staging_folder
from engine.units import format_bytes

_SPARE_BYTES = 64 << 20
_COMPARED_BYTES = 8 << 20


def check_folders(source: Path, out: Path, *, resume: bool) -> None:
    """Refuse an output that exists, lies in the source, or holds it. Raises EngineError `surgery.out_*`."""
    real_source, real_out = source.resolve(), out.resolve()
    if real_out == real_source or real_source in real_out.parents or real_out in real_source.parents:
        raise EngineError(
            "surgery.out_inside_source",
            f"The output {out} and the source {source} lie in each other.",
            cause="The source is never touched, and an output within it would be part of it.",
            next_step="Choose a folder beside the source.",
        )
    if out.exists() or out.is_symlink():
        raise EngineError(
            "surgery.out_exists",
            f"{out} exists.",
            cause="Nothing is overwritten.",
            next_step="Choose another name, or remove it first.",
        )
    parent = next(folder for folder in (out.parent, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise EngineError(
            "surgery.out_unwritable",
            f"Cannot write to {parent}.",
            cause="It is not a folder, or you may not write there.",
            next_step="Choose a folder you can write to.",
        )
    if resume and not staging_folder(out).exists():
        raise EngineError(
            "surgery.nothing_to_resume",
            f"There is no unfinished expansion to {out}.",
            next_step="Start it without --resume.",
        )


def check_duplicates(headers: Headers) -> None:
    """Refuse a tensor that two files hold: which of them is meant cannot be known. Raises EngineError
    `safetensors.duplicate`."""
    seen: dict[str, str] = {}
    for path in headers.files:
        for tensor in read_file_header(path):
            if tensor.name in seen:
                raise EngineError(
                    "safetensors.duplicate",
                    f"Tensor '{tensor.name[:80]}' is stored twice.",
                    cause=f"Both {seen[tensor.name]} and {path.name} hold it.",
                    next_step="Download the model again; files of two versions are mixed in its folder.",
                )
            seen[tensor.name] = path.name


def check_tied_head(headers: Headers, layout: Layout) -> None:
    """Refuse a head that is stored with other values than the embedding the config ties it to: loaders then keep two.

    Raises EngineError `surgery.head_differs`.
    """
    if not layout.traits.tied:
        return
    found = {match.rule.role: tensor for tensor in headers.tensors if (match := layout.find(tensor.name)) is not None}
    head, embedding = found.get(Role.HEAD), found.get(Role.EMBEDDING)
    if head is None or embedding is None or equal_data(head, embedding):
        return
    raise EngineError(
        "surgery.head_differs",
        f"'{head.name[:80]}' is stored with other values than the embedding that config.json ties it to.",
        cause="Loaders keep both then, and growing one of them would change the model.",
        next_step='Set "tie_word_embeddings": false in config.json if the head is meant, else remove the head.',
    )


def equal_data(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two stored tensors are the same bytes of the same type."""
    if (one.dtype, one.data_bytes) != (other.dtype, other.data_bytes):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset_bytes)
        second.seek(other.offset_bytes)
        left = one.data_bytes
        while left > 0:
            size = min(left, _COMPARED_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def stored_name(dtype: str) -> str:
    """ "bfloat16" -> "BF16"; "" stays."""
    return numbers.NAMES.get(dtype, "")


def source_files(source: Path, headers: Headers) -> tuple[SourceFile, ...]:
    """The identity of everything that is read: sizes, times, and hashes of headers and small files."""
    files = [_identity(path, _head_sha256(path)) for path in headers.files]
    small = [source / CONFIG_NAME, *(path for path, _ in companions(source))]
    files += [_identity(path, sha256_of(path)) for path in small]
    return tuple(sorted(files, key=lambda file: file.name))


def check_unchanged(source: Path, weights: Iterable[Path], files: Iterable[SourceFile]) -> None:
    """Raises EngineError `surgery.source_changed` when a weight file is not what it was at the start."""
    known = {file.name: (file.size_bytes, file.modified_ns) for file in files}
    for path in weights:
        status = path.stat()
        if known.get(path.name) != (status.st_size, status.st_mtime_ns):
            raise EngineError(
                "surgery.source_changed",
                f"{path} changed while {source.name} was being expanded.",
                cause="What was read before and after does not belong together.",
                next_step="Leave the source alone, remove the unfinished folder, and start again.",
            )


def check_room(out: Path, needed_bytes: int) -> None:
    """Raises EngineError `disk.full` when the output cannot fit."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes + _SPARE_BYTES:
        raise no_room(parent, format_bytes(needed_bytes + _SPARE_BYTES), format_bytes(free))


def made_bytes(tensors: Iterable[TensorHeader], layers: int, made: int) -> int:
    """Room for layers that are computed beforehand: so many of the average layer."""
    held = sum(tensor.data_bytes for tensor in tensors)
    return held * made // max(1, layers)


def _identity(path: Path, digest: str) -> SourceFile:
    status = path.stat()
    return SourceFile(path.name, status.st_size, status.st_mtime_ns, digest)


def _head_sha256(path: Path) -> str:
    with path.open("rb") as file:
        prefix = file.read(8)
        return hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little"))).hexdigest()
