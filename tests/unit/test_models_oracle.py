"""The analyzer against transformers itself: every family is built on the meta device and counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engine.models.analyze import analyze, analyze_model
from engine.models.families import FAMILIES
from engine.models.model_profiles import ModelProfile, load_model_profiles
from engine.models.shape import count_parameters, read_shape
from engine.models.source import ModelKind, ModelRef

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "head_dim": 24}),
    ("llama", {"num_key_value_heads": 4}),
    ("mistral", {}),
    ("mistral", {"head_dim": 32, "tie_word_embeddings": True}),
    ("mixtral", {"num_local_experts": 3}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 2}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    ("qwen2_moe", {**MIXTURE, "shared_expert_intermediate_size": 96}),
    ("qwen2_moe", {**MIXTURE, "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2, "qkv_bias": False}),
    ("qwen3_moe", MIXTURE),
    ("qwen3_moe", {**MIXTURE, "mlp_only_layers": [0, 3], "head_dim": 32}),
    ("gemma", {}),
    ("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    ("gemma2", {"head_dim": 32}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("gemma3_text", {"head_dim": 32}),
    ("gemma3_text", {"head_dim": 16, "attention_bias": True}),
    ("phi3", {}),
    ("phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75}),
    ("smollm3", {}),
    ("smollm3", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("olmo2", {}),
    ("olmo2", {"num_key_value_heads": 4, "attention_bias": True}),
    ("olmo3", {}),
    ("olmo3", {"num_key_value_heads": 4, "attention_bias": True}),
    ("glm4", {"head_dim": 16}),
    ("glm4", {"head_dim": 32, "attention_bias": False, "tie_word_embeddings": True}),
    ("cohere", {}),
    ("cohere", {"use_qk_norm": True, "attention_bias": True}),
    ("starcoder2", {}),
    ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    ("phi", {}),
    ("phi", {"qk_layernorm": True, "tie_word_embeddings": True}),
    ("stablelm", {}),
    ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    ("stablelm", {"use_parallel_residual": True, "tie_word_embeddings": True}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    ("granite", {}),
    ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("falcon", {}),
    ("falcon", {"multi_query": False, "bias": True, "tie_word_embeddings": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"parallel_attn": False, "alibi": True, "ffn_hidden_size": 96}),
]


def build(model_type: str, options: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def reference(tree: dict[str, Any]) -> ModelRef:
    return ModelRef(ModelKind.HUB, "oracle", None, tree, "some/oracle")


def names_with(model: Any, part: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if part in name]


def test_every_family_in_the_table_has_a_variant_here() -> None:
    assert {kind for family in FAMILIES for kind in family.model_types} - {"gemma3"} == {kind for kind, _ in VARIANTS}


@pytest.mark.parametrize(("model_type", "options"), VARIANTS, ids=lambda value: str(value)[:60])
def test_arithmetic_equals_the_model_that_transformers_builds(model_type: str, options: dict[str, Any]) -> None:
    model = build(model_type, options)
    found = analyze_model(reference(model.config.to_dict()))
    assert found.parameters == model.num_parameters()
    assert found.known
    assert found.architecture == type(model).__name__
    assert found.tied_embeddings == bool(model.config.tie_word_embeddings)
    assert found.attention_bias == bool(
        [n for n in names_with(model, "bias") if ".self_att" in n or ".attention." in n]
    )
    assert found.mlp_bias == bool([n for n in names_with(model, "bias") if ".mlp." in n])
    assert (found.qk_norm != "none") == bool(names_with(model, "q_norm") or names_with(model, "q_layernorm"))
    assert (found.mlp_kind == "gated") == bool(names_with(model, "gate_proj") or names_with(model, "gate_up_proj"))
    assert (found.norm == "layernorm") == any("LayerNorm" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize(("model_type", "options"), VARIANTS, ids=lambda value: str(value)[:60])
def test_linear_parameters_are_the_matrices_between_embedding_and_head(
    model_type: str, options: dict[str, Any]
) -> None:
    model = build(model_type, options)
    found = analyze_model(reference(model.config.to_dict()))
    ends = ("embed_tokens", "embed_in", "word_embeddings", "lm_head", "embed_out", "shared_expert_gate")
    matrices = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not any(end in name for end in (*ends, "q_norm", "k_norm"))
    )
    assert found.linear_parameters == matrices
    assert found.embedding_parameters == sum(
        p.numel() for n, p in model.named_parameters() if any(end in n for end in ends[:-1]) and p.dim() >= 2
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_missing_keys_mean_what_the_config_class_says(family: Any) -> None:
    """A config.json with nothing but its model_type has the shape of the class's defaults."""
    model_type = family.model_types[0]
    complete = transformers.AutoConfig.for_model(model_type).to_dict()
    assert read_shape({"model_type": model_type}, "empty") == read_shape(complete, "complete")


OLD_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_theta": 5e5}),
    ("llama", {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    (
        "llama",
        {
            "max_position_embeddings": 131072,
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    (
        "qwen2",
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    ),
    ("gemma3_text", {"head_dim": 32, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6}),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20000}),
    ("stablelm", {"partial_rotary_factor": 0.5, "rope_theta": 3e4}),
    (
        "phi3",
        {
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
]


@pytest.mark.parametrize(("model_type", "options"), OLD_FORMS, ids=lambda value: str(value)[:60])
def test_rope_of_a_version_4_config_reads_like_the_version_5_form_of_it(
    model_type: str, options: dict[str, Any]
) -> None:
    old = {"model_type": model_type, **SMALL, **options}
    new = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options}).to_dict()
    assert "rope_scaling" not in new, "this transformers no longer writes the old form"
    assert read_shape(old, "old").rope == read_shape(new, "new").rope


@pytest.mark.parametrize(
    "options", [{"use_sliding_window": True, "max_window_layers": 2}, {"use_sliding_window": False}]
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "qwen2_moe", "gemma2", "gemma3_text", "smollm3"])
def test_sliding_layers_without_layer_types_follow_the_family(model_type: str, options: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, "sliding_window": 32, **options})
    written = {**SMALL, "model_type": model_type, "sliding_window": 32, **options}
    assert read_shape(written, "x").sliding_layers == config.layer_types.count("sliding_attention")


ON_DISK = [
    ("llama", {"tie_word_embeddings": True}),
    ("mixtral", {"num_local_experts": 3}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 16}),
    ("qwen2_moe", {**MIXTURE, "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2}),
    ("qwen3_moe", {**MIXTURE, "head_dim": 16}),
    ("gemma2", {"head_dim": 32}),
    ("gemma3_text", {"head_dim": 32}),
    ("phi3", {}),
    ("smollm3", {}),
    ("olmo2", {}),
    ("stablelm", {"qk_layernorm": True}),
    ("gpt_neox", {}),
    ("granite", {}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
]


@pytest.mark.parametrize(("model_type", "options"), ON_DISK, ids=lambda value: str(value)[:60])
def test_saved_model_is_counted_from_its_headers_and_agrees_with_its_config(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    found = analyze(str(tmp_path / "saved"))
    assert (found.parameters, found.parameters_source) == (model.num_parameters(), "headers")
    assert found.weight_bytes == 2 * found.parameters
    assert found.dtype == "bfloat16"
    assert not [note for note in found.notes if "arithmetic" in note]


@pytest.mark.parametrize(
    ("whole", "text", "vision"), [("gemma3", "gemma3_text", "siglip_vision_model"), ("mistral3", "mistral", "pixtral")]
)
def test_multimodal_checkpoint_is_described_by_its_language_model(
    tmp_path: Path, whole: str, text: str, vision: str
) -> None:
    sizes = {**SMALL, "head_dim": 16}
    tower = {"model_type": vision, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": 56, "patch_size": 14, "head_dim": 16}
    config = transformers.AutoConfig.for_model(
        whole, text_config={"model_type": text, **sizes}, vision_config=tower, tie_word_embeddings=True
    )
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    found = analyze(str(tmp_path / "saved"))
    language = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(text, **sizes, tie_word_embeddings=True)
    )
    assert found.parameters == language.num_parameters() < model.num_parameters()
    assert (found.family, found.known) == (text.removesuffix("_text"), True)
    assert any("multimodal" in note and "text_config" in note for note in found.notes)
    assert any("vision" in note for note in found.notes)


def test_unknown_family_is_described_and_said_to_be_unknown(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("gpt2", n_embd=64, n_layer=3, n_head=4, vocab_size=128, n_positions=96)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    found = analyze(str(tmp_path / "saved"))
    assert (found.family, found.known) == ("unknown", False)
    assert (found.layers, found.hidden_size, found.attention_heads, found.context_length) == (3, 64, 4, 96)
    assert (found.parameters, found.parameters_source) == (model.num_parameters(), "headers")
    assert any("gpt2" in note and "unknown" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model_type", "placement", "qk_norm", "options"),
    [
        ("exaone4", "post", "head", {}),
        ("hyperclovax", "sandwich", "none", {"use_post_norm": True}),
        ("nemotron", "pre", "none", {"attention_bias": True}),
        ("cohere2", "parallel", "none", {}),
        ("arcee", "pre", "none", {}),
        ("hunyuan_v1_dense", "pre", "head", {"head_dim": 16}),
    ],
)
def test_family_outside_the_table_is_read_from_its_tensors(
    tmp_path: Path, model_type: str, placement: str, qk_norm: str, options: dict[str, Any]
) -> None:
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    found = analyze(str(tmp_path / "saved"))
    assert not found.known
    assert (found.parameters, found.parameters_source) == (model.num_parameters(), "headers")
    assert (found.norm_placement, found.qk_norm) == (placement, qk_norm)
    assert found.attention_bias == bool([n for n in names_with(model, "bias") if ".self_attn." in n])
    assert found.mlp_bias == bool([n for n in names_with(model, "bias") if ".mlp." in n])
    assert (found.mlp_kind == "gated") == bool(names_with(model, "gate_proj") or names_with(model, "gate_up_proj"))
    assert (found.norm == "layernorm") == any("LayerNorm" in type(module).__name__ for module in model.modules())
    assert any(model_type in note and "unknown" in note for note in found.notes)


def with_rotary_lists(profile: ModelProfile) -> dict[str, Any]:
    """The profile's config, with the long lists that the file leaves out."""
    config = dict(profile.config)
    scaling = dict(config.get("rope_scaling", {}))
    if scaling.get("rope_type") == "longrope":
        pairs = int(config["hidden_size"] // config["num_attention_heads"] * config["partial_rotary_factor"]) // 2
        config["rope_scaling"] = scaling | {"short_factor": [1.0] * pairs, "long_factor": [1.0] * pairs}
    return config


@pytest.mark.parametrize("profile", load_model_profiles(), ids=lambda profile: profile.id)
def test_every_shipped_shape_builds_in_transformers_with_exactly_its_parameters(profile: ModelProfile) -> None:
    options = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **with_rotary_lists(profile)}
    config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    layers = config.num_hidden_layers
    counts = []
    for number in (1, 2):  # every layer of these models is alike: two small models give the slope
        options["num_hidden_layers"] = number
        small = transformers.AutoConfig.for_model(config.model_type, **options)
        with torch.device("meta"):
            counts.append(transformers.AutoModelForCausalLM.from_config(small).num_parameters())
    assert counts[0] + (layers - 1) * (counts[1] - counts[0]) == profile.parameters
    assert count_parameters(read_shape(profile.config, profile.id)) == profile.parameters
