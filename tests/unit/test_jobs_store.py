"""Run directories are whole or absent, found by id, and listed even when damaged."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs import layout, liveness, store, summary
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import CostSection, JobSpec, TrainingSection
from engine.jobs.state import RunPhase
from engine.paths import runs_dir
from scaler_tui.cli import main
from tests.support.fake_worker import recorded_run, step_event, write_events, write_recorded_journal


def test_a_new_run_has_everything_and_a_sortable_id() -> None:
    run_dir = store.create_run(JobSpec(name="first"))
    assert {entry.name for entry in run_dir.iterdir()} == {"spec.toml", "run.json", "control", "checkpoints"}
    assert store.load_run_spec(run_dir).name == "first"
    assert run_dir.name[:8] == time.strftime("%Y%m%d", time.gmtime(summary.read_record(run_dir).created))


def test_a_run_that_cannot_be_made_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise layout.disk_full(runs_dir(), "No space left on device")

    monkeypatch.setattr(layout, "write_atomic", full)
    with pytest.raises(EngineError, match="no room left"):
        store.create_run(JobSpec())
    assert list(runs_dir().iterdir()) == []


def test_an_unwritable_home_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError) as caught:
        store.create_run(JobSpec())
    assert caught.value.code == "home.unwritable"
    assert store.list_runs() == []


def test_runs_are_listed_newest_first_with_what_the_journal_says() -> None:
    old = recorded_run(50, spec=JobSpec(name="old", cost=CostSection(usd_per_hour=2.0)))
    newer = recorded_run(5000, spec=JobSpec(name="newer"), outcome="paused")
    record = summary.read_record(old)
    (old / layout.RUN).write_text((old / layout.RUN).read_text().replace(str(record.created), str(record.created - 9)))
    first, second = store.list_runs()
    assert (first.directory, second.directory) == (newer, old)
    assert (first.state, first.step, first.total_steps) == (RunPhase.PAUSED, 5000, 5000)
    assert (second.state, second.name, second.task) == (RunPhase.FINISHED, "old", "qlora")
    assert second.cost_usd == pytest.approx(second.working_seconds / 1800)
    assert second.as_dict()["directory"] == str(old)


@pytest.mark.parametrize("steps", [0, 3, 100, 20_000])
def test_the_cheap_summary_agrees_with_the_whole_fold(steps: int) -> None:
    run_dir = recorded_run(steps)
    cheap, whole = summary.quick_state(run_dir), store.load_state(run_dir)
    for field in (
        "state",
        "step",
        "total_steps",
        "loss",
        "eval_loss",
        "started",
        "ended",
        "working_seconds",
        "attempt",
    ):
        assert getattr(cheap, field) == pytest.approx(getattr(whole, field)), field


def test_the_summary_reads_little_of_a_long_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = recorded_run(20_000)
    decoded: list[int] = []
    for name in ("read_head_events", "read_tail_events"):
        original = getattr(summary, name)

        def counting(path: Path, *, original: object = original, **limits: int) -> list[ev.AnyEvent]:
            assert callable(original)
            events: list[ev.AnyEvent] = original(path, **limits)
            decoded.append(len(events) if path.name == layout.JOURNAL else 0)
            return events

        monkeypatch.setattr(summary, name, counting)
    summary.summarize(run_dir)
    assert 0 < sum(decoded) < 1000


def test_meters_that_fill_the_tail_do_not_hide_the_step() -> None:
    run_dir = recorded_run(300, outcome="")
    with JournalWriter(run_dir / layout.JOURNAL) as journal:
        for second in range(3000):
            journal.write(ev.Meter(t=1_790_001_000.0 + second, cpu_percent=1, ram_bytes=1, ram_total_bytes=1))
    assert summary.summarize(run_dir).step == 300


@pytest.mark.parametrize(
    ("losses", "held_out", "shown"),
    [
        ([6.46, 5.53, 3.24, 0.0001], {4: 7.048}, "7.048"),
        ([6.46, 5.53, 3.24, 0.0001], {2: 7.048}, "3.808"),  # measured before its newest steps
        ([9.0] * 90 + [2.0] * 9 + [0.0], {}, "1.800"),
        ([2.0, float("nan")], {}, "nan"),
        ([], {}, "2.810"),  # held out before training
    ],
)
def test_the_list_shows_the_held_out_loss_or_the_mean_of_the_last_steps(
    losses: list[float], held_out: dict[int, float], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = recorded_run(0, outcome="")
    began = 1_790_001_000.0
    with JournalWriter(run_dir / layout.JOURNAL) as journal:
        for step, loss in enumerate(losses, start=1):
            journal.write(msgspec.structs.replace(step_event(began + step, step, len(losses), 1.0), loss=loss))
            if step in held_out:
                journal.write(ev.Eval(t=began + step, step=step, loss=held_out[step], seconds=1.0))
    assert main(["runs"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert line[: heading.index("LOSS") + len("LOSS")].endswith(f" {shown:>5}")


@pytest.mark.parametrize("victim", [layout.RUN, layout.SPEC])
@pytest.mark.parametrize("damage", ["missing", "zeroed", "half"])
def test_a_damaged_run_is_listed_as_failed_with_the_reason(victim: str, damage: str) -> None:
    recorded_run(20)
    broken = recorded_run(20)
    path = broken / victim
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\0" * len(content) if damage == "zeroed" else content[: len(content) // 2] + b"\n= [")
    found = {run.id: run for run in store.list_runs()}[broken.name]
    assert found.state is RunPhase.FAILED
    assert found.what
    assert found.cause
    assert len(store.list_runs()) == 2
    assert store.load_state(broken).state in (RunPhase.FAILED, RunPhase.FINISHED)


def test_binary_rubbish_in_a_journal_costs_only_those_lines() -> None:
    run_dir = recorded_run(20)
    with (run_dir / layout.JOURNAL).open("r+b") as file:
        file.seek(1500)
        file.write(b"\xff\x00\n\n{]" * 5)
    state = store.load_state(run_dir)
    assert (state.state, state.step) == (RunPhase.FINISHED, 20)


def test_a_run_is_found_by_id_beginning_ending_path_and_latest() -> None:
    run_dir = store.create_run(JobSpec())
    for wanted in (run_dir.name, run_dir.name[:9], run_dir.name[-4:], "latest", str(run_dir)):
        assert store.find_run(wanted) == run_dir


def test_unknown_and_ambiguous_ids_name_the_candidates() -> None:
    with pytest.raises(EngineError, match="There are no runs yet"):
        store.find_run("latest")
    first, second = store.create_run(JobSpec()), store.create_run(JobSpec())
    with pytest.raises(EngineError) as caught:
        store.find_run("20")
    assert caught.value.code == "run.ambiguous"
    assert first.name in caught.value.what
    assert second.name in caught.value.what
    with pytest.raises(EngineError) as caught:
        store.find_run("nope")
    assert caught.value.code == "run.unknown"
    assert first.name in caught.value.cause
    with pytest.raises(EngineError):
        store.find_run("")


def test_an_edited_spec_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "my home"))
    run_dir = store.create_run(JobSpec())
    path = run_dir / layout.SPEC
    path.write_text(path.read_text().replace("rank = 16", "rank = 8"))
    with pytest.raises(EngineError) as caught:
        store.load_run_spec(run_dir)
    assert caught.value.code == "run.spec_changed"
    assert shlex.split(caught.value.next_step)[-3:] == ["scaler-wizard", "start", str(path)]


# ── lost and stalled ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def live_run(runner: tuple[int, float], worker: tuple[int, float], *, boot: str = "", t: float | None = None) -> Path:
    run_dir = store.create_run(JobSpec())
    t = time.time() if t is None else t
    boot = boot or liveness.current_boot_id()
    write_events(
        run_dir / layout.RUNNER_JOURNAL,
        [
            ev.RunnerStart(t=t, pid=runner[0], process_start=runner[1], boot_id=boot),
            ev.WorkerStart(t=t, pid=worker[0], process_start=worker[1], attempt=1),
        ],
    )
    write_events(run_dir / layout.JOURNAL, [step_event(t, 1, 9, 0.1)])
    return run_dir


def identity(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    started = liveness.process_start(process.pid)
    assert started is not None
    return process.pid, started


def test_liveness_needs_pid_start_time_and_boot(sleeper: subprocess.Popen[bytes]) -> None:
    pid, started = identity(sleeper)
    boot = liveness.current_boot_id()
    assert liveness.is_alive(pid, started, boot)
    assert not liveness.is_alive(pid, started + 1, boot)
    assert not liveness.is_alive(pid, started, "another boot")
    sleeper.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while liveness.is_alive(pid, started, boot):  # a zombie now, for nobody has waited for it
        assert time.monotonic() < deadline
    assert Path(f"/proc/{pid}").exists()


def test_both_processes_gone_without_a_word_is_lost_and_resumable() -> None:
    state = store.load_state(live_run((999_999_9, 1.0), (999_999_8, 1.0)))
    assert state.state is RunPhase.LOST
    assert state.state.is_resumable
    assert "r to" in state.next_step


def test_a_process_id_used_again_by_another_program_is_not_our_run() -> None:
    me = os.getpid()
    assert store.load_state(live_run((me, 1.0), (me, 1.0))).state is RunPhase.LOST


def test_a_worker_without_runner_goes_on_with_a_warning(sleeper: subprocess.Popen[bytes]) -> None:
    state = store.load_state(live_run((999_999_9, 1.0), identity(sleeper)))
    assert state.state is RunPhase.RUNNING
    assert "without supervision" in state.warning


def test_a_silent_worker_that_lives_is_stalled_until_it_speaks(sleeper: subprocess.Popen[bytes]) -> None:
    me = (os.getpid(), liveness.process_start(os.getpid()) or 0.0)
    run_dir = live_run(me, identity(sleeper), t=time.time() - 61)
    follower = store.Follower(run_dir)
    assert follower.poll().state is RunPhase.STALLED
    with JournalWriter(run_dir / layout.JOURNAL) as journal:
        journal.write(ev.Meter(t=time.time(), cpu_percent=1, ram_bytes=1, ram_total_bytes=1))
    assert follower.poll().state is RunPhase.RUNNING
    assert follower.poll().warning == ""


def test_a_run_on_another_machine_lives_by_its_heartbeat() -> None:
    fresh = live_run((1, 1.0), (2, 1.0), boot="elsewhere")
    assert store.load_state(fresh).state is RunPhase.RUNNING
    assert "another place" in store.load_state(fresh).warning
    silent = live_run((1, 1.0), (2, 1.0), boot="elsewhere", t=time.time() - 60)
    assert store.load_state(silent).state is RunPhase.LOST


def test_a_copied_run_directory_opens_anywhere(tmp_path: Path) -> None:
    run_dir = recorded_run(30)
    copied = tmp_path / "elsewhere" / "my-run"
    copied.parent.mkdir()
    run_dir.rename(copied)
    assert store.find_run(str(copied)) == copied
    assert store.load_state(copied).state is RunPhase.FINISHED


def test_a_follower_notices_a_journal_written_anew() -> None:
    run_dir = recorded_run(30)
    follower = store.Follower(run_dir)
    assert follower.poll().step == 30
    write_recorded_journal(run_dir, 10)
    assert follower.poll().step == 10
    assert len(follower.fold.series("loss")) == 10


def test_a_spec_that_lost_a_setting_is_noticed_although_it_is_valid() -> None:
    run_dir = store.create_run(JobSpec(name="mine", training=TrainingSection(learning_rate=1e-3)))
    path = run_dir / layout.SPEC
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("learning_rate")))
    (found,) = store.list_runs()
    assert found.state is RunPhase.FAILED
    assert "not the spec" in found.what
