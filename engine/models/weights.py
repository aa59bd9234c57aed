"""From stored tensors to a parameter count: buffers left out, packed formats unpacked, other towers set aside.

Owns the naming conventions of checkpoints. Must not know configs beyond the quantisation section. What a stored number
stands for:

    plain          1 parameter
    bitsandbytes   4-bit: 2 per byte (beside it .absmax, .quant_map, .quant_state.*); 8-bit: 1 per byte (beside it .SCB)
    GPTQ, AWQ      .qweight: 32 / bits per 32-bit word (beside it .qzeros, .scales, .g_idx)
    compressed     .weight_packed: 32 / bits per word; MXFP4 ..._blocks: 2 per byte
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.models.headers import Headers, TensorHeader

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "U8": "uint8"}
HEAD_NAMES = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "wte.weight",
    "tok_embeddings.weight",
)

_BUFFERS = re.compile(r"(\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|\.masked_bias|\.rotary_pos_emb\.inv_freq)$")
_CAUSAL_MASK = re.compile(r"\.(attention|attn)\.bias$")
_PACKING = re.compile(
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[^.]+|SCB|weight_format|qzeros|scales|g_idx|perm"
    r"|weight_scale|weight_scale_inv|weight_scale_2|weight_global_scale|input_scale|input_global_scale|weight_shape"
    r"|weight_zero_point|weight_g_idx|activation_scale|workspace)$|_scales$|_scale_inv$"
)
_OTHER_TOWERS = re.compile(
    r"(^|\.)(vision_tower|vision_model|vision_embed_tokens|visual|multi_modal_projector|mm_projector|audio_tower"
    r"|embed_vision|embed_audio|patch_merger|vision_adapter|image_newline)(\.|$)"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class WeightCount:
    """What a checkpoint holds."""

    parameters: int
    """Parameters stored, a head stored beside a tied embedding included."""
    head_parameters: int
    """Of these, in a separate output head; 0 when none is stored."""
    data_bytes: int
    """Of the language model's tensors."""
    dtype: str
    quantization: str
    layers: int
    """Highest layer number in the names, plus one; 0 when names have none."""
    embedding_rows: int
    """0 when no embedding was recognised, or it is packed."""
    notes: tuple[str, ...]


def count_weights(headers: Headers, quantization: Mapping[str, Any], *, multimodal: bool) -> WeightCount:
    """Count the parameters of the language model in `headers`; `quantization` is the config's section, or empty."""
    names = {tensor.name for tensor in headers.tensors}
    total = head = data_bytes = 0
    layers = embedding_rows = 0
    aside = Counter[str]()
    packed = Counter[str]()
    dtypes = Counter[str]()
    for tensor in headers.tensors:
        if multimodal and _OTHER_TOWERS.search(tensor.name):
            aside["tower"] += tensor.elements
            continue
        data_bytes += tensor.data_bytes
        if _is_buffer(tensor):
            aside["buffers"] += 1
            continue
        count, kind = _parameters(tensor, names, quantization)
        packed[kind] += count
        if not kind:
            dtypes[tensor.dtype] += tensor.data_bytes
        total += count
        if tensor.name.endswith(HEAD_NAMES):
            head += count
        if tensor.name.endswith(EMBEDDING_NAMES) and len(tensor.shape) == 2:
            embedding_rows = tensor.shape[0]
        if match := _LAYER.search(tensor.name):
            layers = max(layers, int(match[1]) + 1)
    kind = _dominant(packed)
    dtype = DTYPE_NAMES.get(_dominant(dtypes), _dominant(dtypes).lower())
    return WeightCount(total, head, data_bytes, dtype, kind, layers, embedding_rows, _notes(aside, packed, headers))


def _dominant(counter: Counter[str]) -> str:
    named = Counter({key: value for key, value in counter.items() if key and value})
    return named.most_common(1)[0][0] if named else ""


def _is_buffer(tensor: TensorHeader) -> bool:
    """Stored constants that are not parameters: rotary tables and causal masks of old checkpoints."""
    if _BUFFERS.search(tensor.name):
        return True
    return _CAUSAL_MASK.search(tensor.name) is not None and len(tensor.shape) == 4


def _parameters(tensor: TensorHeader, names: set[str], quantization: Mapping[str, Any]) -> tuple[int, str]:
    """How many parameters one tensor holds, and the packed format it is in ("" for plain)."""
    name = tensor.name
    if _PACKING.search(name) and _describes_packing(name, names):
        return 0, ""
    if tensor.dtype in ("U8", "I8") and f"{name}.absmax" in names:
        return tensor.elements * 2, "bitsandbytes 4-bit"
    if tensor.dtype == "I8" and (f"{name.removesuffix('weight')}SCB" in names):
        return tensor.elements, "bitsandbytes 8-bit"
    if name.endswith(".qweight") and tensor.dtype in ("I32", "U32"):
        bits = _bits(quantization)
        method = str(quantization.get("quant_method") or "gptq")[:20]
        return tensor.elements * 32 // bits, f"{method} {bits}-bit"
    if name.endswith(".weight_packed"):
        bits, word_bits = _bits(quantization), 8 if tensor.dtype == "U8" else 32
        return tensor.elements * word_bits // bits, f"compressed-tensors {bits}-bit"
    if name.endswith("_blocks") and tensor.dtype == "U8":
        return tensor.elements * 2, "mxfp4 4-bit"
    if tensor.dtype.startswith("F8_"):
        return tensor.elements, "fp8 8-bit"
    return tensor.elements, ""


def _describes_packing(name: str, names: set[str]) -> bool:
    """Whether a packed tensor stands beside this one, so that an ordinary parameter called `.scales` is not lost."""
    stem = re.sub(r"\.quant_state\.[^.]+$", "", name)
    stem = stem if stem != name else name.rsplit(".", 1)[0]
    beside = (stem, f"{stem}.weight", f"{stem}.qweight", f"{stem}.weight_packed")
    bare = re.sub(r"(_scales|_scale_inv)$", "", name)
    return any(other in names for other in (*beside, f"{bare}_blocks", bare if bare != name else ""))


def _bits(quantization: Mapping[str, Any]) -> int:
    """Bits per packed parameter as the config says; 4, the common case, when it does not."""
    candidates = [quantization.get("bits"), quantization.get("w_bit")]
    groups = quantization.get("config_groups")
    if isinstance(groups, dict):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, dict) else None
            candidates.append(weights.get("num_bits") if isinstance(weights, dict) else None)
    return next((bits for bits in candidates if type(bits) is int and 1 <= bits <= 16), 4)


def _notes(aside: Counter[str], packed: Counter[str], headers: Headers) -> tuple[str, ...]:
    notes = list(headers.notes)
    if aside["tower"]:
        notes.append(f"{aside['tower']:,} parameters of the vision or audio part are stored beside it and not counted.")
    if aside["buffers"]:
        notes.append(f"{aside['buffers']} stored tensors are constants (masks, rotary tables), not parameters.")
    kind = _dominant(packed)
    if kind:
        notes.append(f"The weights are packed ({kind}); the parameter count is worked out from the packed sizes.")
    return tuple(notes)
