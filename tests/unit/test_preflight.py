"""What is refused before a run exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec, Optimizer, TrainingSection
from engine.jobs.store import list_runs
from scaler_tui.preflight import check


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
def test_an_optimizer_this_machine_cannot_run_is_refused_before_the_start(optimizer: Optimizer, tmp_path: Path) -> None:
    from engine.hardware.detect import detect

    if any(gpu.vendor == "nvidia" for gpu in detect().gpus):
        pytest.skip("this machine has the card")
    spec = JobSpec(training=TrainingSection(optimizer=optimizer))
    with pytest.raises(EngineError) as refused:
        check(spec, base=tmp_path, force=False)
    assert refused.value.exit_code is ExitCode.BAD_INPUT
    assert "NVIDIA" in refused.value.what
    assert list_runs() == []


def test_what_ships_with_the_program_is_not_taken_for_a_file(tmp_path: Path) -> None:
    from engine.jobs.spec import DataSection
    from engine.jobs.spec_toml import with_absolute_paths

    spec = with_absolute_paths(JobSpec(data=DataSection(train="rows.jsonl", heldout="", base_text="general")), tmp_path)
    assert spec.data.base_text == "general"
    assert spec.data.train == str(tmp_path / "rows.jsonl")
