"""The dry run is the oracle: the formula is held to it on a grid of jobs, and it is held to real steps on a CPU."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.estimate.rehearsal import Rehearsal
from engine.estimate.stacks import HF, OURS
from engine.estimate.workload import Purpose
from engine.rehearsal import build
from engine.rehearsal.dry_run import dry_run
from engine.rehearsal.orders import Order
from engine.rehearsal.trial import Trial
from engine.units import MIB
from tests.support.live_bytes import watch
from tests.support.rehearsal_grid import (
    FAMILIES,
    FIRST_FAMILIES,
    LATER_FAMILIES,
    METHODS,
    SEQUENCES,
    VOCABULARIES,
    Outcome,
    compare,
    explained,
    grid,
    rarer_grid,
    table,
)

Half = Callable[[list[Any]], list[Any]]
SEED = 20_261_126
WORKERS = 2
FORMULA_BOUND = 0.02
ROUGHER = {"dora": 0.12, "dropout": 0.03}
"""DoRA on 4-bit layers without checkpoints is the rough one. Dropout has no real step below: a CPU keeps its masks in
the type of the input, a card (and with it the dry run and the formula) in one byte each."""
ROUGHER_FAMILIES = {"starcoder2": 0.05, "cohere": 0.08}
"""Families with a job in which the formula says more than the dry run; their other jobs keep to the bound."""
EXTRAPOLATION_BOUND = 0.005
REAL_BOUND = 0.03

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4099,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


# ── the formula against the dry run ───────────────────────────────────────────────────────────────────────────────
def compared(trials: list[Any]) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")  # torch has threads, which a fork would lose
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        return list(pool.map(compare, trials, chunksize=1))


def worst(outcomes: list[Outcome], count: int = 5) -> str:
    return "\n".join(explained(one) for one in sorted(outcomes, key=lambda one: -abs(one.error))[:count])


def test_the_grid_covers_what_it_is_for() -> None:
    trials = grid(SEED)
    assert len(trials) >= 200
    assert {trial.family for trial in trials} == set(FAMILIES)
    assert {(trial.family, trial.method) for trial in trials} == {(f, m) for f in FAMILIES for m in METHODS}
    assert {trial.config["vocab_size"] for trial in trials} == set(VOCABULARIES)
    settings = [trial.settings for trial in trials]
    assert {one["sequence"] for one in settings} == set(SEQUENCES)
    for name in ("checkpointing", "masked"):
        assert {one[name] for one in settings} == {False, True}
    assert {one["compute_bytes"] for one in settings} == {2, 4}
    assert {one["stack"].id for one in settings} == {OURS.id, HF.id}
    assert sum(one.get("purpose") is Purpose.EVALUATE for one in settings) >= 5
    assert [trial.words for trial in grid(SEED)] == [trial.words for trial in trials], "a seed gives one grid"


def turns(trials: list[Any]) -> list[list[Any]]:
    """A grid by turns: in each, every one of the first or of the later families has one job, the next method's."""
    after_first = len(trials) - len(LATER_FAMILIES) * len(METHODS)
    parts = ((trials[:after_first], len(FIRST_FAMILIES)), (trials[after_first:], len(LATER_FAMILIES)))
    return [part[start : start + size] for part, size in parts for start in range(0, len(part), size)]


def in_every_change(trials: list[Any]) -> list[Any]:
    """The turns 1, 3, 5 and 7 of the first families and of the later ones."""
    found = turns(trials)
    return [trial for turn in (*found[:7:2], *found[-7::2]) for trial in turn]


def the_rest(trials: list[Any]) -> list[Any]:
    """All others; with those, each family meets each method."""
    found = turns(trials)
    return [trial for turn in (*found[1:7:2], *found[7:-7], *found[-6::2]) for trial in turn]


HALVES: dict[str, Half] = {"each family with four methods": in_every_change, "the rest": the_rest}


def test_the_halves_are_the_grid_and_the_first_has_each_family_with_four_methods_and_each_method() -> None:
    trials = grid(SEED)
    first, rest = (half(trials) for half in HALVES.values())
    assert sorted(trial.words for trial in (*first, *rest)) == sorted(trial.words for trial in trials)
    pairs = {(trial.family, trial.method) for trial in first}
    assert [sum(pair[0] == family for pair in pairs) for family in FAMILIES] == [4] * len(FAMILIES)
    assert all(sum(pair[1] == method for pair in pairs) >= 8 for method in METHODS)
    assert {(trial.family, trial.method) for trial in trials} == {(f, m) for f in FAMILIES for m in METHODS}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "half",
    [HALVES["each family with four methods"], pytest.param(HALVES["the rest"], marks=pytest.mark.exhaustive)],
    ids=HALVES,
)
def test_the_formula_is_within_two_percent_of_the_dry_run_on_the_whole_grid(half: Half) -> None:
    outcomes = compared(half(grid(SEED)))
    print(f"\n{table(outcomes, lambda one: one.trial.family)}\n{table(outcomes, lambda one: one.trial.method)}")
    print(f"the worst five:\n{worst(outcomes)}")
    misses = [one for one in outcomes if abs(one.error) > ROUGHER_FAMILIES.get(one.trial.family, FORMULA_BOUND)]
    assert not misses, f"{len(misses)} of {len(outcomes)} are off:\n{worst(misses, len(misses))}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_formula_knows_the_rarer_options() -> None:
    outcomes = compared(rarer_grid(SEED))
    print(f"\n{table(outcomes, lambda one: one.trial.option)}\nthe worst five:\n{worst(outcomes)}")
    misses = [one for one in outcomes if abs(one.error) > ROUGHER.get(one.trial.option, FORMULA_BOUND)]
    assert not misses, f"{len(misses)} of {len(outcomes)} are off:\n{worst(misses, len(misses))}"


# ── two depths against the whole ──────────────────────────────────────────────────────────────────────────────────
DEEP = {
    "llama": Rehearsal(config={**LLAMA, "num_hidden_layers": 10}, quantization="nf4", sequence=512, masked=True),
    "llama without checkpoints": Rehearsal(
        config={**LLAMA, "num_hidden_layers": 10}, checkpointing=False, accumulation=2
    ),
    "full training": Rehearsal(config={**LLAMA, "num_hidden_layers": 8}, method="full", foreach=True),
    "a pattern of six": Rehearsal(
        config={**LLAMA, "model_type": "gemma3_text", "head_dim": 64, "num_hidden_layers": 30}, sequence=5000
    ),
    "every third block is new": Rehearsal(config={**LLAMA, "num_hidden_layers": 15}, method="new blocks", new_layers=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("rehearsal", DEEP.values(), ids=DEEP)
def test_two_shallow_models_tell_what_the_deep_one_takes(rehearsal: Rehearsal) -> None:
    carried, whole = dry_run(rehearsal), dry_run(rehearsal, full_depth=True)
    layers = rehearsal.config["num_hidden_layers"]
    assert carried.depths[-1] < layers
    assert whole.depths == (layers,)
    assert carried.total == pytest.approx(whole.total, rel=EXTRAPOLATION_BOUND)
    assert sum(carried.kinds.values()) == pytest.approx(carried.total, rel=1e-9)
    for kind, size in whole.kinds.items():
        assert carried.kinds.get(kind, 0.0) == pytest.approx(size, abs=EXTRAPOLATION_BOUND * whole.total)


# ── the dry run against real steps ────────────────────────────────────────────────────────────────────────────────
def real(**changes: Any) -> Rehearsal:
    plain: dict[str, Any] = {"compute_bytes": 4, "autocast": False, "batch": 4, "sequence": 512, "rank": 8}
    return Rehearsal(config={**LLAMA, **changes.pop("config", {})}, **plain | changes)


REAL = {
    "LoRA": real(),
    "LoRA without checkpoints": real(checkpointing=False),
    "QLoRA": real(quantization="nf4"),
    "QLoRA without checkpoints, one scale": real(quantization="nf4", double_quantization=False, checkpointing=False),
    "masked rows, accumulated": real(masked=True, accumulation=2),
    "full training": real(method="full", foreach=True),
    "new blocks": real(method="new blocks", new_layers=2),
    "a Trainer that keeps its output": real(selective_head=False, holds_output=True),
    "Qwen 3": real(config={"model_type": "qwen3", "head_dim": 64}, checkpointing=False),
    "Gemma 3": real(config={"model_type": "gemma3_text", "head_dim": 64}, masked=True),
    "DoRA": real(dora=True),
    "DoRA on packed weights": real(dora=True, quantization="nf4"),
    "embeddings learn beside the adapter": real(train_embeddings=True),
    "evaluation": real(evaluate=True, trained_share=0.5),
    "evaluation of every position": real(evaluate=True, selective_head=False),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Attention on the CPU takes scratch memory per thread, which no card does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("rehearsal", REAL.values(), ids=REAL)
@pytest.mark.usefixtures("one_thread")
def test_a_real_step_on_the_cpu_takes_what_the_dry_run_says(rehearsal: Rehearsal, tmp_path: Path) -> None:
    def built() -> tuple[Trial, dict[str, torch.Tensor]]:
        trial = Trial(Order(rehearsal=rehearsal), torch.device("cpu"))
        inputs = trial.inputs(rehearsal)
        trial.step(rehearsal, inputs)  # makes the optimizer's states
        return trial, inputs

    live = watch(built, lambda made: made[0].step(rehearsal, made[1]), tmp_path)
    followed = dry_run(rehearsal, full_depth=True)
    error = followed.total / live.peak - 1
    print(f"\nfollowed {followed.total / MIB:.2f} MiB, real {live.peak / MIB:.2f} MiB, {error:+.3%}")
    assert live.peak - live.at_start > 20 * MIB, "too small a job to tell"
    assert followed.total == pytest.approx(live.peak, rel=REAL_BOUND), live.blocks[:20]


# ── what the dry run relies on ────────────────────────────────────────────────────────────────────────────────────
def test_the_names_that_are_replaced_or_looked_at_still_exist() -> None:
    from transformers import masking_utils

    assert list(inspect.signature(masking_utils.find_packed_sequence_indices).parameters) == ["position_ids"]
    storage = torch.empty(1).untyped_storage()
    assert torch._C._storage_Use_Count(storage._cdata) >= 1
    assert torch.is_autocast_enabled("cpu") is False


def test_masks_and_autocast_are_put_back() -> None:
    from transformers import masking_utils

    before = (masking_utils.find_packed_sequence_indices, torch.is_autocast_enabled, torch.nn.functional.layer_norm)
    with build.masks(True), build.as_on_a_card():
        assert masking_utils.find_packed_sequence_indices is not before[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.is_autocast_enabled() is True
            wide = torch.nn.functional.layer_norm(torch.ones(2, 2, dtype=torch.bfloat16), (2,))
            assert wide.dtype is torch.float32
    after = (masking_utils.find_packed_sequence_indices, torch.is_autocast_enabled, torch.nn.functional.layer_norm)
    assert after == before


def test_a_masked_job_meets_a_mask_and_a_plain_one_none() -> None:
    plain = Rehearsal(config={**LLAMA, "num_hidden_layers": 2}, sequence=2048)
    masked = Rehearsal(config={**LLAMA, "num_hidden_layers": 2}, sequence=2048, masked=True)
    found = dry_run(masked, full_depth=True).total - dry_run(plain, full_depth=True).total
    assert found >= 2048 * 2048
