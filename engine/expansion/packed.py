"""Sources whose weights are packed: which formats can grow at all, by which plans, and what their tensors stand for.

Owns the names bitsandbytes stores beside a packed weight and the words of every refusal of packed weights. Must not
know values: how a packed block is closed is `engine.surgery.packed`'s. A block can be copied without unpacking it;
anything else would have to round its numbers once more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from engine.errors import EngineError
from engine.expansion.axes import Axis, Dim, Fused
from engine.expansion.growth import LayerKind
from engine.expansion.layout import Layout
from engine.expansion.plan import ExpansionPlan
from engine.expansion.sizes import Inventory, axis_extent, plan_bases
from engine.models.headers import TensorHeader

BITSANDBYTES = "bitsandbytes"
ONLY_DEPTH = "packed blocks are copied; widths, heads and experts need the 16-bit model"
STAYS_PACKED = (
    "Copied blocks stay packed: adapters on them can be trained (QLoRA), the packed numbers themselves cannot."
)
CANNOT_GROW = "Packed numbers cannot be rescaled or filled without rounding everything once more."
WAY_OUT = (
    "Grow the original 16-bit model and quantise the result; where there is none, load this one with transformers, "
    "call model.dequantize() and save it."
)

_WIDTHS = ("hidden", "ffn", "heads", "kv_heads", "experts")
_NAMES = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": BITSANDBYTES, "compressed-tensors": "compressed-tensors",
    "fp8": "FP8", "mxfp4": "MXFP4", "hqq": "HQQ", "aqlm": "AQLM", "eetq": "EETQ", "quanto": "Quanto",
}  # fmt: skip
_BESIDE = re.compile(
    r"(?P<weight>.+\.weight)\.(?P<what>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[^.]+)"
)
_BESIDE_8BIT = re.compile(r"(?P<stem>.+\.)(?P<what>SCB|weight_format)")
_SCALE_BYTES_4BIT = 4 / 64
"""Per parameter: a float32 scale for every 64 of them."""


def quantisation(config: Mapping[str, Any]) -> str:
    """The method a config states, as people call it; "" for plain weights."""
    section = config.get("quantization_config")
    if not isinstance(section, Mapping):
        return ""
    method = section.get("quant_method")
    if not isinstance(method, str):
        method = BITSANDBYTES if section.get("load_in_4bit") or section.get("load_in_8bit") else "unknown"
    return _NAMES.get(method.lower(), method[:30])


def refusal(name: str, method: str, cause: str = "", code: str = "expansion.quantised") -> EngineError:
    """The refusal of packed weights; the caller raises it."""
    return EngineError(
        code,
        f"{name} is quantised ({method}); its weights cannot be grown{' like that' if cause else ''}.",
        cause=cause or CANNOT_GROW,
        next_step=WAY_OUT,
    )


def refuse_quantised(config: Mapping[str, Any], name: str) -> None:
    """Raises EngineError `expansion.quantised` for packed weights that cannot grow in any way."""
    method = quantisation(config)
    if method and method != BITSANDBYTES:
        raise refusal(name, method)


def refuse_run(config: Mapping[str, Any], name: str) -> None:
    """Raises EngineError `expansion.quantised` for packed weights in a run, which trains what it grows."""
    if quantisation(config):
        raise EngineError(
            "expansion.quantised",
            f"{name} is quantised ({quantisation(config)}); a run cannot grow and train it.",
            cause="Packed numbers cannot be trained.",
            next_step="Grow the original 16-bit model, or add layers alone: scaler-wizard expand MODEL OUT --layers N.",
        )


def why_not(plan: ExpansionPlan) -> str:
    """Why a packed source cannot be grown by this plan; "" when it can."""
    if set(plan.operators) - {"layers"} or replace(plan.before, layers=plan.after.layers) != plan.after:
        return "Only whole blocks can be added to packed weights: other growth would round them once more."
    if plan.dtype:
        return "Packed weights cannot be cast."
    if any(layer.kind not in (LayerKind.OLD, LayerKind.IDENTITY) for layer in plan.layers):
        return "Packed blocks can be copied and closed (operator identity), not averaged, drawn or computed."
    return ""


def depth_only(layout: Layout) -> Layout:
    """The layout of a packed source: what needs unpacked weights is unsupported, whatever the family could do."""
    return replace(layout, unsupported={**dict.fromkeys(_WIDTHS, ONLY_DEPTH), **layout.unsupported})


def weight_of(name: str, names: Collection[str]) -> tuple[str, str]:
    """(weight, what of it) a stored tensor is: (its own name, "") for the weight itself and for plain tensors."""
    if found := _BESIDE.fullmatch(name):
        return found["weight"], found["what"]
    if (found := _BESIDE_8BIT.fullmatch(name)) and f"{found['stem']}weight" in names:
        return f"{found['stem']}weight", found["what"]
    return name, ""


def unpacked_shapes(layout: Layout, tensors: Iterable[TensorHeader], model: str) -> dict[str, tuple[int, ...]]:
    """Weight -> shape as it was before packing; what stands beside a weight is left out.

    4-bit weights are stored flat, two in a byte: the layout says their shape. Raises EngineError `expansion.tensor`
    where that is not as many numbers as are stored.
    """
    stored = {tensor.name: tensor for tensor in tensors}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in stored.items():
        if weight_of(name, stored)[1]:
            continue
        match = layout.find(name)
        if f"{name}.absmax" not in stored or match is None:
            shapes[name] = tensor.shape
            continue
        shape = tuple(axis_extent(axis, layout.dims, _kept(axis, layout)) for axis in match.rule.axes)
        if (prod(shape) + 1) // 2 != tensor.data_bytes:
            raise EngineError(
                "expansion.tensor",
                f"{model} cannot be expanded.",
                cause=f"'{name[:80]}' is packed in {tensor.data_bytes:,} bytes; {' x '.join(map(str, shape))} numbers "
                "of 4 bits take another number.",
                next_step="Download the model again, or grow the original 16-bit model.",
            )
        shapes[name] = shape
    return shapes


def _kept(axis: Axis | Fused, layout: Layout) -> int:
    """Entries of an axis that no size counts."""
    return layout.dims.vocab if isinstance(axis, Axis) and axis.dim is Dim.VOCAB else layout.dims.head_dim


@dataclass(frozen=True, slots=True)
class PackedBytes:
    """What a packed source takes on disk, block by block: copies take the same again."""

    outside: int
    layers: tuple[int, ...]

    def after(self, plan: ExpansionPlan) -> int:
        """Bytes of the weights after a plan that only adds blocks."""
        return self.outside + sum(self.layers[base] for base in plan_bases(plan))


def stored_bytes(layout: Layout, tensors: Iterable[TensorHeader]) -> PackedBytes:
    """As the files have it."""
    stored = {tensor.name: tensor for tensor in tensors}
    outside, layers = 0, [0] * layout.dims.layers
    for name, tensor in stored.items():
        match = layout.find(weight_of(name, stored)[0])
        if match is None or match.layer is None or match.layer >= len(layers):
            outside += tensor.data_bytes
        else:
            layers[match.layer] += tensor.data_bytes
    return PackedBytes(outside, tuple(layers))


def estimated_bytes(inventory: Inventory, config: Mapping[str, Any]) -> PackedBytes:
    """As a config lets expect it: blocks packed, embeddings and head in 16 bits."""
    dims = inventory.layout.dims
    eight = bool(config["quantization_config"].get("load_in_8bit"))
    each = 1.0 if eight else 0.5 + _SCALE_BYTES_4BIT
    outside = inventory.parameters(dims, ())
    layers = (inventory.parameters(dims, (index,)) - outside for index in range(dims.layers))
    return PackedBytes(2 * outside, tuple(round(count * each) for count in layers))
