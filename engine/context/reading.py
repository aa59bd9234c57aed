"""What a config says about its rotary embeddings, in every form configs have had: one `Rotary` per embedding.

Owns the reading; lengths, factors and defaults come from the analyzer (`engine.models.rope`). Must not know methods
beyond the formulas of the types that configs name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.context.present import present_scaling
from engine.context.scaling import Rotary
from engine.context.support import refuse_local, refuse_other_positions, refuse_partial
from engine.errors import EngineError
from engine.models.architecture import Rope
from engine.models.config import ConfigReader, architecture_class, text_part
from engine.models.families import Family, find_family
from engine.models.rope import KINDS, read_rope
from engine.models.shape import Shape, read_shape

LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
SCALED_LAYERS = ("", "full_attention")
"""Layers whose distances grow with the text."""
_SAME = {"su": "longrope", "mrope": "default"}
_SCALING_KEYS = (
    *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"),
    *("mscale_all_dim", "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
)
_NAMING_KEYS = ("rope_type", "type", "rope_theta", "finetuned")


@dataclass(frozen=True, slots=True)
class Reading:
    """A model's positions."""

    rotaries: tuple[Rotary, ...]
    window: int
    """Tokens that the config promises, scaling included."""
    shape: Shape
    model_type: str

    @property
    def nested(self) -> bool:
        """Whether `rope_parameters` is keyed by layer type."""
        return bool(self.rotaries[0].layer_type)


def read_positions(config: Mapping[str, Any], name: str = "config.json") -> Reading:
    """All rotary embeddings of a config. Raises EngineError `context.*` for models without, `model.*` for values."""
    part, _ = text_part(dict(config))
    bare = ConfigReader(part, name)
    model_type = bare.text("model_type")
    family = find_family(model_type, architecture_class(part))
    refuse_other_positions(bare, family)
    shape = read_shape(part, name)
    rotaries, window = [], 0
    for layer_type, settings in _settings_by_layer(ConfigReader(part, name, family.defaults), family).items():
        rope = _read_rope(part, name, shape, settings)
        rotaries.append(_rotary(rope, name, shape, layer_type, settings))
        if layer_type in SCALED_LAYERS:
            window = _window(rope, shape.context_length)
    if not window:
        raise refuse_local(model_type)
    return Reading(tuple(rotaries), window, shape, model_type)


def _settings_by_layer(reader: ConfigReader, family: Family) -> dict[str, dict[str, Any]]:
    """The settings of every embedding by layer type; "" where all layers share one. Layers without (NoPE) are left out.

    As transformers 5 reads them: `rope_scaling` wins over `rope_parameters`, and is the full-attention layers' where
    layer types have their own.
    """
    scaling, parameters = reader.table("rope_scaling"), reader.table("rope_parameters")
    nested = next((table for table in (parameters, scaling) if any(key in LAYER_TYPES for key in table)), {})
    flat = scaling if nested is not scaling else {}
    for key, value in (flat or parameters).items() if not nested else ():
        if isinstance(value, dict):
            raise _unknown_layers(reader.name, key)
    if nested:
        layers = {kind: dict(nested[kind]) for kind in LAYER_TYPES if isinstance(nested.get(kind), dict)}
        if "full_attention" in layers:
            layers["full_attention"] |= flat
    elif family.local_rope_theta is not None:
        layers = {"full_attention": dict(flat or parameters), "sliding_attention": {}}
    else:
        return {"": dict(flat or parameters)}
    if "sliding_attention" in layers and layers["sliding_attention"].get("rope_theta") is None:
        local = family.local_rope_theta or family.rope_theta
        layers["sliding_attention"]["rope_theta"] = reader.number("rope_local_base_freq", default=local)
    return layers


def _unknown_layers(name: str, key: str) -> EngineError:
    return EngineError(
        "context.layer_types",
        f"{name}: the rotary settings are kept by layer type, and '{key[:40]}' is not one known here.",
        cause="Which of its layers see the whole text is not known. Known: " + ", ".join(LAYER_TYPES) + ".",
        next_step="Take a model whose layers are of these types.",
    )


def _read_rope(part: dict[str, Any], name: str, shape: Shape, settings: dict[str, Any]) -> Rope:
    """One embedding through the analyzer's reader. Raises EngineError `context.rope_type` for unknown types."""
    written = settings.get("rope_type", settings.get("type")) or "default"
    kind = _SAME.get(written, written) if isinstance(written, str) else ""
    if kind not in KINDS:
        raise EngineError(
            "context.rope_type",
            f"{name}: the rotary type '{str(written)[:40]}' cannot be scaled here.",
            cause="Its frequencies follow another rule than the types known: " + ", ".join(KINDS) + ".",
            next_step="Take a model whose rope_type is one of these.",
        )
    flat = {key: value for key, value in part.items() if key != "rope_scaling"} | {"rope_parameters": settings}
    return read_rope(ConfigReader(flat, name, shape.family.defaults), shape.family, shape.context_length)[0]


def _window(rope: Rope, context_length: int) -> int:
    """Tokens the scaled embedding reaches: YaRN's is original x factor whatever max_position_embeddings says."""
    if rope.kind == "yarn" or (rope.kind == "llama3" and context_length <= rope.original_length):
        return round(rope.original_length * rope.factor)
    return context_length


def _rotary(rope: Rope, name: str, shape: Shape, layer_type: str, settings: dict[str, Any]) -> Rotary:
    refuse_partial(shape.family, rope.partial_factor)
    dim = int(shape.head_dim * rope.partial_factor)
    if dim < 4 or dim % 2:
        raise EngineError(
            "context.head_dim",
            f"{name}: {dim} rotated dimensions per head cannot be scaled; an even number of at least 4 is needed.",
            cause=f"head_dim {shape.head_dim} x partial_rotary_factor {rope.partial_factor:g}.",
            next_step="Check head_dim, hidden_size and num_attention_heads in the config.",
        )
    if not rope.theta > 1:
        raise EngineError(
            "context.theta",
            f"{name}: a rotary base (rope_theta) of {rope.theta:g} has no slow pairs; it must be above 1.",
            next_step="Correct rope_theta, or download the original config.json again.",
        )
    own = {key: settings[key] for key in _SCALING_KEYS if settings.get(key) is not None}
    more = {key: value for key, value in settings.items() if key not in (*_SCALING_KEYS, *_NAMING_KEYS)}
    if rope.partial_factor != 1:
        more["partial_rotary_factor"] = rope.partial_factor
    if rope.kind not in ("default", "dynamic", "linear"):
        own["original_max_position_embeddings"] = rope.original_length
    if rope.kind != "default":
        own["factor"] = rope.factor
    rotary = Rotary(
        dim,
        rope.theta,
        rope.original_length,
        layer_type,
        present_kind=rope.kind,
        present_settings=tuple((key, _frozen(value)) for key, value in own.items()) if rope.kind != "default" else (),
        carried=tuple((key, _frozen(value)) for key, value in more.items() if value is not None),
    )
    return present_scaling(rotary, name)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
