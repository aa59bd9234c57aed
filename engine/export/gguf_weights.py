"""The weights of a model as llama.cpp names, orders and stores them.

Owns names, the order of rotated rows, what is folded into a weight, and storage types. Must not know rotary scaling,
tokenizers or the container.

Dims: H heads, D head dimension, I inputs. Hugging Face rotates dimension i with i + D/2, llama.cpp's Llama graph
rotates 2i with 2i + 1; its other graphs keep the halves. So the rows of query and key are put in that order for Llama.
Gemma's norms are stored without their 1, and llama.cpp's are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.context.gguf_graphs import Graph, query_factor
from engine.errors import EngineError
from engine.models.headers import TensorHeader, read_headers
from engine.models.shape import Shape
from engine.surgery.numbers import STORAGE, Array, to_float, to_stored

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""What a user may ask for -> how matrices are stored. Vectors are always 32-bit: llama.cpp wants norms so."""
BLOCK, BLOCK_BYTES = 32, 34
"""Q8_0: so many neighbours share one 16-bit scale."""
CHUNK_BYTES = 64 << 20
"""Of a weight as float32 in memory at a time."""

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_SANDWICH = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Gemma's four norms per layer, two of them named as the others' two."""
_LAYER_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_SKIPPED = re.compile(r"rotary_emb\.inv_freq$|^(model\.)?(vision_tower|multi_modal_projector)\.")
_INSIDE = re.compile(r"^(language_model\.model\.|model\.language_model\.)")
_SPLIT = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_FUSED = ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a weight's values on their way."""

    heads: int = 0
    """Above 0: rows are reordered, this many heads."""
    factor: float = 1.0
    """Values are multiplied by it ..."""
    offset: float = 0.0
    """... after this was added."""

    @property
    def computes(self) -> bool:
        """Whether values change, not only their order."""
        return self.factor != 1 or self.offset != 0


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor of the file to come."""

    name: str
    source: TensorHeader
    stored: str
    """F32, F16, BF16 or Q8_0."""
    change: Change = Change()

    @property
    def data_bytes(self) -> int:
        return stored_bytes(self.source.elements, self.stored)

    def chunks(self) -> Iterator[Array]:
        """Groups of rows in their stored type and order; BF16 as the uint16 that holds it, Q8_0 as bytes."""
        rows, kind = self.source.shape[0], STORAGE[self.source.dtype]
        columns = self.source.elements // max(1, rows)
        unit = rows // self.change.heads if self.change.heads else 1
        step = max(unit, CHUNK_BYTES // (4 * max(1, columns)) // unit * unit)
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            start = self.source.offset_bytes + begin * columns * kind.itemsize
            held = np.fromfile(self.source.file, kind, count * columns, offset=start)
            part = held.reshape(count, *self.source.shape[1:])
            yield self._stored(interleaved(part, count // unit) if self.change.heads else part)

    def _stored(self, part: Array) -> Array:
        if self.stored == self.source.dtype and not self.change.computes:
            return np.ascontiguousarray(part)
        values = to_float(part, self.source.dtype, np.dtype(np.float32))
        if self.change.computes:
            values = (values + np.float32(self.change.offset)) * np.float32(self.change.factor)
        return in_type(values, self.stored)


class Streamed:
    """A tensor as the writer of the `gguf` package takes it, one group of rows in memory at a time."""

    def __init__(self, tensor: OutTensor, report: Callable[[int], None]) -> None:
        """`report` hears of the bytes of every group."""
        self._tensor, self._report = tensor, report
        self.nbytes = tensor.data_bytes

    def tofile(self, file: BinaryIO) -> None:
        """All of it, in order."""
        for part in self._tensor.chunks():
            file.write(part.data.cast("B"))
            self._report(part.nbytes)


def stored_bytes(elements: int, stored: str) -> int:
    """Of so many numbers in a type."""
    return elements // BLOCK * BLOCK_BYTES if stored == "Q8_0" else elements * STORAGE[stored].itemsize


def in_type(values: Array, stored: str) -> Array:
    """float32 rows in a storage type; Q8_0 by the `gguf` package: per 32 neighbours d = max |x| / 127 in 16 bits, then
    round(x / d)."""
    if stored == "Q8_0":
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        packed: Array = quantize(np.ascontiguousarray(values), GGMLQuantizationType.Q8_0)
        return packed
    return to_stored(values, stored)


def interleaved(rows: Array, heads: int) -> Array:
    """(H·D, I) or (H·D): each head's halves woven together, so that row i and i + D/2 become 2i and 2i + 1."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])  # (H, 2, D/2, I)
    return np.swapaxes(halves, 1, 2).reshape(rows.shape)


def tensors_for_gguf(
    folder: Path, graph: Graph, shape: Shape, config: Mapping[str, Any], stored: str
) -> tuple[OutTensor, ...]:
    """Every tensor of the model under llama.cpp's names; `stored` of its matrices.

    Raises EngineError `safetensors.*`, `export.tensor` for a weight whose place in llama.cpp is not known,
    `export.tensor_missing` for one that it needs, `export.dtype` for packed weights.
    """
    tensors = tuple(_planned(read_headers(folder).tensors, graph, shape, config, stored))
    _check_complete({tensor.name for tensor in tensors}, graph, shape)
    return tensors


def _planned(
    headers: Iterable[TensorHeader], graph: Graph, shape: Shape, config: Mapping[str, Any], stored: str
) -> Iterator[OutTensor]:
    for header in headers:
        if _SKIPPED.search(header.name) or (header.name.endswith("lm_head.weight") and shape.tied):
            continue
        name = gguf_name(header.name, graph)
        part, _, kind = name.rpartition(".")
        if not name or (kind == "bias" and part.split(".")[-1] not in graph.biases):
            raise EngineError(
                "export.tensor",
                f"The weight '{header.name}' has no place in llama.cpp's graph of this model.",
                next_step="Use llama.cpp's own convert_hf_to_gguf.py for this model.",
            )
        if header.dtype not in ("F32", "F16", "BF16"):
            raise EngineError(
                "export.dtype",
                f"The weight '{header.name}' is stored as {header.dtype}; only 16 and 32-bit floats are exported.",
                next_step="Export the 16-bit model, with --type q8_0 or q4_k_m for a small file.",
            )
        yield OutTensor(name, header, type_of(header.shape, stored), change_of(name, graph, shape, config))


def type_of(shape: tuple[int, ...], stored: str) -> str:
    """Of one tensor: vectors in 32 bits, rows that make no whole blocks in 16."""
    if len(shape) < 2:
        return "F32"
    return "F16" if stored == "Q8_0" and shape[-1] % BLOCK else stored


def change_of(name: str, graph: Graph, shape: Shape, config: Mapping[str, Any]) -> Change:
    """What becomes of the weight of llama.cpp's `name`."""
    part = name.split(".")[-2]
    heads = {"attn_q": shape.heads, "attn_k": shape.key_value_heads}.get(part, 0) if graph.interleaved else 0
    offset = graph.norm_offset if part.endswith("_norm") else 0.0
    scaled = "attn_q_norm" if graph.query_norm else "attn_q"
    factor = query_factor(graph, shape, config) if part == scaled else 1.0
    return Change(heads, factor, offset)


def _check_complete(names: set[str], graph: Graph, shape: Shape) -> None:
    """A weight that is missing would be found by llama.cpp only, or silently replaced by the embedding."""
    parts = (*(_FUSED if graph.fused else _SPLIT), *(("attn_q_norm", "attn_k_norm") if graph.query_norm else ()))
    if graph.norm_offset:
        parts = (*parts, "post_attention_norm", "post_ffw_norm")
    needed = {f"blk.{layer}.{part}.weight" for layer in range(shape.layers) for part in parts}
    needed |= {"token_embd.weight", "output_norm.weight"} | (set() if shape.tied else {"output.weight"})
    missing = sorted(needed - names)
    beyond = sorted(name for name in names - needed if name.endswith(".weight"))
    if missing or beyond:
        raise EngineError(
            "export.tensor_missing" if missing else "export.tensor",
            f"The model's files and its config do not agree: llama.cpp would {'miss' if missing else 'not know'} "
            f"{few(missing or beyond)}.",
            next_step="Check config.json (layers, tied embeddings) against the weights, or download the model again.",
        )


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def gguf_name(name: str, graph: Graph) -> str:
    """llama.cpp's name of a weight, "" for one it does not know."""
    inner = _INSIDE.sub("model.", name).replace("language_model.lm_head.", "lm_head.")
    if inner in _TOP:
        return _TOP[inner]
    found = _LAYER_NAME.match(inner)
    part = (_ATTENTION | (_SANDWICH if graph.norm_offset else _NORMS)).get(found[2]) if found else None
    return f"blk.{found[1]}.{part}.{found[3]}" if found and part else ""
