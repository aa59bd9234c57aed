"""Which families have a layout, which are refused, and how a config finds its own.

Owns the look-up and the refusals. Must not know what any family stores: modules of this package register themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import EngineError
from engine.expansion.layout import Layout
from engine.models.config import ConfigReader, architecture_class
from engine.models.families import UNKNOWN, find_family

Builder = Callable[[ConfigReader], Layout]
"""A config with the family's defaults filled in -> its layout."""

_builders: dict[str, tuple[Builder, Mapping[str, Any]]] = {}
_refused: dict[str, str] = {}

SWITCHES: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_out_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "qkv_bias": (False,),
    "lm_head_bias": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (),
    "use_cla": (False,),
    "num_nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "alibi": (False,),
    "use_bidirectional_attention": (False,),
    "num_kv_shared_layers": (0,),
    "hidden_size_per_layer_input": (0,),
    "use_mla": (False,),
}
"""Config keys that change what a model stores or computes -> values (besides null) that leave it as it is. A family
that understands one reads it itself and names it in `handles`."""


def family(
    *model_types: str, defaults: Mapping[str, Any] | None = None, handles: tuple[str, ...] = ()
) -> Callable[[Builder], Builder]:
    """Registers the builder of one or more config types.

    `defaults` are the config class's own for keys a file may omit; those that `engine.models.families` lists need not
    be repeated. `handles` names the `SWITCHES` that the builder reads, or that the family's code never does.
    """

    def register(build: Builder) -> Builder:
        def checked(reader: ConfigReader) -> Layout:
            _refuse_switches(reader, handles)
            return build(reader)

        for model_type in model_types:
            listed = find_family(model_type)
            known = {} if listed is UNKNOWN else listed.defaults
            _builders[model_type] = (checked, {**known, **(defaults or {})})
        return build

    return register


def refuse(reason: str, *model_types: str) -> None:
    """Registers config types that cannot be expanded; `reason` completes "cannot be expanded: "."""
    for model_type in model_types:
        _refused[model_type] = reason


def known_families() -> tuple[str, ...]:
    """Config types with a layout, sorted."""
    return tuple(sorted(_builders))


def refused_families() -> Mapping[str, str]:
    """Config types that are refused by name, and why."""
    return dict(_refused)


def layout_for(config: Mapping[str, Any], name: str) -> Layout:
    """What the checkpoint with this config stores; `name` is how messages call the model.

    Raises EngineError `expansion.family` when the family is unknown or refused, `expansion.trait` when the config
    switches on something no rule covers, and `model.config_*` for values that cannot be.
    """
    model_type = config.get("model_type")
    model_type = model_type if isinstance(model_type, str) else ""
    if any(isinstance(config.get(key), Mapping) for key in ("text_config", "language_config", "llm_config")):
        raise _no_layout(
            name,
            f"{model_type or 'its config'} is multimodal, and what feeds the language model would have to grow with it",
            "Extract the language model first (AutoModelForCausalLM, then save_pretrained), and expand that.",
        )
    if model_type in _refused:
        raise _no_layout(name, f"{model_type}: {_refused[model_type]}")
    found = _builders.get(model_type)
    if found is None:
        called = model_type or architecture_class(config) or "a config without model_type"
        raise _no_layout(name, f"no rules say what each tensor of '{called[:60]}' does")
    build, defaults = found
    return build(ConfigReader(config, name, defaults))


def _no_layout(name: str, cause: str, next_step: str = "") -> EngineError:
    return EngineError(
        "expansion.family",
        f"{name} cannot be expanded.",
        cause=f"{cause[:1].upper()}{cause[1:]}.",
        next_step=next_step or f"Expandable families: {', '.join(known_families())}.",
    )


def _refuse_switches(reader: ConfigReader, handled: tuple[str, ...]) -> None:
    for key, neutral in SWITCHES.items():
        value = reader.raw(key)
        if key not in handled and value is not None and value not in neutral:
            raise trait_error(reader, key, value)


def trait_error(reader: ConfigReader, key: str, value: object) -> EngineError:
    """The refusal of a config whose `key` switches on something that has no rule; the caller raises it."""
    return EngineError(
        "expansion.trait",
        f"{reader.name} cannot be expanded.",
        cause=f"Its config sets {key} to {str(value)[:60]}, and no rule says what that changes in this family.",
        next_step="Use a model without it, or train it as it is.",
    )
