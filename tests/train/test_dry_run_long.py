"""What long sequences are trained with, held to the dry run: loss in pieces, offloaded inputs, norms and embeddings."""

from __future__ import annotations

from typing import Any

import pytest

from engine.estimate.stacks import OURS
from engine.estimate.workload import Loss, Packing4Bit
from engine.rehearsal import build
from tests.support.rehearsal_grid import Trial, compare, explained

BOUND = 0.03
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 16_003,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN: dict[str, Any] = {
    "batch": 1, "sequence": 16_384, "checkpointing": True, "masked": False, "trained_share": 1.0, "compute_bytes": 2,
    "stack": OURS, "rank": 8, "loss": Loss.CHUNKED,
}  # fmt: skip


def trial(**changes: Any) -> Trial:
    config = {**LLAMA, **changes.pop("config", {})}
    return Trial(config["model_type"], "lora", config, PLAIN | changes)


TRIALS = {
    "in pieces, inputs in host RAM": trial(offload_activations=True),
    "norms learn": trial(train_norms=True, packing=Packing4Bit.NF4_DOUBLE),
    "embeddings learn": trial(sequence=4096, train_embeddings=True),
    "everything at once": trial(
        config={"model_type": "qwen3", "head_dim": 64},
        train_norms=True,
        train_embeddings=True,
        offload_activations=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("one", TRIALS.values(), ids=TRIALS)
def test_the_formula_is_what_the_dry_run_follows(one: Trial) -> None:
    outcome = compare(one)
    print(f"\n{explained(outcome)}")
    assert abs(outcome.error) < BOUND, explained(outcome)


def test_the_name_that_is_replaced_for_host_memory_still_exists() -> None:
    from transformers import modeling_utils

    before = modeling_utils.save_on_cpu
    with build.host_memory():
        assert modeling_utils.save_on_cpu is not before
    assert modeling_utils.save_on_cpu is before


@pytest.mark.parametrize(("original", "target"), [(256, 1024), (8192, 32_768), (4096, 20_000), (131_072, 262_144)])
def test_measuring_is_planned_for_the_lengths_that_the_worker_measures(original: int, target: int) -> None:
    from engine.advise.context import DOCUMENTS, measured_lengths
    from engine.evaluation.length_measure import LengthRequest, default_lengths

    assert measured_lengths(original, target) == default_lengths(original, target)
    assert LengthRequest().documents == DOCUMENTS
