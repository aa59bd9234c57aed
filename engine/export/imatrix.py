"""An importance matrix: how much each input of each matrix matters, as llama.cpp's llama-imatrix writes it.

Owns both of its file forms. Must not know what it is used for.

For input i of a matrix the importance is the mean of x_i² over a text. The GGUF form holds sums and counts per matrix
(`NAME.in_sum2`, `NAME.counts`); the older one, `.dat`, holds the sums divided by the rows and multiplied by the calls,
and the number of calls.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engine.errors import EngineError
from engine.surgery.numbers import Array

_GGUF = b"GGUF"
_LARGEST_NAME_BYTES, _LARGEST_ENTRIES, _LARGEST_VALUES = 1024, 1 << 20, 1 << 28
_HOW = "Make one with llama.cpp's llama-imatrix -m MODEL.gguf -f TEXT.txt, or quantise without."


@dataclass(frozen=True, slots=True)
class Importance:
    """Of one matrix."""

    name: str
    values: Array
    """(I,) float32; for stacked experts one row after the other."""


def read_imatrix(path: Path) -> tuple[Importance, ...]:
    """Every matrix of a file. Raises EngineError `export.imatrix`."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            found = _read_gguf(path) if head == _GGUF else _read_old(path, file)
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if not found:
        raise _unreadable(path, "it has no matrices")
    for one in found:
        if not np.isfinite(one.values).all():
            raise _unreadable(path, f"{one.name} holds numbers that are not finite")
    return tuple(found)


def check_imatrix(path: Path, kinds: Sequence[str]) -> None:
    """Before anything is written: `kinds` are the k-quants that will be made with it. Raises EngineError
    `export.imatrix`."""
    if not kinds:
        raise EngineError(
            "export.imatrix",
            "An importance matrix is for k-quants, and none is asked for.",
            cause="f32, f16, bf16 and q8_0 take every number alike.",
            next_step="Leave --imatrix out, or take --type q4_k_m, q5_k_m or q6_k.",
        )
    if not path.is_file():
        raise EngineError("export.imatrix", f"There is no file {path}.", next_step=_HOW)
    read_imatrix(path)


def _read_gguf(path: Path) -> list[Importance]:
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    found = []
    for name, held in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        matrix = name.removesuffix(".in_sum2")
        counts = np.asarray(tensors[f"{matrix}.counts"], dtype=np.float32).reshape(-1, 1)  # (E, 1) experts
        sums = np.asarray(held, dtype=np.float32).reshape(counts.shape[0], -1)  # (E, I)
        values = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
        found.append(Importance(matrix, values.reshape(-1).astype(np.float32)))
    return found


def _read_old(path: Path, file: BinaryIO) -> list[Importance]:
    def number(largest: int) -> int:
        (value,) = struct.unpack("<i", file.read(4))
        if not 0 <= value <= largest:
            raise _unreadable(path, "it is neither GGUF nor the older form")
        return int(value)

    found = []
    for _ in range(number(_LARGEST_ENTRIES)):
        name = file.read(number(_LARGEST_NAME_BYTES)).decode("utf-8")
        calls = number(2**31 - 1)
        count = number(_LARGEST_VALUES)
        values = np.frombuffer(file.read(4 * count), dtype="<f4")
        if values.size != count:
            raise _unreadable(path, "it ends early")
        found.append(Importance(name, values / np.float32(calls) if calls else values))
    return found


def _unreadable(path: Path, why: str) -> EngineError:
    return EngineError("export.imatrix", f"{path} is no importance matrix.", cause=why, next_step=_HOW)
