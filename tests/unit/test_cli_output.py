"""Text gets out whatever is at the other end: a narrow character set, a closed pipe, a full disk, nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import ROOT, cli, command, environment

NARROW = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]


@pytest.mark.parametrize("variables", NARROW, ids=lambda variables: "-".join(variables.values()))
def test_a_narrow_character_set_gets_ascii(variables: dict[str, str]) -> None:
    result = cli("matrix", "demo", env=variables)
    assert result.code == 0
    assert "QLoRA" in result.out
    assert "�" not in result.out
    if variables.get("PYTHONIOENCODING") == "ascii":
        assert result.out.isascii()
        assert "?" not in result.out.replace("FITS?", "")


def test_json_keeps_its_content_in_a_narrow_character_set() -> None:
    narrow = cli("inspect", "demo", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert narrow.out.isascii()
    assert narrow.json == cli("inspect", "demo", "--json").json
    matrix = cli("matrix", "demo", "--gpu", "24G", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert (
        matrix.json["approaches"][0]["effective_capacity"]
        == (cli("matrix", "demo", "--gpu", "24G", "--json").json["approaches"][0]["effective_capacity"])
    )
    assert not matrix.json["approaches"][0]["effective_capacity"].isascii()


def test_a_name_that_is_not_unicode_still_makes_valid_json(tmp_path: Path) -> None:
    odd = os.fsdecode(b"rows-\xff.jsonl")
    shutil.copy(ROOT / "tests/data/datasets/chat.jsonl", tmp_path / odd)
    result = cli("data", "check", odd, "--json", cwd=tmp_path)
    assert result.code == 0
    assert json.loads(result.out)["train"]["path"].endswith(odd)


@pytest.mark.parametrize("words", [("matrix", "demo"), ("plan", "demo"), ("data", "check", "demo"), ("--help",)])
def test_a_reader_that_leaves_is_no_error(words: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize("words", ["runs", "inspect nowhere", "--plain"])
def test_a_closed_stream_is_no_crash(closed: str, words: str, tmp_path: Path) -> None:
    line = " ".join(command()) + f" {words} {closed}"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=environment(), input="", check=False
    )
    assert result.returncode == {"runs": 0, "inspect nowhere": 2, "--plain": 1}[words]
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["matrix demo", "matrix demo --json", "inspect nowhere --json"])
def test_a_full_disk_behind_the_output_is_said_on_stderr(words: str) -> None:
    line = " ".join(command()) + f" {words} > /dev/full"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_without_a_terminal_the_wizard_says_what_to_use_instead() -> None:
    result = cli()
    assert result.code == 2
    assert "--plain" in result.err


def test_a_dumb_terminal_gets_no_control_codes() -> None:
    for words in (("doctor",), ("matrix", "demo"), ("runs",), ("inspect", "nowhere")):
        assert "\x1b" not in cli(*words, env={"TERM": "dumb", "NO_COLOR": "1"}).text


def test_a_fault_of_the_program_leaves_a_report_instead_of_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaler_tui import output

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fault() -> int:
        raise ZeroDivisionError("by nothing")

    assert output.guarded(fault, as_json=False) == 5
    told = capsys.readouterr().err
    assert "ZeroDivisionError: by nothing" in told
    assert "Traceback" not in told
    (report,) = tmp_path.glob("scaler-wizard-report-*.txt")
    assert str(report) in told
    assert "in fault" in report.read_text()
