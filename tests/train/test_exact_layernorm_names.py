"""Files as they lie on the hub: old tensor names, stored buffers, missing prefixes, version 4 configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.expansion.checks import Wish
from tests.support.layernorm_nets import NET, check_same_function, grown, saved

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


def causal_mask(kind: torch.dtype) -> torch.Tensor:
    return torch.tril(torch.ones(64, 64)).to(kind).view(1, 1, 64, 64)


def pythia(tensors: Tensors, layers: int) -> Tensors:
    for layer in range(layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = causal_mask(torch.bool)
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    assert "embed_out.weight" in tensors
    assert "lm_head.weight" not in tensors
    return tensors


def headless(prefix: str) -> Callable[[Tensors, int], Tensors]:
    return lambda tensors, layers: {name.removeprefix(prefix): value for name, value in tensors.items()}


def gpt2(tensors: Tensors, layers: int) -> Tensors:
    return headless("transformer.")(tensors, layers) | {
        f"h.{layer}.attn.bias": causal_mask(torch.float32) for layer in range(layers)
    }


def falcon(tensors: Tensors, layers: int) -> Tensors:
    """A tied head written out beside the embedding."""
    return tensors | {"lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}


def gpt_j(tensors: Tensors, layers: int) -> Tensors:
    for layer in range(layers):
        tensors[f"transformer.h.{layer}.attn.bias"] = causal_mask(torch.uint8)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    return tensors


def gpt_neo(tensors: Tensors, layers: int) -> Tensors:
    for layer in range(layers):
        tensors[f"transformer.h.{layer}.attn.attention.bias"] = causal_mask(torch.uint8)
        tensors[f"transformer.h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
    return tensors


def rotary_tables(tensors: Tensors, layers: int) -> Tensors:
    return tensors | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(2) for layer in range(layers)}


def old_rope(tree: dict[str, Any], share: str) -> dict[str, Any]:
    """A version 4 config: rotary settings at the top, no `dtype`."""
    rope = tree.pop("rope_parameters")
    tree.pop("dtype", None)
    theta = "rotary_emb_base" if tree["model_type"] == "gpt_neox" else "rope_theta"
    return tree | {"torch_dtype": "float32", theta: rope["rope_theta"], share: rope["partial_rotary_factor"]}


def derived_ffn(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tree: {name: value for name, value in tree.items() if name != key}


WIDE, DEEP = Wish(hidden=48, heads=6, ffn=224, layers=3), Wish(layers=3)
HUB: dict[str, tuple[str, Callable[[Tensors, int], Tensors], Callable[[dict[str, Any]], dict[str, Any]], Wish]] = {
    "pythia": ("gpt_neox", pythia, lambda tree: old_rope(tree, "rotary_pct"), WIDE),
    "gpt2": ("gpt2", gpt2, lambda tree: tree | {"n_ctx": 64}, WIDE),
    "falcon": ("falcon-40b", falcon, lambda tree: tree, WIDE),
    "falcon without a width": ("falcon-7b", falcon, derived_ffn("ffn_hidden_size"), Wish(hidden=48, heads=6)),
    "gpt-j": ("gptj", gpt_j, lambda tree: tree, WIDE),
    "gpt-neo": ("gpt_neo", gpt_neo, derived_ffn("attention_layers"), WIDE),
    "bloom": ("bloom", headless("transformer."), lambda tree: tree, DEEP),
    "opt": ("opt", headless("model."), derived_ffn("word_embed_proj_dim"), WIDE),
    "phi": ("phi", rotary_tables, lambda tree: old_rope(tree, "partial_rotary_factor"), WIDE),
    "stablelm": ("stablelm", rotary_tables, lambda tree: old_rope(tree, "partial_rotary_factor"), WIDE),
}


@pytest.mark.parametrize("name", HUB)
def test_a_file_as_the_hub_has_it_grows_exactly(tmp_path: Path, name: str) -> None:
    net, tensors_of, config_of, wish = HUB[name]
    source = saved(NET[net], tmp_path / "source", torch.float32)
    tree = config_of(json.loads((source / "config.json").read_text()))
    (source / "config.json").write_text(json.dumps(tree))
    tensors = tensors_of(load_file(source / WEIGHTS), 2)
    save_file({key: value.contiguous() for key, value in tensors.items()}, source / WEIGHTS, {"format": "pt"})
    out = grown(source, tmp_path / "grown", wish)
    check_same_function(source, out, torch.float32, 1e-5)
    names = set(load_file(out / WEIGHTS))
    assert not {one for one in names if one.endswith((".attn.bias", "attention.bias", "masked_bias", "inv_freq"))}
    assert {one for one in tensors if ".0." not in one and ".1." not in one} - names <= {"lm_head.weight"}
