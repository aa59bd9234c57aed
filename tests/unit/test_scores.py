"""The book of scores: whole lines, damaged ones passed over and named, and the command that shows them."""

from __future__ import annotations

import json
import math

import pytest

from engine.advise.track_record import error_summary
from engine.hardware.identity import Identity
from engine.jobs.scores import Promise, Score, append_score, read_scores, scores_path
from scaler_tui.cli import main

HERE = Identity(device="Test CPU, 2 cores", versions={"torch": "2.13.0"})


def score(run_id: str, *, memory: Promise | None = None, outcome: str = "finished") -> Score:
    return Score(
        run_id=run_id,
        t=1_790_000_000.0,
        machine=HERE,
        outcome=outcome,
        model="demo",
        workload="qlora, 4 x 256 tokens, rank 16",
        origin="formula",
        on_cpu=True,
        process=memory or Promise(low=9e8, likely=1e9, high=1.2e9, measured=8e8),
        tokens_per_second=Promise(low=500, likely=1000, high=2000, measured=1250),
        seconds=Promise(low=50, likely=100, high=200, measured=100),
        formula_allocated_bytes=2e8,
        formula_tokens_per_second=1000,
    )


def test_a_line_comes_back_as_it_was_written() -> None:
    append_score(score("a"))
    append_score(score("b"))
    assert read_scores().scores == (score("a"), score("b"))
    assert read_scores().notes == ()


def test_a_run_that_ends_twice_counts_once() -> None:
    append_score(score("a", outcome="stopped"))
    append_score(score("b"))
    append_score(score("a"))
    assert [(s.run_id, s.outcome) for s in read_scores().scores] == [("b", "finished"), ("a", "finished")]


def test_a_torn_line_costs_itself_and_is_named() -> None:
    append_score(score("a"))
    with scores_path().open("ab") as file:
        file.write(b'{"run_id": "torn", "t": 17')
    append_score(score("b"))
    book = read_scores()
    assert [s.run_id for s in book.scores] == ["a", "b"]
    assert len(book.notes) == 1
    assert "1 line of" in book.notes[0]
    assert str(scores_path()) in book.notes[0]


def test_errors_are_signed_and_the_worst_keeps_its_sign() -> None:
    over = Promise(low=90, likely=110, high=120, measured=100)
    under = Promise(low=60, likely=70, high=80, measured=100)
    unknown = Promise(low=60, likely=70, high=80)
    found = error_summary([over, under, unknown])
    assert found is not None
    assert found.runs == 2
    assert math.isclose(found.mean, (0.10 - 0.30) / 2)
    assert math.isclose(found.worst, -0.30)
    assert found.inside == 1
    assert error_summary([unknown]) is None


def test_without_runs_scores_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores"]) == 0
    out = capsys.readouterr().out
    assert "No run has been scored yet" in out
    assert "scaler-wizard demo" in out
    assert "No correction is in force" in out
    assert str(scores_path()) in out


def test_scores_shows_both_sides_and_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    append_score(score("20261126-101010-aaaa"))
    assert main(["scores"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("20261126-101010-aaaa"))
    assert "+25.0%" in line
    assert "-20.0%" in line
    assert "mean +25.0%, worst +25.0%, 0 of 1 in range" in out


def test_the_json_holds_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    append_score(score("a"))
    assert main(["scores", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"][0]["process"]["measured"] == 8e8
    assert document["machines"][0]["memory"]["runs"] == 1
    assert document["calibration"] is None  # that run was on another machine
