"""A spec as the formulas see it is what the worker does with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from planning import DEMO, LAPTOP, LLAMA_3B, card, machine

from engine.advise.answers import answers_of
from engine.advise.approaches import find_approach
from engine.advise.fit import plan_of
from engine.advise.overrides import Settings, plan_with, spec_with
from engine.advise.spec_plan import load_of_spec, memory_with_share, plan_of_spec, predict, workload_of
from engine.errors import EngineError
from engine.estimate.stacks import OURS
from engine.estimate.workload import Attention, DeviceKind, OptimizerKind, Packing4Bit
from engine.jobs.spec import AdapterSection, DataSection, Dtype, JobSpec, Optimizer, Task, TrainingSection

GPU = machine(card("RTX 4090", 24))


def spec(task: Task = Task.LORA, **sections: Any) -> JobSpec:
    return JobSpec(task=task, **sections)


def test_the_worker_keeps_frozen_weights_in_the_compute_type_and_the_head_selective() -> None:
    work = workload_of(spec(Task.QLORA), LLAMA_3B, GPU, trained_share=0.25)
    assert work.stack is OURS
    assert not work.stack.kbit_prepared
    assert (work.adapter_bytes, work.compute_bytes, work.trained_share) == (4, 2, 0.25)
    assert work.expandable_segments
    assert work.packing is Packing4Bit.NF4_DOUBLE


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (Optimizer.ADAMW, OptimizerKind.ADAMW),
        (Optimizer.ADAMW_8BIT, OptimizerKind.ADAMW_8BIT),
        (Optimizer.PAGED_ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT),
    ],
)
def test_every_optimizer_of_a_spec_is_its_own_kind(optimizer: Optimizer, kind: OptimizerKind) -> None:
    assert workload_of(spec(training=TrainingSection(optimizer=optimizer)), LLAMA_3B, GPU).optimizer is kind


@pytest.mark.parametrize(("packing", "rows", "masked"), [(True, 1, True), (False, 1, False), (False, 2, True)])
def test_a_mask_reaches_attention_where_rows_are_packed_or_padded(packing: bool, rows: int, masked: bool) -> None:
    asked = spec(data=DataSection(packing=packing), training=TrainingSection(batch_size=rows))
    assert workload_of(asked, LLAMA_3B, GPU).masked is masked


def test_dora_dropout_and_capped_scores_are_seen() -> None:
    work = workload_of(spec(adapter=AdapterSection(dora=True, dropout=0.1)), LLAMA_3B, GPU)
    assert (work.dora, work.dropout, work.attention) == (True, True, Attention.SDPA)
    assert workload_of(spec(), replace(LLAMA_3B, family="gemma2"), GPU).attention is Attention.EAGER


@pytest.mark.parametrize(("dtype", "gpu_bytes", "cpu_bytes"), [("auto", 2, 4), ("bfloat16", 2, 2), ("float32", 4, 4)])
def test_the_compute_type_follows_the_spec_then_the_device(dtype: str, gpu_bytes: int, cpu_bytes: int) -> None:
    asked = spec(training=TrainingSection(dtype=Dtype(dtype)))
    assert workload_of(asked, LLAMA_3B, GPU).compute_bytes == gpu_bytes
    on_cpu = workload_of(asked, LLAMA_3B, LAPTOP)
    assert (on_cpu.compute_bytes, on_cpu.device) == (cpu_bytes, DeviceKind.CPU)


def test_the_likely_figure_follows_the_tokens_that_carry_loss_and_the_upper_bound_does_not() -> None:
    plan = plan_of_spec(spec(data=DataSection(max_length=4096)), LLAMA_3B, GPU)
    every, few = memory_with_share(plan, 1.0), memory_with_share(plan, 0.1)
    assert few.likely < 0.95 * every.likely
    assert few.high >= every.high
    assert sum(part.amount for part in few.breakdown) == pytest.approx(few.likely)


def test_the_promise_of_a_spec_is_the_estimate_of_its_plan() -> None:
    asked = spec(training=TrainingSection(max_steps=100))
    promise = predict(asked, DEMO, LAPTOP, tokens_per_epoch=20_000)
    assert promise.memory_bytes_high == round(plan_of_spec(asked, DEMO, LAPTOP).bounds[2])
    longer = msgspec.structs.replace(asked, training=TrainingSection(max_steps=1000))
    assert predict(longer, DEMO, LAPTOP, tokens_per_epoch=20_000).seconds_likely > promise.seconds_likely
    assert load_of_spec(asked, DEMO, LAPTOP, 20_000).steps == 100


def test_settings_given_beside_a_plan_or_a_spec_are_put_in_and_held_to_their_limits() -> None:
    plan = plan_of(find_approach("lora"), LLAMA_3B, GPU, answers_of({"model": "llama-3.2-3b"}))
    given = plan_with(plan, Settings(sequence=512, batch=2, rank=4, quantization="nf4"))
    assert (given.work.sequence, given.work.batch, given.work.rank, given.work.packed) == (512, 2, 4, True)
    assert given.bounds != plan.bounds
    assert plan_with(plan, Settings()) is plan
    changed = spec_with(spec(), Settings(sequence=512, batch=2, rank=4, quantization="nf4"))
    assert (changed.data.max_length, changed.training.batch_size, changed.adapter.rank) == (512, 2, 4)
    assert changed.task is Task.QLORA
    with pytest.raises(EngineError, match="from 1 to 65,536"):
        plan_with(plan, Settings(rank=0))
    with pytest.raises(EngineError, match="from 1 to 1,024"):
        spec_with(spec(), Settings(rank=0))
    with pytest.raises(EngineError, match="cannot be trained themselves"):
        plan_with(plan_of(find_approach("full-expansion"), LLAMA_3B, GPU, answers_of()), Settings(quantization="nf4"))
