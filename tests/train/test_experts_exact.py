"""Experts: a dense model as a mixture, a mixture with more experts: the function stays, and copies are no twins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from engine.errors import EngineError
from engine.expansion.axes import Dim
from engine.expansion.checks import Wish, plan_for
from engine.expansion.layout import Layout
from engine.expansion.layouts import layout_for
from engine.expansion.maps import Fill
from engine.expansion.operators import OPERATORS
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe
from engine.expansion.recipes import build_recipes
from engine.models.headers import read_headers
from engine.surgery.expand import ExpandRequest, expand

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "head_dim": 12,
}
DENSE = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=16),
    "qwen3": lambda: Qwen3Config(**SIZES, max_window_layers=3),
}
MIXTURES = {
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True
    ),
    "qwen3_moe plain": lambda: Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False
    ),
    "granitemoe": lambda: GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256),
}


def jittered(config: PretrainedConfig, folder: Path) -> Path:
    """A random model in which nothing is neutral."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    builders = DENSE | MIXTURES
    return {
        name: jittered(build(), tmp_path_factory.mktemp(name.replace(" ", "_"))) for name, build in builders.items()
    }


def layout_of(folder: Path) -> Layout:
    return layout_for(json.loads((folder / "config.json").read_text()), folder.name)


def planned(folder: Path, **wish: Any) -> ExpansionPlan:
    return plan_for(layout_of(folder), Wish(**wish), json.loads((folder / "config.json").read_text())).plan


def recipes_of(folder: Path, plan: ExpansionPlan) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in build_recipes(read_headers(folder), layout_of(folder), plan)}


def expanded(folder: Path, out: Path, plan: ExpansionPlan) -> Path:
    expand(ExpandRequest(folder, out, plan, proof=False), lambda _: None)
    return out


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


IDS = torch.arange(2 * 40).reshape(2, 40) * 7 % 96


def logits_of(folder: Path) -> Tensor:
    with torch.no_grad():
        logits: Tensor = loaded(folder)(IDS).logits
    return logits


def relative_difference(first: Path, second: Path) -> float:
    expected, got = logits_of(first), logits_of(second)
    return float((got - expected).abs().max() / (expected.max() - expected.min()))


def greedy(folder: Path, prompt: Tensor) -> list[int]:
    """64 tokens with a KV cache."""
    ids = loaded(folder).generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
    tokens: list[int] = ids[0].tolist()
    return tokens


def trained(folder: Path, steps: int) -> PreTrainedModel:
    """Full training on one batch, deterministic."""
    model = loaded(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model


# ── a dense model as a mixture ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("experts", "chosen"), [(4, 2), (3, 1), (2, 2)])
def test_upcycling_keeps_the_function_for_any_router(
    name: str, experts: int, chosen: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    plan = planned(sources[name], experts=experts, experts_per_token=chosen)
    out = expanded(sources[name], tmp_path / "out", plan)
    assert json.loads((out / "config.json").read_text())["model_type"] in ("mixtral", "qwen3_moe")
    assert relative_difference(sources[name], out) < 1e-6
    assert OPERATORS["upcycle"].exact_for("experts", plan.before, plan.after)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_mixture_generates_what_the_dense_model_does(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    out = expanded(sources[name], tmp_path / "out", planned(sources[name], experts=4))
    assert greedy(out, IDS[:1, :8]) == greedy(sources[name], IDS[:1, :8])


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen3"])
def test_upcycling_goes_together_with_widths_and_layers(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(sources[name], experts=4, hidden=72, ffn=96, layers=5)
    out = expanded(sources[name], tmp_path / "out", plan)
    assert relative_difference(sources[name], out) < 1e-5
    first, second = (recipes_of(sources[name], plan)[_expert_name(name, e)] for e in (0, 1))
    assert first.shape == second.shape
    assert (first.new, second.new) == (False, True)


def _expert_name(family: str, expert: int) -> str:
    if family == "qwen3":
        return f"model.layers.0.mlp.experts.{expert}.up_proj.weight"
    return f"model.layers.0.block_sparse_moe.experts.{expert}.w3.weight"


def test_expert_zero_is_the_old_network_bit_for_bit(sources: dict[str, Path], tmp_path: Path) -> None:
    out = expanded(sources["llama"], tmp_path / "out", planned(sources["llama"], experts=2))
    before, after = load_file(sources["llama"] / "model.safetensors"), load_file(out / "model.safetensors")
    for old, new in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        for expert in (0, 1):
            grown = after[f"model.layers.2.block_sparse_moe.experts.{expert}.{new}.weight"]
            assert torch.equal(grown, before[f"model.layers.2.mlp.{old}.weight"])
    assert after["model.layers.2.block_sparse_moe.gate.weight"].std() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_equal_experts_are_no_twins_in_training(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """Tokens and weights differ between experts, so gradients do; the router learns from the second step on."""
    out = expanded(sources[name], tmp_path / "out", planned(sources[name], experts=4))
    model = loaded(out).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    mlp = model.model.layers[0].mlp
    gradients = mlp.experts.down_proj.grad  # (E, hidden, width)
    scale = gradients.norm(dim=(1, 2)).mean()
    for one in range(4):
        assert gradients[one].norm() > 0.01 * scale, "every expert is chosen by some token"
        for other in range(one):
            assert (gradients[one] - gradients[other]).norm() > 0.1 * scale
    assert mlp.gate.weight.grad.abs().max() < 1e-5 * scale, "equal experts: no choice is better"
    later = trained(out, 1)
    later.zero_grad()
    later(input_ids=IDS, labels=IDS).loss.backward()
    assert later.model.layers[0].mlp.gate.weight.grad.abs().max() > 1e-4 * scale


def test_drop_upcycling_draws_the_same_half_of_gate_up_and_down(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(sources["llama"], experts=3, operators=("drop-upcycle",))
    recipes = recipes_of(sources["llama"], plan)
    places = []
    for expert in range(3):
        start = f"model.layers.1.block_sparse_moe.experts.{expert}."
        axes = [recipes[f"{start}{name}.weight"].maps[axis] for name, axis in (("w1", 0), ("w3", 0), ("w2", 1))]
        assert axes[0] == axes[1] == axes[2]
        assert sum(run.count for run in axes[0] if run.fill is Fill.FREE) == 32
        places.append(axes[0])
    assert len(set(places)) == 3, "other halves in other experts"
    out = expanded(sources["llama"], tmp_path / "out", plan)
    assert relative_difference(sources["llama"], out) > 1e-3
    assert OPERATORS["drop-upcycle"].exact == "never"


def test_families_without_a_mixture_of_their_kind_are_refused(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    folder = jittered(Gemma2Config(**SIZES), tmp_path)
    with pytest.raises(EngineError, match="gemma2 model cannot be turned into a mixture"):
        planned(folder, experts=4)


def test_biases_that_experts_cannot_have_are_refused(tmp_path: Path) -> None:
    folder = jittered(LlamaConfig(**SIZES, mlp_bias=True), tmp_path / "source")
    with pytest.raises(EngineError) as refused:
        expanded(folder, tmp_path / "out", planned(folder, experts=4))
    assert refused.value.code in ("expansion.upcycle", "expansion.config")
    assert not (tmp_path / "out").exists()


# ── more experts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("copies", [2, 3])
def test_duplicated_experts_keep_the_function(name: str, copies: int, sources: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(sources[name], experts=4 * copies)
    assert (plan.after.experts_per_token, plan.operators) == (2 * copies, {"experts": "duplicate"})
    assert OPERATORS["duplicate"].exact_for("experts", plan.before, plan.after)
    assert relative_difference(sources[name], expanded(sources[name], tmp_path / "out", plan)) < 1e-5


def test_duplicated_experts_go_together_with_widths_and_layers(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(sources["mixtral"], experts=8, hidden=72, ffn=96, layers=4)
    assert relative_difference(sources["mixtral"], expanded(sources["mixtral"], tmp_path / "out", plan)) < 1e-5


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_copies_differ_by_noise_that_cancels_and_part_further_in_training(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    out = expanded(sources[name], tmp_path / "out", planned(sources[name], experts=8))
    before, after = loaded(sources[name]).model.layers[1].mlp.experts, loaded(out).model.layers[1].mlp.experts
    old, new = before.down_proj.detach(), after.down_proj.detach()
    torch.testing.assert_close((new[:4] + new[4:]) / 2, old, rtol=1e-5, atol=1e-6)
    noise = (new[4:] - new[:4]).norm() / 2 / old.norm()
    assert float(noise) == pytest.approx(10**-0.5, rel=0.1), "10 dB"
    assert torch.equal(after.gate_up_proj[:4], after.gate_up_proj[4:])
    experts = trained(out, 3).model.layers[1].mlp.experts
    moved = (experts.gate_up_proj[:4] - experts.gate_up_proj[4:]).norm() / experts.gate_up_proj[:4].norm()
    assert moved > 1e-3


def test_fewer_chosen_than_copies_is_not_called_exact(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(sources["mixtral"], experts=8, experts_per_token=2)
    assert not OPERATORS["duplicate"].exact_for("experts", plan.before, plan.after)
    assert relative_difference(sources["mixtral"], expanded(sources["mixtral"], tmp_path / "out", plan)) > 1e-3


def test_a_number_that_is_no_multiple_is_refused(sources: dict[str, Path]) -> None:
    layout = layout_of(sources["mixtral"])
    plan = ExpansionPlan(
        family="mixtral",
        before=layout.dims,
        after=replace(layout.dims, experts=6, experts_per_token=3),
        operators={Dim.EXPERT.value: "duplicate"},
    )
    with pytest.raises(EngineError, match="4 experts cannot become 6"):
        build_recipes(read_headers(sources["mixtral"]), layout, plan)
