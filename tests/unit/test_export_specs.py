"""[export] of a spec: contradictions name their key, and what a target cannot represent is refused before the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.advise.answers import answers_of
from engine.advise.option_state import OptionContext, option_states
from engine.advise.questions import load_graph
from engine.errors import EngineError
from engine.export.beforehand import check_source
from engine.export.order import ExportOrder
from engine.export.portable import check_portable, export_bytes, size_note
from engine.jobs import events as ev
from engine.jobs.fold import Fold
from engine.jobs.spec import (
    AdapterSection,
    ContextSection,
    EvaluationSection,
    ExpansionSection,
    ExportSection,
    JobSpec,
    ModelSection,
    OutputSection,
    Task,
)
from engine.jobs.spec_export import Destination
from engine.jobs.spec_toml import dump_spec, load_spec
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model
from engine.resources import demo_model_dir
from scaler_tui.preflight import check
from tests.support.adapter_files import Q0, factors, write_adapter, write_packed_base

GGUF, OLLAMA, HF = Destination.GGUF, Destination.OLLAMA, Destination.HF
DEMO = json.loads((demo_model_dir() / "config.json").read_text())
MERGED = OutputSection(merge=True)
LONGER = ContextSection(length=1024, method="yarn")


@pytest.fixture(autouse=True)
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUF_PYTHON", "/nowhere/python")


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"export": ExportSection(gguf_types=("f16",))}, "export.gguf_types", "names neither"),
        ({"export": ExportSection(to=(HF,), adapter=True)}, "export.adapter", "names neither"),
        ({"export": ExportSection(to=(GGUF,), gguf_types=("q3",))}, "export.gguf_types", '"q3"'),
        ({"export": ExportSection(to=(GGUF,), gguf_types=())}, "export.gguf_types", "empty"),
        ({"export": ExportSection(to=(GGUF,), gguf_types=("f16", "f16"))}, "export.gguf_types", "twice"),
        ({"export": ExportSection(to=(GGUF, GGUF))}, "export.to", "twice"),
        ({"export": ExportSection(verify=False)}, "export.verify", "empty"),
        (
            {"export": ExportSection(to=(GGUF,), adapter=True), "adapter": AdapterSection(dora=True)},
            "export.adapter", "DoRA",
        ),
        (
            {"export": ExportSection(to=(OLLAMA,), adapter=True), "context": LONGER, "output": MERGED},
            "export.adapter", "window",
        ),
        (
            {"export": ExportSection(to=(GGUF,), adapter=True), "task": Task.EXPAND,
             "expansion": ExpansionSection(layers=12)},
            "export.adapter", "whole model",
        ),
    ],
)  # fmt: skip
def test_a_contradiction_names_its_key_and_the_way_out(fields: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        JobSpec(**fields)
    assert (caught.value.code, caught.value.key) == ("spec.conflict", key)
    assert words in caught.value.what + caught.value.cause
    assert caught.value.next_step


def test_an_export_survives_being_written_and_read(tmp_path: Path) -> None:
    spec = JobSpec(export=ExportSection(to=(HF, OLLAMA), gguf_types=("f16", "q4_k_m"), verify=False))
    (tmp_path / "s.toml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "s.toml") == spec


def refused(spec: JobSpec, config: dict[str, Any]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        check_portable(spec, demo_model_dir(), config)
    return caught.value


def test_an_architecture_that_llama_cpp_is_not_written_for_is_refused_with_the_key() -> None:
    error = refused(JobSpec(export=ExportSection(to=(GGUF,))), DEMO | {"model_type": "olmo2"})
    assert (error.code, error.key) == ("export.family", "export.to")
    assert 'export.to = ["hf"]' in error.next_step


def test_the_same_job_may_go_to_transformers() -> None:
    spec = JobSpec(export=ExportSection(to=(HF,)))
    assert check_portable(spec, demo_model_dir(), DEMO | {"model_type": "olmo2"}) == ()


@pytest.mark.parametrize(
    "export",
    [ExportSection(to=(HF,)), ExportSection(to=(GGUF,)), ExportSection(to=(OLLAMA, HF), adapter=True)],
)
def test_an_export_of_an_adapter_on_packed_weights_is_refused_before_it_is_trained(export: ExportSection) -> None:
    packed = DEMO | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    spec = JobSpec(task=Task.QLORA, model=ModelSection(source="unsloth/Qwen3-4B-bnb-4bit"), export=export)
    error = refused(spec, packed)
    assert (error.code, error.key) == ("merge.quantised_base", "export.to")
    assert f"export {export.to[0].value} latest --base unsloth/Qwen3-4B." in error.next_step
    assert '["hf"]' not in error.next_step
    assert check_portable(JobSpec(task=Task.QLORA), demo_model_dir(), packed) == ()


@pytest.mark.parametrize("target", [HF, GGUF])
def test_an_adapter_on_packed_weights_is_exported_with_the_16_bit_base_and_that_is_said(
    target: Destination, tmp_path: Path
) -> None:
    write_packed_base(tmp_path / "packed")
    adapter = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), tmp_path / "packed")
    order = ExportOrder(
        destination=target, source=str(adapter), base=str(tmp_path / "packed"), out=str(tmp_path / "out"), name="a"
    )
    with pytest.raises(EngineError) as caught:
        check_source(order)
    assert caught.value.code == "merge.quantised_base"
    assert "--base with the 16-bit model" in caught.value.next_step


def test_types_that_need_a_quantiser_are_refused_without_one() -> None:
    error = refused(JobSpec(export=ExportSection(to=(GGUF,), gguf_types=("q8_0", "q4_k_m"))), DEMO)
    assert (error.code, error.key) == ("export.no_quantiser", "export.gguf_types")
    assert "GGUF_PYTHON" in error.cause


def test_a_comparison_that_will_not_be_made_is_said_before() -> None:
    spec = JobSpec(export=ExportSection(to=(GGUF,)))
    assert any("will not be compared" in note for note in check_portable(spec, demo_model_dir(), DEMO))


def test_a_window_whose_scaling_the_file_would_lose_is_refused() -> None:
    """Qwen's graph takes no divisors per pair."""
    qwen = DEMO | {"model_type": "qwen2"}
    fields = {"output": OutputSection(merge=True), "export": ExportSection(to=(GGUF,)), "model": ModelSection()}
    lost = JobSpec(context=ContextSection(length=1024, method="llama3"), **fields)
    assert refused(lost, qwen).code == "export.rope_lost"
    kept = JobSpec(context=LONGER, **fields)
    assert not any("rope" in note for note in check_portable(kept, demo_model_dir(), qwen))
    open_ended = JobSpec(context=ContextSection(length=1024), **fields)
    notes = " ".join(check_portable(open_ended, demo_model_dir(), qwen))
    assert "llama3" in notes
    assert "context.method" in notes


def test_a_dynamic_scaling_in_the_model_itself_is_refused() -> None:
    scaled = DEMO | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    assert refused(JobSpec(export=ExportSection(to=(OLLAMA,))), scaled).code == "export.rope_dynamic"


def test_rows_that_fill_no_blocks_are_flagged() -> None:
    spec = JobSpec(export=ExportSection(to=(GGUF,), gguf_types=("q8_0",)))
    narrow = DEMO | {"intermediate_size": 500}
    assert any("larger type" in note for note in check_portable(spec, demo_model_dir(), narrow))


def test_the_start_is_refused_and_the_disk_is_counted(tmp_path: Path) -> None:
    fields = {
        "task": Task.LORA, "model": ModelSection(source="demo"),
        "evaluation": EvaluationSection(exact_match_rows=0),
    }  # fmt: skip
    plain = check(JobSpec(**fields), base=tmp_path, force=False)
    asked = check(JobSpec(export=ExportSection(to=(GGUF,)), **fields), base=tmp_path, force=False)
    assert asked.disk_bytes > plain.disk_bytes + 3_600_000
    assert any("q8_0 about" in note for note in asked.notes)
    other = tmp_path / "other"
    shutil.copytree(demo_model_dir(), other)
    (other / "config.json").write_text(json.dumps(DEMO | {"rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}))  # fmt: skip
    with pytest.raises(EngineError) as caught:
        check(
            JobSpec(export=ExportSection(to=(GGUF,)), **(fields | {"model": ModelSection(source=str(other))})),
            base=tmp_path, force=True,
        )  # fmt: skip
    assert caught.value.key == "export.to"


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_an_adapter_of_a_shared_embedding_is_refused_before_it_is_trained(target: str) -> None:
    adapter = AdapterSection(targets=("q_proj", target))
    alone = ExportSection(to=(GGUF,), gguf_types=("f16",), adapter=True)
    tied, untied = DEMO | {"tie_word_embeddings": True}, DEMO | {"tie_word_embeddings": False}
    error = refused(JobSpec(task=Task.LORA, adapter=adapter, export=alone), tied)
    assert (error.code, error.key) == ("export.adapter_tied", "export.adapter")
    assert target in error.what
    check_portable(JobSpec(task=Task.LORA, adapter=adapter, export=alone), demo_model_dir(), untied)
    check_portable(
        JobSpec(task=Task.LORA, adapter=adapter, export=ExportSection(to=(GGUF,))), demo_model_dir(), tied
    )  # fmt: skip


def test_bytes_are_those_of_files_and_of_what_they_are_made_of() -> None:
    merged = JobSpec(task=Task.LORA, export=ExportSection(to=(GGUF,), gguf_types=("f16",)))
    assert export_bytes(merged, 1000) == 2000 + 2000
    assert export_bytes(JobSpec(task=Task.LORA, export=ExportSection(to=(HF,))), 1000) == 2000
    assert export_bytes(JobSpec(), 1000) == 0
    apart = JobSpec(task=Task.LORA, export=ExportSection(to=(HF, GGUF), gguf_types=("f16",), adapter=True))
    assert export_bytes(apart, 1000) == 2000 + 2000, "the folder holds the merged model, the file the base"
    small = JobSpec(task=Task.LORA, export=ExportSection(to=(GGUF,), gguf_types=("q4_k_m",)))
    assert export_bytes(small, 1000, 4) == 4000 + 4000 + round(1000 * 4.9 / 8), "merged, and floats, in 32 bits"
    assert size_note(JobSpec(export=ExportSection(to=(HF,))), 10) == ""


def test_the_wizard_asks_where_the_model_should_run_and_the_old_answers_still_work() -> None:
    question = load_graph().question("output")
    assert [option.value for option in question.options] == ["adapter", "merged", "gguf", "ollama"]
    assert [q.id for q in load_graph().questions].index("output") < [q.id for q in load_graph().questions].index("data")
    for answer, destinations in (("adapter", ()), ("merged", ()), ("gguf", (GGUF,)), ("ollama", (OLLAMA,))):
        assert answers_of({"output": answer}).destinations == destinations


def test_an_answer_that_the_models_family_cannot_follow_is_shown_with_the_reason(tmp_path: Path) -> None:
    shutil.copytree(demo_model_dir(), tmp_path / "m")
    olmo = DEMO | {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(olmo))
    question, answers = load_graph().question("output"), answers_of({})
    for source, possible in (("demo", True), (str(tmp_path / "m"), False)):
        architecture = analyze_model(resolve_model(source))
        states = option_states(question, answers, OptionContext(architecture=architecture))
        by_value = {state.option.value: state for state in states}
        assert by_value["gguf"].enabled is possible
        assert by_value["ollama"].enabled is possible
        assert by_value["merged"].enabled
        assert possible or "olmo2" in by_value["gguf"].reason


def test_an_exported_event_is_part_of_the_state() -> None:
    report = ev.ExportReport(destination="gguf", source="output/merged", files=())
    fold = Fold()
    fold.apply(ev.Exported(t=1.0, report=report))
    assert fold.state.findings.exports == [report]
