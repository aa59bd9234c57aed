"""A race's lines folded into what is known, and read as a table: recordings of real races."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import scaler_tui.line_process as line_process
import scaler_tui.race_process as race_process
from engine.context.factors import Factors, read_factors
from engine.jobs.race_lines import (
    RaceProgress,
    RaceRow,
    RaceStarted,
    SearchDone,
    SearchStep,
    decode_line,
    encode_line,
)
from engine.resources import demo_dir
from scaler_tui.heat_layout import plain
from scaler_tui.race_process import RaceProcess, follow
from scaler_tui.race_state import RaceState, needle_share, progress_words, search_words
from scaler_tui.race_table import Look, change_text, columns_for, perplexity_text, race_lines
from scaler_tui.window import RaceKey, Window, keep_factors
from tests.support.context_runs import RACE, SEARCH, first_lines, play, recorded


def folded(path: Path) -> RaceState:
    state = RaceState()
    state.take(recorded(path))
    return state


def test_lines_are_read_back_as_they_were_written_and_foreign_ones_are_passed_over() -> None:
    lines = recorded(RACE)
    assert isinstance(lines[0], RaceStarted)
    assert [decode_line(encode_line(line)) for line in lines] == lines
    for foreign in (b"", b"words", b"[1]", b'{"kind": "race.later"}', b'{"kind": 3}', b"\xff\xfe"):
        assert decode_line(foreign) is None
    with_news = encode_line(lines[0]).replace(b'{"kind"', b'{"news": 1, "kind"')
    assert decode_line(with_news) == lines[0]


def test_a_race_counts_the_newest_figures_of_a_method_however_often_the_log_is_read() -> None:
    once, twice = folded(RACE), RaceState()
    twice.take([*recorded(RACE), *recorded(RACE)])
    assert once.rows == twice.rows
    assert once.measured == 9
    assert once.decided is not None
    assert once.decided.method == "ntk-critical"
    report = once.report("none")
    assert report is not None
    assert needle_share(report, 1024) == pytest.approx(0.2)
    assert needle_share(report, 777) is None


def test_an_interrupted_search_that_prints_its_log_again_adds_no_points() -> None:
    lines = recorded(SEARCH)
    state = RaceState()
    state.take(lines[:20])
    steps = [line for line in lines if isinstance(line, SearchStep)]
    state.take(steps[:19])
    assert len(state.steps) == 19
    state.take(lines[20:])
    assert [bucket.first_step for bucket in state.best_points] == list(range(1, 41))
    best = [bucket.mean for bucket in state.best_points]
    assert best == sorted(best, reverse=True), "the best score never rises"
    assert len(state.factor_points) == 16
    assert state.found is not None
    assert state.found.best <= state.found.best_seed


def test_words_say_what_is_measured_how_far_and_how_long() -> None:
    state = RaceState(running=True)
    assert "model is being loaded" in progress_words(state)
    state.take([RaceProgress(method="yarn", what="needles at 512", done=34, total=100, eta_seconds=40)])
    assert progress_words(state) == "measuring yarn: needles at 512, 34 %, about 40 s left"
    state.running = False
    assert progress_words(state) == "not measured yet"
    assert "40 evaluations in" in search_words(folded(SEARCH))


@pytest.mark.parametrize("width", [40, 56, 76, 116])
def test_the_table_leaves_out_whole_columns_and_keeps_what_decides(width: int) -> None:
    state = folded(RACE)
    lines = plain(race_lines(state, width, 0, Look("*", ">")))
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for expected in ("3.17", "100 %", "-7.6 %", "+185 %"):
        assert expected in text, expected
    columns = columns_for((128, 256, 512, 1024), (256, 512, 1024), 1024, 116)
    assert len(columns) == 8
    assert [column.kind for column in columns_for((128, 1024), (256, 1024), 1024, 24)] == [
        "perplexity",
        "needles",
        "short",
    ]


def test_a_low_table_shows_the_methods_around_the_pointer() -> None:
    state = folded(RACE)
    for pointer in range(len(state.contenders)):
        lines = plain(race_lines(state, 70, pointer, Look("*", ">", most=4)))
        assert len(lines) == 6
        assert any(line.startswith(">") and state.contenders[pointer].method in line for line in lines)


def test_a_broken_model_is_called_broken() -> None:
    assert [perplexity_text(value) for value in (3.456, 128.4, 340_000.0, float("inf"))] == [
        "3.46", "128", "3e+05", "broken",
    ]  # fmt: skip
    assert [change_text(value) for value in (0.004, -0.067, 1.85, 37.2, float("nan"))] == [
        "+0.4 %", "-6.7 %", "+185 %", "x 38", "broken",
    ]  # fmt: skip


def test_a_finished_race_replaces_auto_and_nothing_else() -> None:
    window = Window()
    window.races[RaceKey("demo", 1024)] = folded(RACE)
    assert window.decided("demo", 1024).method == "ntk-critical"
    assert window.decided("demo", 2048).method == "auto", "another length was not measured"
    window.train("none")
    assert not window.decided("demo", 1024).train
    window.choice = type(window.choice)(method="linear")
    assert window.decided("demo", 1024).method == "linear", "what the user named stays"


def test_what_a_search_found_is_kept_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path))
    found = SearchDone(best=1.0, best_seed=2.0, divisors=(1.0, 4.25), attention_factor=1.125, critical_pair=1)
    key = RaceKey("demo", 1024, "longrope2")
    keep_factors(key, found)
    assert read_factors(key.factors) == Factors((1.0, 4.25), attention_factor=1.125, critical_pair=1)
    window = Window()
    window.choice = type(window.choice)(method="longrope2")
    assert window.decided("demo", 1024).factors == str(key.factors)


def test_another_model_in_the_same_folder_shares_nothing_with_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    shutil.copytree(demo_dir() / "model", folder)
    key = RaceKey(str(folder), 1024, "longrope2")
    keep_factors(key, SearchDone(best=1.0, best_seed=2.0, divisors=(4.0,) * 16))
    before = key.log, key.factors
    assert key.factors.is_file()
    weights = next(folder.glob("*.safetensors"))
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert key.log != before[0]
    assert not key.factors.is_file(), "factors of the other weights are not used"


def test_races_of_other_models_lengths_and_methods_have_other_logs() -> None:
    keys = [RaceKey("demo", 1024), RaceKey("demo", 2048), RaceKey("other", 1024), RaceKey("demo", 1024, "longrope2")]
    assert len({key.log for key in keys}) == 4
    assert keys[3].words == ("extend", "demo", "--context", "1024", "--method", "longrope2", "--race", "--json-lines")


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_lines_come_while_the_process_still_runs_and_ending_it_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, tmp_path, first_lines(tmp_path, 3), waits=True)
    process = RaceProcess(RaceKey("demo", 1024))
    lines = process.lines()
    assert isinstance(next(lines), RaceStarted)
    assert isinstance([next(lines), next(lines)][-1], RaceRow), "it has not ended, and the lines are here"
    began = time.monotonic()
    process.end()
    assert list(lines) == []
    assert time.monotonic() - began < 5
    assert process.error is None


def test_a_process_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"sys.stdout.write(open({str(RACE)!r}).readline())\nsys.stdout.flush()\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(race_process, "PROGRAM", (sys.executable, str(deaf)))
    monkeypatch.setattr(line_process, "PATIENCE_SECONDS", 0.2)
    process = RaceProcess(RaceKey("demo", 1024))
    lines = process.lines()
    next(lines)
    process.end()
    assert list(lines) == []
    assert process._process is not None
    assert process._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("program", "what", "cause"),
    [
        ('print(\'{"error": {"code": "a", "what": "No.", "cause": "Why."}}\'); exit(2)', "No.", "Why."),
        ("import sys; sys.stderr.write('first\\nlast word\\n'); exit(3)", "ended before it was done", "last word"),
        ("exit(7)", "ended before it was done", "exit code 7"),
    ],
)
def test_how_it_failed_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, what: str, cause: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    monkeypatch.setattr(race_process, "PROGRAM", (sys.executable, str(script)))
    error = follow(RaceKey("demo", 1024), lambda line: None)
    assert error is not None
    assert what in error.what
    assert error.cause == cause


def test_a_program_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(race_process, "PROGRAM", (str(tmp_path / "none"),))
    error = follow(RaceKey("demo", 1024), lambda line: None)
    assert error is not None
    assert "could not be started" in error.what
