"""A teacher in plans: counted, held where there is room, offered in other forms, and written into specs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planning import DEMO, LLAMA_3B, card, machine

from engine.advise.answers import answers_of
from engine.advise.approaches import find_approach
from engine.advise.compare import build_matrix
from engine.advise.devices import Devices, single_device
from engine.advise.fit import plan_of
from engine.advise.fixes import fixes_for
from engine.advise.plan import JobWish, build_spec
from engine.advise.spec_plan import appraise_spec, load_of_spec, plan_of_spec, workload_of
from engine.advise.taught import alone, bounds_with, caching_form, held_for, live_forms, with_teacher
from engine.errors import EngineError
from engine.estimate.cards import cpu_speed
from engine.estimate.data_shape import DataShape
from engine.estimate.estimate import Verdict
from engine.estimate.memory import allocated_bytes, memory_bounds, peak_of
from engine.estimate.speed import Rows, RunPlan, estimate_hours, estimate_tokens_per_second
from engine.estimate.workload import Method, OwnAnswers, TeacherHeld, Workload
from engine.hardware.machine import Machine
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_distillation import DistillationSection, Held
from engine.models.analyze import analyze
from engine.units import GIB

ROWS = str(Path(__file__).parents[2] / "assets" / "demo" / "finetune" / "train.jsonl")
STUDENT = analyze("llama-3.2-1b")
ANSWERS = answers_of({"model": "llama-3.2-1b", "goal": "smaller", "data": ROWS})


def place(gib: int) -> Machine:
    return machine(card(f"{gib} GB", gib))


def _on(gib: int) -> Devices:
    return single_device(place(gib))


def spec_with(**fields: object) -> JobSpec:
    return JobSpec(task=Task.LORA, distillation=DistillationSection(**fields))  # type: ignore[arg-type]


def test_the_recommended_way_to_a_smaller_model_is_the_next_larger_one_of_its_series() -> None:
    matrix = build_matrix(STUDENT, place(24), ANSWERS)
    row = next(row for row in matrix.rows if row.id == matrix.recommended)
    assert (row.id, row.runnable, row.verdict) == ("distillation", True, Verdict.FITS)
    assert "teacher llama-3.2-3b beside it" in row.settings


@pytest.mark.parametrize(
    ("gib", "task", "held"),
    [
        (80, Task.FULL, Held.RESIDENT),
        (24, Task.FULL, Held.RESIDENT),
        (16, Task.FULL, Held.NF4),
        (12, Task.FULL, Held.OFFLOADED),
        (8, Task.LORA, Held.NF4),
        (5, Task.QLORA, Held.OFFLOADED),
    ],
)
def test_every_weight_learns_where_it_fits_beside_the_teacher_else_an_adapter(gib: int, task: Task, held: Held) -> None:
    spec = build_spec(STUDENT, place(gib), ANSWERS, approach="distillation", wish=JobWish(force=True))
    section = spec.distillation
    assert (spec.task, section.held) == (task, held)
    assert section.teacher == "meta-llama/Llama-3.2-3B"
    assert (section.temperature, section.ce_weight) == (2.0, 0.5)
    plan = plan_of_spec(spec, STUDENT, place(gib))
    assert plan.approach.id == "distillation"
    assert plan.work.teacher is not None
    assert plan.work.method is (Method.FULL if task is Task.FULL else Method.ADAPTER)
    assert spec.prediction.memory_bytes_likely == pytest.approx(memory_bounds(plan.work)[1], rel=0.05)


def test_the_student_as_its_own_teacher_takes_no_second_model() -> None:
    spec = build_spec(STUDENT, place(8), ANSWERS.with_values(teacher="self"), approach="distillation")
    assert spec.task.trains_adapter
    assert (spec.distillation.teacher, spec.distillation.held) == ("self", Held.AUTO)
    work = workload_of(spec, STUDENT, place(8))
    assert work.teacher_held is TeacherHeld.SHARED
    beside = allocated_bytes(replace(work, teacher_held=TeacherHeld.RESIDENT))
    assert beside - allocated_bytes(work) == pytest.approx(2 * STUDENT.parameters, rel=0.01)


@pytest.mark.parametrize("gib", [80, 24, 8])
def test_a_model_that_teaches_itself_has_an_adapter_however_large_the_card(gib: int) -> None:
    answers = ANSWERS.with_values(teacher="self")
    spec = build_spec(STUDENT, place(gib), answers, approach="distillation")
    assert spec.task.trains_adapter
    matrix = build_matrix(STUDENT, place(gib), answers)
    row = matrix.row("distillation")
    assert matrix.recommended == row.id
    assert "taught by itself" in row.settings
    assert "larger teacher" not in f"{matrix.recommendation} {row.reason} {row.effective_capacity}"


def test_a_named_teacher_with_another_tokenizer_is_not_planned_without_a_word() -> None:
    answers = ANSWERS.with_values(teacher="qwen3-8b")
    assert "another tokenizer" in build_matrix(STUDENT, place(80), answers).row("distillation").impediment
    with pytest.raises(EngineError) as refused:
        build_spec(STUDENT, place(80), answers, approach="distillation")
    assert refused.value.code == "plan.no_teacher"
    assert "uld" in refused.value.what


def test_a_family_without_a_larger_model_needs_a_named_teacher() -> None:
    answers = answers_of({"model": "demo", "goal": "smaller"})
    matrix = build_matrix(DEMO, place(8), answers)
    row = next(row for row in matrix.rows if row.id == "distillation")
    assert not row.runnable
    assert matrix.recommended in ("lora", "qlora")
    with pytest.raises(EngineError) as refused:
        build_spec(DEMO, place(8), answers, approach="distillation")
    assert refused.value.code == "plan.no_teacher"
    assert "--teacher" in refused.value.next_step
    lost = build_matrix(DEMO, place(8), answers.with_values(teacher="/no/such/folder"))
    assert "cannot be read" in next(row for row in lost.rows if row.id == "distillation").not_runnable_reason


def test_a_named_folder_teaches_the_demo() -> None:
    teacher = str(Path(__file__).parents[2] / "assets" / "demo" / "model")
    answers = answers_of({"model": "demo", "goal": "smaller", "teacher": teacher})
    spec = build_spec(analyze("demo"), place(8), answers, approach="distillation")
    assert spec.distillation.teacher == teacher
    assert spec.training.learning_rate == pytest.approx(5e-4)


def test_auto_takes_the_truest_form_with_room_for_both() -> None:
    work = Workload(STUDENT, Method.ADAPTER, sequence=1024)
    needs = {held: bounds_with(work, LLAMA_3B, held)[2] for held in live_forms(_on(8))}
    order = (TeacherHeld.RESIDENT, TeacherHeld.PACKED, TeacherHeld.OFFLOADED)
    assert sorted(needs, key=needs.__getitem__, reverse=True) == list(order)
    for held in order:
        devices = replace(_on(8), free_bytes=round(needs[held]) + 1)
        assert held_for(work, LLAMA_3B, devices) is held
    assert held_for(work, LLAMA_3B, replace(_on(8), free_bytes=1)) is TeacherHeld.OFFLOADED


def test_a_teacher_that_leaves_its_logits_is_alone_on_the_card_then() -> None:
    work, large = Workload(STUDENT, Method.ADAPTER, sequence=1024), analyze("llama-3.1-8b")
    assert caching_form(work, large, _on(24)) is TeacherHeld.RESIDENT
    assert caching_form(work, large, _on(12)) is TeacherHeld.PACKED
    assert caching_form(work, large, _on(4)) is TeacherHeld.OFFLOADED
    least = memory_bounds(alone(work, large, TeacherHeld.OFFLOADED))
    assert least[2] < memory_bounds(alone(work, large, TeacherHeld.PACKED))[2]


def test_an_estimate_counts_memory_disk_download_and_time_of_the_teacher() -> None:
    here, data = place(24), DataShape((1e6, 1e6, 1e6), trained_share=0.25)
    found = {}
    for held in (Held.RESIDENT, Held.CACHED):
        spec = spec_with(teacher="llama-3.2-3b", held=held, top_k=100)
        load = load_of_spec(spec, STUDENT, here, 0.0, data=data)
        found[held] = appraise_spec(spec, STUDENT, here, load, trained_share=0.25)
        assert load.download_bytes == 2 * STUDENT.parameters + 2 * analyze("llama-3.2-3b").parameters
    parts = {held: {part.name: part.amount for part in one.memory.breakdown} for held, one in found.items()}
    assert parts[Held.RESIDENT]["teacher"] == pytest.approx(2 * analyze("llama-3.2-3b").parameters)
    assert parts[Held.CACHED]["teacher"] == 0
    disk = {held: {part.name: part.amount for part in one.disk.breakdown} for held, one in found.items()}
    assert disk[Held.CACHED]["teacher's logits"] == pytest.approx(0.25e6 * (6 * 100 + 48))
    assert "teacher's logits" not in disk[Held.RESIDENT]
    hours = {held: {part.name: part.amount for part in one.hours.breakdown} for held, one in found.items()}
    assert hours[Held.CACHED]["training"] < hours[Held.RESIDENT]["training"]
    assert hours[Held.CACHED]["teacher's logits"] > 0


@pytest.mark.parametrize(
    ("section", "offered"),
    [
        ({"held": Held.RESIDENT}, {"nf4", "cached"}),
        ({"held": Held.NF4}, {"offloaded", "cached"}),
        ({"held": Held.NF4, "on_policy": 0.5}, {"offloaded"}),
        ({"held": Held.CACHED}, set()),
    ],
)
def test_other_forms_of_the_teacher_are_ways_out(section: dict[str, object], offered: set[str]) -> None:
    spec = spec_with(teacher="llama-3.1-8b", **section)
    needed = memory_bounds(workload_of(spec, STUDENT, place(24)))
    tight = machine(card("x", 24, free_gib=needed[0] * 0.95 / GIB))
    found = appraise_spec(spec, STUDENT, tight, load_of_spec(spec, STUDENT, tight, 1e6))
    assert found.verdict is Verdict.NO
    edits = {edit[1] for fix in fixes_for(found) for edit in fix.edits if edit[0] == "distillation.held"}
    assert edits <= offered
    assert bool(edits) == bool(offered)


def test_a_loss_with_a_teacher_never_holds_all_logits() -> None:
    work = Workload(STUDENT, Method.ADAPTER, batch=8, sequence=4096)
    taught = with_teacher(work, LLAMA_3B, TeacherHeld.SHARED)
    per_token = (allocated_bytes(replace(taught, batch=16)) - allocated_bytes(taught)) / (8 * 4096)
    assert per_token < (allocated_bytes(replace(work, batch=16)) - allocated_bytes(work)) / (8 * 4096)


def test_a_plan_for_a_teacher_names_the_smallest_pair_where_none_fits() -> None:
    plan = plan_of(find_approach("distillation"), analyze("llama-3.1-8b"), place(4), ANSWERS)
    assert plan.work.packed
    assert plan.work.teacher_held is TeacherHeld.OFFLOADED
    assert plan.memory_verdict is Verdict.NO


def test_the_question_about_the_teacher_names_the_next_larger_model_or_says_that_there_is_none() -> None:
    from engine.advise.option_state import OptionContext, option_states
    from engine.advise.questions import load_graph

    question = load_graph().question("teacher")
    assert question not in load_graph().visible({"goal": "style"})
    assert question in load_graph().visible({"goal": "smaller"})
    known = option_states(question, ANSWERS, OptionContext(place(24), STUDENT))[0]
    assert (known.enabled, known.effect) == (True, "llama-3.2-3b, 3.21B parameters")
    unknown = option_states(question, ANSWERS, OptionContext(place(24), DEMO))[0]
    assert not unknown.enabled
    assert "has to be named" in unknown.reason


def test_a_teacher_that_is_typed_is_an_absolute_folder_or_refused(tmp_path: Path) -> None:
    from scaler_tui.data_file import existing_teacher

    assert existing_teacher("self") == "self"
    assert existing_teacher("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    with pytest.raises(EngineError, match="There is no model in"):
        existing_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert existing_teacher(f"{tmp_path}/../{tmp_path.name}").endswith(tmp_path.name)


def test_own_answers_take_time_and_memory_in_the_estimate() -> None:
    data = DataShape((1e6,) * 3, trained_share=0.25, width=400, row_tokens=200.0)

    def figures(share: float) -> tuple[float, float, float]:
        asked = spec_with(teacher="self", **({"on_policy": share, "rollout_tokens": 512} if share else {}))
        load = load_of_spec(asked, STUDENT, place(24), 0.0, data=data)
        found = appraise_spec(asked, STUDENT, place(24), load)
        written = {part.name: part.amount for part in found.hours.breakdown}.get("own answers", 0.0)
        assert written == pytest.approx(found.hours.likely - plain_hours if share else 0.0)
        return found.memory.likely, found.hours.likely, found.hours.high

    plain_hours = 0.0
    plain = figures(0.0)
    plain_hours = plain[1]
    half, all_of_them = figures(0.5), figures(1.0)
    assert all_of_them[1] - plain[1] == pytest.approx(2 * (half[1] - plain[1]))
    assert all_of_them[2] - plain[2] > all_of_them[1] - plain[1] > 0


def test_many_long_answers_at_once_can_be_the_peak() -> None:
    work = with_teacher(Workload(STUDENT, batch=1, sequence=4096, accumulation=32), STUDENT, TeacherHeld.SHARED)
    written = replace(work, own_answers=OwnAnswers(0.1, 1024))
    peak = peak_of(written)
    assert peak.phase == "writing"
    cache = 2 * STUDENT.layers * STUDENT.key_value_heads * STUDENT.head_dim * 2 * 32 * 4096
    assert cache < peak.activations < 4 * cache
    assert peak.allocated > allocated_bytes(work)


def test_own_answers_of_the_bench_take_the_share_of_the_time_that_they_took() -> None:
    """Three runs of bench/teacher on two cores: 144 steps of 4 rows, half of them on own answers of 8 tokens each;
    writing took 0.73 to 0.81 of what all the rest of the training did."""
    demo, here = analyze("demo"), cpu_speed(machine(cores=2))
    plain = Workload(demo, batch=4, sequence=256, rank=8, masked=True, compute_bytes=4, checkpointing=False)
    work = with_teacher(plain, demo, TeacherHeld.RESIDENT)
    work = replace(work, own_answers=OwnAnswers(0.5, 24))
    run = RunPlan(tokens=16_050, width=34, rows=Rows(28.0, 8.3))
    parts = {part.name: part.amount for part in estimate_hours(work, here, run).breakdown}
    assert 0.5 < parts["own answers"] / parts["training"] < 1.2
    rate = [estimate_tokens_per_second(one, here, width=34, rows=run.rows).likely for one in (work, plain)]
    assert rate[0] < 0.75 * rate[1]


def test_without_the_library_for_4_bits_no_teacher_is_held_in_them() -> None:
    """A teacher of 3B would be held in 4 bits beside whole weights on 16 GB, and beside an adapter on 8 GB."""
    bare = replace(place(16), simulated=False, libraries={"bitsandbytes": None})
    spec = build_spec(STUDENT, bare, ANSWERS, approach="distillation", wish=JobWish(force=True))
    assert spec.distillation.held is Held.OFFLOADED
    work = Workload(STUDENT, sequence=512)
    assert held_for(work, LLAMA_3B, _on(8)) is TeacherHeld.PACKED
    assert held_for(work, LLAMA_3B, replace(_on(8), packs=False)) is TeacherHeld.OFFLOADED
    asked = spec_with(teacher="llama-3.2-3b", held=Held.NF4)
    found = appraise_spec(asked, STUDENT, bare, load_of_spec(asked, STUDENT, bare, 1e6))
    assert found.verdict is Verdict.NO
    assert "bitsandbytes" in found.judgement.reason
    resident = spec_with(teacher="llama-3.2-3b", held=Held.RESIDENT)
    ways = fixes_for(appraise_spec(resident, STUDENT, bare, load_of_spec(resident, STUDENT, bare, 1e6)))
    assert "nf4" not in {value for way in ways for key, value in way.edits if key == "distillation.held"}
