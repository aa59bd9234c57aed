"""Runs from the command line, with real processes and a quick stand-in for the worker: start, follow, control, end."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.jobs import checkpoints
from tests.support.cli import ROOT, cli, command, environment, wait_for
from tests.support.fake_worker import worker_command

CHAT = ROOT / "tests/data/datasets/chat.jsonl"


@pytest.fixture(autouse=True)
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps in well under a second, unless a test wants it slower."""
    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    monkeypatch.setenv("FAKE_STEPS", "40")
    monkeypatch.setenv("FAKE_DELAY", "0.002")


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that only ends when it is told to; it is told at the end of the test."""
    monkeypatch.setenv("FAKE_STEPS", "100000")
    monkeypatch.setenv("FAKE_DELAY", "0.02")
    yield
    for run in listed():
        if run["state"] not in ("finished", "stopped", "paused", "failed"):
            cli("stop", run["id"])
            wait_for(lambda: listed()[0]["state"] == "stopped", "the run stops")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text('task = "lora"\nname = "a try"\n')
    return path


def listed() -> list[dict[str, Any]]:
    result = cli("runs", "--json")
    assert result.code == 0, result.err
    return result.json  # type: ignore[no-any-return]


def state_of(run_id: str) -> str:
    return next(run["state"] for run in listed() if run["id"] == run_id)


def step_of(run_id: str) -> int:
    return next(run["step"] for run in listed() if run["id"] == run_id)


def test_run_follows_to_the_end_and_says_so(spec: Path) -> None:
    result = cli("run", str(spec))
    assert result.code == 0, result.err
    (run,) = listed()
    assert (run["state"], run["step"], run["total_steps"], run["name"]) == ("finished", 40, 40, "a try")
    assert f"Run {run['id']} is finished at step 40 of 40." in result.err
    assert result.err.count("[training]") == 1, "evaluations and checkpoints in between are not announced each time"
    assert "\x1b" not in result.text


def test_start_returns_the_id_at_once_and_the_run_goes_on(spec: Path) -> None:
    result = cli("start", str(spec), "--json")
    assert result.code == 0
    assert set(result.json) == {"id", "directory"}
    assert Path(result.json["directory"]).name == result.json["id"]
    assert Path(result.json["directory"]).is_dir()
    wait_for(lambda: state_of(result.json["id"]) == "finished", "the run finishes")


def test_start_prints_nothing_but_the_id(spec: Path) -> None:
    result = cli("start", str(spec))
    assert result.out == listed()[0]["id"] + "\n"
    wait_for(lambda: listed()[0]["state"] == "finished", "the run finishes")


def test_pause_resume_checkpoint_and_stop_by_the_beginning_of_the_id(spec: Path, endless: None) -> None:
    run_id = cli("start", str(spec), "--json").json["id"]
    directory = Path(listed()[0]["directory"])
    wait_for(lambda: step_of(run_id) > 2, "some steps")
    assert cli("checkpoint", run_id).code == 0
    wait_for(lambda: checkpoints.newest_step(directory), "a checkpoint")
    paused = cli("pause", run_id[:17], "--json")
    assert paused.json == {"id": run_id, "directory": str(directory), "requested": "pause"}
    wait_for(lambda: state_of(run_id) == "paused", "the run pauses")
    again = cli("pause", run_id)
    assert again.code == 2
    assert "paused already" in again.err
    reached = step_of(run_id)
    assert cli("resume", "latest").code == 0
    wait_for(lambda: state_of(run_id) == "running" and step_of(run_id) > reached, "it goes on")
    assert cli("stop", run_id).code == 0
    wait_for(lambda: state_of(run_id) == "stopped", "the run stops")


def test_resuming_a_run_that_works_is_refused(spec: Path, endless: None) -> None:
    run_id = cli("start", str(spec), "--json").json["id"]
    result = cli("resume", run_id)
    assert result.code == 2
    assert run_id in result.err


def in_foreground(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED="1"),
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {''.join(seen)}")


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_saves_stops_and_leaves_a_run_that_resumes(spec: Path, endless: None, flags: list[str]) -> None:
    process = in_foreground("run", str(spec), *flags)
    wait_for_line(process, "Ctrl+C stops it")
    wait_for(lambda: listed()[0]["step"] > 2, "some steps")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopping" in err
    assert "Traceback" not in err
    (run,) = listed()
    assert run["state"] == "stopped"
    if flags:
        document = json.loads(out)
        assert document["id"] == run["id"]
        assert document["error"]["code"] == "run.stopped"
    else:
        assert f"scaler-wizard resume {run['id']}" in err
    assert cli("resume", run["id"]).code == 0
    wait_for(lambda: step_of(run["id"]) > run["step"], "it goes on where it stopped")


def test_ctrl_c_during_the_launch_is_not_lost(spec: Path, endless: None) -> None:
    """Sent as soon as the run directory exists, while the runner is being started."""
    process = in_foreground("run", str(spec))
    runs = Path(environment()["SCALER_WIZARD_HOME"]) / "runs"
    wait_for(lambda: runs.is_dir() and [d for d in runs.iterdir() if not d.name.startswith(".")], "a run directory")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert listed()[0]["state"] == "stopped"


def test_a_second_ctrl_c_leaves_the_run_working(spec: Path, endless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DELAY", "8")  # the step that must be finished first takes a while
    process = in_foreground("run", str(spec))
    wait_for_line(process, "Ctrl+C stops it")
    process.send_signal(signal.SIGINT)
    wait_for_line(process, "Stopping")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The run goes on" in err


def test_killing_the_follower_does_not_touch_the_run(spec: Path, endless: None) -> None:
    process = in_foreground("run", str(spec))
    wait_for_line(process, "Ctrl+C stops it")
    process.kill()
    process.wait()
    (run,) = listed()
    wait_for(lambda: step_of(run["id"]) > run["step"] + 2, "the run goes on")


def test_ctrl_c_in_attach_only_leaves(spec: Path, endless: None) -> None:
    run_id = cli("start", str(spec), "--json").json["id"]
    process = in_foreground("attach", run_id)
    wait_for_line(process, "[training]")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The run goes on" in err
    assert state_of(run_id) == "running"


def test_attach_without_a_terminal_follows_to_the_end(spec: Path) -> None:
    run_id = cli("start", str(spec), "--json").json["id"]
    result = cli("attach", run_id)
    assert result.code == 0
    assert f"Run {run_id} is finished" in result.err


def test_a_failed_run_is_code_5_with_its_cause(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "fail")
    text = cli("run", str(spec))
    assert text.code == 5
    assert "Loss is not a number" in text.err
    assert "Lower learning_rate" in text.err
    document = cli("run", str(spec), "--json")
    assert document.code == 5
    assert document.json["error"]["code"] == "run.failed"
    assert document.json["error"]["cause"] == "Loss is not a number."


def test_a_worker_killed_under_a_follower_is_reported_and_resumable(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "once_kill")
    result = cli("run", str(spec))
    assert result.code == 5
    run_id = listed()[0]["id"]
    assert f"scaler-wizard resume {run_id}" in result.err
    assert cli("resume", run_id).code == 0
    assert cli("attach", run_id).code == 0
    assert listed()[0]["state"] == "finished"


def test_logs_follow_until_the_end_and_repeat_nothing(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DELAY", "0.02")
    run_id = cli("start", str(spec), "--json").json["id"]
    followed = cli("logs", run_id, "-f")
    afterwards = cli("logs", run_id)
    assert followed.code == afterwards.code == 0
    assert followed.out == afterwards.out
    assert "Checkpoint at step 40" in afterwards.out


def test_the_workers_own_output_is_shown(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "exit3")
    cli("run", str(spec))
    result = cli("logs", "--worker", "-f")
    assert result.code == 0
    assert "the flux capacitor is empty" in result.out


def test_a_card_that_is_not_there_yet_is_said(spec: Path) -> None:
    cli("run", str(spec))
    for flags in ([], ["--html"]):
        result = cli("card", *flags)
        assert result.code == 2
        assert "no card" in result.err


def test_merging_a_run_without_an_adapter_is_refused_in_words(spec: Path) -> None:
    cli("run", str(spec))
    result = cli("merge", "latest", "--json")
    assert result.code == 2
    assert result.json["error"]["code"] == "merge.no_adapter"


# ── what is looked at before the start ────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def too_large(tmp_path: Path) -> Path:
    """About 150 GB of activations: more than a usual machine has."""
    path = tmp_path / "large.toml"
    path.write_text('task = "lora"\n[training]\nbatch_size = 4096\n')
    return path


def test_a_spec_that_does_not_fit_is_refused_with_ways_out(too_large: Path) -> None:
    for verb in ("run", "start"):
        result = cli(verb, str(too_large))
        assert result.code == 4
        assert "does not fit" in result.err
        assert "set training.batch_size = " in result.err
        assert "--force" in result.err
    assert listed() == []


def test_the_first_way_out_is_true(too_large: Path) -> None:
    import re

    advice = re.search(r"batch_size = (\d+), training.gradient_accumulation = (\d+)", cli("start", str(too_large)).err)
    assert advice is not None
    too_large.write_text(
        'task = "lora"\n[training]\ngradient_checkpointing = true\n'
        f"batch_size = {advice[1]}\ngradient_accumulation = {advice[2]}\n"
    )
    result = cli("run", str(too_large))
    assert result.code == 0, result.err
    assert "Tight" not in result.err


def test_force_starts_it_all_the_same_and_the_journal_says_so(too_large: Path) -> None:
    result = cli("run", str(too_large), "--force")
    assert result.code == 0, result.err
    assert "Forced" in result.err
    first = json.loads(cli("logs", "--json").out.splitlines()[0])
    assert first["level"] == "warning"
    assert "--force although it was refused" in first["message"]


def test_warnings_about_the_data_are_shown_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(
        f'task = "lora"\n[data]\ntrain = "{ROOT}/tests/data/datasets/mixed.jsonl"\nheldout = ""\n'
        "heldout_fraction = 0.0\n"
    )
    result = cli("run", str(path))
    assert result.code == 0, result.err
    assert "Data: The file mixes kinds of rows" in result.err


def test_files_of_a_spec_are_found_from_its_own_folder(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "specs", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    (place / "rows.jsonl").write_bytes(CHAT.read_bytes())
    (place / "spec.toml").write_text(
        'task = "lora"\n[data]\ntrain = "rows.jsonl"\nheldout = ""\nheldout_fraction = 0.0\n'
    )
    result = cli("run", "../specs/spec.toml", cwd=elsewhere)
    assert result.code == 0, result.err
    frozen = (Path(listed()[0]["directory"]) / "spec.toml").read_text()
    assert f'train = "{elsewhere}/../specs/rows.jsonl"' in frozen or f'train = "{place}/rows.jsonl"' in frozen


def test_the_promise_in_the_frozen_spec_is_for_this_machine(spec: Path) -> None:
    cli("plan", "demo", "--gpu", "RTX 4090", "-o", str(spec.with_name("planned.toml")))
    assert cli("run", str(spec.with_name("planned.toml"))).code == 0
    frozen = (Path(listed()[0]["directory"]) / "spec.toml").read_text()
    assert "RTX 4090" not in frozen


def test_a_model_folder_without_weights_is_refused(tmp_path: Path) -> None:
    import shutil

    from engine.resources import demo_model_dir

    shutil.copytree(demo_model_dir(), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "spec.toml").write_text('task = "lora"\n[model]\nsource = "./bare"\n')
    result = cli("start", "spec.toml", cwd=tmp_path)
    assert result.code == 2
    assert "safetensors" in result.err
    assert listed() == []


@pytest.mark.parametrize("columns", [80, 60])
def test_on_a_terminal_progress_is_one_line_that_fits(
    spec: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import pty
    import re

    monkeypatch.setenv("FAKE_DELAY", "0.03")
    far, near = pty.openpty()
    process = subprocess.Popen(
        command("run", str(spec)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=near,
        cwd=ROOT,
        env=environment(COLUMNS=str(columns), TERM="xterm-256color", LC_ALL="C.UTF-8"),
    )
    os.close(near)
    drawn = b""
    with os.fdopen(far, "rb", buffering=0) as screen:
        while True:
            try:
                chunk = screen.read(65536)
            except OSError:  # the other end is closed: Linux's way to say end of file
                break
            if not chunk:
                break
            drawn += chunk
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    lines = [line.strip("\n") for line in re.split(r"[\r\n]+", text) if "step " in line and "/40" in line]
    assert lines
    assert all("…" not in line for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert any("left" in line for line in lines) or columns < 80
