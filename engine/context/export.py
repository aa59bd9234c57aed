"""The config of an extended model: the safe export rule.

Owns which keys are written where. One rule serves transformers 5 (`rope_parameters`), 4.x (`rope_theta` beside
`rope_scaling`), vLLM and llama.cpp's converter: the factor a float; the original length nested, and at the top level
where readers look for it there only (longrope); `max_position_embeddings` = original x factor. Must not know files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.context.methods import METHODS
from engine.context.methods.longrope import carrier, su_attention_factor
from engine.context.plan import ContextPlan, PlannedRotary
from engine.context.planner import ratio_of
from engine.errors import EngineError
from engine.models.config import architecture_class, text_part
from engine.models.families import Family, find_family
from engine.models.shape import read_shape

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
_ORIGINAL = "original_max_position_embeddings"
LONGROPE_ONLY = ("phi3", "phi4_multimodal")
"""Model types whose class knows "default" and "longrope" alone, and reads "yarn" as the latter."""
_REMOVABLE = ("all", "flag", "late", "early")
"""Ways to use a sliding window (`Family.sliding`) whose classes take null for none."""
_OWN_LAYOUT = ("rope_theta", "partial_rotary_factor")
"""Entries that 4.x readers look for beside `rope_scaling`, not in it."""


@dataclass(frozen=True, slots=True)
class RotaryFields:
    """What a plan writes into a config, and what a rotary module is built from."""

    rope_parameters: dict[str, Any]
    """As transformers 5 reads it; by layer type where the model has several."""
    window: int
    """`max_position_embeddings`; the old one where frequencies follow the length (dynamic)."""
    original: int
    """`original_max_position_embeddings` at the top level, where it is: there it wins over the nested one."""
    original_on_top: bool
    """Whether readers look for it there only."""


def rotary_fields(plan: ContextPlan, model_type: str = "") -> RotaryFields:
    """The rotary part of the new config. Phi-3's class knows longrope alone, which then carries the other types."""
    written = [(planned, _settings(plan, planned, model_type)) for planned in plan.rotaries]
    scaled = next(settings for planned, settings in written if planned.changed)
    kind = scaled["rope_type"]
    if plan.rotaries[0].rotary.layer_type:
        parameters = {planned.rotary.layer_type: settings for planned, settings in written}
        if "truncate" in scaled:
            # transformers reads it at the top level only, also where layer types have their own settings.
            parameters["truncate"] = scaled["truncate"]
    else:
        parameters = scaled
    window = plan.original if kind == "dynamic" else plan.target
    return RotaryFields(parameters, window, scaled.get(_ORIGINAL, window), kind == "longrope")


def config_after(config: Mapping[str, Any], plan: ContextPlan) -> dict[str, Any]:
    """The config of the extended model; the argument is left as it is.

    Raises EngineError `context.not_exported` for methods that no config can carry.
    """
    method = METHODS[plan.method]
    if not method.exported:
        raise EngineError(
            "context.not_exported",
            f"{method.title} is not written to a folder.",
            cause=method.not_exported_reason,
            next_step=f"{_by_hand(config, plan)} Or extend with ntk, abf or yarn, which most readers follow.",
        )
    after = copy.deepcopy(dict(config))
    part, key = text_part(after)
    inner = after[key] if key else after
    model_type = str(part.get("model_type") or "")
    family = find_family(model_type, architecture_class(part))
    fields = rotary_fields(plan, model_type)
    _write_lengths(inner, plan, fields, family)
    if inner.get("head_dim") is None and ("head_dim" in inner or family.name in ("mistral", "mixtral")):
        # Where these classes keep a null, yarn and longrope take it for the size (Mixtral in 5.x, Mistral in 4.57).
        inner["head_dim"] = read_shape(part, "config.json").head_dim
    inner["rope_parameters"] = _with_unrotated(inner, fields.rope_parameters)
    _write_for_older_readers(inner, plan, fields, family)
    return after


def _by_hand(config: Mapping[str, Any], plan: ContextPlan) -> str:
    """How to use a method that no folder is written with: the lines for a copy's config."""
    part, _ = text_part(dict(config))
    lines = json.dumps({"rope_parameters": rotary_fields(plan, str(part.get("model_type") or "")).rope_parameters})
    return (
        f"To use it in transformers, set by hand in a copy's config.json, in place of rope_scaling: {lines[1:-1]}, "
        f"and leave max_position_embeddings at {plan.original}, where it begins. Generate with use_cache=False."
    )


def _settings(plan: ContextPlan, planned: PlannedRotary, model_type: str) -> dict[str, Any]:
    """One embedding's `rope_parameters`."""
    rotary = planned.rotary
    if not planned.changed:
        own = {"rope_type": rotary.present_kind, "rope_theta": rotary.theta, **dict(rotary.present_settings)}
        return _plain(own | dict(rotary.carried))
    ratio = ratio_of(plan, planned)
    settings = METHODS[plan.method].settings(rotary, ratio, plan.options, planned.scaling)
    if model_type in LONGROPE_ONLY and settings["rope_type"] not in ("default", "longrope", "dynamic"):
        settings = carrier(rotary, ratio, planned.scaling)
    if settings["rope_type"] in _WITH_ORIGINAL:
        settings.setdefault(_ORIGINAL, rotary.length)
    return _plain(settings | dict(rotary.carried))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _with_unrotated(inner: Mapping[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Layer types without positions (null) stay written as such."""
    present = inner.get("rope_parameters")
    if not isinstance(present, dict) or "rope_theta" in parameters:
        return parameters
    return {kind: None for kind, value in present.items() if value is None} | parameters


def _write_lengths(inner: dict[str, Any], plan: ContextPlan, fields: RotaryFields, family: Family) -> None:
    key = next((key for key in _LENGTH_KEYS if inner.get(key) is not None), _LENGTH_KEYS[0])
    inner[key] = fields.window
    if fields.original_on_top or _ORIGINAL in inner:
        inner[_ORIGINAL] = fields.original
    window = inner.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool) or not plan.original <= window < plan.target:
        return
    if any(not planned.changed for planned in plan.rotaries):
        return  # sliding layers turn as before, and would not know distances beyond their window
    # A window that covered the whole text must not begin to cut it. Classes that always have sliding layers need one.
    removable = family.sliding in _REMOVABLE and "sliding_attention" not in (inner.get("layer_types") or ())
    inner["sliding_window"] = None if removable else plan.target


def _write_for_older_readers(inner: dict[str, Any], plan: ContextPlan, fields: RotaryFields, family: Family) -> None:
    """`rope_theta` and `rope_scaling` as transformers 4.x has them.

    transformers 5 lets `rope_scaling` win over `rope_parameters`, so that both must say the same.
    """
    inner.pop("rope_scaling", None)
    layer_type = plan.scaled.rotary.layer_type
    settings = fields.rope_parameters[layer_type] if layer_type else fields.rope_parameters
    if plan.scaled.rotary.layer_type and family.local_rope_theta is None:
        return
    inner["rope_theta"] = settings["rope_theta"]
    if family.name == "gpt_neox":
        inner["rotary_emb_base"] = settings["rope_theta"]
    if family.name == "gemma3":
        inner["rope_local_base_freq"] = fields.rope_parameters["sliding_attention"]["rope_theta"]
    share = settings.get("partial_rotary_factor")
    if share is not None:
        inner["rotary_pct" if family.name == "gpt_neox" else "partial_rotary_factor"] = share
    if settings["rope_type"] != "default":
        inner["rope_scaling"] = _older_scaling(settings, plan, family)


def _older_scaling(settings: dict[str, Any], plan: ContextPlan, family: Family) -> dict[str, Any]:
    scaling = {key: value for key, value in settings.items() if key not in _OWN_LAYOUT}
    if family.name not in LONGROPE_ONLY:
        return scaling
    # Phi-3's class of 4.x takes these three keys and no others, and works m out by this formula.
    own = su_attention_factor(plan.target / settings[_ORIGINAL], settings[_ORIGINAL])
    if abs(scaling["attention_factor"] - own) > 1e-9:
        return scaling
    return {"type": "longrope", "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"]}
