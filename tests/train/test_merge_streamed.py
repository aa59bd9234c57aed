"""Merged folders compute what peft computes with the adapter on its base, for every kind of adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adapters.folder import read_adapter
from engine.adapters.merge import MergeRequest, merge
from engine.adapters.merge_plan import Weighed
from engine.adapters.merge_record import MergeRecord
from engine.models.headers import read_headers
from tests.support.cli import cli

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("merged")]

IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(3))
Bases = Callable[[str], Path]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Tiny models in float32 by name: with one matrix for embedding and head or two, and GPT-2 with its own layout."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            made[name] = _write_base(name, tmp_path_factory.mktemp("base") / name)
        return made[name]

    return base


def _write_base(name: str, folder: Path) -> Path:
    import transformers

    torch.manual_seed(1)
    if name == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    else:
        config = transformers.Qwen2Config(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=name == "tied",
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size="12KB")
    return folder


def trained(base: Path, folder: Path, *, resize: int = 0, seed: int = 5, **settings: Any) -> torch.Tensor:
    """An adapter whose every parameter was moved, saved by peft; returns the logits of peft's own reload of it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    settings.setdefault("target_modules", "all-linear")
    model = _load(base)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if resize:
        with torch.no_grad():
            wrapped.get_input_embeddings().weight.add_(0.05)
    wrapped.save_pretrained(str(folder))
    fresh = _load(base)
    if resize:
        fresh.resize_token_embeddings(resize, mean_resizing=False)
    return _logits(PeftModel.from_pretrained(fresh, str(folder)))


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def _merge(base: Path, out: Path, *adapters: tuple[Path, float], **options: Any) -> MergeRecord:
    mix = tuple(Weighed(read_adapter(folder), weight) for folder, weight in adapters)
    return merge(MergeRequest(base, mix, out, **options))


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected - found).abs().max() / (expected.max() - expected.min()))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"down_proj": 11}},
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "biases of updates": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "whole norm": {"modules_to_save": ["input_layernorm"]},
    "rows": {"trainable_token_indices": [3, 17, 90]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "embedding and dora": {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "both ends": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "tied on purpose": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "more tokens": {"resize": 103},
    "more tokens, trained": {"resize": 103, "modules_to_save": ["embed_tokens", "lm_head"]},
    "fewer tokens": {"resize": 95},
}
TIED_ONLY = {"tied on purpose"}
ONCE = {"patterns", "rslora", "olora", "whole norm", "own biases", "embedding and dora", "fewer tokens"}
"""Nothing about them depends on whether the ends are tied."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_merged_folder_computes_what_peft_computes(kind: str, base: str, bases: Bases, tmp_path: Path) -> None:
    if kind in TIED_ONLY and base != "tied":
        pytest.skip("only of tied models")
    if kind in ONCE and base == "tied":
        pytest.skip("the same as untied")
    expected = trained(bases(base), tmp_path / "adapter", **KINDS[kind])
    record = _merge(bases(base), tmp_path / "merged", (tmp_path / "adapter", 1.0), shard_bytes=20_000)
    model = _load(tmp_path / "merged")
    assert _difference(expected, _logits(model)) < 1e-5
    assert model.config.vocab_size == KINDS[kind].get("resize", 96) == expected.shape[-1]
    stored = {tensor.name for tensor in read_headers(tmp_path / "merged").tensors}
    assert ("lm_head.weight" in stored) == (base == "untied" or record.untied)
    assert record.changed > 0


def test_transposed_layers_merge_as_they_are_stored(bases: Bases, tmp_path: Path) -> None:
    expected = trained(bases("gpt2"), tmp_path / "adapter", fan_in_fan_out=True, target_modules=["c_attn", "c_fc"])
    _merge(bases("gpt2"), tmp_path / "merged", (tmp_path / "adapter", 1.0))
    assert _difference(expected, _logits(_load(tmp_path / "merged"))) < 1e-5


def test_several_adapters_of_different_kinds_add_up_to_the_sum_of_what_each_changes(
    bases: Bases, tmp_path: Path
) -> None:
    base, weights = bases("untied"), (0.6, -0.3)
    kinds: tuple[dict[str, Any], ...] = ({"use_dora": True}, {"bias": "all", "modules_to_save": ["lm_head"]})
    for number, settings in enumerate(kinds):
        trained(base, tmp_path / f"adapter{number}", seed=number, **settings)
    folders = [tmp_path / f"adapter{number}" for number in range(2)]
    _merge(base, tmp_path / "both", *zip(folders, weights, strict=True))
    expected = {name: value.clone() for name, value in _load(base).state_dict().items()}
    plain = {name: value.clone() for name, value in expected.items()}
    for number, weight in enumerate(weights):
        _merge(base, tmp_path / f"alone{number}", (folders[number], 1.0))
        for name, value in _load(tmp_path / f"alone{number}").state_dict().items():
            expected[name] += weight * (value - plain[name])
    for name, value in _load(tmp_path / "both").state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["more tokens", "dora"])
def test_the_comparison_finds_the_merged_folder_to_be_the_adapter_on_its_base(
    kind: str, bases: Bases, tmp_path: Path
) -> None:
    from engine.proof.same_function import FunctionRequest, same_function

    trained(bases("tied"), tmp_path / "adapter", **KINDS[kind])
    _merge(bases("tied"), tmp_path / "merged", (tmp_path / "adapter", 1.0))
    report = same_function(FunctionRequest(tmp_path / "merged", tmp_path / "adapter", base=bases("tied"), tokens=24))
    assert report.agrees
    assert report.logits.max_rel_logit_diff < 1e-5


def test_a_merge_of_weighted_adapters_is_held_against_their_sum_on_the_base(bases: Bases, tmp_path: Path) -> None:
    base = str(bases("untied"))
    trained(Path(base), tmp_path / "dora", use_dora=True, seed=1)
    trained(Path(base), tmp_path / "biases", bias="all", modules_to_save=["lm_head"], seed=2)
    mix = (f"{tmp_path / 'dora'}=0.6", f"{tmp_path / 'biases'}=-0.3", "--base", base)
    done = cli("adapters", "merge", *mix, "--out", str(tmp_path / "merged"), "--json")
    assert (done.code, done.json["not_compared"]) == (0, ""), done.err
    assert done.json["checks"]["none"]["logits"]["max_rel_logit_diff"] < 1e-5
    done = cli("adapters", "mix", *mix, "--merged", "--method", "linear", "--out", str(tmp_path / "mixed"))
    assert done.code == 0, done.err
    assert "with the adapters on their base: logits differ by at most" in " ".join(done.out.split())
    done = cli("adapters", "mix", *mix, "--merged", "--method", "ties", "--out", str(tmp_path / "ties"), "--json")
    assert done.json["checks"] == {}
    assert "ties" in done.json["not_compared"]
