"""Large text in the wizard without a screen: sources and weights, typed stages, limits, the spec they end in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.faults import FaultCounts
from engine.corpus.report import Counted, SourceReport
from engine.errors import EngineError
from engine.jobs.spec import JobSpec, SourceSection, StageSection, Task
from engine.jobs.spec_growth import ExpansionSection
from engine.jobs.spec_toml import dump_spec, load_spec
from scaler_tui import limit_choices, stage_edits
from scaler_tui.text_plan import Checked, TextChoice, TextPlan, keep, kept
from tests.unit.test_hygiene import HEAVY, modules_after


def report_of(source: SourceSection, tokens: int, **more: object) -> SourceReport:
    """What the check of a good source says."""
    values = {
        "name": source.name, "path": source.path, "weight": 1.0, "files": 1, "documents": 100, "tokens": tokens,
        "text_bytes": tokens * 4, "kept": Counted(documents=98, tokens=tokens), "duplicates": Counted(),
        "near_duplicates": Counted(), "contaminated": Counted(), "heldout": Counted(documents=2, tokens=50),
        "faults": FaultCounts(), "exhausted": True, "shards": 1, "shards_made": 1,
    }  # fmt: skip
    return SourceReport(**(values | more))  # type: ignore[arg-type]


@pytest.fixture
def plan(tmp_path: Path) -> TextPlan:
    """Two counted sources."""
    found = TextPlan(model="demo")
    for name, tokens in (("web.jsonl", 300_000), ("code", 100_000)):
        (tmp_path / name).write_text("{}")
        found.add(str(tmp_path / name))
        source = found.sources[-1]
        found.end_check(source, Checked(report_of(source, tokens)))
    return found


def test_sources_are_called_after_their_files_and_never_twice_the_same(tmp_path: Path, plan: TextPlan) -> None:
    assert [source.name for source in plan.sources] == ["web", "code"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "web.parquet").write_text("")
    plan.add(str(other / "web.parquet"))
    plan.add("hub:owner/General")
    assert [source.name for source in plan.sources[2:]] == ["web-2", "general-2"]  # "general" is a suite's name


@pytest.mark.parametrize("path", ["", "  ", "/no/such/file.txt"])
def test_what_is_not_there_is_refused_and_nothing_changes(plan: TextPlan, path: str) -> None:
    before = plan.choice
    with pytest.raises(EngineError) as caught:
        plan.add(path)
    assert caught.value.code in ("text.no_path", "text.not_found")
    assert plan.choice == before


def test_weights_become_shares_and_follow_sizes_when_asked(plan: TextPlan) -> None:
    plan.weigh(1, -0.5)
    assert plan.share(0) == pytest.approx(2 / 3)
    assert plan.weigh_by_size()
    assert [source.weight for source in plan.sources] == [0.75, 0.25]
    plan.weigh(0, -5)
    assert plan.sources[0].weight == 0
    plan.change(1, weight=0.0)
    assert "All weights are 0" in plan.obstacle


def test_a_changed_weight_needs_no_new_check_but_another_path_or_tokenizer_does(plan: TextPlan) -> None:
    plan.weigh(0, 1)
    assert plan.unread() == ()
    plan.change(0, field="body")
    assert [source.name for source in plan.unread()] == ["web"]
    plan.forget_checks("another/model")
    assert len(plan.unread()) == 2


def test_a_removed_source_leaves_stages_and_limits_too(plan: TextPlan) -> None:
    stages = stage_edits.with_added((), 0, 400_000)
    stages = stage_edits.with_typed(stages, 1, "mix", "web 0.2 code 0.8")
    plan.decide(stages=stages)
    limit_choices.choose(plan, "limit", "code")
    plan.change(1, name="rust")
    assert plan.choice.stages[1].weights == {"web": 0.2, "rust": 0.8}
    assert plan.choice.gates[0].on == "rust"
    plan.remove(1)
    assert plan.choice.stages[1].weights == {"web": 0.2}
    assert plan.choice.gates == ()


def test_the_spec_holds_every_choice_and_survives_its_file(plan: TextPlan, tmp_path: Path) -> None:
    plan.decide(stages=stage_edits.with_added((), 0, plan.wanted_tokens))
    limit_choices.choose(plan, "benchmarks", "demo")
    limit_choices.choose(plan, "limit", "demo")
    limit_choices.choose(plan, "most lost", "0.1")
    limit_choices.choose(plan, "then", "hold")
    limit_choices.choose(plan, "processes", "2")
    spec = plan.applied(JobSpec(task=Task.FULL))
    assert [source.name for source in spec.sources] == ["web", "code"]
    assert [stage.max_tokens for stage in spec.stages] == [200_000, 200_000]
    assert (spec.retention[0].on, spec.retention[0].most_lost, spec.retention[0].action) == ("demo", 0.1, "hold")
    assert spec.evaluation.tasks_every_steps == spec.evaluation.every_steps > 0
    assert spec.stop.spike_factor > 1
    assert spec.distributed.processes == 2
    (tmp_path / "spec.toml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.toml") == spec


def test_growth_of_the_whole_job_becomes_that_of_the_first_stage(plan: TextPlan) -> None:
    plan.decide(stages=stage_edits.with_added((), 0, 400_000))
    grown = JobSpec(task=Task.FULL, expansion=ExpansionSection(hidden=320, ffn=640, seed=5))
    spec = plan.applied(grown)
    assert (spec.stages[0].hidden, spec.stages[0].ffn, spec.stages[1].hidden) == (320, 640, 0)
    assert (spec.expansion.hidden, spec.expansion.seed) == (0, 5)


def test_an_adapter_trains_in_one_stretch(plan: TextPlan) -> None:
    plan.decide(stages=stage_edits.with_added((), 0, 400_000))
    assert plan.applied(JobSpec(task=Task.LORA)).stages == ()


def test_choices_outlast_the_program(plan: TextPlan) -> None:
    keep(plan.choice)
    assert kept() == plan.choice


def test_a_damaged_file_is_an_empty_choice(plan: TextPlan) -> None:
    from engine.paths import state_home

    keep(plan.choice)
    (state_home() / "text.json").write_text("{broken")
    assert kept() == TextChoice()


# ── stages as they are typed ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("what", "text", "field", "value"),
    [
        ("tokens", "1.5M", "max_tokens", 1_500_000),
        ("length", "2k", "max_length", 2048),
        ("length", "", "max_length", None),
        ("growth", "2x", "to", "2x"),
        ("growth", "layers 12", "layers", 12),
        ("growth", "hidden=320 ffn=640", "ffn", 640),
        ("mix", "web 0.4, code 0.6", "weights", {"web": 0.4, "code": 0.6}),
        ("rate", "1e-4", "learning_rate", 1e-4),
        ("stop", "plateau 3", "stop_plateau_evaluations", 3),
        ("stop", "loss 2.1 hours 5", "stop_loss", 2.1),
        ("name", "wide", "name", "wide"),
    ],
)
def test_what_is_typed_for_a_stage_means_what_it_says(what: str, text: str, field: str, value: object) -> None:
    stages = stage_edits.with_typed(stage_edits.whole(1000), 0, what, text)
    assert getattr(stages[0], field) == value
    again = stage_edits.with_typed(stages, 0, what, stage_edits.typed(stages[0], what))
    assert again == stages  # what the field shows is what it would take


@pytest.mark.parametrize(
    ("what", "text"),
    [("tokens", "many"), ("tokens", ""), ("length", "-3"), ("growth", "taller 3"), ("growth", "12 layers!"),
     ("mix", "web"), ("rate", "fast"), ("rate", "-1"), ("stop", "soon"), ("stop", "loss x")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_a_way_to_say_it(what: str, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        stage_edits.with_typed(stage_edits.whole(1000), 0, what, text)
    assert caught.value.next_step


def test_a_last_stage_without_anything_of_its_own_is_the_job_itself() -> None:
    stages = stage_edits.with_added((), 0, 1001)
    assert [stage.max_tokens for stage in stages] == [500, 501]
    assert stage_edits.with_removed(stages, 0) == ()
    grown = stage_edits.with_typed(stages, 1, "growth", "2x")
    assert len(stage_edits.with_removed(grown, 0)) == 1


@given(st.lists(st.sampled_from(["add", "remove", "mix", "growth"]), max_size=12), st.integers(2, 10**9))
@settings(max_examples=50, deadline=None)
def test_however_stages_are_edited_their_names_stay_apart(edits: list[str], tokens: int) -> None:
    stages: tuple[StageSection, ...] = ()
    for number, edit in enumerate(edits):
        place = number % max(len(stages), 1)
        if edit == "add":
            stages = stage_edits.with_added(stages, place, tokens)
        elif edit == "remove" and stages:
            stages = stage_edits.with_removed(stages, place)
        elif stages:
            stages = stage_edits.with_typed(stages, place, edit, {"mix": "a 1", "growth": "layers 9"}.get(edit, ""))
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert all((stage.max_tokens or 0) >= 1 for stage in stages)


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_value_of_every_field_can_be_chosen_or_says_why_not(plan: TextPlan) -> None:
    for field in limit_choices.FIELDS:
        for option in limit_choices.options(plan, field):
            if option.why_not:
                continue
            limit_choices.choose(plan, field, option.value)
            assert limit_choices.value_of(plan, field) == option.value
            msgspec.json.encode(plan.choice)


def test_without_benchmarks_nothing_is_asked_meanwhile_and_without_a_limit_nothing_follows(plan: TextPlan) -> None:
    for field in ("meanwhile", "most lost", "then"):
        assert all(option.why_not for option in limit_choices.options(plan, field))


def test_a_limit_on_a_benchmark_goes_with_it(plan: TextPlan) -> None:
    limit_choices.choose(plan, "benchmarks", "demo, hellaswag")
    limit_choices.choose(plan, "limit", "hellaswag")
    limit_choices.choose(plan, "benchmarks", "demo")
    assert plan.choice.gates == ()


def test_more_processes_than_sequences_say_why_not(plan: TextPlan) -> None:
    shown = {option.value: option.why_not for option in limit_choices.options(plan, "processes", (), sequences=3)}
    assert not shown["2"]
    assert "only 3 sequences" in shown["4"]


def test_choosing_text_and_drawing_its_schedule_need_nothing_heavy_in_the_wizard() -> None:
    loaded = modules_after(
        "import scaler_tui.screens.text, scaler_tui.screens.schedule, scaler_tui.screens.limits\n"
        "from engine.advise.spec_stages import Text, estimate_job\n"
        "from engine.hardware.detect import detect\n"
        "from engine.jobs.spec import JobSpec, SourceSection, StageSection, Task, TrainingSection\n"
        "from engine.models.analyze import analyze\n"
        "from engine.models.resolve import resolve_model\n"
        "from scaler_tui.feeds import corpus_check, schedule_feed\n"
        "spec = JobSpec(task=Task.FULL, sources=(SourceSection(name='web', path='/x'),),\n"
        "               training=TrainingSection(max_tokens=10**6), stages=(StageSection(hidden=320),))\n"
        "assert estimate_job(spec, resolve_model('demo'), analyze('demo'), detect(), Text()).stages\n"
    )
    assert not loaded & (HEAVY | {"pydantic", "pyarrow", "datasets"})
