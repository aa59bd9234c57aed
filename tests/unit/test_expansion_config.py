"""The written config against transformers: every family is built from it on the meta device, and counted."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from engine.errors import EngineError
from engine.expansion.checks import Wish, plan_for
from engine.expansion.config_keys import unknown_keys
from engine.expansion.config_splice import config_after
from engine.expansion.growth import LayerKind, LayerSource, StreamScales
from engine.expansion.layout import Layout
from engine.expansion.layouts import known_families, layout_for
from engine.expansion.plan import ExpansionPlan
from engine.expansion.sizes import config_inventory, plan_parameters
from tests.support import layernorm_nets, rms_nets

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[tuple[str, ...], int] = {
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"): 6,
    ("hidden_size", "n_embd", "d_model", "n_embed"): 64,
    ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"): 96,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"): 4,
    ("num_key_value_heads", "num_kv_heads"): 2,
    ("head_dim",): 16,
    ("vocab_size",): 128,
    ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "moe_topk", "moe_k"): 2,
    ("moe_intermediate_size",): 32,
    ("shared_expert_intermediate_size", "shared_intermediate_size"): 48,
}
GROWTHS = {
    "depth": Wish(layers=9),
    "hidden": Wish(hidden=96),
    "ffn": Wish(ffn=160),
    "heads": Wish(heads=8),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {"mlp_only_layers": [1], "decoder_sparse_step": 1},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "smollm3": {"no_rope_layer_interval": 3},
    "falcon": {"new_decoder_architecture": True},
}


@cache
def small_config(model_type: str) -> Any:
    """A small config of the family, by the names its class uses."""
    plain = transformers.AutoConfig.for_model(model_type)
    names = {*plain.to_dict(), *getattr(type(plain), "attribute_map", {})}
    sizes = {found: value for keys, value in SIZES.items() if (found := next((k for k in keys if k in names), ""))}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **OPTIONS.get(model_type, {})}
    return type(plain)(**sizes)


def small_tree(model_type: str) -> dict[str, Any]:
    """The config as `save_pretrained` writes it."""
    tree: dict[str, Any] = small_config(model_type).to_diff_dict()
    return tree


def stored_numbers(config: Any, layout: Layout) -> int:
    """Parameters and persistent buffers of the model that transformers builds, tied ones once."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = (t.numel() for name, t in model.state_dict().items() if name not in named and not layout.is_ignored(name))
    return sum(p.numel() for p in model.parameters()) + sum(buffers)


FAMILIES = [name for name in known_families() if name in transformers.CONFIG_MAPPING]
LISTED = (*layernorm_nets.LISTED, *rms_nets.LISTED)
HELD = [pytest.param(name, marks=() if name in LISTED else pytest.mark.exhaustive) for name in FAMILIES]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_equal_the_model_that_transformers_builds(model_type: str) -> None:
    tree = small_tree(model_type)
    layout = layout_for(tree, model_type)
    inventory = config_inventory(layout, tree)
    assert inventory.parameters(layout.dims) == stored_numbers(small_config(model_type), layout)
    assert unknown_keys(tree, layout) == (), "every key that this family's class writes is understood"


@pytest.mark.slow
@pytest.mark.parametrize("axis", GROWTHS)
@pytest.mark.parametrize("model_type", HELD)
def test_the_written_config_builds_the_planned_model(model_type: str, axis: str) -> None:
    tree = small_tree(model_type)
    layout = layout_for(tree, model_type)
    if axis in layout.unsupported:
        pytest.skip(layout.unsupported[axis])
    plan = plan_for(layout, GROWTHS[axis], tree).plan
    written = config_after(tree, layout, plan, StreamScales())
    grown = transformers.AutoConfig.for_model(**written)
    assert stored_numbers(grown, layout) == plan_parameters(config_inventory(layout, tree), plan)
    again = layout_for(written, model_type)
    assert again.dims == plan.after
    bases = [layer.base for layer in plan.layer_sources]
    for key, entries in layout.per_layer.items():
        assert list(again.per_layer[key]) == [entries[base] for base in bases], key


def test_the_head_size_is_written_where_hidden_no_longer_gives_it() -> None:
    tree = small_tree("qwen2")
    tree.pop("head_dim", None)
    layout = layout_for(tree, "qwen2")
    written = config_after(tree, layout, plan_for(layout, Wish(hidden=96), tree).plan, StreamScales())
    assert written["head_dim"] == 16


def test_derived_defaults_are_written_out() -> None:
    tree = small_tree("gpt2") | {"n_inner": None}
    layout = layout_for(tree, "gpt2")
    assert layout.dims.ffn == 256
    written = config_after(tree, layout, plan_for(layout, Wish(hidden=96, heads=6), tree).plan, StreamScales())
    assert (written["n_inner"], written["n_embd"], written["n_head"]) == (256, 96, 6)
    tree = small_tree("llama") | {"num_key_value_heads": None}
    layout = layout_for(tree, "llama")
    written = config_after(tree, layout, plan_for(layout, Wish(heads=8, kv_heads=4), tree).plan, StreamScales())
    assert written["num_key_value_heads"] == 4, "a default of one per query head would be 8"


def test_epsilon_is_rescaled_with_the_stream_also_when_it_was_left_to_the_class() -> None:
    tree = small_tree("llama") | {"rms_norm_eps": 1e-5}
    layout = layout_for(tree, "llama")
    plan = plan_for(layout, Wish(hidden=96), tree).plan
    scales = StreamScales(stretch=1.5**0.5)
    assert config_after(tree, layout, plan, scales)["rms_norm_eps"] == pytest.approx(1e-5 / 1.5)
    bare = {key: value for key, value in tree.items() if key != "rms_norm_eps"}
    assert config_after(bare, layout_for(bare, "x"), plan, scales)["rms_norm_eps"] == pytest.approx(1e-6 / 1.5)


def test_what_growth_does_not_touch_is_carried_over() -> None:
    tree = small_tree("gemma2") | {"quantization_config": {"quant_method": "x"}, "query_pre_attn_scalar": 224}
    layout = layout_for(tree, "gemma2")
    before = dict(tree)
    plan = plan_for(layout, Wish(ffn=160), small_tree("gemma2")).plan
    written = config_after(tree, layout, plan, StreamScales())
    assert tree == before, "the source's config is not changed"
    assert {key for key in written if written[key] != tree.get(key)} == {"intermediate_size"}


def test_the_type_is_written_where_none_was_named() -> None:
    tree = {key: value for key, value in small_tree("llama").items() if key not in ("dtype", "torch_dtype")}
    layout = layout_for(tree, "llama")
    plan = plan_for(layout, Wish(ffn=160), tree).plan
    assert config_after(tree, layout, plan, StreamScales(), stored_dtype="bfloat16")["dtype"] == "bfloat16"
    named = tree | {"torch_dtype": "float16"}
    assert "dtype" not in config_after(named, layout, plan, StreamScales(), stored_dtype="float16")
    cast = replace(plan, dtype="float32")
    assert config_after(named, layout, cast, StreamScales())["torch_dtype"] == "float32"


def reordered(layout: Layout, bases: tuple[int, ...]) -> ExpansionPlan:
    layers = tuple(LayerSource(base, LayerKind.COPY) for base in bases)
    return ExpansionPlan(layout.family, layout.dims, replace(layout.dims, layers=len(bases)), {}, layers)


def test_sparse_steps_become_a_list_of_dense_layers() -> None:
    tree = small_tree("qwen2_moe")
    layout = layout_for(tree, "x")
    kept = config_after(tree, layout, reordered(layout, (0, 1, 0, 1, 2, 3, 4, 5)), StreamScales())
    assert (kept["decoder_sparse_step"], kept["mlp_only_layers"]) == (2, [])
    broken = config_after(tree, layout, reordered(layout, (0, 0, 1, 2, 3, 3, 4, 5)), StreamScales())
    assert (broken["decoder_sparse_step"], broken["mlp_only_layers"]) == (1, [0, 1, 3, 6])
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**broken))
    dense = [i for i, layer in enumerate(model.model.layers) if not hasattr(layer.mlp, "experts")]
    assert dense == [0, 1, 3, 6]


def test_leading_dense_layers_move_their_boundary_and_are_refused_elsewhere() -> None:
    tree = small_tree("glm4_moe") | {"first_k_dense_replace": 2}
    layout = layout_for(tree, "x")
    written = config_after(tree, layout, reordered(layout, (0, 0, 1, 2, 3, 3, 4, 5)), StreamScales())
    assert written["first_k_dense_replace"] == 3
    with pytest.raises(EngineError, match="cannot describe added layers"):
        config_after(tree, layout, reordered(layout, (0, 1, 2, 3, 0, 4, 5)), StreamScales())


def test_a_window_boundary_moves_and_an_interval_that_no_longer_fits_is_dropped() -> None:
    tree = small_tree("qwen2")
    layout = layout_for(tree, "x")
    written = config_after(tree, layout, reordered(layout, (0, 1, 1, 2, 3, 4, 5, 5)), StreamScales())
    assert written["max_window_layers"] == 3
    assert written["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"] * 5
    tree = small_tree("gemma3_text") | {"sliding_window_pattern": 3}
    tree.pop("layer_types", None)
    layout = layout_for(tree, "x")
    kept = config_after(tree, layout, reordered(layout, (0, 1, 2, 0, 1, 2, 3, 4, 5)), StreamScales())
    assert kept["sliding_window_pattern"] == 3
    broken = config_after(tree, layout, reordered(layout, (0, 1, 2, 2, 3, 4, 5)), StreamScales())
    assert "sliding_window_pattern" not in broken
    assert transformers.AutoConfig.for_model(**broken).layer_types == broken["layer_types"]


def test_layers_scaled_by_their_number_and_numbered_modules_are_refused() -> None:
    tree = small_tree("llama") | {"quantization_config": {"quant_method": "awq", "skip": ["model.layers.3.mlp"]}}
    layout = layout_for(tree, "x")
    with pytest.raises(EngineError, match="cannot describe added layers"):
        config_after(tree, layout, reordered(layout, (0, 1, 2, 3, 4, 5, 5)), StreamScales())
    tree = small_tree("llama") | {"layer_temperatures": [1.0] * 6}
    with pytest.raises(EngineError, match="cannot describe added layers"):
        config_after(tree, layout, reordered(layout, (0, 1, 2, 3, 4, 5, 5)), StreamScales())


UPCYCLED = [
    ("llama", {}, "mixtral"),
    ("llama", {"rope_theta": 500000.0}, "mixtral"),
    ("mistral", {"sliding_window": 16}, "mixtral"),
    ("qwen3", {}, "qwen3_moe"),
]


@pytest.mark.parametrize(("family", "options", "target"), UPCYCLED)
def test_a_dense_config_becomes_that_of_the_mixture_with_every_default_written(
    family: str, options: dict[str, Any], target: str
) -> None:
    tree = small_tree(family) | options
    if "rope_theta" in options:
        tree.pop("rope_parameters", None)
    for key in ("rms_norm_eps", "tie_word_embeddings", "hidden_act", "max_position_embeddings"):
        tree.pop(key, None)
    layout = layout_for(tree, "x")
    after = replace(layout.dims, experts=4, experts_per_token=2, expert_ffn=layout.dims.ffn)
    plan = ExpansionPlan(family, layout.dims, after, {"experts": "upcycle"}, target_family=target)
    written = config_after(tree, layout, plan, StreamScales())
    dense, mixture = transformers.AutoConfig.for_model(**tree), transformers.AutoConfig.for_model(**written)
    assert mixture.model_type == target
    assert (mixture.num_local_experts, mixture.num_experts_per_tok) == (4, 2)
    for key in ("rms_norm_eps", "tie_word_embeddings", "hidden_act", "max_position_embeddings", "sliding_window",
                "vocab_size", "head_dim", "hidden_size", "bos_token_id", "eos_token_id"):  # fmt: skip
        assert getattr(mixture, key) == getattr(dense, key, None), key
    assert mixture.rope_parameters["rope_theta"] == dense.rope_parameters["rope_theta"]
    numbers = stored_numbers(mixture, layout)
    assert numbers == plan_parameters(config_inventory(layout, tree), plan)


def test_upcycling_refuses_what_the_mixture_cannot_say() -> None:
    tree = small_tree("llama") | {"attention_bias": True}
    layout = layout_for(tree, "x")
    after = replace(layout.dims, experts=4, experts_per_token=2, expert_ffn=96)
    plan = ExpansionPlan("llama", layout.dims, after, {"experts": "upcycle"}, target_family="mixtral")
    with pytest.raises(EngineError) as caught:
        config_after(tree, layout, plan, StreamScales())
    assert "attention_bias" in caught.value.cause
