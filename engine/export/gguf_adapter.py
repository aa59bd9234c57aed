"""A LoRA adapter as a GGUF file that llama.cpp applies to its base's GGUF.

Owns names, scale and the order of rows. Must not know how an adapter's folder is read (`engine.adapters`).

llama.cpp adds (alpha / r) B A x to W x, with one alpha for the file and r from the tensors. Where the adapter's scale
is another one per matrix (patterns, rsLoRA of several ranks), the difference goes into B. What the base's GGUF does to
the rows of a weight - woven for Llama, multiplied for Gemma - is done to the rows of B.

Dims: O outputs, I inputs, R rank, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.adapters.base import Base, check_base, read_base
from engine.adapters.folder import Adapted, AdapterFolder, read_adapter
from engine.adapters.kinds import Start
from engine.adapters.tensors import read_float, same_values
from engine.adapters.update import low_rank
from engine.context.gguf_graphs import Graph
from engine.context.gguf_support import graph_of, what_is_lost
from engine.errors import EngineError
from engine.export.gguf_weights import TYPES, Change, change_of, few, gguf_name, interleaved
from engine.export.one_file import check_target, whole_file
from engine.models.config import text_part
from engine.models.folder import check_folder
from engine.models.headers import TensorHeader
from engine.models.shape import Shape, read_shape
from engine.surgery.numbers import STORAGE, Array, to_stored

OnProgress = Callable[[int, int], None]
"""Bytes written, and of all."""
_MERGE = "Merge it into its base (scaler-wizard adapters merge ADAPTER) and export the merged model."
_UPDATES = "llama.cpp's adapters hold updates of matrices, of low rank, and nothing else."
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class GgufAdapter:
    """What was written."""

    path: Path
    size_bytes: int
    graph: str
    """Of the base that it belongs to."""
    alpha: float
    matrices: int
    largest_rank: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two tensors of one matrix."""

    name: str
    """llama.cpp's name of the base's weight."""
    adapted: Adapted
    base: TensorHeader
    change: Change
    alpha: float
    """Of the file."""

    @property
    def rank(self) -> int:
        """Of what is written: PiSSA and OLoRA take as much again out of the base."""
        return self.adapted.rank * (1 if self.adapted.start is Start.NONE else 2)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of lora_a and lora_b; of an embedding a is (V, R) instead of (R, V)."""
        a = (self.rank, self.adapted.inputs)
        return (a[1], a[0]) if self.adapted.embedding else a, (self.adapted.outputs, self.rank)

    def factors(self) -> tuple[Array, Array]:
        """a and b, float32."""
        own = self.rank / self.alpha * self.change.factor
        if self.adapted.start is Start.NONE:
            a, b = read_float(self.adapted.a), read_float(self.adapted.b) * np.float32(self.adapted.scale * own)
        else:
            found = low_rank(self.adapted, read_float(self.base))
            assert found is not None  # DoRA was refused
            b, a = found[0] * np.float32(own), found[1]
        if self.change.heads:
            b = interleaved(b, self.change.heads)
        return (a.T if self.adapted.embedding else a), b


def write_gguf_adapter(
    adapter_folder: Path,
    base_folder: Path,
    out: Path,
    *,
    stored: str = "f32",
    force: bool = False,
    name: str = "",
    on_progress: OnProgress | None = None,
) -> GgufAdapter:
    """Write the adapter to `out`, for a GGUF file of the model in `base_folder`; `stored` is f32, f16 or bf16.

    Raises EngineError `adapter.*` for the folders, `export.adapter_*` for what an adapter file cannot hold, with the
    way out: merge; `export.exists`, `disk.full`. `out` appears when it is complete.
    """
    check_target(out, force=force)
    adapter = read_adapter(adapter_folder)
    config = check_folder(base_folder)
    findings = what_is_lost(config)
    if findings and findings[0].lost:
        raise findings[0].as_error()
    check_base(adapter, base_folder)
    part = text_part(config)[0]
    graph, shape, base = graph_of(part), read_shape(part, str(base_folder / "config.json")), read_base(base_folder)
    _refuse(adapter, base)
    alpha = _alpha(adapter)
    pairs = [_pair(adapted, base, graph, shape, part, alpha) for adapted in adapter.adapted]
    kind = _type(stored)
    data_bytes = sum(math.prod(one) for pair in pairs for one in pair.shapes) * STORAGE[kind].itemsize
    with whole_file(out, data_bytes + _HEAD_BYTES + 256 * len(pairs), force=force) as partial:
        _write(partial.path, graph, name or adapter_folder.resolve().name, alpha, pairs, kind, on_progress)
    return GgufAdapter(out, out.stat().st_size, graph.name, alpha, len(pairs), max(pair.rank for pair in pairs))


def _refuse(adapter: AdapterFolder, base: Base) -> None:
    """Raises EngineError for what llama.cpp's adapters have no place for."""
    dora = [one.module for one in adapter.adapted if one.magnitude is not None]
    if dora:
        raise _no_place("dora", f"DoRA scales the rows of whole weights ({few(dora)})", _UPDATES)
    biases = [one.module for one in adapter.adapted if one.bias is not None]
    if biases:
        raise _no_place("bias", f"The adapter has biases of its own ({few(biases)})", _UPDATES)
    whole = []
    for one in adapter.whole:
        stored = base.find(one.name)
        if stored is None or not same_values(one.tensor, stored):
            whole.append(one.name)
    if whole:
        raise _no_place("whole", f"The adapter replaces whole weights of the base ({few(whole)})", _UPDATES)
    if adapter.rows:
        rows = [one.weight for one in adapter.rows]
        raise _no_place("rows", f"The adapter replaces rows of the embedding ({few(rows)})", _UPDATES)
    if not adapter.adapted:
        raise _no_place("empty", "The adapter updates nothing", _UPDATES)
    ends = [one.module for one in adapter.adapted if one.embedding or one.module.endswith("lm_head")]
    if ends and base.tied:
        raise _no_place(
            "tied",
            f"The base uses one matrix as embedding and as head, and the adapter updates one of the two ({few(ends)})",
            "llama.cpp has one tensor for both.",
        )


def _alpha(adapter: AdapterFolder) -> float:
    """`adapter.lora.alpha`: what makes the first matrix' scale right without touching it."""
    first = adapter.adapted[0]
    return first.scale * first.rank or 1.0  # llama.cpp takes 0 for "no scale at all"


def _pair(adapted: Adapted, base: Base, graph: Graph, shape: Shape, config: dict[str, Any], alpha: float) -> _Pair:
    stored = base.find(adapted.weight)
    name = gguf_name(stored.name, graph) if stored else ""
    if not stored or not name:
        raise _no_place(
            "module", f"The adapter updates '{adapted.module}'", "It has no such matrix in its graph of this model."
        )
    return _Pair(name, adapted, stored, change_of(name, graph, shape, config), alpha)


def _type(stored: str) -> str:
    kind = TYPES.get(stored, "")
    if kind not in ("F32", "F16", "BF16"):
        raise EngineError(
            "export.type", f"An adapter cannot be stored as '{stored}'.", next_step="Take f32, f16 or bf16."
        )
    return kind


def _write(
    partial: Path,
    graph: Graph,
    name: str,
    alpha: float,
    pairs: list[_Pair],
    kind: str,
    on_progress: OnProgress | None,
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, Keys

    writer: Any = GGUFWriter(partial, graph.name)
    itemsize = STORAGE[kind].itemsize
    total = sum(math.prod(one) for pair in pairs for one in pair.shapes) * itemsize
    done = 0
    try:
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(name)
        writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[kind])
        for pair in pairs:
            for suffix, shape in zip(("lora_a", "lora_b"), pair.shapes, strict=True):
                held, raw = np.dtype(np.float32), GGMLQuantizationType[kind]
                writer.add_tensor_info(f"{pair.name}.{suffix}", shape, held, math.prod(shape) * itemsize, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for pair in pairs:
            for values in pair.factors():
                stored = np.ascontiguousarray(to_stored(values, kind))
                writer.write_tensor_data(_Bytes(stored))
                done += stored.nbytes
                if on_progress:
                    on_progress(done, total)
    finally:
        writer.close()


class _Bytes:
    """An array that is written through the file's own buffer, so that a full disk says so."""

    def __init__(self, values: Array) -> None:
        self._values = values
        self.nbytes = values.nbytes

    def tofile(self, file: BinaryIO) -> None:
        file.write(self._values.data.cast("B"))


def _no_place(code: str, what: str, cause: str) -> EngineError:
    return EngineError(
        f"export.adapter_{code}",
        f"{what}, which an adapter file cannot say.",
        cause=cause,
        next_step=_MERGE,
    )
