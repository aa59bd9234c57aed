"""A job of several stages on streamed text, estimated and drawn before it starts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.advise.spec_growth import growths_of
from engine.advise.spec_plan import appraise_spec, load_of_spec
from engine.advise.spec_stages import JobEstimate, Text, estimate_job, refined_whole
from engine.advise.trainable import check_trainable, grown_sizes, trained_share
from engine.errors import EngineError
from engine.estimate.data_shape import DataShape
from engine.estimate.estimate import Range, Verdict
from engine.jobs.spec import (
    EvaluationSection,
    ExpansionSection,
    JobSpec,
    Schedule,
    SourceSection,
    StageSection,
    Task,
    TrainingSection,
)
from engine.jobs.spec_toml import dump_spec
from engine.models.analyze import analyze_model
from engine.models.headers import read_headers
from engine.models.resolve import resolve_model
from engine.schedule.amounts import AmountOrigin, SourceAmount
from scaler_tui.schedule_text import Look, amount_words, job_lines, letters_of, picture_lines
from tests.unit.planning import card, machine

REF = resolve_model("demo")
DEMO = analyze_model(REF)
CARD = machine(card("RTX 3090", 24))
AMOUNTS = (
    SourceAmount("web", 3, 10_000_000, 2e6, 2.4e6, 3e6, AmountOrigin.SAMPLE),
    SourceAmount("wiki", 1, 4_000_000, 1e6, 1e6, 1e6, AmountOrigin.COUNTED),
)
SOURCES = (SourceSection(name="web", path="web", weight=3.0), SourceSection(name="wiki", path="wiki.jsonl"))
STAGES = (
    StageSection(name="short", max_tokens=400_000, max_length=128),
    StageSection(name="wider", max_tokens=400_000, ffn=1024, new_learning_rate=1e-3, ramp_from=2, ramp_ratio=0.4),
    StageSection(name="mlp", max_tokens=200_000, weights={"wiki": 1.0}, trainable=("*.mlp.*",)),
)


def staged(**changes: object) -> JobSpec:
    spec = JobSpec(
        task=Task.FULL,
        sources=SOURCES,
        stages=STAGES,
        training=TrainingSection(batch_size=8, schedule=Schedule.WSD),
        evaluation=EvaluationSection(every_steps=50),
    )
    return msgspec.structs.replace(spec, **changes)


def estimated(spec: JobSpec, text: Text | None = None) -> JobEstimate:
    return estimate_job(spec, REF, DEMO, CARD, text or Text(AMOUNTS))


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_stage_has_its_own_figures_and_the_job_their_sums() -> None:
    job = estimated(staged())
    short, wider, mlp = job.stages
    assert short.layout.model.parameters == DEMO.parameters < wider.layout.model.parameters
    assert wider.layout.model.operators
    assert mlp.layout.model.operators == ()
    assert short.found is not None
    assert wider.found is not None
    assert mlp.found is not None
    assert short.found.memory.likely < mlp.found.memory.likely < wider.found.memory.likely
    assert job.whole.memory == wider.found.memory, "the stage that needs most decides"
    assert job.whole.hours.likely == pytest.approx(sum(stage.hours.likely for stage in job.stages))
    assert job.whole.cost_usd.likely == pytest.approx(sum(stage.cost_usd.likely for stage in job.stages))
    assert job.whole.disk.likely == max(stage.disk.likely for stage in job.stages)
    parts = {part.name for part in wider.disk.breakdown}
    assert {"tokenised text", "between stages", "checkpoints"} <= parts
    assert {part.name for part in short.hours.breakdown} >= {"training", "reading text"}
    assert "reading text" not in {part.name for part in mlp.hours.breakdown}, "text is tokenised once"


def test_a_job_in_one_stage_on_rows_is_what_it_was_without_stages() -> None:
    rows = DataShape((50_000.0,) * 3, 0.5, Range(0.9, 0.9, 0.9), 200, 1000.0, 500.0)
    for spec in (
        JobSpec(),
        JobSpec(task=Task.FULL),
        JobSpec(task=Task.NEW_BLOCKS, expansion=ExpansionSection(layers=9)),
    ):
        growth = growths_of(spec, REF, DEMO)[-1]
        load = load_of_spec(spec, DEMO, CARD, rows.tokens, base_on_disk=True, data=rows)
        before = appraise_spec(spec, DEMO, CARD, load, trained_share=0.5, growth=growth)
        found = estimated(spec, Text(rows=rows, row_sequences=250)).whole
        assert (found.memory, found.hours, found.cost_usd) == (before.memory, before.hours, before.cost_usd)
        assert (found.disk.likely, found.judgement) == (before.disk.likely, before.judgement)


def test_text_that_is_cached_takes_neither_time_nor_disk_again() -> None:
    spec = staged(stages=(), sources=SOURCES[1:], training=TrainingSection(max_tokens=400_000))
    counted = estimated(spec, Text(AMOUNTS[1:]))
    sampled = estimated(spec, Text((SourceAmount("wiki", 1, 1, 9e5, 1e6, 2e6, AmountOrigin.SAMPLE),)))
    assert counted.whole.disk.likely < sampled.whole.disk.likely
    assert counted.whole.hours.likely < sampled.whole.hours.likely


def test_passes_over_sampled_text_are_as_uncertain_as_its_amount() -> None:
    spec = staged(stages=(), training=TrainingSection(epochs=2.0))
    load = estimated(spec).whole.load
    assert load.tokens[0] / load.tokens[1] == pytest.approx(3.0 / 3.4)
    assert load.tokens[2] / load.tokens[1] == pytest.approx(4.0 / 3.4)


def test_passes_over_text_of_unknown_size_are_refused() -> None:
    unknown = (SourceAmount("web", 0, 0, 0, 0, 0, AmountOrigin.UNKNOWN), AMOUNTS[1])
    with pytest.raises(EngineError) as refused:
        estimated(staged(stages=(), training=TrainingSection(epochs=1.0)), Text(unknown))
    assert (refused.value.code, refused.value.key) == ("schedule.unknown_size", "training.epochs")
    estimated(staged(), Text(unknown))


def test_a_stage_that_only_grows_takes_time_and_disk() -> None:
    stages = (STAGES[0], StageSection(task=Task.EXPAND, layers=10), STAGES[2])
    job = estimated(staged(stages=stages))
    grow = job.stages[1]
    assert grow.found is None
    assert 0 < grow.hours.low < grow.hours.high
    assert grow.disk.likely > 2 * DEMO.parameters
    assert job.stages[2].layout.model.parameters == grow.layout.model.parameters


def test_a_stage_that_does_not_fit_makes_the_job_not_fit_and_is_named() -> None:
    stages = (STAGES[0], StageSection(name="huge", max_tokens=100_000, max_length=1 << 17, batch_size=64))
    whole = estimated(staged(stages=stages)).whole
    assert whole.verdict is Verdict.NO
    assert whole.judgement.reason.startswith("stage 2: ")


def test_patterns_mean_a_share_of_the_parameters_or_are_refused() -> None:
    assert 0.3 < trained_share(("*.mlp.*",), REF) < 0.8
    assert trained_share(("*",), REF) == 1.0
    with pytest.raises(EngineError) as refused:
        trained_share(("*.mlp.*", "*.ffn.*"), REF, key="stages[2].trainable")
    assert refused.value.key == "stages[2].trainable"
    assert "*.ffn.*" in refused.value.what


def test_a_stage_may_train_only_the_layers_that_growth_adds() -> None:
    def job(stage: StageSection) -> JobSpec:
        return staged(stages=(STAGES[0], stage))

    deeper = StageSection(layers=10, max_tokens=200_000)
    added = msgspec.structs.replace(deeper, trainable=("model.layers.8.*", "model.layers.9.*"))
    check_trainable(job(added), REF)
    few, all_of_it = estimated(job(added)).stages[1].found, estimated(job(deeper)).stages[1].found
    assert few is not None
    assert all_of_it is not None
    assert few.memory.likely < all_of_it.memory.likely
    config = growths_of(job(deeper), REF, DEMO)[1].config  # type: ignore[union-attr]
    tenths = trained_share(("model.layers.9.*",), REF, grown=config) * 10
    assert tenths == pytest.approx(trained_share(("model.layers.*",), REF, grown=config))


def test_names_and_sizes_after_growth_are_those_of_files() -> None:
    stored = {tensor.name: math.prod(tensor.shape) for tensor in read_headers(REF.path).tensors}  # type: ignore[arg-type]
    assert grown_sizes(REF.config, "demo") == stored


@pytest.mark.parametrize("growing", [False, True])
def test_a_pattern_that_means_nothing_is_named_with_the_stage_that_sets_it(*, growing: bool) -> None:
    first = StageSection(max_tokens=9000, trainable=() if growing else ("*.nope.*",))
    second = StageSection(max_tokens=9000, layers=10, trainable=("model.layers.10.*",))
    with pytest.raises(EngineError) as refused:
        estimated(staged(stages=(first, second)))
    assert refused.value.key == f"stages[{2 if growing else 1}].trainable"
    assert ("grown to" in refused.value.what) is growing
    if not growing:
        with pytest.raises(EngineError, match=re.escape("stages[1].trainable")):
            check_trainable(staged(stages=(first, second)), REF)


def test_each_stage_that_cannot_grow_is_named_with_its_key() -> None:
    for stage, key in (
        (StageSection(layers=4), "stages[2].layers"),
        (StageSection(hidden=100), "stages[2].hidden"),
        (StageSection(to="1M"), "stages[2].to"),
        (StageSection(layers=9, operators=("bogus",)), "stages[2].operators"),
    ):
        with pytest.raises(EngineError) as refused:
            growths_of(staged(stages=(STAGES[0], stage)), REF, DEMO)
        assert refused.value.key == key
        assert refused.value.what.startswith("stages[2]")


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("width", "ascii_only"), [(80, False), (80, True), (60, True), (120, False)])
def test_no_line_is_wider_than_it_may_be(width: int, ascii_only: bool) -> None:
    lines = list(job_lines(estimated(staged()), Look(width, ascii_only)))
    assert max(map(len, lines)) <= width
    for name in ("Learning rate", "Length", "Mix", "Parameters", "Sequences a step", "Tokens", "Stage"):
        assert any(line.startswith(name) for line in lines), name
    if ascii_only:
        drawn = list(picture_lines(estimated(staged()).schedule, Look(width, ascii_only)))
        assert all(line.isascii() for line in drawn)


def test_the_curves_rise_and_fall_where_the_schedule_does() -> None:
    lines = list(picture_lines(estimated(staged()).schedule, Look(80, True)))
    top = next(line for line in lines if line.startswith("Learning rate"))[21:]
    assert top.startswith("_" if top[0] == "_" else " "), "it begins with a warm-up"
    assert top.count("  ") >= 2, "and decays at the end of every stage"
    mix = [line[21:] for line in lines[next(i for i, line in enumerate(lines) if line.startswith("Mix")) :][:4]]
    first, last = ["".join(row[column] for row in mix) for column in (0, -1)]
    assert (first, last) == ("wwwi", "iiii")
    assert letters_of(estimated(staged()).schedule) == {"web": "w", "wiki": "i"}


def test_amounts_are_told_with_their_range_and_origin() -> None:
    assert amount_words(AMOUNTS[0], 0.25).endswith("about 2.40M tokens (2.00M–3.00M) [sample], read 0.25 times")
    assert amount_words(AMOUNTS[1]).endswith("1.00M tokens [counted]")
    hub = SourceAmount("hub", 0, 0, 0, 0, 0, AmountOrigin.UNKNOWN)
    assert amount_words(hub) == "hub: on the hub, size unknown until it is read"


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_command_says_what_the_job_will_do_and_starts_nothing(tmp_path: Path) -> None:
    for name in ("web", "wiki"):
        (tmp_path / f"{name}.txt").write_text("Some words of text that are read. " * 400)
    sources = tuple(msgspec.structs.replace(one, path=f"{one.name}.txt") for one in SOURCES)
    path = tmp_path / "job.toml"
    path.write_text(dump_spec(staged(sources=sources)))
    done = called("schedule", str(path), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [stage["name"] for stage in document["stages"]] == ["short", "wider", "mlp"]
    assert document["stages"][0]["memory_bytes"]["origin"] == "formula"
    assert document["whole"]["hours"]["likely"] == pytest.approx(
        sum(stage["hours"]["likely"] for stage in document["stages"])
    )
    assert document["points"][-1]["mix"] == {"wiki": 1.0}
    assert any("wiki is read" in warning for warning in document["warnings"])
    path.write_text(path.read_text().replace("ffn = 1024", "ffn = 8"))
    refused = called("schedule", str(path))
    assert refused.returncode == 2
    line = path.read_text()[: path.read_text().index("ffn = 8")].count("\n") + 1
    assert f"job.toml: line {line}: stages[2].ffn = 8 would shrink the model" in refused.stderr


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaler_tui", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_better_figure_of_one_stage_scales_the_hours_of_all() -> None:
    job = estimated(staged())
    deciding = job.stages[1].found
    assert deciding is not None
    better = replace(deciding, hours=deciding.hours.scaled(2.0), memory=deciding.memory.scaled(1.1))
    whole = refined_whole(job, better)
    assert whole.memory.likely == pytest.approx(1.1 * job.whole.memory.likely)
    assert whole.hours.likely == pytest.approx(2 * job.whole.hours.likely)
    assert whole.disk == job.whole.disk


def test_an_operator_that_is_not_for_the_family_is_refused_with_its_stage() -> None:
    ref = resolve_model("google/gemma-2-2b")
    with pytest.raises(EngineError) as refused:
        growths_of(staged(stages=(STAGES[0], StageSection(max_steps=1, experts=4))), ref, analyze_model(ref))
    assert refused.value.what == "stages[2]: A gemma2 model cannot be turned into a mixture of experts."
    assert refused.value.key == "stages[2].experts"
