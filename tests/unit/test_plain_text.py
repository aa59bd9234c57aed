"""Large text in the plain wizard: sources read and spoken, weights, limits, stages typed, the schedule told."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from engine.models.analyze import analyze
from scaler_tui.plain_text import choose_text
from scaler_tui.prompts import Left
from scaler_tui.text_plan import Checked
from scaler_tui.wizard import Wizard
from tests.support.wizard_app import WORKSTATION
from tests.unit.test_text_plan import report_of

DRAWN = re.compile("[\u2190-\u21ff\u2500-\u259f\u25a0-\u25ff\u2700-\u27bf\u2800-\u28ff\x1b]")


def wizard() -> Wizard:
    """For the demo model and large text."""
    made = Wizard()
    made.restart(save=False)
    made.set_detected(WORKSTATION)
    made.session.set_answer("data", "text")
    made.set_model("demo", analyze("demo"), None)
    return made


def with_sources(made: Wizard, tmp_path: Path) -> Wizard:
    """Two counted ones."""
    made.text.forget_checks("demo")
    for name, tokens in (("web", 300_000), ("code", 100_000)):
        (tmp_path / name).mkdir()
        made.text.add(str(tmp_path / name))
        made.text.end_check(made.text.sources[-1], Checked(report_of(made.text.sources[-1], tokens)))
    return made


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_source_is_read_by_the_command_and_spoken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "times the harbour bell of Orsa rang before the tide came in."
    rows = [json.dumps({"text": f"{number} {words}"}) for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, rows[0], "{broken"]) + "\n")
    made = wizard()
    typed(monkeypatch, "1", "2", "/no/such/place", "2", str(tmp_path / "rows.jsonl"), "1")
    choose_text(made, "continue")
    told = capsys.readouterr().out
    assert "There is no source yet." in told
    assert "There is no file or folder /no/such/place." in told
    assert "1 duplicates dropped" in told
    assert "Unreadable:" in told
    assert "line 62" in told
    assert "Stage 1" in told
    spec = made.spec_for("continue")
    assert [source.name for source in spec.sources] == ["rows"]
    assert spec.prediction.seconds_likely > 0


def test_weights_limits_and_stages_are_typed_and_the_schedule_is_sentences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = with_sources(wizard(), tmp_path)
    stage = ["7", "2", "3", "2", "5", "code 1", "3", "1", "4", "hidden 8", "1"]
    typed(monkeypatch, "3", "2", "0.25", "6", "2", "1", "2", "4", "2", "1", "2", *stage, "1")
    choose_text(made, "continue")
    told = capsys.readouterr().out
    assert "code: weight 0.25, 20 percent, 100K tokens." in told
    assert "would shrink" in told
    assert "Stage 2 second:" in told
    assert "Mix: code 100 %" in told
    assert not DRAWN.search(told), "only words"
    spec = made.spec_for("continue")
    assert spec.stages[1].weights == {"code": 1.0}
    assert spec.stages[0].hidden == 0, "what cannot be is taken back"
    assert (spec.evaluation.tasks, spec.retention[0].on, spec.retention[0].most_lost) == (("demo",), "base_text", 0.1)
    assert spec.retention[0].action == "hold"
    assert spec.distributed.processes == 2


def test_leaving_keeps_what_was_chosen_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = with_sources(wizard(), tmp_path)
    typed(monkeypatch, "4", "1", "5", "20M", "q")
    with pytest.raises(Left):
        choose_text(made, "continue")
    assert [source.name for source in made.text.sources] == ["code"]
    assert made.text.choice.tokens == 20_000_000
