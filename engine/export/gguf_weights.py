"""The weights of a Llama, Mistral or Qwen as llama.cpp names, orders and stores them.

Owns names, the order of rotated rows, and storage types. Must not know rotary scaling or tokenizers.

Dims: H heads, D head dimension, I inputs. Hugging Face rotates dimension i with i + D/2, llama.cpp's Llama graph
rotates 2i with 2i + 1; its Qwen graphs keep the halves. So the rows of query and key are put in that order for Llama.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import EngineError
from engine.models.headers import TensorHeader, read_headers
from engine.models.shape import Shape
from engine.surgery.numbers import STORAGE, Array, to_float, to_stored

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""What a user may ask for -> how matrices are stored. Vectors are always 32-bit: llama.cpp wants norms so."""

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_SKIPPED = re.compile(r"rotary_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class OutTensor:
    """One tensor of the file to come."""

    name: str
    source: TensorHeader
    stored: str
    """F32, F16 or BF16."""
    heads: int = 0
    """Above 0: rows are reordered, this many heads."""

    @property
    def data_bytes(self) -> int:
        return self.source.elements * STORAGE[self.stored].itemsize

    def read(self) -> Array:
        """The values in their stored type and order; BF16 as the uint16 that holds it."""
        held = np.fromfile(
            self.source.file,
            dtype=STORAGE[self.source.dtype],
            count=self.source.elements,
            offset=self.source.offset_bytes,
        ).reshape(self.source.shape)
        if self.heads:
            held = interleaved(held, self.heads)
        if self.stored != self.source.dtype:
            held = to_stored(to_float(held, self.source.dtype, np.dtype(np.float32)), self.stored)
        return np.ascontiguousarray(held)


def interleaved(rows: Array, heads: int) -> Array:
    """(H·D, I) or (H·D): each head's halves woven together, so that row i and i + D/2 become 2i and 2i + 1."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])  # (H, 2, D/2, I)
    return np.swapaxes(halves, 1, 2).reshape(rows.shape)


def tensors_for_gguf(folder: Path, shape: Shape, stored: str, *, interleave: bool) -> tuple[OutTensor, ...]:
    """Every tensor of the model under llama.cpp's names. Raises EngineError `safetensors.*`, `export.tensor` for a
    weight whose place in llama.cpp is not known, `export.dtype` for packed weights."""
    return tuple(_planned(read_headers(folder).tensors, shape, stored, interleave=interleave))


def _planned(headers: tuple[TensorHeader, ...], shape: Shape, stored: str, *, interleave: bool) -> Iterator[OutTensor]:
    for header in headers:
        if _SKIPPED.search(header.name) or (header.name == "lm_head.weight" and shape.tied):
            continue
        name = gguf_name(header.name)
        if not name:
            raise EngineError(
                "export.tensor",
                f"The weight '{header.name}' has no place in llama.cpp's graph of this model.",
                next_step="Use llama.cpp's own convert_hf_to_gguf.py for this model.",
            )
        if header.dtype not in ("F32", "F16", "BF16"):
            raise EngineError(
                "export.dtype",
                f"The weight '{header.name}' is stored as {header.dtype}; only 16 and 32-bit floats are exported.",
                next_step="Export the 16-bit model, and quantise the GGUF file with llama-quantize.",
            )
        heads = 0
        if interleave and re.search(r"attn_[qk]\.(weight|bias)$", name):
            heads = shape.heads if "attn_q" in name else shape.key_value_heads
        yield OutTensor(name, header, stored if len(header.shape) > 1 else "F32", heads)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight, "" for one it does not know."""
    if name in _TOP:
        return _TOP[name]
    found = _LAYER_NAME.match(name)
    part = _LAYER.get(found[2]) if found else None
    return f"blk.{found[1]}.{part}.{found[3]}" if found and part else ""
