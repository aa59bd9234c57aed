"""The families that are refused by name, with the reason.

Owns the list. A family that is not here is refused all the same, without a reason of its own.
"""

from __future__ import annotations

from engine.expansion.layouts.registry import refuse

refuse(
    "its layers mix attention with state-space or linear-attention blocks, for which there are no rules",
    *("bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2"),
    *("lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_next", "qwen3_5"),
    *("qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "rwkv"),
    *("xlstm", "zamba", "zamba2", "zaya", "inkling_text", "inkling2_text"),
)
refuse(
    "its attention compresses keys and values into a latent (MLA), for which there are no rules",
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text"),
    *("glm4_moe_lite", "glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3", "mistral4", "youtu"),
)
refuse(
    "it is an encoder, or an encoder with a decoder; only decoders can be expanded",
    *("albert", "bart", "bert", "bigbird_pegasus", "blenderbot", "camembert", "deberta-v2", "distilbert", "electra"),
    *("m2m_100", "marian", "mbart", "modernbert", "mt5", "pegasus", "plbart", "prophetnet", "roberta", "t5", "t5gemma"),
    *("umt5", "whisper", "xlm-roberta"),
)
refuse(
    "its layers share keys, values or inputs with each other, so that a layer is not a block of its own",
    *("gemma3n", "gemma3n_text", "gemma4_text", "gemma4_unified_text"),
)
refuse("it stores ternary weights and quantises activations by their largest value", "bitnet")
refuse("its attention subtracts pairs of heads by an amount that depends on the layer's number", "diffllama")
refuse("its residual connections are weighted by the layer's number", "beam")
refuse("its layers can differ in their number of heads", "laguna", "mimo_v2_flash")
refuse("its residual connections have weights of their own, and its attention a gate over time", "doge")
refuse("its attention heads are experts, chosen per token", "jetmoe")
refuse("its experts weigh their inputs instead of their outputs, and its attention works in chunks", "llama4_text")
refuse("it stores all experts of a layer in one matrix without an axis for them", "dbrx")
refuse("two stacks of layers run in turns over one stream", "hrm_text")
refuse("it reads bytes through models of its own", "blt")
refuse("it is the language part of a multimodal model and is not saved on its own", "aria_text", "emu3", "llama4")
