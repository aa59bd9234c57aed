"""The probe against the run that follows it, and without weights: real steps on this machine's processor.

Memory is compared as it is. Speed is compared per second of processor time: the tokens that a core gets through in a
second depend less on who else wants the cores, while wall-clock speed on a shared machine changes twofold within a
minute. Caches are shared all the same (up to 20 % seen), so the job is probed before and after the run, which must come
within 10 % of the span of both. Where all three had the same share of the cores, wall-clock speed is compared as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from engine.advise.calibrated import RESIDENT_CREEP, calibration_of
from engine.advise.probe import ProbeReport, probe
from engine.errors import EngineError
from engine.estimate.estimate import Origin
from engine.hardware.detect import detect
from engine.jobs import events as ev
from engine.jobs.probes import load_probes
from engine.jobs.scores import read_scores
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import SELF, DistillationSection, Held
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model
from engine.units import GIB
from scaler_tui.demo import demo_spec
from scaler_tui.preflight import check
from tests.train.conftest import Finished, RunWorker, SpecMaker

QUIET_CORES = 0.05
"""Cores that this process got on both sides, apart by no more than this share: nobody was in the way."""


def probe_of(spec: JobSpec, seconds: float, said: list[str] | None = None, *, force: bool = False) -> ProbeReport:
    ref = resolve_model(spec.model.source)
    progress = None if said is None else said.append
    return probe(
        spec,
        analyze_model(ref),
        ref,
        detect(),
        budget_seconds=seconds,
        force=force,
        progress=progress,
        memory_cap_bytes=4 * GIB,
    )


@dataclass(frozen=True)
class Speed:
    """Of the training steps of a run, warm-up left out."""

    tokens_per_second: float
    cores: float

    @property
    def per_cpu_second(self) -> float:
        return self.tokens_per_second / self.cores


def speed_of(finished: Finished) -> Speed:
    steps = finished.of(ev.Step)[2:]
    phase, shares = "", []
    for event in finished.events:
        if isinstance(event, ev.Phase):
            phase = event.name
        elif isinstance(event, ev.Step):
            phase = "training"
        elif isinstance(event, ev.Meter) and phase == "training" and event.cpu_percent:
            shares.append(event.cpu_percent / 100)
    rate = sum(step.tokens for step in steps) / sum(step.step_seconds for step in steps)
    return Speed(rate, sum(shares) / len(shares))


def shortened(spec: JobSpec) -> JobSpec:
    """The same job with as many steps as its speed takes to be seen."""
    training = msgspec.structs.replace(spec.training, max_steps=40)
    return msgspec.structs.replace(spec, training=training)


@pytest.mark.slow
@pytest.mark.alone
def test_the_run_after_a_probe_takes_the_memory_and_the_time_that_the_probe_measured(run_worker: RunWorker) -> None:
    job = shortened(demo_spec())
    report = probe_of(job, 40)
    promised = check(job, base=Path.cwd(), force=False).spec
    assert promised.prediction.origin == "probe"
    finished = run_worker(promised, timeout_seconds=900)
    assert finished.end.outcome == "finished"

    (score,) = read_scores().scores
    assert score.outcome == "finished"
    assert abs(report.memory.likely / score.process.measured - 1) < 0.05
    assert report.memory.low <= score.process.measured <= report.memory.high
    assert score.process.inside
    assert abs(score.process.error) < 0.05

    run = speed_of(finished)
    again = probe_of(job, 25, force=True)  # a shared machine's pace drifts: the run lies between two probes
    shapes = [report.record.answer.shapes[0], again.record.answer.shapes[0]]
    if report.record.answer.on_cpu:
        rates, measured = [shape.tokens_per_cpu_second for shape in shapes], run.per_cpu_second
    else:
        rates, measured = [shape.tokens_per_second for shape in shapes], run.tokens_per_second
    assert 0.90 * min(rates) <= measured <= 1.10 * max(rates)
    cores = [shape.tokens_per_second / max(shape.tokens_per_cpu_second, 1.0) for shape in shapes]
    if all(abs(share / run.cores - 1) < QUIET_CORES for share in cores):
        promises = [one.tokens_per_second.likely for one in (report, again)]
        assert 0.90 * min(promises) <= score.tokens_per_second.measured <= 1.10 * max(promises)
    after = calibration_of(detect())
    assert after is not None
    assert after.origin is Origin.MEASURED


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["demo", SELF])
def test_the_run_after_a_probe_with_a_teacher_takes_the_memory_that_the_probe_measured(
    teacher: str, run_worker: RunWorker
) -> None:
    plain = msgspec.structs.replace(demo_spec(), training=msgspec.structs.replace(demo_spec().training, max_steps=12))
    taught = msgspec.structs.replace(
        plain, distillation=DistillationSection(teacher=teacher, held=Held.AUTO if teacher == SELF else Held.RESIDENT)
    )
    said: list[str] = []
    report = probe_of(taught, 12, said)
    assert "loading the teacher" in said
    assert run_worker(taught, timeout_seconds=900).end.outcome == "finished"
    (score,) = read_scores().scores
    assert abs(report.memory.likely / score.process.measured - 1) < 0.06


@pytest.mark.slow
def test_a_probe_measures_two_lengths_evaluation_and_the_largest_batch_and_is_kept(make_spec: SpecMaker) -> None:
    spec = make_spec(training={"gradient_checkpointing": True})
    said: list[str] = []
    report = probe_of(spec, 8, said)
    answer = report.record.answer
    assert [shape.sequence for shape in answer.shapes] == [64, 32]
    assert all(shape.tokens_per_second > 0 and shape.steps >= 2 for shape in answer.shapes)
    assert answer.real_data
    assert answer.depths == ()
    assert answer.evaluation_tokens_per_second > 0
    assert answer.generated_tokens_per_second > 0
    assert 0 < answer.context_bytes < answer.shapes[0].process_bytes
    assert report.memory.origin is Origin.PROBE
    assert sum(part.amount for part in report.memory.breakdown) == pytest.approx(report.memory.likely)
    assert report.memory.likely == pytest.approx(RESIDENT_CREEP * answer.shapes[0].process_bytes)
    largest = answer.largest
    assert largest is not None
    assert largest.kind == "batch"
    assert 2 <= largest.tried <= largest.value
    assert largest.free_bytes == 4 * GIB or not answer.on_cpu
    assert any("training steps" in line for line in said)

    again: list[str] = []
    assert probe_of(spec, 8, again).record == report.record
    assert again == [], "the same job on the same machine is not measured twice"
    assert len(load_probes()[0]) == 1


@pytest.mark.slow
def test_a_model_without_weights_is_tried_with_few_layers_and_carried_on(tmp_path: Path) -> None:
    folder = tmp_path / "shape-only"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4096, "hidden_size": 256,
        "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    spec = msgspec.convert(
        {
            "task": "qlora",
            "model": {"source": str(folder)},
            "data": {"max_length": 128},
            "adapter": {"rank": 8},
            "training": {"batch_size": 2},
            "evaluation": {"max_new_tokens": 4},
        },
        JobSpec,
    )
    report = probe_of(spec, 12)
    answer = report.record.answer
    assert answer.depths == (2, 4)
    assert not answer.real_data
    assert any("2 and 4 of 12 layers" in note for note in answer.notes)
    assert report.tokens_per_second.likely > 0
    assert report.memory.likely > answer.context_bytes


@pytest.mark.slow
def test_a_probe_refuses_what_a_run_would_refuse(make_spec: SpecMaker) -> None:
    spec = make_spec(adapter={"targets": ["no_such_module"]})
    with pytest.raises(EngineError) as caught:
        probe_of(spec, 5)
    assert caught.value.code == "train.unknown_target"
    assert "no_such_module" in caught.value.what
    assert load_probes() == ((), ())
