"""Recipes: which places are zero for the function's sake, and that none of them is zero on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.expansion.checks import Wish, plan_for
from engine.expansion.layout import Layout
from engine.expansion.layouts import layout_for
from engine.expansion.maps import AxisMap, Fill
from engine.expansion.recipe import Recipe
from engine.expansion.recipes import FRESH_STD, UNSEEN, build_recipes
from engine.expansion.sizes import axis_extent
from engine.models.headers import Headers, TensorHeader

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "vocab_size": 128,
}


def stored(layout: Layout) -> Headers:
    """Headers of a checkpoint with every tensor the rules know."""
    tensors = []
    for layer in range(layout.dims.layers):
        for rule in layout.rules:
            if ("{i}" in rule.pattern or layer == 0) and not (layout.traits.tied and "lm_head" in rule.pattern):
                shape = tuple(axis_extent(axis, layout.dims, 128) for axis in rule.axes)
                name = rule.pattern.replace("{i}", str(layer))
                tensors.append(TensorHeader(name, "F32", shape, 0, Path("model.safetensors")))
    return Headers(tuple(tensors), ())


def recipes_of(model_type: str, wish: Wish) -> dict[str, Recipe]:
    config = {"model_type": model_type, **CONFIG}
    layout = layout_for(config, "model")
    plan = plan_for(layout, wish, config).plan
    return {recipe.name: recipe for recipe in build_recipes(stored(layout), layout, plan)}


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_a_checkpoint_without_its_ends_is_refused(missing: str) -> None:
    config = {"model_type": "mistral", **CONFIG}
    layout = layout_for(config, "model")
    whole = stored(layout)
    headers = Headers(tuple(tensor for tensor in whole.tensors if tensor.name != missing), ())
    with pytest.raises(EngineError) as refused:
        build_recipes(headers, layout, plan_for(layout, Wish(layers=3), config).plan)
    assert refused.value.code == "expansion.tensor"
    assert missing in refused.value.what


def fills(axis: AxisMap) -> set[Fill]:
    return {run.fill for run in axis}


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "glm4"])
def test_a_block_closed_by_its_gain_writes_freely_to_new_coordinates(model_type: str) -> None:
    made = recipes_of(model_type, Wish(hidden=96, layers=3))
    gains = [recipe for recipe in made.values() if recipe.constant is not None]
    assert len(gains) == 2
    layer = gains[0].name.partition("layers.")[2].partition(".")[0]
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        closed = made[f"model.layers.{layer}.{name}.weight"].maps[0]
        assert fills(closed) == {Fill.COPY, Fill.FREE}
        assert fills(made[f"model.layers.0.{name}.weight"].maps[0]) == {Fill.COPY, Fill.ZERO}


def test_a_block_closed_by_its_matrices_is_zero_there_and_free_before() -> None:
    made = recipes_of("llama", Wish(hidden=96, layers=3))
    closed = [recipe for recipe in made.values() if recipe.constant is not None]
    assert sorted(recipe.name.split(".")[-2] for recipe in closed) == ["down_proj", "o_proj"]
    assert all(recipe.constant == 0.0 for recipe in closed)


def test_new_heads_under_a_norm_over_all_are_too_small_for_it_but_not_zero() -> None:
    made = recipes_of("olmo2", Wish(hidden=96, heads=6, kv_heads=3))
    for name in ("q_proj", "k_proj"):
        recipe = made[f"model.layers.0.self_attn.{name}.weight"]
        assert Fill.FREE in fills(recipe.maps[0])
        assert Fill.ZERO not in fills(recipe.maps[0])
        assert recipe.fresh_std == FRESH_STD * UNSEEN
    assert made["model.layers.0.self_attn.v_proj.weight"].fresh_std == FRESH_STD
    assert (UNSEEN**2) * (6 - 4) / 4 < 2.0**-20


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "glm4"])
def test_no_new_unit_is_zero_where_it_is_read_and_where_it_is_written(model_type: str) -> None:
    made = recipes_of(model_type, Wish(hidden=96, ffn=160, heads=6, kv_heads=3))
    for name, recipe in made.items():
        if name.endswith((".o_proj.weight", ".down_proj.weight")):
            rows, columns = recipe.maps
            assert Fill.ZERO in fills(rows)
            assert Fill.ZERO in fills(columns)
        elif recipe.maps and len(recipe.maps) == 2 and "embed" not in name:
            assert Fill.ZERO not in {fill for axis in recipe.maps for fill in fills(axis)}, name
