"""Sizes from what files hold agree with sizes from a config, and count what is stored twice once."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from engine.expansion.axes import Dims
from engine.expansion.layouts import layout_for
from engine.expansion.sizes import (
    Inventory,
    axis_extent,
    config_inventory,
    disk_bytes,
    dominant_dtype,
    kv_cache_bytes_per_token,
    stored_inventory,
)
from engine.models.analyze import analyze
from engine.models.headers import read_headers
from engine.models.resolve import resolve_model

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
MODELS: list[dict[str, Any]] = [
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "phi3"},
    {"model_type": "gemma3_text", "head_dim": 16},
    {"model_type": "stablelm", "qk_layernorm": True, "use_qkv_bias": True},
    {"model_type": "gpt_neox"},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    {"model_type": "mixtral", "num_local_experts": 4},
    {"model_type": "qwen3_moe", "mlp_only_layers": [1], **MIXTURE},
    {"model_type": "qwen2_moe", "decoder_sparse_step": 2, "shared_expert_intermediate_size": 48, **MIXTURE},
]


def stored_shapes(inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a checkpoint of this inventory has."""
    dims = inventory.layout.dims
    shapes = {}
    for holding in inventory.holdings:
        pattern, rule = holding.rule.pattern, holding.rule
        shape = tuple(axis_extent(axis, dims, old) for axis, old in zip(rule.axes, holding.extents, strict=True))
        heads = range(dims.of(rule.counted)) if rule.counted else range(1)
        for layer, expert, head in product(sorted(holding.layers or {0}), range(max(dims.experts, 1)), heads):
            name = pattern.replace("{i}", str(layer)).replace("{e}", str(expert)).replace("{h}", str(head))
            shapes[name] = shape
    return shapes


@pytest.mark.parametrize("more", MODELS, ids=lambda more: more["model_type"])
def test_files_and_config_give_the_same_count(more: dict[str, Any]) -> None:
    config = SMALL | more
    layout = layout_for(config, "x")
    from_config = config_inventory(layout, config)
    shapes = stored_shapes(from_config)
    from_files = stored_inventory(layout, shapes)
    total = 0
    for shape in shapes.values():
        size = 1
        for extent in shape:
            size *= extent
        total += size
    assert from_files.parameters(layout.dims) == from_config.parameters(layout.dims) == total
    order = (0, 1, 1, 2, 3, 3)
    assert from_files.parameters(layout.dims, order) == from_config.parameters(layout.dims, order)


def test_a_tied_head_that_a_file_stores_counts_once() -> None:
    config = SMALL | {"model_type": "llama", "tie_word_embeddings": True}
    layout = layout_for(config, "x")
    shapes = stored_shapes(config_inventory(layout, config))
    once = stored_inventory(layout, shapes).parameters(layout.dims)
    assert stored_inventory(layout, shapes | {"lm_head.weight": (100, 64)}).parameters(layout.dims) == once
    untied = layout_for(config | {"tie_word_embeddings": False}, "x")
    assert stored_inventory(untied, shapes | {"lm_head.weight": (100, 64)}).parameters(untied.dims) == once + 6400


def test_the_demo_is_counted_as_the_analyzer_counts_it() -> None:
    ref = resolve_model("demo")
    assert ref.path is not None
    layout = layout_for(ref.config, "demo")
    headers = read_headers(ref.path)
    inventory = stored_inventory(layout, {tensor.name: tensor.shape for tensor in headers.tensors})
    found = analyze("demo")
    assert inventory.parameters(layout.dims) == found.parameters
    stored = dominant_dtype((tensor.dtype, tensor.data_bytes) for tensor in headers.tensors)
    assert stored == "BF16"
    assert disk_bytes(found.parameters, stored) == found.weight_bytes


def test_the_cache_is_keys_and_values_in_16_bits() -> None:
    assert kv_cache_bytes_per_token(Dims(28, 3072, 8192, 24, 8, 128, 1)) == 114_688
