"""What was measured here moves later estimates towards it, narrows them, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from engine.advise.calibrated import RESIDENT_CREEP, calibration_of, evidence_of
from engine.advise.spec_plan import predict
from engine.estimate.estimate import Origin
from engine.estimate.memory import allocated_bytes, memory_bounds
from engine.estimate.workload import DeviceKind, Method, Workload
from engine.hardware.identity import Identity, identity_of
from engine.hardware.machine import Machine
from engine.jobs.probes import FormulaFigures, ProbeAnswer, ProbeRecord, Shape, load_probes, probes_dir, store_probe
from engine.jobs.scores import Promise, Score, append_score
from engine.jobs.spec import JobSpec
from engine.models.analyze import analyze
from engine.units import GIB, MIB
from tests.unit.planning import card, machine, shape

CARD = machine(card())
CPU = machine(cores=2)


def work(*, on_cpu: bool = False, layers: int = 28, batch: int = 2) -> Workload:
    device = DeviceKind.CPU if on_cpu else DeviceKind.GPU
    return Workload(shape(layers=layers), Method.ADAPTER, batch=batch, sequence=1024, device=device)


def scored(
    run_id: str, machine: Machine, *, formula: float, process: float, speed: float = 1.0, allocated: float = 0.0,
    reserved: float = 0.0, context: float = 0.0, identity: Identity | None = None, model: str = "m",
    outcome: str = "finished",
) -> Score:  # fmt: skip
    return Score(
        run_id=run_id, t=1_790_000_000.0, machine=identity or identity_of(machine), outcome=outcome, model=model,
        workload="", origin="formula", on_cpu=not machine.gpus, process=Promise(likely=process, measured=process),
        allocated=Promise(likely=formula, measured=allocated), reserved=Promise(likely=formula, measured=reserved),
        tokens_per_second=Promise(likely=100.0, measured=100.0 * speed), context_bytes=context,
        formula_allocated_bytes=formula, formula_tokens_per_second=100.0,
    )  # fmt: skip


def probed(machine: Machine, *, formula: float, process: float, context: float, job: str = "j") -> ProbeRecord:
    own = Shape(
        batch=2, sequence=1024, tokens_per_step=2048, trained_share=1.0, process_bytes=process, tokens_per_second=120.0
    )
    answer = ProbeAnswer(device="d", on_cpu=not machine.gpus, context_bytes=context, workspace_bytes=0.0, shapes=(own,))
    figures = FormulaFigures(allocated_bytes=formula, tokens_per_second=100.0)
    return ProbeRecord(
        machine=identity_of(machine), t=1_790_000_000.0, model="m", job=job, answer=answer, formula=(figures,)
    )


def width(bounds: tuple[float, float, float]) -> float:
    return (bounds[2] - bounds[0]) / bounds[1]


def test_nothing_measured_nothing_corrected() -> None:
    assert calibration_of(CPU) is None


def test_a_card_learns_context_slack_and_allocated_from_a_run() -> None:
    job, context = work(), 600 * MIB
    formula = allocated_bytes(job)
    measured = 1.05 * formula
    reserved = 1.10 * measured
    run = scored("a", CARD, formula=formula, process=reserved + context, allocated=measured, reserved=reserved,
                 context=context)  # fmt: skip
    append_score(run)
    calibration = calibration_of(CARD)
    assert calibration is not None
    assert calibration.origin is Origin.MEASURED
    corrected = memory_bounds(job, calibration)
    assert corrected[1] == pytest.approx(reserved + context, rel=1e-6)
    assert width(corrected) < width(memory_bounds(job))


def test_a_processor_learns_the_libraries_from_a_small_job_and_the_slack_from_a_large_one() -> None:
    libraries, slack = 480 * MIB, 0.40
    small, large = work(on_cpu=True, layers=1, batch=1), work(on_cpu=True, layers=28, batch=8)
    for name, job in (("small", small), ("large", large)):
        formula = allocated_bytes(job)
        append_score(scored(name, CPU, formula=formula, process=libraries + formula * (1 + slack)))
    calibration = calibration_of(CPU)
    assert calibration is not None
    assert calibration.slack is not None
    assert calibration.slack.likely == pytest.approx(slack, abs=0.04)
    between = work(on_cpu=True, layers=12, batch=4)
    truth = libraries + allocated_bytes(between) * (1 + slack)
    corrected = memory_bounds(between, calibration)
    assert corrected[0] <= truth <= corrected[2]
    assert abs(corrected[1] - truth) < abs(memory_bounds(between)[1] - truth)
    assert width(corrected) < width(memory_bounds(between))


def test_a_tiny_job_does_not_stretch_the_slack_of_large_ones() -> None:
    formula = 100 * MIB
    append_score(scored("tiny", CPU, formula=formula, process=900 * MIB))
    calibration = calibration_of(CPU)
    assert calibration is not None
    assert calibration.slack is not None
    assert calibration.slack.likely < 0.3  # 900 MiB of 100 would be a slack of 8
    assert calibration.context_bytes is not None
    assert calibration.context_bytes.likely > 700 * MIB


def test_a_probe_moves_the_next_promise_of_the_job_to_what_it_measured() -> None:
    formula = 150 * MIB
    store_probe(probed(CPU, formula=formula, process=680 * MIB, context=440 * MIB))
    calibration = calibration_of(CPU)
    assert calibration is not None
    assert calibration.origin is Origin.PROBE
    assert calibration.speed_factor is not None
    assert calibration.speed_factor.likely == pytest.approx(1.2)
    assert calibration.context_bytes is not None
    assert calibration.slack is not None
    promised = calibration.context_bytes.likely + formula * (1 + calibration.slack.likely)
    assert promised == pytest.approx(RESIDENT_CREEP * 680 * MIB, rel=0.02)


def test_the_promise_of_a_spec_uses_what_this_machine_showed() -> None:
    spec, architecture = JobSpec(), analyze("demo")
    plain = predict(spec, architecture, CPU, tokens_per_epoch=14_000)
    store_probe(probed(CPU, formula=150 * MIB, process=680 * MIB, context=440 * MIB))
    corrected = predict(spec, architecture, CPU, tokens_per_epoch=14_000)
    assert corrected.origin == "probe"
    assert plain.origin == "formula"
    assert corrected.tokens_per_second == pytest.approx(1.2 * plain.tokens_per_second, rel=0.01)


def test_other_libraries_other_drivers_and_simulated_machines_learn_nothing() -> None:
    own = identity_of(CPU)
    older = msgspec.structs.replace(own, versions={**own.versions, "torch": "2.5.0"})
    append_score(scored("old", CPU, formula=GIB, process=5 * GIB, identity=older))
    elsewhere = msgspec.structs.replace(own, device="Another CPU, 64 cores")
    append_score(scored("other", CPU, formula=GIB, process=5 * GIB, identity=elsewhere))
    assert calibration_of(CPU) is None
    append_score(scored("own", CPU, formula=GIB, process=2 * GIB))
    assert calibration_of(CPU) is not None
    assert calibration_of(replace(CPU, simulated=True)) is None


def test_a_run_that_ran_out_of_memory_teaches_nothing() -> None:
    append_score(scored("a", CPU, formula=GIB, process=9 * GIB, outcome="out of memory"))
    assert calibration_of(CPU) is None


def test_speed_of_one_model_stays_wide_and_of_two_is_as_wide_as_they_differ() -> None:
    append_score(scored("a", CPU, formula=GIB, process=2 * GIB, speed=0.8))
    one = calibration_of(CPU)
    assert one is not None
    assert one.speed_factor is not None
    assert one.speed_factor.high - one.speed_factor.low >= 0.2 * one.speed_factor.likely
    append_score(scored("b", CPU, formula=GIB, process=2 * GIB, speed=0.84, model="other"))
    two = calibration_of(CPU)
    assert two is not None
    assert two.speed_factor is not None
    assert two.speed_factor.likely == pytest.approx(0.82)
    assert two.speed_factor.high - two.speed_factor.low < one.speed_factor.high - one.speed_factor.low


def test_a_damaged_probe_is_set_aside_named_and_not_fatal() -> None:
    good = store_probe(probed(CPU, formula=150 * MIB, process=680 * MIB, context=440 * MIB))
    bad = probes_dir() / "ffff-aaaa.json"
    bad.write_bytes(good.read_bytes()[:200])
    evidence = evidence_of(CPU)
    assert len(evidence.probes) == 1
    assert evidence.calibration is not None
    assert any("ffff-aaaa.json.damaged" in note for note in evidence.notes)
    assert not bad.exists()
    assert (probes_dir() / "ffff-aaaa.json.damaged").exists()
    assert any("ffff-aaaa" in note for note in load_probes()[1]), "it is named again, not forgotten"


def test_a_new_probe_of_the_job_replaces_the_old_one() -> None:
    store_probe(probed(CPU, formula=150 * MIB, process=680 * MIB, context=440 * MIB))
    store_probe(probed(CPU, formula=150 * MIB, process=690 * MIB, context=440 * MIB))
    assert len(load_probes()[0]) == 1
