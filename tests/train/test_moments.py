"""Optimizer state grown with the weights: old coordinates go on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine.expansion.checks import Wish, plan_for
from engine.expansion.layouts import layout_for
from engine.expansion.maps import Fill, Run, first_copies, identity
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe, Source
from engine.expansion.recipes import build_recipes
from engine.models.headers import read_headers
from engine.surgery.expand import ExpandRequest, expand
from engine.surgery.moments import POWERS, Moments, grow_moment_files, grown_moment, grown_moments, keeps_moments

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "head_dim": 12,
}
IDS = torch.arange(2 * 40).reshape(2, 40) * 7 % 96
LEARNING_RATE = 1e-3
WEIGHTS = "model.safetensors"


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).train()


def optimizer_of(model: PreTrainedModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, eps=1e-12)


def step(model: PreTrainedModel, optimizer: torch.optim.AdamW, number: int) -> None:
    optimizer.zero_grad()
    model(input_ids=IDS.roll(number, dims=1), labels=IDS.roll(number, dims=1)).loss.backward()
    optimizer.step()


def moments_of(model: PreTrainedModel, optimizer: torch.optim.AdamW) -> dict[str, Moments]:
    return {
        name: Moments(
            {key: state[key].numpy() for key in POWERS if key in state},
            float(state["step"]),
        )
        for name, parameter in model.named_parameters()
        if (state := optimizer.state.get(parameter))
    }


def put(moments: dict[str, Moments], model: PreTrainedModel, optimizer: torch.optim.AdamW) -> None:
    for name, parameter in model.named_parameters():
        if name in moments:
            values = {key: torch.from_numpy(value).to(parameter.dtype) for key, value in moments[name].values.items()}
            optimizer.state[parameter] = {**values, "step": torch.tensor(moments[name].step)}


def trained(folder: Path, *, tied: bool) -> tuple[PreTrainedModel, torch.optim.AdamW]:
    """A jittered Llama after five steps; its weights are saved in `folder`."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=tied)).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    optimizer = optimizer_of(model)
    for number in range(5):
        step(model, optimizer, number)
    model.float().save_pretrained(folder)  # what is grown is what both go on from
    return model.double(), optimizer


def plan_of(folder: Path, wish: dict[str, Any]) -> ExpansionPlan:
    config = json.loads((folder / "config.json").read_text())
    return plan_for(layout_for(config, folder.name), Wish(**wish), config).plan


def recipes_of(folder: Path, plan: ExpansionPlan) -> tuple[Recipe, ...]:
    config = json.loads((folder / "config.json").read_text())
    return build_recipes(read_headers(folder), layout_for(config, folder.name), plan)


def old_part(recipe: Recipe, values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The old coordinates of a grown tensor, where they were."""
    result = np.zeros(shape)
    blocks: list[tuple[tuple[slice, ...], tuple[slice, ...]]] = [((), ())]
    for axis in recipe.maps:
        blocks = [
            ((*new, slice(begin, begin + count)), (*old, slice(start, start + count)))
            for new, old in blocks
            for begin, start, count, _ in first_copies(axis)
        ]
    for new, old in blocks:
        result[old] = values[new]
    return result


GROWTHS = {
    "ffn": {"ffn": 96},
    "depth": {"layers": 5},
    "hidden": {"hidden": 72},
    "heads": {"heads": 6},
    "hybrid": {"hidden": 72, "ffn": 96, "layers": 4, "heads": 6},
    "equal tiling": {"hidden": 96, "ffn": 128, "operators": ("tile-plain",)},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("growth", GROWTHS)
def test_the_next_step_moves_old_coordinates_as_it_would_have(growth: str, tied: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    small, small_optimizer = trained(source, tied=tied)
    plan = plan_of(source, GROWTHS[growth])
    expand(ExpandRequest(source, tmp_path / "out", plan, proof=False), lambda _: None)
    large = loaded(tmp_path / "out")
    recipes = {recipe.name: recipe for recipe in recipes_of(source, plan)}
    moments = grown_moments(recipes.values(), moments_of(small, small_optimizer))
    large_optimizer = optimizer_of(large)
    put(moments, large, large_optimizer)
    before = {name: value.detach().clone() for name, value in small.named_parameters()}
    grown_before = {name: value.detach().clone() for name, value in large.named_parameters()}
    step(small, small_optimizer, 5)
    step(large, large_optimizer, 5)
    after, grown_after = dict(small.named_parameters()), dict(large.named_parameters())
    compared = 0
    for name, recipe in recipes.items():
        if recipe.new:
            assert name not in moments, "what is wholly new begins anew"
            continue
        old_name = recipe.sources[0].name
        moved = (after[old_name] - before[old_name]).detach().numpy()
        grown_moved = old_part(recipe, (grown_after[name] - grown_before[name]).detach().numpy(), moved.shape)
        assert np.abs(moved).max() > LEARNING_RATE / 10
        np.testing.assert_allclose(grown_moved, moved, atol=2e-3 * LEARNING_RATE, err_msg=name)
        compared += 1
    assert compared == len(before)


def test_without_moments_the_next_step_would_be_another(tmp_path: Path) -> None:
    """The claim above is about the moments: growing the weights alone gives another step."""
    source = tmp_path / "source"
    small, small_optimizer = trained(source, tied=False)
    expand(ExpandRequest(source, tmp_path / "out", plan_of(source, {"ffn": 96}), proof=False), lambda _: None)
    large = loaded(tmp_path / "out")
    large_optimizer = optimizer_of(large)
    name = "model.layers.1.self_attn.q_proj.weight"
    steps = []
    for model, optimizer in ((small, small_optimizer), (large, large_optimizer)):
        start = dict(model.named_parameters())[name].detach().clone()
        step(model, optimizer, 5)
        steps.append((dict(model.named_parameters())[name] - start).detach())
    assert (steps[0] - steps[1]).abs().max() > LEARNING_RATE / 10


def test_new_coordinates_begin_at_zero_and_counters_go_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small, optimizer = trained(source, tied=False)
    recipes = recipes_of(source, plan_of(source, {"ffn": 96}))
    name = "model.layers.0.mlp.up_proj.weight"
    grown = grown_moments(recipes, moments_of(small, optimizer))[name]
    assert grown.step == 5.0
    for value in grown.values.values():
        assert value.shape == (96, 48)
        assert value.dtype == np.float32
        assert np.all(value[64:] == 0)
        assert np.any(value[:64] != 0)


def test_a_scaled_parameter_has_its_moments_scaled_back() -> None:
    old = np.arange(6.0).reshape(2, 3)
    recipe = Recipe("w", (2, 3), "F32", (Source("w"),), (identity(2), (Run(Fill.COPY, 3, scale=0.5),)), scale=4.0)
    np.testing.assert_allclose(grown_moment(recipe, old, 1), old / 2)
    np.testing.assert_allclose(grown_moment(recipe, old, 2), old / 4)


def test_copies_share_the_gradient_and_only_the_first_keeps_moments() -> None:
    old = np.arange(1.0, 7.0).reshape(2, 3)
    produced = (Run(Fill.COPY, 2), Run(Fill.COPY, 2, new=True))
    consumed = (Run(Fill.COPY, 3, scale=0.5), Run(Fill.COPY, 3, scale=0.5, new=True))
    grown = grown_moment(Recipe("w", (4, 6), "F32", (Source("w"),), (produced, consumed)), old, 1)
    np.testing.assert_allclose(grown[:2, :3], old / 2)
    assert np.all(grown[2:] == 0)
    assert np.all(grown[:, 3:] == 0)


def test_heads_moved_apart_take_their_moments_along() -> None:
    groups = (Run(Fill.COPY, 2), Run(Fill.FREE, 1, new=True), Run(Fill.COPY, 2, 2), Run(Fill.FREE, 1, new=True))
    recipe = Recipe("q", (6,), "F32", (Source("q"),), (groups,))
    np.testing.assert_allclose(grown_moment(recipe, np.array([1.0, 2, 3, 4]), 1), [1, 2, 0, 3, 4, 0])


def test_moments_in_files_grow_like_moments_in_memory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small, optimizer = trained(source, tied=True)
    before = moments_of(small, optimizer)
    recipes = recipes_of(source, plan_of(source, GROWTHS["hybrid"]))
    expected = grown_moments(recipes, before)
    for kind in ("exp_avg", "exp_avg_sq"):
        old, new = tmp_path / f"{kind}-before", tmp_path / f"{kind}-after"
        old.mkdir()
        new.mkdir()
        save_file({name: moments.values[kind].astype(np.float32) for name, moments in before.items()}, old / WEIGHTS)
        assert set(grow_moment_files(old, new, recipes, POWERS[kind])) == set(expected)
        for name, value in load_file(new / WEIGHTS).items():
            np.testing.assert_allclose(value, expected[name].values[kind], rtol=1e-5, atol=1e-30, err_msg=name)


def test_what_was_never_trained_or_is_new_has_no_moments() -> None:
    plain = Recipe("w", (2,), "F32", (Source("w"),), (identity(2),))
    closed = Recipe("c", (2,), "F32", (), (identity(2),), constant=0.0, new=True)
    made = Recipe("m", (2,), "F32", (Source("w", made=True),), (identity(2),), new=True)
    assert [keeps_moments(recipe) for recipe in (plain, closed, made)] == [True, False, False]
    assert grown_moments([plain, closed, made], {}) == {}
    grown = grown_moments([plain, closed, made], {"w": Moments({"exp_avg": np.ones(2)}, 7)})
    assert list(grown) == ["w"]
