"""RMSNorm decoders and mixtures grown on disk compute what they computed, loaded by plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import EngineError
from engine.expansion.checks import Wish
from tests.support.layernorm_nets import check_same_function, grown, loaded, logits
from tests.support.rms_nets import DENSE, LISTED, MIXTURES, MORE_EXPERTS, NETS, saved

WEIGHTS = "model.safetensors"
SINGLE = 1e-5
"""Of the logits' range. RMSNorms compute in float32 whatever the model's type, so that double says no more."""
QUICK = ("llama-tied", "qwen3", "gemma2", "phi3", "olmo2", "mixtral")
ENOUGH = ("hidden", "hidden and heads", "tile of all", "depth", "hybrid", "hybrid of copies")
"""Growths of families that are variations of the listed ones."""
PAIRS = [
    pytest.param(net.name, growth, marks=() if net.model_type in LISTED else pytest.mark.exhaustive)
    for net in (*DENSE, *MIXTURES)
    for growth in net.growths
    if net.model_type in LISTED or growth in ENOUGH
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Path]:
    """Saved nets of this module, made when first asked for."""
    root = tmp_path_factory.mktemp("rms")

    class Made(dict[tuple[str, torch.dtype], Path]):
        def __missing__(self, key: tuple[str, torch.dtype]) -> Path:
            name, dtype = key
            self[key] = saved(NETS[name], root / f"{name}-{str(dtype).removeprefix('torch.')}", dtype)
            return self[key]

    return Made()


Sources = dict[tuple[str, torch.dtype], Path]


@pytest.mark.parametrize("name", QUICK)
def test_a_wider_deeper_net_computes_the_same(sources: Sources, tmp_path: Path, name: str) -> None:
    source = sources[name, torch.float32]
    out = grown(source, tmp_path / "grown", NETS[name].growths["hybrid"])
    check_same_function(source, out, torch.float32, SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "growth"), PAIRS)
def test_every_growth_of_every_family_is_exact(sources: Sources, tmp_path: Path, name: str, growth: str) -> None:
    source = sources[name, torch.float32]
    out = grown(source, tmp_path / "grown", NETS[name].growths[growth])
    check_same_function(source, out, torch.float32, SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_EXPERTS)
def test_more_experts_that_share_the_work_are_exact(sources: Sources, tmp_path: Path, name: str) -> None:
    source = sources[name, torch.float32]
    out = grown(source, tmp_path / "grown", Wish(experts=8, hidden=48, heads=6, kv_heads=3))
    check_same_function(source, out, torch.float32, SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "glm4", "phi3", "mixtral"])
def test_growth_of_half_precision_weights_stays_below_their_own_noise(
    sources: Sources, tmp_path: Path, name: str
) -> None:
    source = sources[name, torch.bfloat16]
    out = grown(source, tmp_path / "grown", NETS[name].growths["hybrid"])
    true = logits(loaded(source, torch.float32))
    noise = (logits(loaded(source, torch.bfloat16)).float() - true).abs()
    drift = (logits(loaded(out, torch.float32)) - true).abs()
    assert drift.max() < noise.max()
    assert drift.mean() < 0.5 * noise.mean()


@pytest.mark.parametrize("name", ["qwen2-windows", "gemma2", "smollm3", "olmo3", "gpt_oss"])
def test_lists_that_an_older_config_leaves_out_are_written_after_growth(
    sources: Sources, tmp_path: Path, name: str
) -> None:
    source = shutil.copytree(sources[name, torch.float32], tmp_path / "older")
    config = json.loads((source / "config.json").read_text())
    for key in ("layer_types", "no_rope_layers"):
        config.pop(key, None)
    (source / "config.json").write_text(json.dumps(config))
    out = grown(source, tmp_path / "grown", Wish(layers=5))
    check_same_function(source, out, torch.float32, SINGLE)


def test_a_tied_head_that_a_file_stores_again_grows_with_its_embedding(sources: Sources, tmp_path: Path) -> None:
    source = shutil.copytree(sources["llama-tied", torch.float32], tmp_path / "twice")
    tensors = load_file(source / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    out = grown(source, tmp_path / "grown", Wish(hidden=48))
    check_same_function(source, out, torch.float32, SINGLE)


def test_a_checkpoint_saved_without_its_head_grows_under_its_own_names(sources: Sources, tmp_path: Path) -> None:
    source = shutil.copytree(sources["llama-tied", torch.float32], tmp_path / "bare")
    tensors = load_file(source / WEIGHTS)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, source / WEIGHTS, metadata={"format": "pt"})
    out = grown(source, tmp_path / "grown", NETS["llama-tied"].growths["hybrid"])
    check_same_function(source, out, torch.float32, SINGLE)


def test_a_tensor_that_no_rule_knows_ends_the_expansion(sources: Sources, tmp_path: Path) -> None:
    source = shutil.copytree(sources["llama-tied", torch.float32], tmp_path / "more")
    tensors = load_file(source / WEIGHTS)
    tensors["model.layers.0.self_attn.gate.weight"] = torch.ones(4, 4)
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(EngineError) as refusal:
        grown(source, tmp_path / "grown", Wish(hidden=48))
    assert refusal.value.code == "expansion.tensor"
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize(
    ("name", "wish", "words"),
    [
        ("helium", Wish(hidden=48, heads=4), "hidden"),
        ("phi3-128k", Wish(hidden=48, heads=4), "hidden"),
        ("olmoe", Wish(hidden=48, heads=4), "hidden"),
        ("llama", Wish(hidden=48, heads=5, kv_heads=5), "heads"),
        ("afmoe", Wish(layers=6), "leading layers are dense"),
        ("ernie4_5_moe", Wish(layers=6), "by number"),
        ("phimoe", Wish(experts=8), "second best"),
        ("dots1", Wish(experts=8), "groups of experts"),
        ("kolibri1", Wish(experts=8), "would add up"),
        ("ernie4_5_moe", Wish(experts=8), "smaller among more experts"),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_the_reason(
    sources: Sources, tmp_path: Path, name: str, wish: Wish, words: str
) -> None:
    with pytest.raises(EngineError) as refusal:
        grown(sources[name, torch.float32], tmp_path / "grown", wish)
    assert refusal.value.code in ("expansion.size", "expansion.unsupported", "expansion.config")
    assert words in f"{refusal.value.what} {refusal.value.cause} {refusal.value.next_step}"
