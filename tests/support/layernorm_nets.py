"""Small LayerNorm decoders with every parameter jittered, grown from disk by the real engine and compared.

Owns which nets and growths are tried. Sizes are the smallest at which heads, groups and fused parts can be told apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

from engine.expansion.checks import Wish, plan_for
from engine.expansion.layouts import layout_for
from engine.surgery.expand import ExpandRequest, expand

transformers.utils.logging.disable_progress_bar()

LISTED = ("stablelm", "gpt_neox", "phi", "falcon", "starcoder2", "cohere")
"""Families that every change is held to in full; the others by `make test-exhaustive`."""
VOCABULARY = 96
TOKENS = 24
GENERATED = 34
USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTI_HEAD = {key: value for key, value in USUAL.items() if key != "num_key_value_heads"}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {key: value for key, value in USUAL.items() if key != "intermediate_size"}
OPT = {key: value for key, value in MULTI_HEAD.items() if key != "intermediate_size"} | {"ffn_dim": 48}
NEO = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48} | {
    "attention_types": [[["global", "local"], 1]],
    "window_size": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
XGLM = {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4} | {
    "max_position_embeddings": 64
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
MPT = {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}

Wishes = Mapping[str, Wish]

DEPTH: Wishes = {"depth": Wish(layers=4)}
FFN: Wishes = {"ffn": Wish(ffn=144)}
HEADS_ALONE: Wishes = {
    "hidden": Wish(hidden=48),
    "heads": Wish(heads=8),
    "tile": Wish(hidden=64, operators=("hidden=tile",)),
    "lemon": Wish(hidden=80, operators=("hidden=lemon",)),
}
GROUPED: Wishes = {
    "hidden and heads": Wish(hidden=48, heads=6),
    "key/value groups": Wish(hidden=48, heads=6, kv_heads=3),
    "key/value replicas": Wish(kv_heads=4, operators=("kv_heads=replicate",)),
    "tile of all": Wish(
        hidden=64, heads=8, kv_heads=4, ffn=96, operators=("hidden=tile", "heads=tile", "kv_heads=tile", "ffn=tile")
    ),
    "hybrid": Wish(hidden=48, heads=6, kv_heads=3, ffn=144, layers=3),
    "hybrid of copies": Wish(hidden=80, heads=10, ffn=144, layers=3, operators=("hidden=lemon", "heads=lemon")),
}
TOGETHER: Wishes = {
    "hidden and heads": Wish(hidden=48, heads=6),
    "tile": Wish(hidden=64, heads=8, operators=("hidden=tile", "heads=tile")),
    "lemon": Wish(hidden=80, heads=10, operators=("hidden=lemon",)),
    "hybrid": Wish(hidden=48, heads=6, ffn=224, layers=3),
}
SEPARATE = {**HEADS_ALONE, **GROUPED, **FFN, **DEPTH}
"""An explicit head size: hidden and heads grow each for itself."""
DERIVED_GROUPED = {**GROUPED, **TOGETHER, **FFN, **DEPTH}
"""Head size hidden / heads, several query heads per key/value head."""
FOLLOWING = {**TOGETHER, **FFN, **DEPTH}
"""Head size hidden / heads, as many key/value heads as query heads, or one."""


@dataclass(frozen=True)
class Net:
    """One variant of a family, what it can do and what it must refuse."""

    name: str
    model_type: str
    options: Mapping[str, Any]
    growths: Wishes
    refused: Mapping[str, tuple[Wish, str]] = field(default_factory=dict)
    """Axis -> a wish, and words of the refusal."""
    single: bool = False
    """Its norms or scores are computed in float32 also in a float64 model."""
    no_double: bool = False
    """transformers cannot run it in float64."""


SLOPES = "slopes depend on the number of heads"
ALIBI_REFUSED = {
    "hidden": (Wish(hidden=64, heads=8), SLOPES),
    "heads": (Wish(heads=8, hidden=64), SLOPES),
}
FIXED_FFN = {"ffn": (Wish(ffn=160), "always 4 x hidden")}
ONE_KEY = {"kv_heads": (Wish(kv_heads=2), "one key/value head")}
MODERN = {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48}

NETS: tuple[Net, ...] = (
    Net("stablelm", "stablelm", USUAL, DERIVED_GROUPED),
    Net(
        "stablelm-2-12b",
        "stablelm",
        USUAL | {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
        DERIVED_GROUPED,
    ),
    Net("gpt_neox", "gpt_neox", MULTI_HEAD, FOLLOWING),
    Net(
        "gpt_neox-sequential",
        "gpt_neox",
        MULTI_HEAD | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
        FOLLOWING,
    ),
    Net("phi", "phi", USUAL, SEPARATE),
    Net("phi-qk", "phi", USUAL | {"qk_layernorm": True, "tie_word_embeddings": True}, DERIVED_GROUPED),
    Net("falcon-40b", "falcon", FALCON | MODERN, DERIVED_GROUPED),
    Net("falcon-11b", "falcon", FALCON | MODERN | {"num_ln_in_parallel_attn": 1, "bias": True}, DERIVED_GROUPED),
    Net("falcon-7b", "falcon", FALCON, FOLLOWING, ONE_KEY),
    Net("falcon-mha", "falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}, FOLLOWING),
    Net(
        "falcon-rw",
        "falcon",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        {**FFN, **DEPTH},
        ALIBI_REFUSED,
    ),
    Net("starcoder2", "starcoder2", USUAL, SEPARATE),
    Net("starcoder2-untied", "starcoder2", USUAL | {"use_bias": False, "tie_word_embeddings": False}, SEPARATE),
    Net("cohere", "cohere", USUAL, SEPARATE, single=True),
    Net("cohere-plus", "cohere", USUAL | {"use_qk_norm": True, "attention_bias": True}, SEPARATE, single=True),
    Net(
        "cohere2",
        "cohere2",
        USUAL | {"num_hidden_layers": 4, "sliding_window": 8},
        {**SEPARATE, "depth": Wish(layers=6), "hybrid": Wish(hidden=48, heads=6, kv_heads=3, ffn=144, layers=5)}
        | {"hybrid of copies": Wish(hidden=80, heads=10, layers=6, operators=("hidden=lemon", "heads=lemon"))},
        single=True,
    ),
    Net("gpt2", "gpt2", GPT, FOLLOWING),
    Net(
        "gpt2-by-index",
        "gpt2",
        GPT | {"scale_attn_by_inverse_layer_idx": True},
        {**TOGETHER, **FFN, "hybrid": Wish(hidden=48, heads=6, ffn=224)},
        {"depth": (Wish(layers=4), "scaled by the layer's number")},
    ),
    Net("gpt_bigcode", "gpt_bigcode", GPT, FOLLOWING, ONE_KEY),
    Net("gpt_bigcode-mha", "gpt_bigcode", GPT | {"multi_query": False}, FOLLOWING),
    Net("gpt_neo", "gpt_neo", NEO, FOLLOWING, single=True),
    Net("gptj", "gptj", GPT | {"rotary_dim": 4}, FOLLOWING, single=True),
    Net(
        "codegen",
        "codegen",
        GPT | {"rotary_dim": 4},
        {**FFN, **DEPTH},
        {
            "hidden": (Wish(hidden=64, heads=8), "four slices"),
            "heads": (Wish(heads=8, hidden=64), "four slices"),
        },
        single=True,
    ),
    Net("opt", "opt", OPT, FOLLOWING),
    Net("opt-no-bias", "opt", OPT | {"enable_bias": False, "tie_word_embeddings": False}, FOLLOWING),
    Net("biogpt", "biogpt", MULTI_HEAD, FOLLOWING),
    Net(
        "xglm",
        "xglm",
        XGLM,
        {**FFN, **DEPTH},
        {"hidden": (Wish(hidden=64, heads=8), "sines"), "heads": (Wish(heads=8, hidden=64), "sines")},
        no_double=True,
    ),
    Net("bloom", "bloom", BLOOM, DEPTH, ALIBI_REFUSED | FIXED_FFN),
    Net("mpt", "mpt", MPT, DEPTH, ALIBI_REFUSED | FIXED_FFN, single=True),
    Net("nemotron", "nemotron", USUAL, SEPARATE),
    Net(
        "nemotron-bias", "nemotron", USUAL | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}, SEPARATE
    ),
    Net("olmo", "olmo", USUAL, SEPARATE, single=True),
    Net(
        "olmo-1b",
        "olmo",
        USUAL | {"tie_word_embeddings": True, "clip_qkv": 2.0},
        {"heads": HEADS_ALONE["heads"], **FFN, **DEPTH},
        {"hidden": (Wish(hidden=48), "no gain")},
        single=True,
    ),
    Net("persimmon", "persimmon", MULTI_HEAD, FOLLOWING),
    Net("jais2", "jais2", USUAL, {**SEPARATE, "heads": Wish(hidden=64, heads=8)}),
)  # fmt: skip
NET = {net.name: net for net in NETS}


def saved(net: Net, folder: Path, dtype: torch.dtype) -> Path:
    """The net with all parameters drawn and jittered, as save_pretrained writes it."""
    config = transformers.AutoConfig.for_model(net.model_type, **net.options)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float64)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.add_(noise * (0.25 if parameter.dim() > 1 else 0.3))
    model.to(dtype).save_pretrained(folder)
    return folder


def grown(source: Path, out: Path, wish: Wish) -> Path:
    """The larger model, made on disk without the engine's own proof."""
    config = json.loads((source / "config.json").read_text())
    plan = plan_for(layout_for(config, source.name), wish, config).plan
    expand(ExpandRequest(source, out, plan, proof=False), lambda _: None)
    return out


def loaded(folder: Path, dtype: torch.dtype, *, left_over: bool = False) -> Any:
    """The model as plain transformers loads it; nothing may be missing or of another shape, nor be left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    tolerated = ("unexpected_keys",) if left_over else ()
    left = {key: value for key, value in info.items() if value and key.endswith("_keys") and key not in tolerated}
    assert not left, left
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """Logits of two fixed rows of tokens."""
    tokens = torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        found: torch.Tensor = model(tokens).logits
    return found


def generated(model: Any) -> torch.Tensor:
    """Greedy tokens with a cache after a fixed prompt."""
    prompt = torch.randint(3, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        tokens: torch.Tensor = model.generate(
            prompt, max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False, use_cache=True, pad_token_id=0
        )
    return tokens


@dataclass(frozen=True)
class Reference:
    """What a source computes."""

    logits: torch.Tensor
    tokens: torch.Tensor
    parameters: int


@cache
def reference(source: Path, dtype: torch.dtype) -> Reference:
    """The source's answers, computed once."""
    model = loaded(source, dtype, left_over=True)
    return Reference(logits(model), generated(model), model.num_parameters())


def check_same_function(source: Path, out: Path, dtype: torch.dtype, tolerance: float) -> None:
    """A larger model with logits within `tolerance` of their range, the same greedy tokens, and equal when reloaded."""
    before, after = reference(source, dtype), loaded(out, dtype)
    old, new = before.logits, logits(after)
    span = (old.max() - old.min()).item()
    assert span > 0.5, "logits that hardly vary prove nothing"
    assert ((old - new).abs().max() / span).item() <= tolerance
    assert torch.equal(before.tokens, generated(after))
    assert torch.equal(new, logits(loaded(out, dtype)))
    assert after.num_parameters() > before.parameters
