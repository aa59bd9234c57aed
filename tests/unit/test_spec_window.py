"""[context] against a model, before anything starts: what goes together passes, the rest is refused with a way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.context.certificate import Certificate, Race, encode_certificate
from engine.context.export import config_after
from engine.context.planner import plan_context
from engine.errors import EngineError
from engine.extension.extend import Decision
from engine.extension.losses import unasked_choice
from engine.extension.spec_window import Reach, reach_of
from engine.jobs.race_lines import RaceDecided, RaceRow
from engine.jobs.spec import JobSpec
from engine.models.resolve import resolve_model
from engine.resources import demo_dir
from engine.train.window import Window, order_of
from tests.support.context_runs import AFTER

DEMO = demo_dir() / "model"


def spec_of(task: str = "lora", max_length: int = 256, **context: Any) -> JobSpec:
    return msgspec.convert({"task": task, "data": {"max_length": max_length}, "context": context}, JobSpec)


def model(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def extended(folder: Path, factor: float) -> Path:
    config = json.loads((DEMO / "config.json").read_text())
    config["max_position_embeddings"] = round(256 * factor)
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 256}
    return model(folder, **config)


def test_a_window_reaches_from_the_models_own_to_the_target() -> None:
    reach = reach_of(spec_of(max_length=1024, length=1024, method="yarn"), DEMO)
    assert (reach.original, reach.target) == (256, 1024)
    assert any("short text" in note for note in reach.notes)
    assert reach_of(spec_of(length=512, method="auto"), DEMO) == Reach(256, 512)


def test_a_model_that_came_extended_is_trained_in_its_own_window(tmp_path: Path) -> None:
    folder = extended(tmp_path, 4.0)
    assert reach_of(spec_of(window="pose"), folder) == Reach(256, 1024)
    assert reach_of(spec_of(max_length=1024, window="mixed"), folder) == Reach(256, 1024)


def test_of_a_model_extended_twice_the_old_window_is_the_one_before_its_last_extension(tmp_path: Path) -> None:
    config = json.loads((extended(tmp_path, 4.0) / "config.json").read_text())
    plan = plan_context(config, 2048, "yarn")
    folder = model(tmp_path, **config_after(config, plan))
    assert reach_of(spec_of(window="pose"), folder) == Reach(256, 2048), "without a certificate, as YaRN's config says"
    (folder / "extension.json").write_bytes(encode_certificate(Certificate(source="m", plan=plan)))
    assert reach_of(spec_of(window="pose"), folder) == Reach(1024, 2048)


def lossy(folder: Path, model_type: str, architecture: str) -> Path:
    """A model whose family cannot take every method to llama.cpp."""
    config = json.loads((DEMO / "config.json").read_text())
    return model(folder, **config | {"model_type": model_type, "architectures": [architecture]})


def test_what_a_program_would_lose_of_a_named_method_is_said_before_the_start(tmp_path: Path) -> None:
    folder = lossy(tmp_path, "qwen2", "Qwen2ForCausalLM")
    for task in ("lora", "extend"):
        notes = reach_of(spec_of(task, length=1024, method="llama3"), folder).notes
        assert any(note.startswith("llama.cpp does not read this: ") for note in notes)
    assert not any("does not read" in note for note in reach_of(spec_of(length=1024, method="yarn"), folder).notes)


def test_a_choice_in_a_spec_is_among_what_no_program_loses_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    folder = lossy(tmp_path, "qwen2", "Qwen2ForCausalLM")
    spec = spec_of(length=1024, method="auto")
    (left_out,) = reach_of(spec, folder).notes
    assert left_out == (
        "Not measured, unless named as the method: llama3, which llama.cpp would lose without an error."
    )
    shutil.copyfile(DEMO / "model.safetensors", folder / "model.safetensors")
    among = order_of(spec, resolve_model(str(folder))).among
    assert "yarn" in among
    assert "llama3" not in among
    assert order_of(spec, resolve_model("demo")).among == (), "all, where no program loses any"


def notes_after(folder: Path, method: str, *measured: str) -> tuple[str, ...]:
    """What a run says whose race `method` won."""
    config = json.loads((folder / "config.json").read_text())
    rows = tuple(RaceRow(method=name, report=AFTER) for name in measured)
    race = Race(rows=rows, decided=RaceDecided(method=method, reason=f"{method} wins."))
    decision = Decision(plan=plan_context(config, 1024, method), race=race)
    return Window(resolve_model(str(folder)), folder, 256, 1024, decision).notes


def test_a_run_says_what_was_not_measured_and_what_is_lost(tmp_path: Path) -> None:
    folder = lossy(tmp_path, "qwen2", "Qwen2ForCausalLM")
    notes = notes_after(folder, "yarn", "none", "yarn", "abf")
    assert notes[0] == "Of all methods measured: yarn wins."
    assert notes[1].startswith("Not measured, unless named as the method: llama3")
    assert not any("does not read" in note for note in notes)
    notes = notes_after(folder, "llama3", "none", "llama3", "yarn")
    assert not any("Not measured" in note for note in notes)
    assert notes[-1].startswith("llama.cpp does not read this: llama3 scaling is written for the Llama class only")


def test_where_every_method_is_lost_a_choice_is_among_all_and_says_so(tmp_path: Path) -> None:
    folder = lossy(tmp_path, "gemma2", "Gemma2ForCausalLM")
    (lost,) = reach_of(spec_of(length=1024, method="auto"), folder).notes
    assert "lost without an error in llama.cpp. Its converter writes neither" in lost
    assert unasked_choice(json.loads((folder / "config.json").read_text()), 1024)[0] == ()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"length": 128, "max_length": 128, "method": "yarn"}, "context.", ""),
    ({"length": 1024, "method": "no-such-thing"}, "context.method", "yarn"),
    ({"max_length": 512, "window": "full", "train_norms": False}, "train.window", "context.length"),
    ({"window": "pose"}, "train.window", 'context.window = "full"'),
    (
        {"length": 1024, "method": "yarn", "max_length": 1024, "window": "mixed", "train_length": 512},
        "train.window",
        "256",
    ),
    ({"length": 1024, "method": "yarn", "window": "mixed", "max_length": 256}, "train.window", "Raise data.max_length"),
]


@pytest.mark.parametrize(("fields", "code", "way_out"), REFUSED)
def test_what_does_not_go_with_the_model_is_refused(fields: dict[str, Any], code: str, way_out: str) -> None:
    with pytest.raises(EngineError) as refused:
        reach_of(spec_of(**fields), DEMO)
    assert refused.value.code.startswith(code)
    assert way_out in refused.value.next_step


def test_a_model_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, model_type="gpt2", n_embd=64, n_layer=2, n_head=2, n_positions=128, vocab_size=100)
    for method in ("auto", "yarn"):
        with pytest.raises(EngineError) as refused:
            reach_of(spec_of(length=512, method=method), folder)
        assert refused.value.code == "context.not_rotary"


def test_a_damaged_certificate_is_named(tmp_path: Path) -> None:
    folder = extended(tmp_path, 4.0)
    (folder / "extension.json").write_text("{")
    with pytest.raises(EngineError) as refused:
        reach_of(spec_of(window="pose"), folder)
    assert "extension.json" in refused.value.what
