"""Reading config.json: forms old and new, missing keys, and values that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.models.config import ConfigReader, parse_json_object, read_json_object, text_part
from engine.models.families import FAMILIES, find_family
from engine.models.shape import count_parameters, read_shape

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def error_of(changes: dict[str, Any], base: dict[str, Any] = LLAMA) -> EngineError:
    with pytest.raises(EngineError) as caught:
        read_shape({**base, **changes}, "folder/config.json")
    assert caught.value.next_step
    return caught.value


WRONG: list[tuple[str, Any]] = [
    ("hidden_size", "64"),
    ("hidden_size", -64),
    ("hidden_size", 0),
    ("hidden_size", 64.5),
    ("hidden_size", True),
    ("hidden_size", [64]),
    ("hidden_size", 10**30),
    ("num_hidden_layers", -1),
    ("num_hidden_layers", 10**9),
    ("num_attention_heads", 5),
    ("num_attention_heads", {}),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", "all"),
    ("vocab_size", None),
    ("vocab_size", float("nan")),
    ("intermediate_size", float("inf")),
    ("max_position_embeddings", "long"),
    ("head_dim", 0),
    ("tie_word_embeddings", "yes"),
    ("attention_bias", 3),
    ("rope_theta", "10k"),
    ("rope_theta", -1),
    ("rope_theta", float("nan")),
    ("rope_scaling", "linear"),
    ("rope_scaling", {"type": 7}),
    ("rope_parameters", {"full_attention": 3}),
    ("model_type", 12),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_value_is_an_error_that_names_the_key_and_the_file(key: str, value: Any) -> None:
    error = error_of({key: value})
    assert f"'{key}" in error.what
    assert "folder/config.json" in error.what


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_scaling_without_factor_names_the_factor(kind: str) -> None:
    assert "'rope_scaling.factor'" in error_of({"rope_scaling": {"rope_type": kind}}).what


def test_missing_size_of_an_unknown_family_is_an_error_that_names_it() -> None:
    error = error_of({}, {"model_type": "brand-new", "hidden_size": 8, "num_hidden_layers": 2})
    assert (error.code, "'vocab_size'" in error.what) == ("model.config_incomplete", True)


def names_a_key(error: EngineError) -> None:
    assert "key '" in error.what
    assert error.next_step


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {key for family in FAMILIES for key in family.defaults}
    | {"rope_scaling", "rope_parameters", "rope_theta", "layer_types", "head_dim", "attention_bias", "mlp_only_layers"}
    | {
        "no_rope_layers",
        "sliding_window_pattern",
        "use_sliding_window",
        "bias",
        "alibi",
        "num_kv_heads",
        "architectures",
    }
    | {"partial_rotary_factor", "num_ln_in_parallel_attn", "new_decoder_architecture", "rope_local_base_freq"}
)
MODEL_TYPES = [kind for family in FAMILIES for kind in family.model_types] + ["brand-new", ""]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(MODEL_TYPES), st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=5))
def test_any_values_give_a_shape_or_an_error_that_names_a_key(model_type: str, changes: dict[str, Any]) -> None:
    tree = {**LLAMA, "model_type": model_type, **changes}
    try:
        shape = read_shape(tree, "config.json")
    except EngineError as error:
        names_a_key(error)
    else:
        assert count_parameters(shape) > 0
        assert 0 <= shape.sliding_layers <= shape.layers
        assert shape.rope.original_length >= 0


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "rope_type",
                "type",
                "factor",
                "rope_theta",
                "full_attention",
                "sliding_attention",
                "original_max_position_embeddings",
                "partial_rotary_factor",
            ]
        ),
        JSON_VALUES,
    )
)
def test_any_rope_settings_give_a_rope_or_an_error(settings_tree: dict[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        try:
            rope = read_shape({**LLAMA, key: settings_tree}, "config.json").rope
        except EngineError as error:
            names_a_key(error)
        else:
            assert rope.theta > 0


@pytest.mark.parametrize(
    "text",
    ["", "   ", "{", "[1]", '"x"', "null", "{'a': 1}", '{"a": ' + "9" * 5000 + "}", "[" * 100_000, "\x00"],
    ids=lambda text: text[:12] or "empty",
)
def test_text_that_is_no_config_is_an_error(text: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse_json_object(text, code="model.config_damaged", name="config.json")
    assert caught.value.code == "model.config_damaged"


def test_config_with_infinity_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": Infinity, "b": 2}')
    assert read_json_object(path, code="x", what="a config")["b"] == 2


def test_config_that_is_not_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (None, b"\xff\xfe\x00\x01"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EngineError):
            read_json_object(path, code="model.config_damaged", what="a config")


def test_null_key_value_heads_mean_as_many_as_query_heads() -> None:
    assert read_shape({**LLAMA, "num_key_value_heads": None}, "x").key_value_heads == 4


def test_null_sliding_window_is_none_but_a_missing_one_is_the_family_default() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "max_position_embeddings": 32768}
    assert read_shape({**mistral, "sliding_window": None}, "x").sliding_window is None
    assert read_shape(mistral, "x").sliding_window == 4096
    assert read_shape({**mistral, "sliding_window": 65536}, "x").sliding_window is None, "wider than the context"


def test_layer_types_of_another_length_are_noted() -> None:
    tree = {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}
    assert any("lists 3 layers but the model has 4" in note for note in read_shape(tree, "x").notes)


def test_yarn_without_its_original_length_is_noted() -> None:
    shape = read_shape({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "x")
    assert any("original_max_position_embeddings" in note for note in shape.notes)


def test_rope_nested_by_layer_type_gives_both_bases() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 12345.0},
    }
    rope = read_shape({**LLAMA, "model_type": "gemma3_text", "rope_parameters": nested}, "x").rope
    assert (rope.kind, rope.factor, rope.theta, rope.local_theta) == ("linear", 8.0, 1e6, 12345.0)


def test_unknown_rope_type_is_kept_and_noted() -> None:
    shape = read_shape({**LLAMA, "rope_scaling": {"rope_type": "spiral", "factor": 2}}, "x")
    assert shape.rope.kind == "spiral"
    assert any("spiral" in note for note in shape.notes)


def test_alibi_has_no_rope() -> None:
    tree = {**LLAMA, "model_type": "falcon", "alibi": True}
    assert read_shape(tree, "x").rope.kind == "none"


def test_family_is_found_by_class_only_when_there_is_no_model_type() -> None:
    assert find_family("", "Qwen3ForCausalLM").name == "qwen3"
    assert not find_family("qwen4", "Qwen3ForCausalLM").known


def test_text_part_takes_tying_from_the_outer_config() -> None:
    part, key = text_part({"tie_word_embeddings": False, "text_config": {"hidden_size": 8}})
    assert (key, part["tie_word_embeddings"]) == ("text_config", False)
    assert text_part({"text_config": "x", "hidden_size": 8})[1] == ""


def test_reader_prefers_written_keys_over_defaults_of_an_earlier_name() -> None:
    reader = ConfigReader({"n_layer": 3}, defaults={"num_hidden_layers": 9})
    assert reader.integer("num_hidden_layers", "n_layer") == 3


def test_config_written_by_json_dump_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert read_json_object(path, code="x", what="a config") == LLAMA
