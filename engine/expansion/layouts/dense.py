"""The pre-norm RMSNorm families: Llama and its relatives.

Owns their differences from Llama. Must not know what growth does to a tensor.
"""

from __future__ import annotations

from dataclasses import replace

from engine.expansion.axes import Role
from engine.expansion.layout import Layout, Rule
from engine.expansion.layouts.pieces import HEAD_ALONG, LAYER, SINKS, AttentionStyle, MlpStyle, layer_list, sizes
from engine.expansion.layouts.pre_norm import (
    LLAMA_BIASES,
    MULTIPLIERS,
    Block,
    first_of_each_full,
    llama_block,
    pre_norm,
    rotary_share,
    uniform_bias,
    window_layers,
)
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader


@family("llama", handles=LLAMA_BIASES)
def _llama(reader: ConfigReader) -> Layout:
    return pre_norm(reader, llama_block(reader, "llama", heads_divide_hidden=True))


@family("iquestcoder", defaults=sizes(76800, 5120, 27648, 80, 40, 8, head_dim=128), handles=LLAMA_BIASES)
def _iquestcoder(reader: ConfigReader) -> Layout:
    return pre_norm(reader, llama_block(reader, "iquestcoder", epsilon=1e-5, heads_divide_hidden=True))


@family(
    "internlm3",
    defaults=sizes(128512, 4096, 10240, 48, 32, 2, head_dim=128),
    handles=("attention_bias", "qkv_bias", "mlp_bias"),
)
def _internlm3(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias", "qkv_bias")
    return pre_norm(
        reader,
        Block(
            "internlm3",
            attention=AttentionStyle(qkv_bias=bias, output_bias=bias),
            mlp=MlpStyle(bias=reader.flag("mlp_bias", "bias")),
            epsilon=1e-5,
            heads_divide_hidden=True,
        ),
    )


@family("arcee", defaults=sizes(32000, 2560, 18432, 32, 32), handles=LLAMA_BIASES)
def _arcee(reader: ConfigReader) -> Layout:
    plain = MlpStyle(inputs=("up_proj",), bias=reader.flag("mlp_bias"))
    return pre_norm(reader, llama_block(reader, "arcee", mlp=plain, epsilon=1e-5, heads_divide_hidden=True))


@family("cwm", defaults=sizes(128256, 6144, 21504, 64, 48, 8, head_dim=128), handles=("mlp_bias",))
def _cwm(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    return pre_norm(
        reader,
        Block(
            "cwm",
            mlp=MlpStyle(bias=reader.flag("mlp_bias")),
            epsilon=1e-5,
            heads_divide_hidden=True,
            per_layer=first_of_each_full(reader, layers, 4),
            layer_period=4,
        ),
    )


@family("mistral")
def _mistral(reader: ConfigReader) -> Layout:
    return pre_norm(reader, Block("mistral"))


@family("ministral", defaults=sizes(32000, 4096, 14336, 32, 32, 8, sliding_window=4096))
def _ministral(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    kind = "full_attention" if reader.raw("sliding_window") is None else "sliding_attention"
    kinds = layer_list(reader, "layer_types", layers) or (kind,) * layers
    return pre_norm(reader, Block("ministral", per_layer={"layer_types": kinds}))


@family("ministral3", defaults=sizes(131072, 4096, 14336, 34, 32, 8, head_dim=128))
def _ministral3(reader: ConfigReader) -> Layout:
    return pre_norm(reader, Block("ministral3", epsilon=1e-5))


@family("qwen2")
def _qwen2(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    return pre_norm(
        reader,
        Block("qwen2", attention=AttentionStyle(qkv_bias=True), per_layer=window_layers(reader, layers)),
    )


@family("qwen3", handles=("attention_bias",))
def _qwen3(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    return pre_norm(
        reader,
        Block("qwen3", attention=uniform_bias(reader, qk_norm="head"), per_layer=window_layers(reader, layers)),
    )


@family(
    "seed_oss",
    defaults=sizes(155136, 4096, 27648, 64, 80, 8, head_dim=128),
    handles=(
        "attention_bias",
        "attention_out_bias",
        "mlp_bias",
    ),
)
def _seed_oss(reader: ConfigReader) -> Layout:
    style = AttentionStyle(
        qkv_bias=reader.flag("attention_bias", default=True), output_bias=reader.flag("attention_out_bias")
    )
    return pre_norm(reader, Block("seed_oss", attention=style, mlp=MlpStyle(bias=reader.flag("mlp_bias"))))


@family(
    "ernie4_5",
    defaults=sizes(103424, 1024, 3072, 18, 16, 2, head_dim=128, tie_word_embeddings=True),
    handles=("use_bias",),
)
def _ernie4_5(reader: ConfigReader) -> Layout:
    bias = reader.flag("use_bias")
    style = AttentionStyle(qkv_bias=bias, output_bias=bias)
    return pre_norm(reader, Block("ernie4_5", attention=style, mlp=MlpStyle(bias=bias), epsilon=1e-5))


@family("hunyuan_v1_dense", defaults=sizes(290943, 4096, 11008, 32, 32), handles=("attention_bias", "use_qk_norm"))
def _hunyuan(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias")
    style = AttentionStyle(
        qkv_bias=bias, output_bias=bias, qk_norm="head", norm_names=("query_layernorm", "key_layernorm")
    )
    return pre_norm(reader, Block("hunyuan_v1_dense", attention=style, epsilon=1e-5))


@family("helium", defaults=sizes(48000, 2560, 7040, 24, 20, 20, head_dim=128), handles=LLAMA_BIASES)
def _helium(reader: ConfigReader) -> Layout:
    style = AttentionStyle(qkv_bias=reader.flag("attention_bias"))
    layout = pre_norm(
        reader,
        Block(
            "helium",
            attention=style,
            mlp=MlpStyle(bias=reader.flag("mlp_bias")),
            epsilon=1e-8,
            square_output=True,
        ),
    )
    dims = layout.dims
    if dims.heads * dims.head_dim != dims.hidden:
        raise reader.wrong("head_dim", dims.head_dim, f"hidden_size / num_attention_heads = {dims.hidden}/{dims.heads}")
    return layout


@family(
    "apertus",
    defaults=sizes(131072, 4096, 14336, 32, 32, hidden_act="xielu"),
    handles=("attention_bias", "qk_norm"),
)
def _apertus(reader: ConfigReader) -> Layout:
    learned = reader.text("hidden_act") == "xielu"
    return pre_norm(
        reader,
        Block(
            "apertus",
            attention=uniform_bias(reader, qk_norm="head"),
            mlp=MlpStyle(inputs=("up_proj",)),
            norm_names=("attention_layernorm", "feedforward_layernorm"),
            epsilon=1e-5,
            extra=XIELU if learned else (),
        ),
    )


XIELU = (
    *(Rule(f"{LAYER}mlp.act_fn.{name}", Role.INNER, (HEAD_ALONG,)) for name in ("alpha_p", "alpha_n")),
    *(Rule(f"{LAYER}mlp.act_fn.{name}", Role.INNER, ()) for name in ("beta", "eps")),
)
"""The activation's own numbers; they do not depend on any width."""


@family("nanochat", defaults=sizes(50304, 768, 8192, 12, 6), handles=("attention_bias",))
def _nanochat(reader: ConfigReader) -> Layout:
    tied = {"hidden": "without gains, nothing can make a tied head read a rescaled stream"}
    return pre_norm(
        reader,
        Block(
            "nanochat",
            attention=replace(uniform_bias(reader), qk_norm="head", norm_names=()),
            mlp=MlpStyle(inputs=("fc1",), output="fc2"),
            norm_names=(),
            normed_embedding=True,
            scaling=("final_logit_softcapping",),
            unsupported=tied if reader.flag("tie_word_embeddings") else {},
        ),
    )


@family("phi3")
def _phi3(reader: ConfigReader) -> Layout:
    rope = reader.table("rope_parameters") or reader.table("rope_scaling")
    return pre_norm(
        reader,
        Block(
            "phi3",
            attention=AttentionStyle(fused=True),
            mlp=MlpStyle(fused="gate_up_proj"),
            epsilon=1e-5,
            partial_rotary=rotary_share(reader),
            # its config checks the number of long-rope factors against hidden / heads, whatever head_dim says
            derived_head_dim=rope.get("short_factor") is not None,
        ),
    )


@family("glm", defaults=sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128), handles=("attention_bias",))
def _glm(reader: ConfigReader) -> Layout:
    return pre_norm(
        reader,
        Block(
            "glm",
            attention=AttentionStyle(qkv_bias=reader.flag("attention_bias", default=True)),
            mlp=MlpStyle(fused="gate_up_proj"),
            epsilon=1.5625e-7,
            partial_rotary=rotary_share(reader, 0.5),
        ),
    )


@family("smollm3", handles=LLAMA_BIASES)
def _smollm3(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    interval = reader.integer("no_rope_layer_interval", default=4)
    rotary = layer_list(reader, "no_rope_layers", layers) or tuple(int((i + 1) % interval != 0) for i in range(layers))
    windows = reader.flag("use_sliding_window") and reader.raw("sliding_window") is not None
    derived = tuple("sliding_attention" if windows and not rotates else "full_attention" for rotates in rotary)
    return pre_norm(
        reader,
        llama_block(
            reader,
            "smollm3",
            per_layer={
                "layer_types": layer_list(reader, "layer_types", layers) or derived,
                "no_rope_layers": rotary,
            },
            layer_period=interval,
        ),
    )


@family("granite", handles=LLAMA_BIASES)
def _granite(reader: ConfigReader) -> Layout:
    return pre_norm(reader, llama_block(reader, "granite", scaling=MULTIPLIERS))


@family("granite_swa", defaults=sizes(100352, 2560, 8192, 24, 20, 4, tie_word_embeddings=True), handles=LLAMA_BIASES)
def _granite_swa(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    bases = layer_list(reader, "layer_rope_theta", layers)
    return pre_norm(
        reader,
        llama_block(
            reader,
            "granite_swa",
            epsilon=1e-5,
            scaling=MULTIPLIERS,
            per_layer=first_of_each_full(reader, layers, 4) | ({"layer_rope_theta": bases} if bases else {}),
            layer_period=4,
            extra=(Rule(f"{LAYER}self_attn.sinks", Role.INNER, (SINKS,)),),
        ),
    )


@family("gemma", handles=("attention_bias",))
def _gemma(reader: ConfigReader) -> Layout:
    return pre_norm(
        reader,
        Block("gemma", attention=uniform_bias(reader), norm="rmsnorm+1", embedding_times_root=True),
    )


@family(
    "vaultgemma",
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True),
    handles=("attention_bias",),
)
def _vaultgemma(reader: ConfigReader) -> Layout:
    layers = reader.integer("num_hidden_layers")
    kinds = layer_list(reader, "layer_types", layers)
    alternate = tuple("full_attention" if i % 2 else "sliding_attention" for i in range(layers))
    return pre_norm(
        reader,
        Block(
            "vaultgemma",
            attention=uniform_bias(reader),
            norm="rmsnorm+1",
            norm_names=("input_layernorm", "pre_feedforward_layernorm"),
            heads_divide_hidden=True,
            embedding_times_root=True,
            scaling=("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
            per_layer={"layer_types": kinds or alternate},
            layer_period=2,
        ),
    )
