"""Elsewhere in the plain wizard: a job file written and asked about, a host that is not there refused in words."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import yaml

from engine.jobs.spec import DataSection, JobSpec, ModelSection, Task
from engine.models.analyze import analyze
from scaler_tui.places import PLACES
from scaler_tui.plain import _finish
from scaler_tui.plain_elsewhere import go_elsewhere
from scaler_tui.prompts import Left
from scaler_tui.wizard import Wizard
from tests.support.wizard_app import WORKSTATION

SSH, SKY, DSTACK = PLACES
SPEC = JobSpec(task=Task.LORA, model=ModelSection(source="demo"), data=DataSection(train="demo", heldout="demo"))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_job_file_that_is_there_is_replaced_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo-lora.dstack.yaml"
    out.write_text("mine")
    typed(monkeypatch, "", "s3://bucket", "2")
    assert go_elsewhere(DSTACK, SPEC) == 0
    told = capsys.readouterr().out
    assert f"{out} exists already" in told
    assert f"Start it: dstack apply -f {out}" in told
    assert yaml.safe_load(out.read_text())["type"] == "task"


def test_the_end_of_the_wizard_offers_every_place_and_a_refusal_leads_back_to_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wizard = Wizard()
    wizard.restart(save=False)
    wizard.set_detected(WORKSTATION)
    wizard.set_model("demo", analyze("demo"), None)
    typed(monkeypatch, "4", "nowhere.invalid", "q")
    with pytest.raises(Left):
        _finish(wizard, "qlora", wizard.spec_for("qlora"))
    told = capsys.readouterr().out
    for expected in ("3. Start it now, here", "4. Start it on another machine", "5. Write a SkyPilot", "6. Write a ds"):
        assert told.count(expected) == 2, expected
    refusal = told.partition("(user@address): ")[2].partition("  1. ")[0]
    assert "nowhere.invalid" in refusal or "OpenSSH" in refusal, "the host, or that there is no ssh here"


def test_the_commands_it_ends_with_can_be_pasted_whatever_the_files_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wizard = Wizard()
    wizard.restart(save=False)
    wizard.set_detected(WORKSTATION)
    wizard.set_model("demo", analyze("demo"), None)
    typed(monkeypatch, "1", "my spec.toml")
    assert _finish(wizard, "qlora", wizard.spec_for("qlora")) == 0
    assert "Run it: scaler-wizard run 'my spec.toml'\n" in capsys.readouterr().out
    typed(monkeypatch, "my job.yaml", "s3://bucket", "2")
    assert go_elsewhere(DSTACK, SPEC) == 0
    assert f"Start it: dstack apply -f '{tmp_path / 'my job.yaml'}'" in capsys.readouterr().out
