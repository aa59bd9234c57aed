"""Per-layer entries of a config after layers were added, moved or repeated.

Owns lists with one entry per layer, lists of layer numbers, and the compact keys (an interval, a pattern, a boundary)
that describe them. Must not know sizes or tensors. Lists are written out in full: loaders prefer them to compact keys,
and a compact key that no longer describes them is corrected or dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import EngineError
from engine.expansion.layout import Layout
from engine.expansion.plan import ExpansionPlan

SLIDING = "sliding_attention"
INDEX_KEYS = ("mlp_only_layers", "first_k_dense_replace", "decoder_sparse_step", "moe_layer_freq")
"""Hold layer numbers or a rule over them, and are not lists with one entry per layer."""
_STARTS = ("moe_layer_start_index",)
_DENSE_BY_DEFAULT = {"flint": (0, 1)}
"""`mlp_only_layers` of families whose class fills in more than none."""
_NUMBERED = re.compile(r"\b(layers|h|blocks)\.[\d\[(]")


def splice_layers(tree: dict[str, Any], layout: Layout, plan: ExpansionPlan) -> None:
    """Rewrites the per-layer entries of `tree` for the plan's layers.

    Raises EngineError `expansion.config_layers` when the family's config cannot describe them.
    """
    order = [layer.base for layer in plan.layer_sources]
    count = plan.before.layers
    if order == list(range(count)):
        return
    if tree.get("scale_attn_by_inverse_layer_idx"):
        raise _refusal(layout, "attention is scaled by the layer's number, and old layers get new numbers")
    for key, entries in layout.per_layer.items():
        if key not in INDEX_KEYS and (key in tree or not plan.target_family):
            tree[key] = [entries[base] for base in order]
    if "attention_layers" in layout.per_layer:  # GPT-Neo derives that list from this one
        tree["attention_types"] = [[tree["attention_layers"], 1]]
    if "attention_layers" in layout.per_layer:  # GPT-Neo reads these from pairs of (kinds, times) only
        tree["attention_types"] = [[tree["attention_layers"], 1]]
    _splice_unlisted(tree, layout, order, count)
    _splice_sparse_steps(tree, layout, order, count)
    _splice_leading_dense(tree, layout, order)
    _refuse_numbered_modules(tree, layout)
    _correct_compact(tree, order, count)


def mixture_layers(tree: Mapping[str, Any], layout: Layout) -> list[bool]:
    """Which layers are mixtures, by a list of kinds or by the config's index rules; all of them where it has none."""
    layers = layout.dims.layers
    kinds = layout.per_layer.get("mlp_layer_types")
    if kinds:
        return [kind != "dense" for kind in kinds]
    step = _integer(tree.get("decoder_sparse_step"), _integer(tree.get("moe_layer_interval"), 1))
    dense = _dense_layers(tree, layout)
    first = max(_integer(tree.get(key), 0) for key in ("first_k_dense_replace", "num_dense_layers", *_STARTS))
    last = _integer(tree.get("moe_layer_end_index"), -1)
    frequency = _integer(tree.get("moe_layer_freq"), 1)
    return [
        i not in dense
        and step > 0
        and (i + 1) % step == 0
        and first <= i <= (last if last >= 0 else layers)
        and frequency > 0
        and i % frequency == 0
        for i in range(layers)
    ]


def _dense_layers(tree: Mapping[str, Any], layout: Layout) -> tuple[int, ...]:
    """`mlp_only_layers`, or what the family's class takes for it."""
    listed = tree.get("mlp_only_layers")
    return _DENSE_BY_DEFAULT.get(layout.family, ()) if listed is None else tuple(listed)


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _splice_unlisted(tree: dict[str, Any], layout: Layout, order: list[int], count: int) -> None:
    """Lists that the layout did not name: those with one entry per layer whose key says so."""
    for key, value in list(tree.items()):
        if key in layout.per_layer or key in INDEX_KEYS or not isinstance(value, list) or "layer" not in key:
            continue
        if len(value) != count:
            raise _refusal(layout, f"it has a list '{key}' of {len(value)} entries for {count} layers")
        if key not in ("layer_types", "mlp_layer_types", "no_rope_layers"):
            raise _refusal(layout, f"what its list '{key}' means for added layers is not known")
        tree[key] = [value[base] for base in order]


def _splice_sparse_steps(tree: dict[str, Any], layout: Layout, order: list[int], count: int) -> None:
    """Qwen's rule: every `decoder_sparse_step`-th layer but `mlp_only_layers` is a mixture."""
    listed = _dense_layers(tree, layout)
    if not listed and "mlp_only_layers" not in tree and "decoder_sparse_step" not in tree:
        return
    step = _integer(tree.get("decoder_sparse_step"), 1)
    before = [i not in listed and bool(step) and (i + 1) % step == 0 for i in range(count)]
    after = [before[base] for base in order]
    if step <= 1 or any(sparse and (i + 1) % step for i, sparse in enumerate(after)):
        step = 1 if any(after) else step
    tree["decoder_sparse_step"] = step
    tree["mlp_only_layers"] = [
        i for i, sparse in enumerate(after) if not sparse and bool(step) and (i + 1) % max(step, 1) == 0
    ]


def _splice_leading_dense(tree: dict[str, Any], layout: Layout, order: list[int]) -> None:
    """DeepSeek's rule: the first so many layers are dense."""
    first = _integer(tree.get("first_k_dense_replace"), 0)
    if _integer(tree.get("moe_layer_freq"), 1) != 1 or isinstance(tree.get("moe_layer_freq"), list):
        raise _refusal(layout, "its mixture layers follow an interval ('moe_layer_freq')")
    if not first:
        return
    dense = [base < first for base in order]
    leading = dense.index(False) if False in dense else len(dense)
    if any(dense[leading:]):
        raise _refusal(layout, "only leading layers can be dense ('first_k_dense_replace'), and here they would not be")
    tree["first_k_dense_replace"] = leading


def _refuse_numbered_modules(tree: dict[str, Any], layout: Layout) -> None:
    """A quantisation section that names layers by number would speak of others afterwards."""
    section = tree.get("quantization_config")
    if isinstance(section, dict) and any(_names_a_layer(value) for value in _texts(section)):
        raise _refusal(layout, "its quantization_config names layers by number, and old layers get new numbers")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


def _names_a_layer(text: str) -> bool:
    return _NUMBERED.search(text.replace("\\", "")) is not None


def _correct_compact(tree: dict[str, Any], order: list[int], count: int) -> None:
    """Boundaries move with the layers they separate; an interval that no longer fits is dropped."""
    boundary = tree.get("max_window_layers")
    if isinstance(boundary, int) and not isinstance(boundary, bool):
        beyond = max(boundary - count, 0)
        tree["max_window_layers"] = sum(1 for base in order if base < boundary) + beyond
    types = tree.get("layer_types")
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if key in tree and isinstance(types, list) and not _describes(tree[key], types):
            del tree[key]


def _describes(pattern: object, types: Sequence[object]) -> bool:
    """Whether a compact key gives the same kinds of layer."""
    return all(_slides(pattern, index) == (kind == SLIDING) for index, kind in enumerate(types))


def _slides(pattern: object, index: int) -> bool:
    """Whether a layer has a window by an interval ("every 6th layer is full") or a text ("LLLG")."""
    if isinstance(pattern, str) and pattern:
        return pattern[index % len(pattern)] == "L"
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return (index + 1) % pattern != 0
    return False


def _refusal(layout: Layout, cause: str) -> EngineError:
    return EngineError(
        "expansion.config_layers",
        f"The config of this {layout.family} model cannot describe added layers.",
        cause=f"{cause[0].upper()}{cause[1:]}.",
        next_step="Keep the number of layers and grow widths, heads or feed-forward instead.",
    )
