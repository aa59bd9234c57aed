"""Config keys whose meaning is known, so that an unknown one ends in a refusal and not in a guess.

Owns the list: keys that change nothing a larger model must know, keys that every family reads alike, and those of
single families. Must not know what they mean for growth: layouts do. A key is only suspicious while it says something:
null, false, zero and empty values leave a model as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.errors import EngineError
from engine.expansion.layout import Layout
from engine.expansion.layouts.registry import SWITCHES

_RECORDS = (
    *("architectures", "model_type", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("quantization_config", "id2label", "label2id", "num_labels", "problem_type", "is_encoder_decoder"),
    *("is_decoder", "chunk_size_feed_forward", "output_attentions", "output_hidden_states"),
    *("output_router_logits", "return_dict", "use_cache", "use_return_dict", "torchscript", "tokenizer_class"),
    *("task_specific_params", "finetuning_task", "prefix", "pretraining_tp", "gradient_checkpointing"),
    *("is_llama_config", "init_device", "init_std", "initializer_range", "initializer_factor"),
    *("use_flash_attention", "use_flash_attention_2", "attn_implementation", "cache_implementation"),
    *("max_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "min_length"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping", "bad_words_ids"),
    *("max_new_tokens", "model_max_length", "keep_attention", "router_aux_loss_coef", "router_z_loss_coef"),
    *("aux_loss_alpha", "seq_aux", "ep_size", "add_bos_token", "rescale_every", "slow_but_exact"),
    *("reorder_and_upcast_attn", "attention_softmax_in_fp32", "verbose", "scale_attention_softmax_in_fp32"),
    *("use_mambapy", "bos_token", "eos_token", "unk_token", "pad_token", "summary_type", "summary_use_proj"),
    *("summary_activation", "summary_proj_to_labels", "summary_first_dropout", "tie_encoder_decoder"),
    *("tf_legacy_loss", "use_bfloat16", "pruned_heads", "diversity_penalty", "typical_p", "num_beam_groups"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "sep_token_id"),
    *("fused_norm", "encoder_no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id"),
    *("cross_attention_hidden_size", "onnx", "license", "language"),
)  # fmt: skip
"""Say how a model was made, saved or is used."""

_EVERYWHERE = (
    *("tie_word_embeddings", "hidden_act", "hidden_activation", "activation", "activation_function", "act_fn"),
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
    *("original_max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "rope_interleaved"),
    *("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rotary_dim", "rope_local_base_freq"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "head_dim", "no_rope_layer_interval"),
    *("sliding_window_size", "sliding_window_pattern", "_sliding_window_pattern", "num_key_value_heads", "vocab_size"),
)  # fmt: skip
"""Positions, windows, activations and tying: growth leaves all of them as they are."""

_HUNYUAN = (
    *("attention_head_dim", "cla_share_factor", "dense_list", "enable_lm_head_fp32", "org_vocab_size", "norm_type"),
    *("pool_type", "num_experts", "moe_topk", "num_shared_expert", "use_mixed_mlp_moe", "moe_drop_tokens"),
    *("moe_layer_num_skipped", "moe_random_routing_dropped_token", "class_num", "mask_init_id", "sep_token_id"),
)
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "afmoe": ("num_dense_layers", "num_shared_experts", "route_scale", "global_attn_every_n_layers"),
    "biogpt": ("scale_embedding", "layer_norm_eps"),
    "bloom": (
        *("apply_residual_connection_post_layernorm", "n_embed", "offset_alibi", "masked_softmax_fusion"),
        *("skip_bias_add", "skip_bias_add_qkv"),
    ),
    "codegen": ("scale_attn_weights", "rotary"),
    "ernie4_5_moe": (
        *("moe_num_shared_experts", "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
        *("moe_norm_min", "moe_num_experts", "moe_k"),
    ),
    "exaone_moe": ("num_shared_experts",),
    "falcon": (
        *("multi_query", "new_decoder_architecture", "num_ln_in_parallel_attn", "bias", "n_head_kv"),
        *("apply_residual_connection_post_layernorm", "n_embed"),
    ),
    "gpt2": ("add_cross_attention", "scale_attn_by_inverse_layer_idx", "scale_attn_weights"),
    "gpt_bigcode": (
        *("add_cross_attention", "scale_attn_weights", "multi_query", "inference_runner", "pad_key_length"),
        *("pre_allocate_kv_cache", "validate_runner_input", "runner_max_sequence_length"),
    ),
    "gpt_neo": ("attention_types", "attention_layers", "window_size"),
    "gpt_oss": ("swiglu_alpha", "swiglu_limit", "experts_per_token", "initial_context_length"),
    "gptj": ("scale_attn_weights", "rotary"),
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": ("num_shared_experts", "router_scaling_factor", "enable_moe_fp32_combine"),
    "hyperclovax": ("use_post_norm",),
    "mpt": (
        *("attn_config", "embedding_fraction", "expansion_ratio", "learned_pos_emb", "norm_type", "no_bias"),
        *("init_config", "attn_impl"),
    ),
    "opt": (
        *("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm"),
        *("word_embed_proj_dim", "output_projection"),
    ),
    "phi3": ("full_attn_mod", "interpolate_factor"),
    "starcoder2": ("mlp_type", "norm_type", "rms_norm_eps", "scale_attn_weights"),
    "xglm": ("scale_embedding", "add_cross_attention", "decoder_start_token_id"),
}
"""Keys that only these families read; their layouts know what they mean."""

_MIXTURE = (
    *("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "num_experts_per_token"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts", "norm_topk_prob"),
    *("decoder_sparse_step", "mlp_only_layers", "first_k_dense_replace", "moe_layer_freq", "mlp_layer_types"),
    *("router_jitter_noise", "input_jitter_noise", "scoring_func", "topk_method", "n_group", "topk_group"),
    *("routed_scaling_factor", "intermediate_size", "moe_topk", "num_shared_expert"),
)  # fmt: skip
"""Keys of mixtures of experts; a dense family does not read them."""

_HARMLESS = re.compile(
    r"^_|dropout|pdrop|layerdrop|_token_id$|_token_ids$|_ids$|_name$|_path$|_version$|_date$|_url$|_comment$|_author$"
    r"|^unsloth|^transformers\.|^use_flash|flash_attn|^attn_impl|^comment|^license|^wandb|^torch_"
)

_FACTOR = re.compile(r"scale|scaling|multiplier|factor|ratio")


def unknown_keys(config: Mapping[str, Any], layout: Layout) -> tuple[str, ...]:
    """Keys that say something, and of which no list here nor the layout knows what."""
    known = {
        *_RECORDS,
        *_EVERYWHERE,
        *SWITCHES,
        *layout.epsilon_keys,
        *layout.per_layer,
        *layout.traits.scaling,
        *layout.traits.per_layer_keys,
        *_FAMILIES.get(layout.family, ()),
        *(key for keys in layout.config_keys.values() for key in keys),
        *(_MIXTURE if layout.dims.experts else ()),
    }
    return tuple(
        key
        for key, value in config.items()
        if key not in known and _says_something(value) and not _HARMLESS.search(key)
    )


def _says_something(value: object) -> bool:
    return value not in (None, False, 0, "", [], {})


def refuse_unknown_keys(config: Mapping[str, Any], layout: Layout, name: str) -> None:
    """Raises EngineError `expansion.trait` when the config says something that no rule understands."""
    unknown = unknown_keys(config, layout)
    if not unknown:
        return
    shown = ", ".join(f"{key[:40]} = {str(config[key])[:30]}" for key in unknown[:3])
    raise EngineError(
        "expansion.trait",
        f"{name} cannot be expanded.",
        cause=f"Its config sets {shown}, and no rule says what that means in a {layout.family} model.",
        next_step="Remove the key if the model does not use it; else take a model without it, or train this as it is.",
    )
