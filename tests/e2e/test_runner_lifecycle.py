"""Real processes: a run survives its terminal and its parents, and whatever kills it is reported.

The worker is the fake one (`tests/support/fake_worker.py`); everything else is the real thing.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs import checkpoints, control, launch, layout, liveness, lock, store
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.state import RunPhase, RunState
from tests.support.fake_worker import STATE, TOKENS_PER_STEP, loss_at, worker_command

PATIENCE_SECONDS = 60.0
"""For a busy machine; every wait ends as soon as its condition holds."""


@pytest.fixture(autouse=True)
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Runs started here use the fake worker; whatever is still alive afterwards is ended."""
    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    monkeypatch.setenv("FAKE_DELAY", "0.02")
    yield monkeypatch
    for run in store.list_runs():
        state = store.load_state(run.directory)
        for pid, started in (
            (state.runner_pid, state.runner_process_start),
            (state.worker_pid, state.worker_process_start),
        ):
            if liveness.is_alive(pid, started, state.boot_id):
                os.kill(pid, signal.SIGKILL)


def wait_for(run_dir: Path, condition: Callable[[RunState], object], *, seconds: float = PATIENCE_SECONDS) -> RunState:
    """Poll until `condition` of the state holds."""
    follower = store.Follower(run_dir)
    deadline = time.monotonic() + seconds
    while True:
        state = follower.poll()
        if condition(state):
            return state
        if time.monotonic() > deadline:
            runner_log = (run_dir / layout.RUNNER_LOG).read_text()
            raise AssertionError(f"still {state.state} at step {state.step}: {state.what} {state.cause}\n{runner_log}")
        time.sleep(0.02)


def wait_for_end(run_dir: Path) -> RunState:
    """Until nothing works on it any more."""
    state = wait_for(run_dir, lambda state: not state.state.is_live)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lock.is_held(run_dir):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return state


def losses(run_dir: Path) -> list[float]:
    """What the loss sequence is after all resumes."""
    follower = store.Follower(run_dir)
    follower.poll()
    return [bucket.mean for bucket in follower.fold.series("loss").buckets()]


def test_a_run_goes_from_start_to_finish() -> None:
    run_dir = launch.start(JobSpec(name="whole"))
    state = wait_for_end(run_dir)
    assert (state.state, state.step, state.attempt) == (RunPhase.FINISHED, 40, 1)
    assert losses(run_dir) == [loss_at(step) for step in range(1, 41)]
    assert [type(event) for event in JournalTail(run_dir).read_new()][-2:] == [ev.WorkerExit, ev.RunnerEnd]
    assert store.list_runs()[0].state is RunPhase.FINISHED


def test_the_runner_is_nobodys_child_and_has_no_terminal_and_no_pipe(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step > 0)
    assert os.getsid(state.runner_pid) != os.getsid(0)
    for pid in (state.runner_pid, state.worker_pid):
        links = {}
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # a file that it had open for a moment only
                links[name] = os.readlink(f"/proc/{pid}/fd/{name}")
        assert links["0"] == "/dev/null"
        assert not [link for link in links.values() if link.startswith(("pipe:", "socket:", "/dev/pts"))]
    stat = Path(f"/proc/{state.runner_pid}/stat").read_text()
    assert int(stat[stat.rindex(")") + 2 :].split()[1]) != os.getpid()
    status = Path(f"/proc/{state.runner_pid}/status").read_text()
    resident_kib = int(status[status.index("VmRSS:") :].split()[1])
    assert resident_kib < 30 * 1024


LAUNCHER = """
import sys, time
from engine.jobs import launch
from engine.jobs.spec import JobSpec
print(launch.start(JobSpec(name="from a terminal")), flush=True)
time.sleep(600)
"""


def test_closing_the_terminal_ends_the_launcher_and_not_the_run(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", LAUNCHER])
    text = b""
    while b"\n" not in text:
        text += os.read(terminal, 1000)
    run_dir = Path(text.decode().strip())
    os.close(terminal)  # the kernel hangs up on everything of that session
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    step = store.load_state(run_dir).step
    assert wait_for(run_dir, lambda state: state.step > step + 20).state is RunPhase.RUNNING


def test_a_run_survives_kill_9_of_its_launcher(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, start_new_session=True)
    assert launcher.stdout is not None
    run_dir = Path(launcher.stdout.readline().decode().strip())
    os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.stdout.read() == b""  # ends at once: the run holds no end of this pipe
    launcher.wait()
    step = store.load_state(run_dir).step
    assert wait_for(run_dir, lambda state: state.step > step + 20).state is RunPhase.RUNNING
    control.request(run_dir, "stop")
    assert wait_for_end(run_dir).state is RunPhase.STOPPED


def test_kill_9_of_the_worker_is_reported_within_ten_seconds_and_resumed(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "120")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step >= 27)
    os.kill(state.worker_pid, signal.SIGKILL)
    state = wait_for(run_dir, lambda state: not state.state.is_live, seconds=10)
    assert state.state is RunPhase.FAILED
    assert "kill -9" in state.cause
    checkpoint = checkpoints.newest_step(run_dir)
    assert checkpoint >= 20
    assert f"resume from step {checkpoint}" in state.next_step
    wait_for_end(run_dir)
    control.resume(run_dir)
    state = wait_for_end(run_dir)
    assert (state.state, state.attempt, state.resumed_step) == (RunPhase.FINISHED, 2, checkpoint)
    assert losses(run_dir) == [loss_at(step) for step in range(1, 121)]
    assert state.tokens_total == 120 * TOKENS_PER_STEP


def test_runner_and_worker_gone_is_lost_and_resumable(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "90")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step >= 15)
    os.kill(state.runner_pid, signal.SIGKILL)
    os.kill(state.worker_pid, signal.SIGKILL)
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.LOST
    assert store.list_runs()[0].state is RunPhase.LOST
    control.resume(run_dir)
    state = wait_for_end(run_dir)
    assert (state.state, state.step) == (RunPhase.FINISHED, 90)
    assert losses(run_dir) == [loss_at(step) for step in range(1, 91)]


def test_a_worker_whose_runner_is_killed_goes_on_and_cannot_get_a_rival(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step >= 5)
    os.kill(state.runner_pid, signal.SIGKILL)
    state = wait_for(run_dir, lambda state: state.warning)
    assert state.state is RunPhase.RUNNING
    step = state.step
    wait_for(run_dir, lambda state: state.step > step + 10)
    for attempt in (control.resume, launch.launch):
        with pytest.raises(EngineError) as caught:
            attempt(run_dir)
        assert caught.value.code == "run.live"
    control.request(run_dir, "pause")
    assert wait_for_end(run_dir).state is RunPhase.PAUSED
    control.resume(run_dir)
    assert wait_for(run_dir, lambda now: now.step > step + 20).attempt == 2


def test_a_second_launch_is_refused(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    with pytest.raises(EngineError) as caught:
        launch.launch(run_dir)
    assert caught.value.code == "run.live"
    assert run_dir.name in caught.value.what


def test_of_many_launches_at_once_exactly_one_wins(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = store.create_run(JobSpec())
    program = (
        "import sys\nfrom pathlib import Path\nfrom engine.jobs import launch\nfrom engine.errors import EngineError\n"
        "try:\n    print(launch.launch(Path(sys.argv[1])))\nexcept EngineError as error:\n    print(error.code)\n"
    )
    rivals = [subprocess.Popen([sys.executable, "-c", program, str(run_dir)], stdout=subprocess.PIPE) for _ in range(4)]
    answers = [rival.communicate()[0].decode().strip() for rival in rivals]
    state = wait_for(run_dir, lambda state: state.step > 0)
    starts = [event for event in JournalTail(run_dir).read_new() if isinstance(event, ev.RunnerStart)]
    assert len(starts) == 1
    assert set(answers) <= {str(state.runner_pid), "run.live"}
    assert str(state.runner_pid) in answers


# ── controls ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_pause_frees_the_machine_and_resume_goes_on_where_it_was(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "80")
    run_dir = launch.start(JobSpec())
    wait_for(run_dir, lambda state: state.step >= 13)
    control.request(run_dir, "pause")
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.PAUSED
    paused_at = state.step
    assert checkpoints.latest(run_dir, required=[STATE]).step == paused_at
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(liveness.process_start(pid) is not None for pid in (state.worker_pid, state.runner_pid)):
        assert time.monotonic() < deadline, "a paused run keeps no process"  # its lock is free a little earlier
        time.sleep(0.01)
    with pytest.raises(EngineError, match="paused already"):
        control.request(run_dir, "pause")
    with pytest.raises(EngineError, match="nothing to checkpoint"):
        control.request(run_dir, "checkpoint")
    control.resume(run_dir)
    state = wait_for_end(run_dir)
    assert (state.state, state.resumed_step) == (RunPhase.FINISHED, paused_at)
    assert losses(run_dir) == [loss_at(step) for step in range(1, 81)]


def test_checkpoint_now_saves_and_goes_on(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    fake_worker.setenv("FAKE_CHECKPOINT_EVERY", "1000000")
    run_dir = launch.start(JobSpec())
    wait_for(run_dir, lambda state: state.step >= 3)
    control.request(run_dir, "checkpoint")
    state = wait_for(run_dir, lambda state: state.checkpoints)
    step = state.checkpoints[-1].step
    assert wait_for(run_dir, lambda state: state.step > step).state is RunPhase.RUNNING
    assert checkpoints.verify(run_dir / layout.CHECKPOINTS / checkpoints.folder_name(step)) == []


def test_stop_saves_and_ends_and_wins_over_pause(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step >= 3)
    os.kill(state.worker_pid, signal.SIGSTOP)  # so that both requests are there when it looks
    control.request(run_dir, "pause")
    control.request(run_dir, "stop")
    os.kill(state.worker_pid, signal.SIGCONT)
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.STOPPED
    assert checkpoints.newest_step(run_dir) == state.step
    assert list((run_dir / layout.CONTROL).iterdir()) == []


def test_stopping_a_paused_run_marks_it_stopped(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    control.request(run_dir, "pause")
    before = wait_for_end(run_dir)
    assert before.state is RunPhase.PAUSED
    control.request(run_dir, "stop")
    after = store.load_state(run_dir)
    assert after.state is RunPhase.STOPPED
    assert after.working_seconds == before.working_seconds


def test_a_finished_run_refuses_every_command() -> None:
    run_dir = launch.start(JobSpec())
    wait_for_end(run_dir)
    for command in layout.COMMANDS:
        with pytest.raises(EngineError, match="is finished"):
            control.request(run_dir, command)
    for again in (control.resume, launch.launch):
        with pytest.raises(EngineError, match="nothing to resume"):
            again(run_dir)
    with pytest.raises(EngineError, match="no command"):
        control.request(run_dir, "dance")


def test_requests_meant_for_an_earlier_worker_are_dropped() -> None:
    run_dir = store.create_run(JobSpec())
    (run_dir / layout.CONTROL / "stop").touch()
    launch.launch(run_dir)
    assert wait_for_end(run_dir).state is RunPhase.FINISHED


def test_an_edited_spec_is_not_resumed(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    control.request(run_dir, "pause")
    wait_for_end(run_dir)
    path = run_dir / layout.SPEC
    path.write_text(path.read_text().replace("rank = 16", "rank = 8"))
    with pytest.raises(EngineError) as caught:
        control.resume(run_dir)
    assert caught.value.code == "run.spec_changed"


def test_a_shutdown_pauses_the_run(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_STEPS", "100000")
    run_dir = launch.start(JobSpec())
    state = wait_for(run_dir, lambda state: state.step >= 3)
    os.kill(state.runner_pid, signal.SIGTERM)
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.PAUSED
    assert checkpoints.newest_step(run_dir) == state.step


# ── how workers end ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("mode", "what", "cause"),
    [
        ("kill", "was killed", "kill -9"),
        ("segv", "crashed (SIGSEGV)", "Native code"),
        ("exit3", "exit code 3", "the flux capacitor is empty"),
        ("silent", "without saying how", "code 0"),
        ("fail", "Training failed.", "Loss is not a number."),
    ],
)
def test_every_way_to_die_is_told_apart(fake_worker: pytest.MonkeyPatch, mode: str, what: str, cause: str) -> None:
    fake_worker.setenv("FAKE_MODE", mode)
    run_dir = launch.start(JobSpec())
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.FAILED
    assert what in state.what
    assert cause in state.cause
    assert state.next_step
    summary = store.list_runs()[0]
    assert (summary.state, summary.what, summary.cause) == (RunPhase.FAILED, state.what, state.cause)


def test_the_log_of_an_earlier_worker_is_not_taken_for_the_cause(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_MODE", "once_exit3")
    run_dir = launch.start(JobSpec())
    wait_for_end(run_dir)
    fake_worker.setenv("FAKE_MODE", "silent")
    control.resume(run_dir)
    assert "flux capacitor" not in wait_for_end(run_dir).cause


def test_a_worker_that_cannot_be_started_is_a_failed_run(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("SCALER_WIZARD_WORKER", "/no/such/program")
    run_dir = launch.start(JobSpec())
    state = wait_for_end(run_dir)
    assert state.state is RunPhase.FAILED
    assert "could not be started" in state.what
    assert "No such file" in state.cause


def test_a_damaged_newest_checkpoint_is_passed_over_on_resume_and_said_so(fake_worker: pytest.MonkeyPatch) -> None:
    fake_worker.setenv("FAKE_MODE", "once_kill")
    fake_worker.setenv("FAKE_AT", "25")
    run_dir = launch.start(JobSpec())
    wait_for_end(run_dir)
    os.truncate(run_dir / layout.CHECKPOINTS / checkpoints.folder_name(20) / STATE, 1)
    control.resume(run_dir)
    state = wait_for_end(run_dir)
    assert (state.state, state.resumed_step) == (RunPhase.FINISHED, 10)
    assert any(level == "warning" and STATE in text and "step 20" in text for _, level, text in state.log)
    assert losses(run_dir) == [loss_at(step) for step in range(1, 41)]


def test_an_out_of_memory_kill_is_told_from_a_kill_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.jobs import obituary

    counters = tmp_path / "memory.events"
    counters.write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n")
    monkeypatch.setattr(obituary, "_cgroup_files", lambda *_: [counters])
    scene = obituary.Scene.before(tmp_path)
    scene.last_resident_bytes = 22 * 1024**3
    assert "kill -9" in scene.diagnose(-9)[0].cause
    counters.write_text("low 0\nhigh 0\nmax 99\noom 2\noom_kill 2\n")
    report, outcome = scene.diagnose(-9)
    assert report.what == "The worker ran out of memory."
    assert "the kernel killed it. It held 22.0 GiB" in report.cause
    assert outcome == "killed"
