"""A lab is carried out run by run, and goes on after whatever stopped it. Real runners, a worker without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs.control import request
from engine.jobs.spec import JobSpec
from engine.jobs.state import RunPhase
from engine.jobs.store import Follower, list_runs, load_run_spec, load_state
from engine.lab.drive import carry_out
from engine.lab.folder import LabFolder, folder_of, make
from engine.lab.lab_file import Lab
from tests.support.cli import command, environment
from tests.support.fake_worker import worker_command
from tests.support.labs import small_lab

PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    monkeypatch.setenv("FAKE_STEPS", "4")
    monkeypatch.setenv("FAKE_DELAY", "0.001")


class Watcher:
    """A front end that waits; `stop_after` runs it is interrupted."""

    def __init__(self, stop_after: int = 99, on_say: Callable[[], None] | None = None) -> None:
        self.left = stop_after
        self.on_say = on_say
        self.said: list[str] = []

    def check(self, spec: JobSpec) -> JobSpec:
        return spec

    def follow(self, run_dir: Path) -> bool:
        self.left -= 1
        if self.left <= 0:
            request(run_dir, "stop")
        wait(lambda: not Follower(run_dir).poll().state.is_live)
        return self.left > 0

    def say(self, text: str) -> None:
        if self.on_say is not None and not self.said:
            self.on_say()
        self.said.append(text)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_seeds(folder: Path, *seeds: int) -> tuple[Lab, LabFolder]:
    lab = small_lab(folder, lambda text: text.replace("seeds = [1, 2, 3]", f"seeds = {list(seeds)}"))
    return lab, make(folder_of(lab))


def test_every_arm_runs_with_every_seed_and_a_second_start_repeats_nothing(tmp_path: Path) -> None:
    lab, folder = with_seeds(tmp_path, 1, 2)
    outcome = carry_out(lab, folder, Watcher())
    assert (outcome.finished, outcome.total, outcome.complete) == (4, 4, True)
    runs = folder.runs()
    assert list(runs) == [("LoRA", 1), ("full", 1), ("LoRA", 2), ("full", 2)], "seed by seed, so that pairs are whole"
    assert load_run_spec(runs[("full", 2)]).training.seed == 2
    again = Watcher()
    assert carry_out(lab, folder, again).complete
    assert again.said == []
    assert len(list_runs()) == 4


def test_an_interrupted_lab_resumes_its_run_and_does_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    monkeypatch.setenv("FAKE_STEPS", "400")  # never over before it hears that it is to stop
    monkeypatch.setenv("FAKE_DELAY", "0.1")
    outcome = carry_out(lab, folder, Watcher(stop_after=1))
    assert outcome.interrupted
    first = folder.runs()[("LoRA", 1)]
    assert load_state(first).state is RunPhase.STOPPED
    monkeypatch.setenv("FAKE_DELAY", "0.001")
    watcher = Watcher()
    assert carry_out(lab, folder, watcher).complete
    assert folder.runs()[("LoRA", 1)] == first
    assert watcher.said[0] == "== LoRA, seed 1: was stopped, resumed"
    assert load_state(first).attempt == 2


def test_a_failed_arm_does_not_keep_the_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    monkeypatch.setenv("FAKE_MODE", "fail")
    monkeypatch.setenv("FAKE_AT", "2")
    outcome = carry_out(lab, folder, Watcher())
    assert (outcome.finished, outcome.failed, outcome.complete) == (0, 2, False)
    monkeypatch.delenv("FAKE_MODE")
    assert carry_out(lab, folder, Watcher()).complete, "and is tried again when the lab is started again"


def test_more_seeds_and_other_goals_go_on_in_the_same_folder(tmp_path: Path) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    carry_out(lab, folder, Watcher())
    wider = small_lab(
        tmp_path, lambda text: text.replace('name = "answer"', 'name = "all"').replace("[1, 2, 3]", "[1, 2]")
    )
    assert folder_of(wider) == folder
    assert carry_out(wider, folder, Watcher()).total == 4
    assert len(list_runs()) == 4
    other = small_lab(tmp_path, lambda text: text.replace("batch_size = 2", "batch_size = 1"))
    assert folder_of(other) != folder


def test_one_process_at_a_time_works_on_a_lab(tmp_path: Path) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    with folder.held(), pytest.raises(EngineError) as caught:
        carry_out(lab, folder, Watcher())
    assert caught.value.code == "lab.live"


def test_a_lab_that_is_killed_leaves_its_run_working_and_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    slow = environment(FAKE_DELAY="1")
    process = subprocess.Popen(
        command("lab", str(lab.path)), env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait(lambda: bool(folder.runs()) and load_state(folder.runs()[("LoRA", 1)]).step >= 1)
    first = folder.runs()[("LoRA", 1)]
    worker = load_state(first).worker_pid
    os.kill(worker, signal.SIGSTOP)  # so that it has not ended when it is taken up again
    process.kill()
    process.wait()
    assert load_state(first).state.is_live, "the run is no child of the lab"
    watcher = Watcher(on_say=lambda: os.kill(worker, signal.SIGCONT))
    assert carry_out(lab, folder, watcher).complete
    assert watcher.said[0] == "== LoRA, seed 1: goes on"
    assert load_state(first).attempt == 1


def test_ctrl_c_saves_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    lab, folder = with_seeds(tmp_path, 1)
    process = subprocess.Popen(
        command("lab", str(lab.path)), env=environment(FAKE_DELAY="0.4", FAKE_STEPS="400"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait(lambda: bool(folder.runs()) and load_state(folder.runs()[("LoRA", 1)]).step >= 1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert "0 of 2 runs are finished. Go on with: scaler-wizard lab" in err
    assert "0 of 2 runs finished" in out
    assert load_state(folder.runs()[("LoRA", 1)]).state is RunPhase.STOPPED
    assert len(folder.runs()) == 1


def test_a_budget_in_seconds_is_divided_by_steps_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = small_lab(
        tmp_path,
        lambda text: text.replace('kind = "flops"\namount = 1e11', 'kind = "wall-clock"\namount = 2').replace(
            "exact_match_rows = 4", "exact_match_rows = 4\nevery_steps = 5\n[spec.stop]\nplateau_evaluations = 3"
        ),
    )
    folder = make(folder_of(lab))
    monkeypatch.setenv("FAKE_DELAY", "0.02")
    carry_out(lab, folder, Watcher(stop_after=3))
    record = folder.record()
    assert record is not None
    assert {size.steps for size in record.sizes.arms} == {100}, "the worker says 0.02 s for every step"
    assert "measured" in record.sizes.how


def test_no_torch_is_loaded_by_the_lab_itself() -> None:
    code = (
        "import sys; import engine.lab.drive, engine.lab.report, scaler_tui.commands.lab; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
