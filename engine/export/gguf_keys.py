"""The keys of a GGUF file: sizes, attention, rotary scaling, tokenizer, where it came from.

Owns their names (the `gguf` package's methods) and values. Must not know weights or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.context.gguf_graphs import NO_CAP, Graph, is_default_pattern, sliding_layers
from engine.context.gguf_rope import GgufRope
from engine.context.gguf_support import exact_context
from engine.export.gguf_tokenizer import GgufTokenizer
from engine.models.config import ConfigReader
from engine.models.shape import Shape

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""`general.file_type`."""
_PHI_3 = re.compile(r"phi-?3", re.IGNORECASE)
_MODERN_BERT = re.compile(r"modern-bert", re.IGNORECASE)


def add_model(writer: Any, name: str, graph: Graph, shape: Shape, config: Mapping[str, Any], stored: str) -> None:
    """Everything about the model but its positions and tokens; `stored` is the type of its matrices."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[stored])
    writer.add_quantization_version(2)
    writer.add_context_length(exact_context(graph, shape))
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    reader = ConfigReader(config, "config.json", shape.family.defaults)
    writer.add_layer_norm_rms_eps(reader.number("rms_norm_eps", default=1e-6))
    writer.add_vocab_size(shape.vocabulary)
    _add_attention(writer, graph, shape, config)


def _add_attention(writer: Any, graph: Graph, shape: Shape, config: Mapping[str, Any]) -> None:
    if graph.soft_caps:
        writer.add_attn_logit_softcapping(float(config.get("attn_logit_softcapping") or NO_CAP))
    if graph.soft_caps or config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping") or NO_CAP))
    sliding = sliding_layers(graph, shape, config)
    if sliding:
        writer.add_sliding_window(int(config["sliding_window"]))
        if not is_default_pattern(graph, sliding):
            writer.add_sliding_window_pattern(list(sliding))
    elif graph.pattern or graph.fused:
        # Gemma 2 would slide without the key; old versions of llama.cpp guess Phi-3's window without it.
        writer.add_sliding_window(shape.sliding_window or 0)
        if graph.soft_caps:
            writer.add_sliding_window_pattern([False] * shape.layers)


def add_rope(writer: Any, rope: GgufRope) -> None:
    """Positions."""
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta:
        writer.add_rope_freq_base_swa(rope.local_theta)
    if rope.kind:
        writer.add_rope_scaling_type(RopeScalingType(rope.kind))
    if rope.factor:
        writer.add_rope_scaling_factor(rope.factor)
    if rope.original:
        writer.add_rope_scaling_orig_ctx_len(rope.original)
    if rope.attn_factor != 1:
        writer.add_rope_scaling_attn_factors(rope.attn_factor)


def add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    """Tokens, special tokens, chat template."""
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.splitting)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    if tokenizer.scores:
        writer.add_token_scores(list(tokenizer.scores))
    if tokenizer.merges:
        writer.add_token_merges(list(tokenizer.merges))
    special = tokenizer.special
    ids = (
        (writer.add_bos_token_id, special.bos_id),
        (writer.add_eos_token_id, special.eos_id),
        (writer.add_eot_token_id, special.eot_id),
        (writer.add_eom_token_id, special.eom_id),
        (writer.add_pad_token_id, special.pad_id),
        (writer.add_unk_token_id, special.unk_id),
    )
    for add, number in ids:
        if number is not None:
            add(number)
    writer.add_add_bos_token(special.adds_bos)
    writer.add_add_eos_token(special.adds_eos)
    if tokenizer.adds_space is not None:
        writer.add_add_space_prefix(tokenizer.adds_space)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def name_for(wanted: str, tokenizer: GgufTokenizer) -> str:
    """`general.name`. llama.cpp reads from it whether special tokens swallow the spaces behind them ("phi-3" is in it),
    and fails to load a model of that name without Phi-3's special tokens."""
    name = _MODERN_BERT.sub("modern bert", wanted)
    if tokenizer.strips_right:
        return name if _PHI_3.search(name) else f"Phi-3 {name}"
    return _PHI_3.sub("phi 3", name)
