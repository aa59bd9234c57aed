"""[context] against a model, before anything starts: what goes together passes, the rest is refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.extension.spec_window import Reach, reach_of
from engine.jobs.spec import JobSpec
from engine.resources import demo_dir

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
