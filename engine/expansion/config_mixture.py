"""The config of a mixture of experts made from a dense model's (sparse upcycling).

Owns which family a dense one turns into and how its keys are renamed. Must not know tensors. Defaults differ between
the two config classes, so every value that the dense config left to its class is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.expansion.config_layers import SLIDING
from engine.expansion.layout import Layout
from engine.expansion.plan import ExpansionPlan
from engine.models.families import find_family


@dataclass(frozen=True, slots=True)
class MixtureFamily:
    """The family that dense models of some families become."""

    model_type: str
    causal_class: str
    keys: Mapping[str, str]
    """`Dims` field -> config key."""
    constants: Mapping[str, Any]
    """Written as they are."""
    unread: tuple[str, ...]
    """Keys of the dense config that the mixture's class does not read; they must not say anything."""


_SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "experts_per_token": "num_experts_per_tok",
}

MIXTURES: Mapping[str, MixtureFamily] = {
    "mixtral": MixtureFamily(
        "mixtral",
        "MixtralForCausalLM",
        _SIZES | {"experts": "num_local_experts", "expert_ffn": "intermediate_size"},
        {},
        ("attention_bias", "mlp_bias"),
    ),
    "qwen3_moe": MixtureFamily(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _SIZES | {"experts": "num_experts", "expert_ffn": "moe_intermediate_size", "ffn": "intermediate_size"},
        {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        (),
    ),
}
TARGETS: Mapping[str, str] = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe"}
"""Dense family -> the mixture it becomes."""


def as_mixture(tree: dict[str, Any], layout: Layout, plan: ExpansionPlan) -> None:
    """Turns the dense config `tree` into that of `plan.target_family`.

    Raises EngineError `expansion.config` when the mixture's config cannot say what the dense one says.
    """
    target = MIXTURES.get(plan.target_family)
    if target is None or TARGETS.get(layout.family) != plan.target_family:
        raise _refusal(layout, plan.target_family, "no rule says how its config becomes that of a mixture")
    refuse_obstacle(tree, layout)
    for key in target.unread:
        tree.pop(key, None)
    _write_defaults(tree, layout)
    _write_windows(tree, layout)
    for field, key in target.keys.items():
        value = getattr(plan.after, field) or (plan.before.ffn if field in ("ffn", "expert_ffn") else 0)
        tree[key] = value
    tree.update({key: list(value) if isinstance(value, list) else value for key, value in target.constants.items()})
    tree["model_type"] = target.model_type
    tree["architectures"] = [target.causal_class]
    tree.pop("auto_map", None)


def mixture_obstacle(config: Mapping[str, Any], layout: Layout) -> str:
    """Why the model cannot become a mixture, as a clause; "" when it can."""
    if layout.family not in TARGETS:
        return "there is no family of mixtures with the same attention and norms to turn it into"
    said = next((key for key in MIXTURES[TARGETS[layout.family]].unread if config.get(key)), "")
    if said:
        return f"its config sets '{said}', which the mixture does not have"
    if layout.family == "qwen3" and len({kind == SLIDING for kind in layout.per_layer.get("layer_types", ())}) > 1:
        return "only some of its layers use a sliding window, which the mixture cannot say"
    return ""


def refuse_obstacle(config: Mapping[str, Any], layout: Layout) -> None:
    """Raises EngineError `expansion.config` when the model cannot become a mixture."""
    obstacle = mixture_obstacle(config, layout)
    if obstacle:
        raise _refusal(layout, TARGETS.get(layout.family, ""), obstacle)


def _write_defaults(tree: dict[str, Any], layout: Layout) -> None:
    """What the dense class fills in by itself; the mixture's class would fill in something else."""
    family = find_family(layout.family)
    for key, value in family.defaults.items():
        tree.setdefault(key, value)
    tree.setdefault("tie_word_embeddings", layout.traits.tied)
    tree.setdefault("hidden_act", "silu")
    for key in layout.epsilon_keys[:1]:
        tree.setdefault(key, layout.epsilon)
    settings = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    if tree.get("rope_theta") is None and "rope_theta" not in settings:
        tree["rope_theta"] = family.rope_theta


def _write_windows(tree: dict[str, Any], layout: Layout) -> None:
    """A sliding window holds for all layers of these mixtures or for none."""
    if layout.family != "qwen3":
        tree.setdefault("sliding_window", None)
        return
    kinds = {kind == SLIDING for kind in layout.per_layer.get("layer_types", ())}
    tree["use_sliding_window"] = kinds == {True}
    tree.pop("layer_types", None)
    tree.pop("max_window_layers", None)


def _refusal(layout: Layout, target: str, cause: str) -> EngineError:
    return EngineError(
        "expansion.config",
        f"A {layout.family} model cannot be turned into a mixture of experts{f' ({target})' if target else ''}.",
        cause=f"{cause[0].upper()}{cause[1:]}.",
        next_step=f"Upcycling is possible for {', '.join(sorted(TARGETS))}; or grow widths and layers instead.",
    )
