"""The architecture analyzer: a model's shape and exact size from its config and file headers alone.

Owns putting config and headers together and saying where they disagree. Must not know torch; reads no tensor data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import EngineError
from engine.models.architecture import Architecture
from engine.models.config import ConfigReader, architecture_class, text_part
from engine.models.headers import read_headers
from engine.models.observe import observe
from engine.models.resolve import resolve_model
from engine.models.shape import Shape, count_parameters, read_shape
from engine.models.source import ModelKind, ModelRef
from engine.models.weights import WeightCount, count_weights


def analyze(source: str, *, revision: str = "", offline: bool = False) -> Architecture:
    """Describe the model `source` ("demo", folder, hub id, known name). Raises EngineError `model.*`, `hub.*`, ..."""
    return analyze_model(resolve_model(source, revision=revision, offline=offline))


@dataclass(frozen=True, slots=True)
class _Count:
    """The parameter count, where it is from, and what does not add up."""

    parameters: int
    origin: str
    notes: tuple[str, ...]


def analyze_model(ref: ModelRef) -> Architecture:
    """Describe a resolved model. Raises EngineError for configs and files that cannot be."""
    part, key = text_part(dict(ref.config))
    shape = read_shape(part, ref.config_name)
    quantization = ConfigReader(part, ref.config_name).table("quantization_config")
    weights = None
    if ref.path is not None and ref.has_weights:
        headers = read_headers(ref.path)
        weights = count_weights(headers, quantization, multimodal=bool(key))
        if not shape.family.known:
            shape = observe(shape, headers)
    notes = list(ref.notes)
    if key:
        whole = architecture_class(ref.config) or str(ref.config.get("model_type"))
        notes.append(f"{whole[:60]} is multimodal; this describes its language model ('{key}') only.")
    count = _count(ref, shape, weights)
    return _architecture(ref, part, shape, weights, replace(count, notes=(*notes, *shape.notes, *count.notes)))


def _architecture(
    ref: ModelRef,
    part: Mapping[str, Any],
    shape: Shape,
    weights: WeightCount | None,
    count: _Count,
) -> Architecture:
    block, family = shape.block, shape.family
    dtype = _dtype(part, ref, weights)
    return Architecture(
        name=ref.name,
        architecture=architecture_class(ref.config) or family.causal_class or "unknown",
        family=family.name,
        known=family.known,
        parameters=count.parameters,
        parameters_source=count.origin,
        layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        attention_heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tied_embeddings=shape.tied,
        context_length=shape.context_length,
        norm=block.norm,
        norm_placement=block.placement,
        qk_norm=block.qk_norm,
        attention_bias=block.query_key_value_bias or block.output_bias,
        mlp_bias=block.mlp_bias,
        mlp_kind=block.mlp_kind,
        rope=shape.rope,
        moe=shape.moe,
        sliding_window=shape.sliding_window,
        sliding_layers=shape.sliding_layers,
        dtype=dtype,
        weight_bytes=weights.data_bytes if weights else count.parameters * _dtype_bytes(dtype),
        source="profile" if ref.kind is ModelKind.PROFILE else ref.repo_id or str(ref.path),
        quantization=weights.quantization if weights else _stated_quantization(part),
        notes=count.notes,
    )


def _count(ref: ModelRef, shape: Shape, weights: WeightCount | None) -> _Count:
    """The files' count where there are files, else the config's arithmetic."""
    expected = count_parameters(shape)
    if weights is None:
        notes = []
        if ref.kind in (ModelKind.FOLDER, ModelKind.DEMO):
            notes.append("There are no weights in the folder; the size is worked out from the config.")
        stated = ref.published_parameters
        if stated and shape.family.known and stated not in (expected, expected + _head(shape)):
            notes.append(f"The hub lists {stated:,} stored parameters; the config's arithmetic gives {expected:,}.")
        return _Count(expected, "profile" if ref.kind is ModelKind.PROFILE else "config", tuple(notes))
    notes = list(weights.notes)
    stored = weights.parameters
    if shape.tied and weights.head_parameters and weights.embedding_rows:
        stored -= weights.head_parameters
        notes.append(
            f"The output head is stored although it is tied to the embedding; its {weights.head_parameters:,} "
            "parameters are counted once. Loaders keep two copies if the stored values differ."
        )
    elif not shape.tied and not weights.head_parameters and stored == expected - _head(shape):
        notes.append("The config says the output head is not tied, but no head is stored.")
    if stored != expected:
        notes.extend(_mismatch(shape, weights, stored, expected))
    return _Count(stored, "headers", tuple(notes))


def _head(shape: Shape) -> int:
    return shape.vocabulary * shape.hidden


def _mismatch(shape: Shape, weights: WeightCount, stored: int, expected: int) -> list[str]:
    """Both numbers, and the reason where it shows in names and shapes."""
    notes = [f"The files hold {stored:,} parameters; the config's arithmetic gives {expected:,}. The files are right."]
    if weights.layers and weights.layers != shape.layers:
        notes.append(f"The files have {weights.layers} layers; the config says {shape.layers}.")
    if weights.embedding_rows and weights.embedding_rows != shape.vocabulary:
        notes.append(f"The files have {weights.embedding_rows:,} embedding rows; vocab_size is {shape.vocabulary:,}.")
    return notes


def _dtype(part: Mapping[str, Any], ref: ModelRef, weights: WeightCount | None) -> str:
    if weights is not None and weights.dtype and not weights.quantization:
        return weights.dtype
    for tree in (part, ref.config):
        stated = tree.get("dtype") or tree.get("torch_dtype")
        if isinstance(stated, str) and stated in ("bfloat16", "float16", "float32"):
            return stated
    return "bfloat16"


def _dtype_bytes(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def _stated_quantization(part: Mapping[str, Any]) -> str:
    """What the config says about packing when no header was seen."""
    section = part.get("quantization_config")
    if not isinstance(section, dict):
        return ""
    method = str(section.get("quant_method") or "quantised")[:20]
    if section.get("load_in_4bit") is True:
        return f"{method} 4-bit"
    if section.get("load_in_8bit") is True:
        return f"{method} 8-bit"
    bits = section.get("bits")
    return f"{method} {bits}-bit" if type(bits) is int else method


def require_known(architecture: Architecture) -> None:
    """Raise EngineError `model.unknown_family` when the analyzer had to guess the shape."""
    if not architecture.known:
        raise EngineError(
            "model.unknown_family",
            f"The model family of {architecture.name} ({architecture.architecture}) is not known.",
            cause="; ".join(architecture.notes)[:400],
            next_step="Fine-tuning may work; growing the model needs a family that the analyzer knows.",
        )
