"""Following a run without a screen: recoveries, losses, broken limits and measured texts are told once."""

from __future__ import annotations

import msgspec

from engine.jobs.events import Retention
from engine.jobs.fold import Fold
from scaler_tui.run_news import RunNews
from tests.support.continuation_runs import Continuation, continuation_events, retention_reports


def told(wanted: Continuation) -> list[str]:
    fold, news, lines = Fold(), RunNews(), list[str]()
    for event in continuation_events(wanted, 1000.0):
        fold.apply(event)
        lines += news.of(fold.state)
    return lines


def test_everything_is_told_once_and_in_its_order() -> None:
    lines = told(Continuation(gate="general lost more than 5 %: the run stops."))
    assert sum("2 processes met: ddp over gloo." in line for line in lines) == 1
    (memory,) = [line for line in lines if "out of memory" in line]
    (spike,) = [line for line in lines if "loss spike" in line]
    assert lines.index(memory) < lines.index(spike)
    assert "Back to step 120." in spike
    assert sum(line.startswith("Step 120, ") for line in lines) >= 1
    assert "  Arithmetic fell from 91 % to 85 %, significant." in lines
    assert lines.count("Step 120: 1 ability was lost against the parent model.") == 1


def test_a_gate_is_told_with_its_words() -> None:
    gate = "general lost more than 5 %: the run stops."
    lines = told(Continuation(gate=gate, recovery_at=0, memory_at=0))
    assert lines.count(f"Gate: {gate}") == 1


def test_what_all_questions_show_at_a_step_is_told_after_what_a_part_of_them_showed() -> None:
    fold, news, lines = Fold(), RunNews(), list[str]()
    (report, *_) = [one for one in retention_reports(240) if one.verdict == "lost"]
    for pairs, gate in ((10, ""), (10, ""), (240, "too much was lost.")):
        reports = (msgspec.structs.replace(report, pairs=pairs),)
        fold.apply(Retention(t=1.0, step=7, reports=reports, gate=gate))
        lines += news.of(fold.state)
    assert [line for line in lines if line.startswith("Gate")] == ["Gate: too much was lost."]
    assert lines.count("Step 7: 1 ability was lost against the parent model.") == 2


def test_texts_of_a_step_share_a_line() -> None:
    lines = told(Continuation(recovery_at=0))
    (line,) = [line for line in lines if line.startswith("Step 20, bits per byte: web")]
    assert "general" in line
