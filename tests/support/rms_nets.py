"""Small RMSNorm decoders and mixtures, every parameter and router correction jittered, for growth from disk.

Owns which nets and growths are tried. The epsilon is large, so that a mistake in it shows; windows are shorter than
the sequences, so that a layer of the wrong kind shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.expansion.checks import Wish
from tests.support.layernorm_nets import (
    DERIVED_GROUPED,
    HEADS_ALONE,
    SEPARATE,
    USUAL,
    Net,
    Wishes,
    torch,
    transformers,
)

Options = Mapping[str, Any]

RMS: Options = USUAL | {"rms_norm_eps": 1e-3}
FOUR: Options = RMS | {"num_hidden_layers": 4, "sliding_window": 8}
ONE_KEY_EACH: Options = {key: value for key, value in RMS.items() if key != "num_key_value_heads"}
BIASED = {"attention_bias": True, "mlp_bias": True}
TIED = {"tie_word_embeddings": True}
MULTIPLIED = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2} | {
    "logits_scaling": 2.0
}
MIXED: Options = RMS | {"num_local_experts": 4, "num_experts_per_tok": 2}
FOUR_MIXED: Options = FOUR | {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}

DEEPER: Wishes = {
    "depth": Wish(layers=7),
    "hybrid": Wish(hidden=48, heads=6, kv_heads=3, ffn=144, layers=6),
    "hybrid of copies": Wish(hidden=80, heads=10, ffn=144, layers=5, operators=("hidden=lemon", "heads=lemon")),
}
PATTERNED: Wishes = {**SEPARATE, **DEEPER}
"""Four layers of more than one kind."""
NO_GROUPS: Wishes = {**HEADS_ALONE, "depth": Wish(layers=4), "ffn": Wish(ffn=144)}
WHOLE_HEADS: Wishes = {key: wish for key, wish in SEPARATE.items() if "lemon" not in str(wish.operators)}
"""A norm over all heads cannot see some of them twice and others once."""
EVEN_COPIES: Wishes = {key: wish for key, wish in DERIVED_GROUPED.items() if "lemon" not in str(wish.operators)}
FIXED_DEPTH: Wishes = {key: wish for key, wish in SEPARATE.items() if wish.layers is None}


def _net(name: str, options: Options, growths: Wishes = SEPARATE, **more: Any) -> Net:
    """A variant is called "family" or "family-variant"."""
    return Net(name, name.partition("-")[0], options, growths, single=True, **more)


DENSE: tuple[Net, ...] = (
    _net("llama", RMS),
    _net("llama-tied", RMS | TIED | BIASED | {"head_dim": 16}),
    _net("mistral", RMS | {"sliding_window": 8}),
    _net("ministral", FOUR | {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}, PATTERNED),
    _net("ministral3", RMS | {"head_dim": 8}),
    _net("qwen2", RMS | TIED),
    _net("qwen2-windows", FOUR | {"use_sliding_window": True, "max_window_layers": 2}, PATTERNED),
    _net("qwen3", RMS | TIED | {"head_dim": 16}),
    _net("qwen3-bias", RMS | {"head_dim": 8, "attention_bias": True}),
    _net("gemma", RMS | {"head_dim": 16}),
    _net("gemma-2b", RMS | {"head_dim": 16, "num_key_value_heads": 1}, NO_GROUPS),
    _net("gemma2", FOUR | {"head_dim": 16, "query_pre_attn_scalar": 24}, PATTERNED),
    _net("gemma3_text", FOUR | {"head_dim": 16, "sliding_window_pattern": 3, "attention_bias": True}, PATTERNED),
    _net("phi3", RMS),
    _net("phi3-mini", ONE_KEY_EACH | TIED, NO_GROUPS),
    _net("phi3-128k", RMS | {"rope_parameters": LONG, "original_max_position_embeddings": 32}, DERIVED_GROUPED),
    _net("smollm3", FOUR | {"use_sliding_window": True, "no_rope_layer_interval": 2}, PATTERNED),
    _net("olmo2", RMS, WHOLE_HEADS),
    _net("olmo2-bias", RMS | TIED | {"attention_bias": True}, WHOLE_HEADS),
    _net("olmo3", FOUR, {**WHOLE_HEADS, **DEEPER, "hybrid of copies": WHOLE_HEADS["tile of all"]}),
    _net("granite", RMS | TIED | MULTIPLIED),
    _net("granite-bias", RMS | BIASED | MULTIPLIED),
    _net("granite_swa", FOUR | MULTIPLIED | {"layer_rope_theta": [1e4, 0, 1e5, 1e4]}, PATTERNED),
    _net("glm", RMS | {"head_dim": 8}),
    _net("glm4", RMS | {"head_dim": 8}),
    _net("arcee", RMS | BIASED),
    _net("cwm", FOUR | {"head_dim": 8, "mlp_bias": True}, PATTERNED),
    _net("seed_oss", RMS | BIASED | {"head_dim": 8, "attention_out_bias": True}),
    _net("ernie4_5", RMS | {"head_dim": 16, "use_bias": True}),
    _net("hunyuan_v1_dense", RMS | TIED | {"head_dim": 8}),
    _net("helium", RMS | BIASED | {"head_dim": 8}, DERIVED_GROUPED),
    _net("apertus", RMS | {"attention_bias": True}),
    _net("exaone4", FOUR | {"sliding_window_pattern": 2}, PATTERNED),
    _net("hyperclovax", RMS | BIASED | MULTIPLIED),
    _net("hyperclovax-pre", RMS | MULTIPLIED | {"use_post_norm": False}),
    _net("iquestcoder", RMS | {"head_dim": 8}),
    _net("internlm3", RMS | {"head_dim": 16, "qkv_bias": True, "bias": True}),
    _net("vaultgemma", FOUR | {"head_dim": 16}, PATTERNED),
    _net("nanochat", RMS | {"attention_bias": True}),
)

MIXTURES: tuple[Net, ...] = (
    _net("mixtral", MIXED | {"sliding_window": 8}),
    _net("minimax_m2", MIXED | {"head_dim": 8}, WHOLE_HEADS),
    _net("phimoe", MIXED | {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.01}),
    _net("qwen2_moe", RMS | SMALL_EXPERTS | {"shared_expert_intermediate_size": 40}),
    _net(
        "qwen2_moe-sparse",
        FOUR
        | SMALL_EXPERTS
        | {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
        | {"use_sliding_window": True, "max_window_layers": 3, "norm_topk_prob": True},
        PATTERNED,
    ),
    _net("qwen3_moe", RMS | SMALL_EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    _net(
        "qwen3_moe-sparse",
        FOUR | SMALL_EXPERTS | {"head_dim": 8, "mlp_only_layers": [0], "attention_bias": True},
        PATTERNED,
    ),
    _net("olmoe", RMS | {"num_experts": 4, "num_experts_per_tok": 2}, EVEN_COPIES),
    _net("flex_olmo", RMS | {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}, WHOLE_HEADS),
    _net("granitemoe", MIXED | MULTIPLIED),
    _net("granitemoeshared", MIXED | MULTIPLIED | TIED | {"shared_intermediate_size": 40}),
    _net("granitemoe_swa", FOUR_MIXED | MULTIPLIED | {"shared_intermediate_size": 40}, PATTERNED),
    _net("gpt_oss", FOUR_MIXED | {"head_dim": 8}, PATTERNED),
    _net(
        "dots1",
        FOUR | ROUTED | {"n_shared_experts": 2, "first_k_dense_replace": 1, "max_window_layers": 2},
        PATTERNED,
    ),
    _net("glm4_moe", RMS | ROUTED | {"head_dim": 8, "use_qk_norm": True, "attention_bias": True}),
    _net("solar_open", RMS | ROUTED | {"head_dim": 8, "n_shared_experts": 2}),
    _net(
        "exaone_moe",
        FOUR | SMALL_EXPERTS | {"num_shared_experts": 2, "n_group": 2, "sliding_window_pattern": 2},
        PATTERNED,
    ),
    _net("hy_v3", RMS | SMALL_EXPERTS | {"head_dim": 8}),
    _net("afmoe", FOUR | SMALL_EXPERTS | {"head_dim": 8, "mup_enabled": True}, FIXED_DEPTH),
    _net("afmoe-plain", FOUR | SMALL_EXPERTS | {"head_dim": 8, "num_dense_layers": 0}, PATTERNED),
    _net(
        "ernie4_5_moe",
        RMS | {"moe_intermediate_size": 24, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 2},
        FIXED_DEPTH,
    ),
    _net("hunyuan_v1_moe", RMS | {"num_experts": 4, "moe_topk": 2, "head_dim": 8}),
    _net("mellum", FOUR | SMALL_EXPERTS | {"mlp_layer_types": ["dense", "sparse"] * 2, "head_dim": 8}, PATTERNED),
    _net("flint", FOUR | SMALL_EXPERTS | {"shared_expert_intermediate_size": 40, "head_dim": 8}, PATTERNED),
    _net("kolibri1", FOUR | SMALL_EXPERTS | {"shared_expert_intermediate_size": 40, "head_dim": 8}, PATTERNED),
)  # fmt: skip
NO_MORE_EXPERTS = ("phimoe", "dots1", "solar_open", "exaone_moe", "kolibri1", "glm4_moe", "ernie4_5_moe")
MORE_EXPERTS = tuple(net.name for net in MIXTURES if net.name not in NO_MORE_EXPERTS)
NETS = {net.name: net for net in (*DENSE, *MIXTURES)}


def saved(net: Net, folder: Path, dtype: torch.dtype) -> Path:
    """The net with all parameters and router corrections drawn and jittered, as save_pretrained writes it."""
    config = transformers.AutoConfig.for_model(net.model_type, **net.options)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float64)
    draw = torch.Generator().manual_seed(11)
    corrections = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for tensor in (*model.parameters(), *corrections):
            noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
            tensor.add_(noise * (0.2 if tensor.dim() > 1 else 0.3))
    model.to(dtype).save_pretrained(folder)
    return folder


LISTED = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2", "olmo3"),
    *("granite", "glm4", "mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"),
)
"""Families that everything is tried on."""
