"""The runner: a small process of its own session that starts the worker, watches it and records how it ended.

`python -m engine.jobs.runner [--detach] RUN_DIR`. Owns the lock of the run, the heartbeat and `runner.jsonl`.
Must not know torch, nor retry anything: a resume is a person's decision. It stays small, because it lives as long as
the run. When it is killed the worker goes on; when the worker dies it says so within a second.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from engine.errors import EngineError
from engine.jobs import checkpoints, layout, lock, obituary
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter, read_head_events
from engine.jobs.liveness import cpu_seconds, current_boot_id, host_name, process_start

HEARTBEAT_SECONDS = 5.0
WRITE_TRIES = 5
WORKER_OVERRIDE = "SCALER_WIZARD_WORKER"
"""A command to run instead of the real worker; the run directory is appended. For tests."""
ATTEMPT = "SCALER_WIZARD_ATTEMPT"
"""Tells the worker which attempt it is, counted from 1."""

_LOCKED_EXIT_CODE = 3


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    detach = arguments[:1] == ["--detach"]
    run_dir = Path(arguments[-1])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle = lock.acquire(run_dir)
    if handle is None:
        return _LOCKED_EXIT_CODE
    if detach and os.fork():
        os._exit(0)  # the child keeps the lock: both share the open file
    return Runner(run_dir, handle).run()


class Runner:
    """Supervises one worker."""

    def __init__(self, run_dir: Path, lock_handle: int) -> None:
        self.run_dir = run_dir
        self.lock_handle = lock_handle
        self.attempt = 1 + sum(
            isinstance(event, ev.WorkerStart) for event in read_head_events(run_dir / layout.RUNNER_JOURNAL)
        )
        self.journal = JournalWriter(run_dir / layout.RUNNER_JOURNAL)
        self.worker: subprocess.Popen[bytes] | None = None
        self.terminations = 0

    def run(self) -> int:
        """Start the worker, wait for it, record its end. Returns 0 when that worked, however the worker ended."""
        for command in layout.COMMANDS:  # meant for an earlier worker
            (self.run_dir / layout.CONTROL / command).unlink(missing_ok=True)
        checkpoints.sweep(self.run_dir)
        signal.signal(signal.SIGTERM, self._on_terminate)
        own_start = process_start(os.getpid()) or 0.0
        self.journal.write(
            ev.RunnerStart(
                t=time.time(), pid=os.getpid(), process_start=own_start, boot_id=current_boot_id(), host=host_name()
            ),
            sync=True,
        )
        scene = obituary.Scene.before(self.run_dir)
        try:
            self.worker = self._start_worker()
        except OSError as error:
            self._leave(obituary.not_started(error), "failed")
            return 0
        scene.worker_pid = self.worker.pid
        began = process_start(self.worker.pid) or 0.0
        self._write(
            ev.WorkerStart(t=time.time(), pid=self.worker.pid, process_start=began, attempt=self.attempt),
            tries=WRITE_TRIES,
        )
        exit_code = self._watch(self.worker, scene)
        report, outcome = scene.diagnose(exit_code)
        self._leave(report, outcome)
        return 0

    def _start_worker(self) -> subprocess.Popen[bytes]:
        override = os.environ.get(WORKER_OVERRIDE, "")
        command = shlex.split(override) if override else [sys.executable, "-P", "-m", "engine.train.worker"]
        with (self.run_dir / layout.WORKER_LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, str(self.run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.run_dir,
                env={**os.environ, ATTEMPT: str(self.attempt)},
                pass_fds=(self.lock_handle,),
                process_group=0,
            )

    def _watch(self, worker: subprocess.Popen[bytes], scene: obituary.Scene) -> int:
        """Wait for the end; meanwhile a thread writes the heartbeat."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                scene.look()
                self._write(ev.Heartbeat(t=time.time(), worker_cpu_seconds=cpu_seconds(worker.pid)))

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        exit_code = worker.wait()
        over.set()
        thread.join()
        return exit_code

    def _leave(self, report: ev.WorkerExit, outcome: str) -> None:
        self._write(report, tries=WRITE_TRIES)
        self._write(ev.RunnerEnd(t=time.time(), outcome=outcome), tries=WRITE_TRIES)
        self.journal.close()

    def _write(self, event: ev.AnyEvent, *, tries: int = 1) -> None:
        """A full disk must not end the supervision: important lines are tried again, a heartbeat is not."""
        for left in reversed(range(tries)):
            try:
                return self.journal.write(event, sync=tries > 1)
            except (EngineError, OSError) as error:
                sys.stderr.write(f"{type(event).__name__} not written: {error}\n")
                time.sleep(1.0 if left else 0.0)

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """A shutdown or a rented machine being taken back: save first. The second time, pass it on."""
        self.terminations += 1
        if self.terminations == 1:
            (self.run_dir / layout.CONTROL / "pause").touch()
        elif self.worker is not None:
            self.worker.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
