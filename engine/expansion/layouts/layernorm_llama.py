"""LayerNorm decoders with Llama's names: StableLM, StarCoder2, Phi, Cohere, Nemotron, Jais 2, OLMo 1.

Owns the rules of those families. Must not know what growth does to a tensor.

    pre:       x + attn(norm(x)), then x + mlp(norm(x))        parallel:  x + attn(norm(x)) + mlp(norm(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.expansion.axes import Axis, Dim, Role, Side
from engine.expansion.layout import Layout, Rule, Traits
from engine.expansion.layouts.layernorm_pieces import (
    HEAD_ALONG,
    head_bias,
    head_norms,
    norm,
    partial_rotary,
    plain_mlp,
    separate_attention,
)
from engine.expansion.layouts.pieces import (
    CONFIG_KEYS,
    LAYER,
    MlpStyle,
    bias_names,
    ends,
    layer_list,
    mlp,
    period,
    read_dims,
)
from engine.expansion.layouts.pre_norm import ROTARY_TABLES
from engine.expansion.layouts.registry import family
from engine.models.config import ConfigReader

ATTENTION = f"{LAYER}self_attn."
MLP = f"{LAYER}mlp."

DERIVED_KEYS = {field: keys for field, keys in CONFIG_KEYS.items() if field != "head_dim"}
"""Of families that ignore an explicit `head_dim`."""


@dataclass(frozen=True, slots=True)
class Biases:
    """Which projections have one."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False
    head: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """As `Traits.biases` has them."""
        return bias_names(qkv=self.qkv, output=self.output, mlp=self.mlp, head=self.head)


def _traits(reader: ConfigReader, placement: str, biases: Biases, **more: Any) -> Traits:
    settings: dict[str, Any] = {"norm": "layernorm", "placement": placement, "tied": reader.flag("tie_word_embeddings")}
    return Traits(**(settings | {"biases": biases.names} | more))


def _norms(*, separate: bool, bias: bool = True, final: str = "model.norm") -> tuple[Rule, ...]:
    """The block's norm or norms, and the final one."""
    names = ("input_layernorm", "post_attention_layernorm")[: 1 + separate]
    return (
        *(rule for name in names for rule in norm(f"{LAYER}{name}", bias=bias)),
        *norm(final, bias=bias, final=True),
    )


@family("stablelm", handles=("use_qkv_bias", "qk_layernorm", "use_parallel_residual"))
def _stablelm(reader: ConfigReader) -> Layout:
    """Head size is always hidden / heads; with `qk_layernorm` every head has a norm tensor of its own."""
    parallel, normed = reader.flag("use_parallel_residual"), reader.flag("qk_layernorm")
    biases = Biases(qkv=reader.flag("use_qkv_bias"))
    traits = _traits(
        reader,
        "parallel" if parallel else "pre",
        biases,
        qk_norm="per-head" if normed else "none",
        qk_norm_shares_epsilon=normed,
        head_dim_key=False,
        partial_rotary=partial_rotary(reader, 0.25),
    )
    dims = read_dims(reader, derived_head_dim=True)
    return Layout(
        family="stablelm",
        dims=dims,
        traits=traits,
        rules=(
            *ends(),
            *_norms(separate=not parallel),
            *separate_attention(ATTENTION, bias=biases.qkv, output="o_proj", output_bias=False),
            *(_norm_of_each_head() if normed else ()),
            *mlp(MlpStyle()),
        ),
        config_keys=DERIVED_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        ignored=ROTARY_TABLES,
    )


def _norm_of_each_head() -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{ATTENTION}{side}_layernorm.norms.{{h}}.weight", Role.HEAD_GAIN, (HEAD_ALONG,), counted=dim)
        for side, dim in (("q", Dim.QUERY), ("k", Dim.KEY_VALUE))
    )


@family(
    "starcoder2",
    defaults={
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    handles=("use_bias",),
)
def _starcoder2(reader: ConfigReader) -> Layout:
    bias = reader.flag("use_bias", default=True)
    biases = Biases(qkv=bias, output=bias, mlp=bias)
    traits = _traits(reader, "pre", biases)
    return Layout(
        family="starcoder2",
        dims=read_dims(reader),
        traits=traits,
        rules=(
            *ends(),
            *_norms(separate=True),
            *separate_attention(ATTENTION, bias=bias, output="o_proj", output_bias=bias),
            *plain_mlp(MLP, ("c_fc", "c_proj"), bias=bias),
        ),
        config_keys=CONFIG_KEYS,
        epsilon_keys=("norm_epsilon",),
        epsilon=reader.number("norm_epsilon", default=1e-5),
        ignored=ROTARY_TABLES,
    )


@family(
    "phi",
    defaults={
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    handles=("qk_layernorm",),
)
def _phi(reader: ConfigReader) -> Layout:
    """One norm feeds both branches. Its QK-norm is hidden / heads wide, whatever `head_dim` says."""
    normed = reader.flag("qk_layernorm")
    biases = Biases(qkv=True, output=True, mlp=True, head=True)
    traits = _traits(
        reader,
        "parallel",
        biases,
        qk_norm="head" if normed else "none",
        qk_norm_shares_epsilon=normed,
        head_dim_key=not normed,
        partial_rotary=partial_rotary(reader, 0.5),
    )
    return Layout(
        family="phi",
        dims=read_dims(reader, derived_head_dim=normed),
        traits=traits,
        rules=(
            *ends(),
            head_bias(),
            *_norms(separate=False, final="model.final_layernorm"),
            *separate_attention(ATTENTION, bias=True, output="dense", output_bias=True),
            *(head_norms(ATTENTION, bias=True) if normed else ()),
            *plain_mlp(MLP, ("fc1", "fc2"), bias=True),
        ),
        config_keys=DERIVED_KEYS if normed else CONFIG_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        ignored=ROTARY_TABLES,
    )


COHERE_SIZES = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "tie_word_embeddings": True,
}


@family("cohere", defaults=COHERE_SIZES, handles=("attention_bias", "use_qk_norm"))
def _cohere(reader: ConfigReader) -> Layout:
    """Norms without bias, one for both branches; the QK-norm has a row of gains for each head."""
    normed = reader.flag("use_qk_norm")
    bias = reader.flag("attention_bias")
    traits = _traits(
        reader,
        "parallel",
        Biases(qkv=bias, output=bias),
        qk_norm="per-head" if normed else "none",
        qk_norm_shares_epsilon=normed,
        scaling=("logit_scale",),
    )
    return Layout(
        family="cohere",
        dims=read_dims(reader),
        traits=traits,
        rules=(*_cohere_rules(bias), *(_gains_per_head() if normed else ())),
        config_keys=CONFIG_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        ignored=ROTARY_TABLES,
    )


def _cohere_rules(bias: bool) -> tuple[Rule, ...]:
    return (
        *ends(),
        *_norms(separate=False, bias=False),
        *separate_attention(ATTENTION, bias=bias, output="o_proj", output_bias=bias),
        *mlp(MlpStyle()),
    )


def _gains_per_head() -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{ATTENTION}{side}_norm.weight", Role.HEAD_GAIN, (Axis(dim, Side.ALONG, per_head=False), HEAD_ALONG))
        for side, dim in (("q", Dim.QUERY), ("k", Dim.KEY_VALUE))
    )


@family("cohere2", defaults=COHERE_SIZES, handles=("attention_bias",))
def _cohere2(reader: ConfigReader) -> Layout:
    """Cohere without QK-norm; layers with a window have rotary positions, the others none."""
    bias = reader.flag("attention_bias")
    dims = read_dims(reader)
    kinds = layer_list(reader, "layer_types", dims.layers)
    if not kinds:
        every = reader.integer("sliding_window_pattern", default=4)
        kinds = tuple("sliding_attention" if (i + 1) % every else "full_attention" for i in range(dims.layers))
    traits = _traits(
        reader,
        "parallel",
        Biases(qkv=bias, output=bias),
        scaling=("logit_scale",),
        per_layer_keys=("layer_types",),
        layer_period=period(kinds),
    )
    return Layout(
        family="cohere2",
        dims=dims,
        traits=traits,
        rules=_cohere_rules(bias),
        config_keys=CONFIG_KEYS,
        epsilon_keys=("layer_norm_eps",),
        epsilon=reader.number("layer_norm_eps", default=1e-5),
        per_layer={"layer_types": kinds},
        ignored=ROTARY_TABLES,
    )


def _plain_pre_norm(reader: ConfigReader, name: str, biases: Biases, epsilon_key: str, **traits: Any) -> Layout:
    """Sequential blocks with two biased norms, separate projections, and up and down without a gate."""
    known = _traits(reader, "pre", biases, **traits)
    return Layout(
        family=name,
        dims=read_dims(reader),
        traits=known,
        rules=(
            *ends(),
            *_norms(separate=True),
            *separate_attention(ATTENTION, bias=biases.qkv, output="o_proj", output_bias=biases.output),
            *plain_mlp(MLP, ("up_proj", "down_proj"), bias=biases.mlp),
        ),
        config_keys=CONFIG_KEYS,
        epsilon_keys=(epsilon_key,),
        epsilon=reader.number(epsilon_key, default=1e-5),
        ignored=ROTARY_TABLES,
    )


@family(
    "nemotron",
    defaults={
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 32,
        "num_attention_heads": 48,
    },
    handles=("attention_bias", "mlp_bias"),
)
def _nemotron(reader: ConfigReader) -> Layout:
    """Its norms multiply by 1 + gain."""
    bias = reader.flag("attention_bias")
    biases = Biases(qkv=bias, output=bias, mlp=reader.flag("mlp_bias"))
    rotary = partial_rotary(reader, 0.5)
    return _plain_pre_norm(reader, "nemotron", biases, "norm_eps", norm="layernorm+1", partial_rotary=rotary)


@family(
    "jais2",
    defaults={
        "vocab_size": 150272,
        "hidden_size": 3328,
        "intermediate_size": 26624,
        "num_hidden_layers": 32,
        "num_attention_heads": 26,
        "attention_bias": True,
        "mlp_bias": True,
    },
    handles=("attention_bias", "mlp_bias"),
)
def _jais2(reader: ConfigReader) -> Layout:
    bias = reader.flag("attention_bias", default=True)
    biases = Biases(qkv=bias, output=bias, mlp=reader.flag("mlp_bias", default=True))
    return _plain_pre_norm(reader, "jais2", biases, "layer_norm_eps", heads_divide_hidden=True)


@family(
    "olmo",
    defaults={
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    handles=("attention_bias", "clip_qkv"),
)
def _olmo(reader: ConfigReader) -> Layout:
    """Norms have neither gain nor bias and a constant epsilon; reads absorb the stretch, a tied head cannot."""
    bias = reader.flag("attention_bias")
    biases = Biases(qkv=bias, output=bias)
    traits = _traits(reader, "pre", biases, fixed_epsilon=True, gainless=True)
    tied = "its final norm has no gain that could undo the stretch of a tied head"
    return Layout(
        family="olmo",
        dims=read_dims(reader),
        traits=traits,
        rules=(
            *ends(),
            *separate_attention(ATTENTION, bias=bias, output="o_proj", output_bias=bias),
            *mlp(MlpStyle()),
        ),
        config_keys=CONFIG_KEYS,
        epsilon_keys=(),
        epsilon=1e-5,
        unsupported={"hidden": tied} if traits.tied else {},
        ignored=ROTARY_TABLES,
    )
