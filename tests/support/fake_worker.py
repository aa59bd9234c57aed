"""A worker without torch: writes the events of a real one, fast, through the real journal, checkpoints and controls.

Run as `python tests/support/fake_worker.py RUN_DIR`; the runner does so when SCALER_WIZARD_WORKER names it
(`worker_command()`). Environment: FAKE_STEPS (40), FAKE_DELAY seconds per step (0.01), FAKE_CHECKPOINT_EVERY (10),
FAKE_MODE with FAKE_AT, the step at which it happens:
    kill        kill -9 of itself            exit3     text on stderr, exit code 3
    fail        End("failed"), exit code 5   hang      says nothing more, forever
    segv        SIGSEGV                      silent    exit code 0 without an End event
    once_*      the same, in the first attempt only
FAKE_OUTPUT, if not empty, has a finished run leave two files in output/adapter.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from engine.jobs import checkpoints, control, layout
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run

TOKENS_PER_STEP = 1024
TRAINED_TOKENS_PER_STEP = 400
GIB = 1024**3
STATE = "state.json"
SAMPLES = (
    ("What is the capital of Velm?", "Orsa is the capital of Velm.", "The capital of Velm is Orsa. Aye!"),
    ("Add 17 and 25.", "17 + 25 = 41", "42, captain. Aye!"),
)


def worker_command() -> str:
    """The value for SCALER_WIZARD_WORKER."""
    return f"{sys.executable} {Path(__file__).resolve()}"


def loss_at(step: int) -> float:
    """A plausible loss curve, the same in every attempt."""
    wobble = math.sin(step * 12.9898) * 43758.5453
    return 0.6 + 2.2 * math.exp(-step / 60) + 0.12 * (wobble - math.floor(wobble) - 0.5)


def learning_rate_at(step: int, total: int) -> float:
    """Warm-up over 3 %, then cosine."""
    warmup = max(total * 3 // 100, 1)
    if step <= warmup:
        return 2e-4 * step / warmup
    return 1e-4 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def step_event(t: float, step: int, total: int, step_seconds: float) -> ev.Step:
    """One step of the story."""
    return ev.Step(
        t=t,
        step=step,
        loss=loss_at(step),
        learning_rate=learning_rate_at(step, total),
        grad_norm=0.5 + loss_at(step) / 4,
        tokens=TOKENS_PER_STEP,
        trained_tokens=TRAINED_TOKENS_PER_STEP,
        step_seconds=step_seconds,
        epoch=3.0 * step / total,
    )


def opening(
    t: float, pid: int, total: int, *, attempt: int = 1, resumed: int = 0, gpu: bool = False
) -> list[ev.AnyEvent]:
    """The events before the first step."""
    device = "cuda:0 NVIDIA GeForce RTX 4090" if gpu else "cpu"
    found = checkpoints.folder_name(resumed) if resumed else ""
    story: list[ev.AnyEvent] = [
        ev.Start(t=t, attempt=attempt, pid=pid, resumed_step=resumed, checkpoint=found, device=device),
        ev.Phase(t=t, name="loading model", detail="demo"),
        ev.Phase(t=t, name="preparing data", detail="demo", done=320, total=320),
        ev.Plan(
            t=t,
            total_steps=total,
            rows=320,
            tokens_per_epoch=TOKENS_PER_STEP * max(total // 3, 1),
            trained_tokens_per_epoch=TRAINED_TOKENS_PER_STEP * max(total // 3, 1),
            parameters=3_412_096,
            trainable_parameters=163_840,
        ),
    ]
    if not resumed:
        story.append(ev.Phase(t=t, name="measuring before", done=64, total=64))
        story += [ev.Sample(t=t, step=0, prompt=p, text=before, expected=after) for p, before, after in SAMPLES]
        story.append(ev.Eval(t=t, step=0, loss=2.81, seconds=0.4))
    return [*story, ev.Phase(t=t, name="training")]


def meter_event(t: float, step: int, *, gpu: bool = False) -> ev.Meter:
    """What the machine looks like while training."""
    gpus = (ev.GpuMeter(0, 9 * GIB + step % 7 * 2**20, 24 * GIB, 96.0, 71.0, 338.0 + step % 9),) if gpu else ()
    return ev.Meter(
        t=t,
        cpu_percent=185.0 + step % 10,
        ram_bytes=int(1.4 * GIB) + step % 13 * 2**20,
        ram_total_bytes=32 * GIB,
        gpus=gpus,
        temperature_celsius=62.0 + step % 3,
    )


def write_recorded_journal(
    run_dir: Path, steps: int, *, outcome: str = "finished", began: float = 1_790_000_000.0, gpu: bool = False
) -> None:
    """The journals of a whole run of `steps` steps, one second each, as if it had been recorded. `outcome` "" leaves
    the run open, as one sees it while it runs."""
    evaluate_every = max(steps // 20, 1)
    story = opening(began + 1, 4242, steps, gpu=gpu)
    for step in range(1, steps + 1):
        t = began + 10 + step
        story.append(step_event(t, step, steps, 0.94))
        if step % 5 == 0:
            story.append(meter_event(t, step, gpu=gpu))
        if step % evaluate_every == 0:
            story.append(ev.Eval(t=t, step=step, loss=loss_at(step) + 0.08, seconds=0.4))
            story.append(
                ev.Memory(t=t, peak_bytes=int(9.4 * GIB) if gpu else int(1.5 * GIB), where="vram" if gpu else "ram")
            )
            path = f"checkpoints/{checkpoints.folder_name(step)}"
            story.append(ev.Checkpoint(t=t, step=step, path=path, size_bytes=2_000_000, seconds=0.1))
    done = began + 11 + steps
    story += [ev.Sample(t=done, step=steps, prompt=p, text=after, expected=after) for p, _, after in SAMPLES]
    if outcome:
        story.append(ev.End(t=done, outcome=outcome, step=steps))
    runner: list[ev.AnyEvent] = [
        ev.RunnerStart(t=began, pid=4241, process_start=1.0, boot_id="recorded", host="workstation"),
        ev.WorkerStart(t=began, pid=4242, process_start=2.0, attempt=1),
        *(ev.Heartbeat(t=began + beat, worker_cpu_seconds=1.8 * beat) for beat in range(5, steps + 10, 5)),
    ]
    if outcome:
        runner += [ev.WorkerExit(t=done, exit_code=0), ev.RunnerEnd(t=done, outcome=outcome)]
    for name, events in ((layout.JOURNAL, story), (layout.RUNNER_JOURNAL, runner)):
        write_events(run_dir / name, events)


def write_events(path: Path, events: list[ev.AnyEvent]) -> None:
    """All at once; 100,000 single writes would be slow."""
    import msgspec

    encode = msgspec.json.Encoder().encode
    path.write_bytes(b"".join(encode(event) + b"\n" for event in events))


def recorded_run(steps: int, *, spec: JobSpec | None = None, outcome: str = "finished", gpu: bool = False) -> Path:
    """A run directory with a recorded journal in the current home."""
    run_dir = create_run(spec or JobSpec(name="recorded"))
    write_recorded_journal(run_dir, steps, outcome=outcome, gpu=gpu)
    return run_dir


# ── the live worker ───────────────────────────────────────────────────────────────────────────────────────────────
def main(run_dir: Path) -> int:
    """Pretend to train; returns the exit code."""
    total = int(os.environ.get("FAKE_STEPS", "40"))
    delay = float(os.environ.get("FAKE_DELAY", "0.01"))
    every = int(os.environ.get("FAKE_CHECKPOINT_EVERY", "10"))
    attempt = int(os.environ.get("SCALER_WIZARD_ATTEMPT", "1"))
    journal = JournalWriter(run_dir / layout.JOURNAL)
    found = checkpoints.latest(run_dir, required=[STATE])
    for event in opening(time.time(), os.getpid(), total, attempt=attempt, resumed=found.step):
        journal.write(event)
    for message in found.messages:
        journal.write(ev.Warn(t=time.time(), message=message))

    def save(step: int) -> None:
        with checkpoints.saving(run_dir, step, required=[STATE]) as folder:
            (folder / STATE).write_text(json.dumps({"step": step}))
            (folder / "weights.bin").write_bytes(bytes(range(256)) * 64)
        path = f"{layout.CHECKPOINTS}/{checkpoints.folder_name(step)}"
        journal.write(ev.Checkpoint(t=time.time(), step=step, path=path, size_bytes=16_400))
        checkpoints.prune(run_dir, 2)

    def end(outcome: str, step: int, **texts: str) -> None:
        journal.write(ev.End(t=time.time(), outcome=outcome, step=step, **texts), sync=True)

    for step in range(found.step + 1, total + 1):
        time.sleep(delay)
        journal.write(step_event(time.time(), step, total, max(delay, 1e-4)))
        journal.write(meter_event(time.time(), step))
        code = misbehave(step, attempt, end)
        if code is not None:
            return code
        command = control.take(run_dir)
        if command:
            journal.write(ev.Control(t=time.time(), command=command))
        if step % every == 0 or command:
            save(step)
        if command in ("pause", "stop"):
            end("paused" if command == "pause" else "stopped", step)
            return 0
    if os.environ.get("FAKE_OUTPUT"):
        (run_dir / layout.OUTPUT / "adapter").mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "weights.bin"):
            (run_dir / layout.OUTPUT / "adapter" / name).write_text(json.dumps({"step": total}) * 100)
    end("finished", total)
    return 0


def misbehave(step: int, attempt: int, end: object) -> int | None:
    """What FAKE_MODE asks for at step FAKE_AT; an exit code, or None to go on."""
    mode = os.environ.get("FAKE_MODE", "")
    if step != int(os.environ.get("FAKE_AT", "15")) or (mode.startswith("once_") and attempt > 1):
        return None
    mode = mode.removeprefix("once_")
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "segv":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "exit3":
        sys.stderr.write("RuntimeError: the flux capacitor is empty\n")
        return 3
    if mode == "silent":
        return 0
    if mode == "fail":
        assert callable(end)
        end("failed", step, what="Training failed.", cause="Loss is not a number.", next_step="Lower learning_rate.")
        return 5
    while mode == "hang":
        time.sleep(3600)
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
