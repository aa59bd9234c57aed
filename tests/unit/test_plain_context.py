"""The longer window in the plain wizard: the race and the search as sentences, lost figures named, only words."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from engine.context.factors import read_factors
from engine.models.analyze import analyze
from scaler_tui.plain_context import choose_window
from scaler_tui.wizard import Wizard
from tests.support.context_runs import RACE, SEARCH, play
from tests.support.wizard_app import WORKSTATION


def wizard() -> Wizard:
    """For the demo model and longer documents."""
    made = Wizard()
    made.restart(save=False)
    made.set_detected(WORKSTATION)
    made.session.set_answer("goal", "long-documents")
    made.set_model("demo", analyze("demo"), None)
    return made


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_race_is_spoken_and_its_winner_suggested(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, RACE)
    made = wizard()
    typed(monkeypatch, "", "12", "", "4")
    choose_window(made)
    told = capsys.readouterr().out
    assert "  linear: needles 10 %, perplexity 17.87, short text +185 %." in told
    assert "  none: needles 20 %, perplexity 5.19, short text +0.0 %. At 1,024 tokens: 0 % at depth 0 %" in told
    assert "ntk-critical wins." in told
    assert "Rule: Among methods" in told
    assert made.window.choice.method == "ntk-critical", "an empty line takes the winner"
    assert not made.window.choice.train
    assert made.spec_for("context").context.method == "ntk-critical"
    assert told.isascii(), "only words, no drawing"


def test_a_search_is_spoken_and_its_factors_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, tmp_path, SEARCH)
    made = wizard()
    typed(monkeypatch, "", "13", "11", "2")
    choose_window(made)
    told = capsys.readouterr().out
    assert "Evaluation 40: best score 0.3590." in told
    assert "Found: score 0.3590, the best it began with 0.3590." in told
    spec = made.spec_for("context")
    assert spec.context.method == "longrope2"
    found = read_factors(Path(spec.context.factors))
    assert len(found.long) == 16
    assert found.attention_factor == 1.0, "m as it was measured, not the one of the method's formula"
    assert spec.context.window == "pose"


def test_a_method_that_is_not_possible_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = wizard()
    typed(monkeypatch, "2k", "6", "11", "1", "1")
    choose_window(made)
    told = capsys.readouterr().out
    assert "dynamic is not possible: " in told
    assert "longrope2 is not possible: needs a search first: choose Search factors now" in told
    assert made.window_length == 2048
    assert made.window.choice.method == "auto"
    assert "The run measures every method that needs no search first" in told
