"""The wizard as numbered questions, typed into a real process: every answer, to a spec on disk and to a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.jobs.spec_toml import load_spec
from tests.support.cli import ROOT, Result, cli, wait_for
from tests.support.fake_worker import worker_command

DRAWN = re.compile("[\u2190-\u21ff\u2500-\u259f\u25a0-\u25ff\u2700-\u27bf\u2800-\u28ff\x1b]")
TO_THE_MATRIX = ["1", *[""] * 8]
"""The demo model, then every suggestion; what follows is the choice of an approach."""


def plain(*lines: str, words: tuple[str, ...] = ("--plain",), env: dict[str, str] | None = None, cwd: Path) -> Result:
    return cli(*words, stdin="".join(f"{line}\n" for line in lines), env=env, cwd=cwd)


def steps(result: Result) -> list[str]:
    """The headings of the questions in the order they were asked."""
    return re.findall(r"^Step (\d+ of \d+)\.", result.out, re.MULTILINE)


def test_every_suggestion_leads_to_a_spec_on_disk(tmp_path: Path) -> None:
    result = plain(*TO_THE_MATRIX, "1", "1", "mine.toml", cwd=tmp_path)
    assert result.code == 0, result.text
    assert steps(result) == [f"{number} of 9" for number in range(1, 10)]
    spec = load_spec(tmp_path / "mine.toml")
    assert (spec.task, spec.model.source, spec.data.train) == ("qlora", "demo", "demo")
    assert spec.prediction.memory_bytes_high > 0
    assert "Run it: scaler-wizard run mine.toml" in result.out


def test_a_spec_from_the_prompts_equals_the_one_from_flags(tmp_path: Path) -> None:
    plain(*TO_THE_MATRIX, "1", "1", "prompts.toml", cwd=tmp_path)
    cli("plan", "demo", "--approach", "qlora", "-o", "flags.toml", cwd=tmp_path)
    prompts, flags = load_spec(tmp_path / "prompts.toml"), load_spec(tmp_path / "flags.toml")
    assert (prompts.adapter, prompts.data, prompts.task) == (flags.adapter, flags.data, flags.task)


def test_start_now_runs_to_the_end(tmp_path: Path) -> None:
    env = {"SCALER_WIZARD_WORKER": worker_command(), "FAKE_STEPS": "20"}
    result = plain(*TO_THE_MATRIX, "", "3", env=env, cwd=tmp_path)
    assert result.code == 0, result.text
    assert "is finished at step 20 of 20" in result.err
    (run,) = cli("runs", "--json").json
    assert run["state"] == "finished"


def test_nothing_is_drawn_that_a_screen_reader_would_spell(tmp_path: Path) -> None:
    result = plain("m", *TO_THE_MATRIX, "m", "2", "2", cwd=tmp_path, env={"LC_ALL": "C.UTF-8"})
    assert not DRAWN.search(result.out)
    assert max(map(len, result.out.splitlines())) < 400


def test_accessible_in_the_environment_means_plain(tmp_path: Path) -> None:
    result = plain("q", words=(), env={"ACCESSIBLE": "1"}, cwd=tmp_path)
    assert result.code == 1
    assert steps(result) == ["1 of 9"]


def test_demo_skips_the_question_about_the_model(tmp_path: Path) -> None:
    result = plain("q", words=("--demo", "--plain"), cwd=tmp_path)
    assert steps(result) == ["2 of 9"]


def test_saved_answers_meet_another_card(tmp_path: Path) -> None:
    """The next saved question may be one that the other card makes disappear."""
    plain("1", "", "", "", "", "", "2", cwd=tmp_path)
    result = plain("1", "q", words=("--plain", "--gpu", "RTX 4090"), cwd=tmp_path)
    assert result.code == 1
    assert "RTX 4090" in result.out
    assert "internal error" not in result.text


@pytest.mark.parametrize("last", [["q"], ["quit"], []], ids=["q", "quit", "end-of-input"])
def test_leaving_starts_nothing_and_keeps_the_answers(last: list[str], tmp_path: Path) -> None:
    result = plain("1", "3", *last, cwd=tmp_path)
    assert result.code == 1
    assert "Your answers are kept" in result.out
    assert cli("runs", "--json").json == []
    again = plain("", "q", cwd=tmp_path)
    assert "2 saved answers" in again.out
    assert steps(again) == ["3 of 9"]
    afresh = plain("2", "q", cwd=tmp_path)
    assert steps(afresh) == ["1 of 9"]


def test_back_keeps_later_answers(tmp_path: Path) -> None:
    result = plain("1", "3", "b", "", "q", cwd=tmp_path)
    assert steps(result) == ["1 of 9", "2 of 9", "3 of 9", "2 of 9", "3 of 9"]
    assert result.out.count("Answer [3]") == 1, "the answer given before is suggested"


def test_back_from_the_choice_of_approach_returns_to_the_last_question(tmp_path: Path) -> None:
    result = plain(*TO_THE_MATRIX, "b", "1", "q", cwd=tmp_path)
    assert steps(result)[-2:] == ["9 of 9", "9 of 9"]


def test_a_changed_answer_says_what_it_changes(tmp_path: Path) -> None:
    result = plain("3", "5", "q", cwd=tmp_path)
    assert "How many tokens must it read at once?' is now 32,768 tokens (was 2,048 tokens)" in result.out


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["nowhere"], "neither a folder nor a known model"),
        (["1", "9"], "Choose one of"),
        (["1", "fame"], "Choose one of"),
        (["1", "", "", "", "missing.jsonl"], "There is no file"),
        (["1", "", "", "", "/"], "is a folder"),
        (["1", "", "", "", "", "3"], "Not possible: this model reads at most 256 tokens"),
        (["1", "", "", "", "", "=1"], "from 32"),
        (["1", "", "", "", "", "many"], "'many'"),
        (["1", "", "", "", "", "", "3", "Voodoo2"], "names no known graphics card"),
        ([*TO_THE_MATRIX, "99"], "Type a number from 1 to 9"),
        ([*TO_THE_MATRIX, "7"], "does not carry it out yet"),
        ([*TO_THE_MATRIX, "1", "7"], "Type a number from 1 to 6"),
        ([*TO_THE_MATRIX, "1", "1", "/dev/null/x.toml"], "Cannot write"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_answer_is_told_and_asked_again(lines: list[str], told: str, tmp_path: Path) -> None:
    valid, whole = (
        plain(*typed, env={"SCALER_WIZARD_HOME": str(tmp_path / home)}, cwd=tmp_path)
        for typed, home in ((lines[:-1], "valid"), (lines, "whole"))
    )
    assert told in whole.out
    assert told not in valid.out
    assert "Traceback" not in whole.text
    assert steps(whole)[-1] == steps(valid)[-1], "the same question is asked again"
    assert whole.code == 1


def test_bad_data_is_told_at_the_question_about_data(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    result = plain("1", "", "", "", "empty.jsonl", "q", cwd=tmp_path)
    assert "empty.jsonl is empty" in result.out
    assert steps(result)[-2:] == ["5 of 9", "5 of 9"]


def test_data_is_counted_and_its_warnings_are_read_out(tmp_path: Path) -> None:
    result = plain("1", "", "", "", str(ROOT / "tests/data/datasets/mixed.jsonl"), "q", cwd=tmp_path)
    assert "Data: 4 rows to learn from, 2 held out, 0 dropped, 0 cut" in result.out
    assert "Data warning: The file mixes kinds of rows" in result.out


def test_a_value_with_an_equals_sign_is_not_an_option(tmp_path: Path) -> None:
    result = plain("1", "", "", "", "", "=128", "", "", "", "1", "1", "mine.toml", cwd=tmp_path)
    assert result.code == 0, result.text
    assert load_spec(tmp_path / "mine.toml").data.max_length == 128


def test_a_plan_for_another_card_can_be_written_but_not_started(tmp_path: Path) -> None:
    answers = ["1", *[""] * 9]  # one question more: which card
    result = plain(*answers, "1", "6", "1", "", words=("--plain", "--gpu", "RTX 4090"), cwd=tmp_path)
    assert steps(result)[-1] == "10 of 10"
    assert "This is a simulation, SIM" in result.out
    assert "Type a number from 1 to 5" in result.out
    assert "Start it now, here" not in result.out
    assert result.code == 0, result.text
    assert load_spec(tmp_path / "spec.toml").prediction.machine.startswith("RTX 4090")
    assert cli("runs", "--json").json == []


def test_damaged_saved_answers_are_set_aside_and_said(tmp_path: Path, own_home: Path) -> None:
    (own_home / "state").mkdir(parents=True)
    (own_home / "state" / "answers.json").write_text("{")
    result = plain("q", cwd=tmp_path)
    assert result.code == 1
    assert steps(result) == ["1 of 9"]
    assert "Traceback" not in result.text


def test_bytes_that_are_not_text_are_an_impossible_answer(tmp_path: Path) -> None:
    result = cli("--plain", stdin=b"\xff\xfe\x00\n\nq\n", cwd=tmp_path)
    assert result.code == 1
    assert "Traceback" not in result.text


def test_ctrl_c_at_a_prompt_leaves_with_130(tmp_path: Path) -> None:
    import signal
    import subprocess

    from tests.support.cli import command, environment

    process = subprocess.Popen(
        command("--plain"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    seen = ""
    while "Step 1 of 9" not in seen:
        seen += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    wait_for(lambda: process.poll() is not None, "it is gone")
