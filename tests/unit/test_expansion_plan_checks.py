"""Explicit sizes: completed where they are left open, and refused with the nearest possible ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.checks import CheckedPlan, Wish, plan_for
from engine.expansion.layout import Layout
from engine.expansion.layouts import layout_for
from engine.expansion.shape_rules import Rules
from engine.expansion.sizes import config_inventory, kv_cache_bytes_per_token, plan_parameters

LLAMA_3B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
PHI_3_MINI: dict[str, Any] = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "vocab_size": 50304,
}
GEMMA_3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
}


def planned(config: dict[str, Any], **wish: Any) -> CheckedPlan:
    return plan_for(layout_for(config, "model"), Wish(**wish), config)


def refused(config: dict[str, Any], **wish: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        planned(config, **wish)
    return caught.value


# Research, section 8: every row of the table, parameters in billions to two digits and KV bytes exactly.
TABLE = [
    ({"layers": 56}, 6.03, 229_376),
    ({"layers": 64}, 6.84, 262_144),
    ({"ffn": 16384, "layers": 40}, 7.44, 163_840),
    ({"ffn": 20480}, 6.38, 114_688),
    ({"hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8}, 6.63, 114_688),
    ({"hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "layers": 32}, 7.50, 131_072),
    ({"hidden": 6144, "ffn": 16384, "heads": 48, "kv_heads": 16, "operators": ("tile",)}, 12.06, 229_376),
]


@pytest.mark.parametrize(("sizes", "billions", "kv_bytes"), TABLE)
def test_sizes_of_the_flagship_table(sizes: dict[str, Any], billions: float, kv_bytes: int) -> None:
    checked = planned(LLAMA_3B, **sizes)
    inventory = config_inventory(layout_for(LLAMA_3B, "model"), LLAMA_3B)
    assert round(plan_parameters(inventory, checked.plan) / 1e9, 2) == billions
    assert kv_cache_bytes_per_token(checked.plan.after) == kv_bytes
    assert checked.exact


def test_a_3b_becomes_the_llama_3_8b_shape() -> None:
    plan = planned(LLAMA_3B, hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8).plan
    assert plan.after == Dims(32, 4096, 14336, 32, 8, 128, 128256)
    assert plan.operators == {"hidden": "pad", "ffn": "pad", "heads": "pad", "layers": "identity"}
    assert len(plan.layers) == 32


def test_phi_3_mini_keeps_its_head_size_at_hidden_4096() -> None:
    checked = planned(PHI_3_MINI, hidden=4096, ffn=11008)
    assert checked.plan.after == Dims(32, 4096, 11008, 32, 32, 96, 32064)
    assert checked.exact
    assert any("llama.cpp" in warning for warning in checked.warnings), "its converter would take 128 for the head size"


def test_heads_follow_where_transformers_wants_a_divisor_of_hidden() -> None:
    checked = planned(LLAMA_3B, hidden=4096)
    assert (checked.plan.after.heads, checked.plan.after.kv_heads) == (32, 8)
    assert any("heads 24 → 32" in note for note in checked.notes)


def test_hidden_and_heads_grow_together_where_the_head_size_is_derived() -> None:
    assert planned(NEOX, hidden=3072).plan.after.heads == 12
    assert planned(NEOX, heads=12).plan.after.hidden == 3072
    error = refused(NEOX, hidden=3000)
    assert error.code == "expansion.size"
    assert "2816" in error.next_step or "3072" in error.next_step


def test_long_context_factors_tie_hidden_to_heads() -> None:
    long = PHI_3_MINI | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}}
    assert "must stay 96" in refused(long, hidden=4096, heads=32).cause
    assert planned(long, hidden=3072 + 96 * 8, heads=40).plan.after.heads == 40


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"hidden": 4096, "heads": 30}, "--heads 32"),
        ({"layers": 20}, "--layers 28"),
        ({"ffn": 4096, "layers": 30}, "--ffn 8192"),
        ({"hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 12}, "--kv-heads 8"),
    ],
)
def test_impossible_sizes_name_the_nearest_possible(wish: dict[str, int], words: str) -> None:
    error = refused(LLAMA_3B, **wish)
    assert error.code == "expansion.size"
    assert words in error.next_step


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({}, "expansion.nothing"),
        ({"hidden": 3072}, "expansion.nothing"),
        ({"hidden": -1}, "expansion.size"),
        ({"ffn": 1 << 40}, "expansion.size"),
        ({"ffn": 9000, "dtype": "int4"}, "expansion.dtype"),
        ({"ffn": 9000, "operators": ("nope",)}, "expansion.operator"),
        ({"ffn": 9000, "operators": ("identity",)}, "expansion.operator"),
        ({"ffn": 9000, "operators": ("layers=pad",)}, "expansion.operator"),
        ({"ffn": 9000, "operators": ("tile",)}, "expansion.multiple"),
        ({"layers": 31, "operators": ("solar",)}, "expansion.layers"),
        ({"layers": 32, "placement": "sideways"}, "expansion.placement"),
        ({"kv_heads": 12, "operators": ("replicate",)}, "expansion.size"),
    ],
)
def test_wishes_that_cannot_be_are_refused(wish: dict[str, Any], code: str) -> None:
    error = refused(LLAMA_3B, **wish)
    assert error.code == code
    assert error.next_step


def test_an_unknown_config_key_is_no_reason_to_guess() -> None:
    error = refused(LLAMA_3B | {"residual_multiplier": 0.22}, hidden=4096)
    assert error.code == "expansion.trait"
    assert "residual_multiplier" in error.cause
    planned(LLAMA_3B | {"residual_multiplier": None, "unsloth_fixed": True, "pad_token_id": 7}, hidden=4096)


def test_named_operators_go_to_the_axes_they_grow() -> None:
    plan = planned(LLAMA_3B, ffn=16384, layers=32, kv_heads=24, operators=("replicate", "lemon", "layers=stack")).plan
    assert plan.operators == {"ffn": "lemon", "kv_heads": "replicate", "layers": "stack"}
    plan = planned(LLAMA_3B, hidden=6144, ffn=16384, heads=48, operators=("tile", "ffn=pad")).plan
    assert plan.operators == {"hidden": "tile", "ffn": "pad", "heads": "tile"}


def test_an_operator_that_loses_the_function_says_so() -> None:
    checked = planned(LLAMA_3B, layers=32, operators=("solar",))
    assert not checked.exact
    assert any("run twice" in warning for warning in checked.warnings)


def test_widths_that_quantisers_dislike_are_warned_about() -> None:
    warnings = planned(LLAMA_3B, ffn=9000).warnings
    assert any("256" in warning for warning in warnings)
    assert any("NF4" in warning for warning in warnings)
    assert planned(LLAMA_3B, ffn=9216).warnings == ()


def test_a_broken_period_of_layers_is_warned_about() -> None:
    assert planned(GEMMA_3, layers=32).warnings == ()
    broken = planned(GEMMA_3, layers=29, operators=("stack",))
    assert any("period 6" in warning for warning in broken.warnings)


LAYOUTS: list[tuple[Layout, dict[str, Any]]] = [
    (layout_for(config, "model"), config) for config in (LLAMA_3B, PHI_3_MINI, NEOX, GEMMA_3)
]


@given(
    st.sampled_from(LAYOUTS),
    st.integers(1024, 8192),
    st.integers(1, 96),
    st.one_of(st.none(), st.integers(1, 96)),
)
@settings(max_examples=150, deadline=None)
def test_what_is_proposed_as_nearest_is_possible(
    model: tuple[Layout, dict[str, Any]], hidden: int, heads: int, kv_heads: int | None
) -> None:
    layout, config = model
    rules = Rules(layout)
    wanted = replace(layout.dims, hidden=hidden, heads=heads, kv_heads=kv_heads or layout.dims.kv_heads)
    for field in ("hidden", "heads", "kv_heads"):
        for value in rules.nearest(wanted, field):
            assert rules.problem(replace(wanted, **{field: value})) == ""
    if not rules.problem(wanted) and wanted != layout.dims:
        assert plan_for(layout, Wish(hidden=hidden, heads=heads, kv_heads=wanted.kv_heads), config).plan.after == wanted
