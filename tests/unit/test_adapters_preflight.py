"""A job that mixes is looked at before it starts: adapters that are there and fit the base, rows to measure on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.resources import demo_dir
from scaler_tui.preflight import check
from tests.support.adapter_files import write_adapter

Q = "model.layers.0.self_attn.q_proj"


def adapter(folder: Path, width: int) -> Path:
    return write_adapter(folder, {f"{Q}.lora_A.weight": np.ones((2, width)), f"{Q}.lora_B.weight": np.ones((width, 2))})


@pytest.fixture
def width() -> int:
    return int(json.loads((demo_dir() / "model" / "config.json").read_text())["hidden_size"])


def spec(*folders: Path | str, **tree: Any) -> JobSpec:
    rows = [{"path": str(folder), "weight": 0.5} for folder in folders]
    return msgspec.convert({"task": "mix", "adapters": rows, **tree}, JobSpec)


def refused(found: JobSpec, base: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        check(found, base=base, force=False)
    return caught.value


def test_a_mix_of_adapters_that_fit_may_start(tmp_path: Path, width: int) -> None:
    adapter(tmp_path / "a", width)
    found = check(spec("a", adapter(tmp_path / "b", width)), base=tmp_path, force=False)
    assert [one.path for one in found.spec.adapters] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert found.spec.prediction.memory_bytes_likely > 0
    assert not found.forced


def test_what_is_missing_or_does_not_fit_is_refused_with_its_key(tmp_path: Path, width: int) -> None:
    fits, wide = adapter(tmp_path / "fits", width), adapter(tmp_path / "wide", width + 8)
    error = refused(spec(fits, wide), tmp_path)
    assert (error.code, error.key) == ("adapter.other_base", "adapters[2].path")
    assert str(width + 8) in error.cause
    error = refused(spec(fits, tmp_path), tmp_path)
    assert (error.code, error.key) == ("adapter.config", "adapters[2].path")
    error = refused(spec(fits, "no-such-run"), tmp_path)
    assert error.key == "adapters[2].path"
    assert error.next_step


def test_rows_that_are_not_there_are_said_before_the_start(tmp_path: Path, width: int) -> None:
    fits = adapter(tmp_path / "fits", width)
    error = refused(spec(fits, data={"heldout": str(tmp_path / "none.jsonl")}), tmp_path)
    assert error.code.startswith("data.")


def test_what_could_not_be_measured_or_merged_at_the_end_is_refused_at_the_start(tmp_path: Path, width: int) -> None:
    table = np.ones((1300, width))
    resized = write_adapter(
        tmp_path / "resized",
        {
            f"{Q}.lora_A.weight": np.ones((2, width)),
            f"{Q}.lora_B.weight": np.ones((width, 2)),
            "model.embed_tokens.weight": table,
            "lm_head.weight": table,
        },
        modules_to_save=["embed_tokens", "lm_head"],
    )
    error = refused(spec(resized), tmp_path)
    assert (error.code, error.key) == ("adapter.resized", "adapters[1].path")
    assert "1,300 rows" in error.what
    biased = write_adapter(
        tmp_path / "biased",
        {
            f"{Q}.lora_A.weight": np.ones((2, width)),
            f"{Q}.lora_B.weight": np.ones((width, 2)),
            f"{Q}.lora_B.bias": np.ones(width),
        },
        lora_bias=True,
    )
    error = refused(spec(biased, output={"merge": True}), tmp_path)
    assert (error.code, error.key) == ("merge.no_bias", "output.merge")
