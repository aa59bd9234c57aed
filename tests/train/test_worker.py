"""The worker process on a tiny model: its events, its outputs, its ways to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.jobs import checkpoints, layout
from engine.jobs import events as ev
from engine.jobs.card import Card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from tests.train.conftest import Finished, RunWorker, SpecMaker
from tests.train.spawn import worker_command, worker_environment


def read_card(finished: Finished) -> Card:
    return msgspec.json.decode((finished.run_dir / layout.CARD).read_bytes(), type=Card)


def run_until(spec: JobSpec, condition: Callable[[ev.AnyEvent], bool], then: Callable[[Path, int], None]) -> Finished:
    """Start a worker, do something when an event comes, wait for its end."""
    run_dir = create_run(spec)
    tail = JournalTail(run_dir)
    process = subprocess.Popen(worker_command(run_dir), env=worker_environment())
    deadline = time.monotonic() + 120
    while True:
        ended = process.poll() is not None  # asked first: it may write its last events and end between two looks
        if any(condition(event) for event in tail.read_new()):
            break
        assert not ended, (run_dir / layout.WORKER_LOG).read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    then(run_dir, process.pid)
    return Finished(run_dir, process.wait(timeout=120))


def at_step(step: int) -> Callable[[ev.AnyEvent], bool]:
    return lambda event: isinstance(event, ev.Step) and event.step >= step


def test_a_qlora_run_goes_from_spec_to_card(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    spec = make_spec(
        training={"max_steps": 40, "gradient_accumulation": 2},
        evaluation={"every_steps": 20},
        checkpoint={"every_steps": 15, "keep": 2},
        prediction={"memory_bytes_likely": 10**9, "seconds_likely": 5.0, "tokens_per_second": 1000.0, "origin": "test"},
    )
    done = run_worker(spec)

    assert (done.exit_code, done.end.outcome, done.end.step) == (0, "finished", 40), done.log
    plan = done.of(ev.Plan)[0]
    steps = done.of(ev.Step)
    assert [step.step for step in steps] == list(range(1, 41))
    assert plan.total_steps == 40
    assert steps[-1].loss < 0.75 * steps[0].loss, "a learnable task is learned"
    assert plan.rows == 48
    assert 0 < plan.trained_tokens_per_epoch < plan.tokens_per_epoch
    assert all(0 < step.trained_tokens < step.tokens for step in steps)
    assert [event.step for event in done.of(ev.Eval)] == [20, 40]
    assert {event.step for event in done.of(ev.Sample)} == {0, 20, 40}
    assert [event.step for event in done.of(ev.Checkpoint)] == [15, 30, 40]
    kept = sorted(path.name for path in (done.run_dir / layout.CHECKPOINTS).iterdir())
    assert kept == ["step-00000030", "step-00000040"]
    assert done.of(ev.Memory)[-1].where == "ram"
    assert done.of(ev.Start)[0].device
    assert done.of(ev.CardReady)
    assert "Traceback" not in done.log
    held = read_card(done)
    assert held.after.task_loss < held.before.task_loss
    assert held.before.exact_match == 0.0
    assert held.after.exact_match_rows == 10
    assert held.after.base_tokens > 0
    assert held.after.base_perplexity is not None
    assert held.steps == 40
    assert held.tokens == sum(step.tokens for step in steps)
    assert {pair.name for pair in held.predicted} == {"memory", "time", "speed"}
    assert len(held.samples) == 4
    assert held.samples[0].expected
    assert len(held.loss_curve) == 40
    assert held.attempts == 1


@pytest.mark.slow
def test_plain_lora_with_dora_and_padding_runs(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    spec = make_spec(
        "lora",
        adapter={"dora": True, "rslora": True, "targets": ["q_proj", "v_proj"]},
        data={"packing": False},
        training={"gradient_checkpointing": True, "max_steps": 2},
    )
    done = run_worker(spec)
    assert done.end.outcome == "finished", done.log
    config = json.loads((done.run_dir / "output/adapter/adapter_config.json").read_text())
    assert config["use_dora"]
    assert config["use_rslora"]
    assert set(config["target_modules"]) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("sections", "what", "cause"),
    [
        ({"adapter": {"targets": ["query_key_value"]}}, "no module named query_key_value", "down_proj, gate_proj"),
        ({"training": {"optimizer": "paged_adamw_8bit"}}, "needs an NVIDIA card", "computes on"),
        ({"training": {"learning_rate": 1e30, "max_grad_norm": 1e30}}, "The loss became", "learning rate"),
        ({"model": {"source": "/nonexistent/model"}}, "/nonexistent/model", ""),
    ],
)
@pytest.mark.slow
def test_what_cannot_work_fails_in_words(
    make_spec: SpecMaker, run_worker: RunWorker, sections: dict[str, dict[str, object]], what: str, cause: str
) -> None:
    done = run_worker(make_spec(**sections))
    assert (done.exit_code, done.end.outcome) == (5, "failed")
    assert what in done.end.what
    assert cause in done.end.cause
    assert done.end.next_step
    assert "Traceback" not in done.end.what + done.end.cause


@pytest.mark.slow
def test_an_unknown_error_keeps_its_traceback_in_the_log_only(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    preamble = "import engine.train.job as job\ndef broken(attempt): raise ZeroDivisionError('odd')\njob.run = broken"
    done = run_worker(make_spec(), preamble=preamble)
    assert done.exit_code == 5
    assert "ZeroDivisionError: odd" in done.end.cause
    assert "Traceback" in done.log


@pytest.mark.slow
def test_a_pause_frees_the_process_and_resumes_where_it_was(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    spec = make_spec(training={"max_steps": 60}, checkpoint={"every_steps": 50})

    def pause(run_dir: Path, _pid: int) -> None:
        (run_dir / layout.CONTROL / "pause").touch()

    paused = run_until(spec, at_step(3), pause)
    assert (paused.exit_code, paused.end.outcome) == (0, "paused")
    step = paused.end.step
    assert 3 <= step < 60
    assert checkpoints.newest_step(paused.run_dir) == step
    assert not (paused.run_dir / layout.OUTPUT).exists()

    resumed = run_worker(paused.run_dir)
    assert resumed.end.outcome == "finished", resumed.log
    assert resumed.of(ev.Start)[-1].resumed_step == step
    assert [event.step for event in resumed.of(ev.Step)] == list(range(1, 61))
    assert sum(event.step == 0 for event in resumed.of(ev.Sample)) == 4, "before is measured once"
    assert read_card(resumed).attempts == 2


@pytest.mark.slow
def test_a_termination_signal_is_a_pause(make_spec: SpecMaker) -> None:
    spec = make_spec(training={"max_steps": 500}, checkpoint={"every_steps": 500})
    done = run_until(spec, at_step(2), lambda _, pid: os.kill(pid, signal.SIGTERM))
    assert (done.exit_code, done.end.outcome) == (0, "paused")
    assert checkpoints.newest_step(done.run_dir) == done.end.step >= 2
    assert "SIGTERM" in done.end.what


@pytest.mark.slow
def test_an_interrupt_while_loading_ends_paused_without_a_checkpoint(make_spec: SpecMaker) -> None:
    def loading(event: ev.AnyEvent) -> bool:
        return isinstance(event, ev.Phase) and event.name == "loading model"

    done = run_until(make_spec(), loading, lambda _, pid: os.kill(pid, signal.SIGINT))
    assert (done.exit_code, done.end.outcome, done.end.step) == (0, "paused", 0)
    assert done.of(ev.Step) == []


@pytest.mark.slow
def test_stop_finishes_the_step_and_saves_the_adapter(make_spec: SpecMaker) -> None:
    spec = make_spec(training={"max_steps": 500}, checkpoint={"every_steps": 500})
    done = run_until(spec, at_step(2), lambda run_dir, _: (run_dir / layout.CONTROL / "stop").touch())
    assert (done.exit_code, done.end.outcome) == (0, "stopped")
    assert (done.run_dir / "output/adapter/adapter_model.safetensors").is_file()
    assert checkpoints.newest_step(done.run_dir) == done.end.step


@pytest.mark.slow
@pytest.mark.parametrize(
    "price",
    [
        {"cost": {"usd_per_hour": 100.0, "budget_usd": 0.05}},
        {"cost": {"usd_per_kwh": 10.0, "budget_usd": 0.05}, "prediction": {"watts": 10_000.0}},
    ],
    ids=["rent", "electricity"],
)
def test_the_budget_stops_a_run(
    make_spec: SpecMaker, run_worker: RunWorker, price: dict[str, dict[str, float]]
) -> None:
    spec = make_spec(training={"max_steps": 500}, **price)
    done = run_worker(spec)
    assert done.end.outcome == "stopped"
    assert "budget of $0.05 is spent" in done.end.what
    assert 1 <= done.end.step < 500


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_no_longer_gains(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    spec = make_spec(
        training={"max_steps": 100, "learning_rate": 1e-9},
        evaluation={"every_steps": 2, "early_stop_patience": 2},
    )
    done = run_worker(spec)
    assert done.end.outcome == "finished"
    assert done.end.step == 6, "the first evaluation is the best; two more do not beat it"
    assert "Stopped early at step 6" in read_card(done).notes[0]


@pytest.mark.slow
def test_resume_is_refused_when_nothing_sound_is_left(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    done = run_worker(make_spec(checkpoint={"every_steps": 2, "keep": 2}))
    folders = sorted((done.run_dir / layout.CHECKPOINTS).iterdir())
    damage(folders[-1] / "optimizer.pt")
    again = run_worker(done.run_dir)
    assert again.of(ev.Start)[-1].resumed_step == 4
    assert any("step 6 is damaged" in warn.message for warn in again.of(ev.Warn))

    for folder in (done.run_dir / layout.CHECKPOINTS).iterdir():
        (folder / "rng_state.pth").unlink()
    refused = run_worker(done.run_dir)
    assert (refused.exit_code, refused.end.outcome) == (5, "failed")
    assert "None of this run's checkpoints" in refused.end.what
    assert "rng_state.pth" in refused.end.cause


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_resume_is_refused_with_other_data(make_spec: SpecMaker, run_worker: RunWorker, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    spec = make_spec()
    rows.write_bytes(Path(spec.data.train).read_bytes())
    spec = msgspec.structs.replace(spec, data=msgspec.structs.replace(spec.data, train=str(rows)))
    done = run_worker(spec)
    rows.write_text(rows.read_text().replace("AMBER", "TOPAZ"))
    again = run_worker(done.run_dir)
    assert again.end.outcome == "failed"
    assert "not the ones the run began with" in again.end.what


# ── a full disk ───────────────────────────────────────────────────────────────────────────────────────────────────
LIMIT_FILES = """
import resource
limit = {bytes}
import engine.train.job as job
original = job._Job._train
def train(self, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        return original(self, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
job._Job._train = train
"""


@pytest.mark.parametrize("limit_bytes", [100_000, 200_000])
@pytest.mark.slow
def test_a_full_disk_pauses_and_keeps_the_last_good_checkpoint(
    make_spec: SpecMaker, run_worker: RunWorker, limit_bytes: int
) -> None:
    """A file-size limit makes the kernel refuse writes in the middle of the adapter, or of the optimizer."""
    spec = make_spec(adapter={"rank": 16}, training={"max_steps": 8}, checkpoint={"every_steps": 3, "keep": 2})
    first = run_until(spec, at_step(3), lambda run_dir, _: (run_dir / layout.CONTROL / "pause").touch())
    good = checkpoints.newest_step(first.run_dir)
    sizes = {path.name: path.stat().st_size for path in checkpoints.latest(first.run_dir).path.iterdir()}  # type: ignore[union-attr]
    assert 100_000 < sizes["adapter_model.safetensors"] < 200_000
    assert sizes["optimizer.pt"] > 200_000

    full = run_worker(first.run_dir, preamble=LIMIT_FILES.format(bytes=limit_bytes))
    assert (full.exit_code, full.end.outcome, full.end.step) == (0, "paused", good), full.log
    assert "room" in full.end.what
    assert f"The checkpoint of step {good} is kept" in full.of(ev.Warn)[-1].message
    folders = sorted((full.run_dir / layout.CHECKPOINTS).iterdir())
    assert folders[-1].name == checkpoints.folder_name(good)
    assert all(checkpoints.verify(folder) == [] for folder in folders), "nothing half-written stays"

    resumed = run_worker(first.run_dir)
    assert resumed.end.outcome == "finished", resumed.log


NO_ROOM_FOR_RESULTS = """
import resource
import engine.train.job as job
original = job._Job._save_adapter
def save(self, loaded, **words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        return original(self, loaded, **words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
job._Job._save_adapter = save
"""


@pytest.mark.slow
def test_no_room_for_the_results_pauses_and_nothing_is_trained_again(
    make_spec: SpecMaker, run_worker: RunWorker
) -> None:
    run_dir = create_run(make_spec(adapter={"rank": 16}, training={"max_steps": 4}))
    full = run_worker(run_dir, preamble=NO_ROOM_FOR_RESULTS)
    assert (full.exit_code, full.end.outcome, full.end.step) == (0, "paused", 4), full.log
    assert "room" in full.end.what
    assert not (run_dir / "output" / "adapter").exists()
    steps = len(full.of(ev.Step))

    resumed = run_worker(run_dir)
    assert resumed.end.outcome == "finished", resumed.log
    assert len(resumed.of(ev.Step)) == steps, "no step was done twice"
    assert (run_dir / "output" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("visible", "expected"), [("3", "3"), ("2,0", "2"), ("GPU-aa,GPU-bb", "GPU-aa"), ("", ""), (None, "1")]
)
def test_a_run_gets_one_card_the_freest_unless_the_user_chose(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.hardware.findings import GpuFindings
    from engine.hardware.machine import Gpu, Source
    from engine.train import environment

    cards = tuple(Gpu(i, "card", "nvidia", 24, free, Source.NVML) for i, free in enumerate((5, 20, 10)))
    monkeypatch.setattr(environment.nvidia, "probe", lambda limit: GpuFindings(gpus=cards))
    assert environment.one_card(visible) == expected
