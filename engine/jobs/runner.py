"""The runner: a small process of its own session that starts the worker, watches it and records how it ended.

`python -m engine.jobs.runner [--detach] [--crew JSON] RUN_DIR`. Owns the lock of the run, the heartbeat and
`runner.jsonl`. Must not know torch. A worker is never tried again: a resume is a person's decision. Only where a run
has several processes (`--crew`, `engine.jobs.crew`) all of them start again when one is lost or hangs, as often as the
spec says. It stays small, because it lives as long as the run. When it is killed the worker goes on; when the worker
dies it says so within a second.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs import checkpoints, layout, lock, obituary
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter, read_head_events
from engine.jobs.liveness import cpu_seconds, current_boot_id, host_name, process_start

if TYPE_CHECKING:
    from engine.jobs.crew import Crew, Launchers, Patience

HEARTBEAT_SECONDS = 5.0
WRITE_TRIES = 5
WORKER_OVERRIDE = "SCALER_WIZARD_WORKER"
"""A command to run instead of the real worker; the run directory is appended. For tests."""
ATTEMPT = "SCALER_WIZARD_ATTEMPT"
"""Tells the worker which attempt it is, counted from 1."""

KERNEL_WORDS = "Meanwhile the kernel killed a process for lack of memory (RAM)."
_LOCKED_EXIT_CODE = 3


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    detach = "--detach" in arguments[:-1]
    run_dir = Path(arguments[-1])
    crew = arguments[arguments.index("--crew") + 1] if "--crew" in arguments[:-2] else ""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle = lock.acquire(run_dir)
    if handle is None:
        return _LOCKED_EXIT_CODE
    if detach and os.fork():
        os._exit(0)  # the child keeps the lock: both share the open file
    return Runner(run_dir, handle, _decoded(crew) if crew else None).run()


def _decoded(crew: str) -> Crew:
    import msgspec

    from engine.jobs.crew import Crew

    return msgspec.json.decode(crew, type=Crew)


class Runner:
    """Supervises one worker, or the processes of a crew."""

    def __init__(self, run_dir: Path, lock_handle: int, crew: Crew | None = None) -> None:
        self.run_dir = run_dir
        self.crew = crew
        self.lock_handle = lock_handle
        self.attempt = 1 + sum(
            isinstance(event, ev.WorkerStart) for event in read_head_events(run_dir / layout.RUNNER_JOURNAL)
        )
        self.journal = JournalWriter(run_dir / layout.RUNNER_JOURNAL)
        self.worker: subprocess.Popen[bytes] | None = None
        self.launchers: Launchers | None = None
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
        if self.crew is not None:
            self._run_crew(self.crew)
        else:
            self._run_worker()
        return 0

    def _run_worker(self) -> None:
        scene = obituary.Scene.before(self.run_dir)
        try:
            self.worker = self._start_worker()
        except OSError as error:
            return self._leave(obituary.not_started(error), "failed")
        self._tell_start(self.worker.pid)
        scene.worker_pid = self.worker.pid
        with self._beating(scene):
            exit_code = self.worker.wait()
        self._leave(*scene.diagnose(exit_code))

    def _run_crew(self, crew: Crew) -> None:
        """All processes, again and again while that may help."""
        from engine.jobs.crew import Patience, attend
        from engine.jobs.crew import obituary as crew_obituary

        patience = Patience(crew)
        while True:
            scene = obituary.Scene.before(self.run_dir)
            try:
                self.launchers = self._start_crew(crew, patience)
            except OSError as error:
                return self._leave(obituary.not_started(error), "failed")
            self.worker = self.launchers.first
            self._tell_start(self.worker.pid)
            scene.worker_pid = self.worker.pid
            with self._beating(scene):
                trouble = attend(self.launchers)
            report, outcome = scene.diagnose(self.launchers.exit_code or 0)
            if trouble is None or outcome in ("finished", "stopped", "paused"):
                return self._leave(report, outcome)
            if trouble.kind == "process lost" and scene.kernel_killed():
                trouble = replace(trouble, what=f"{trouble.what} {KERNEL_WORDS}")
            again, recovery = patience.again(trouble, self.run_dir) if not self.terminations else (False, None)
            if not again:
                return self._leave(crew_obituary(trouble, crew, self.run_dir, report.exit_code), "failed")
            if recovery is not None:
                self._write(recovery, tries=WRITE_TRIES)
            checkpoints.sweep(self.run_dir)
            self.attempt += 1

    def _start_crew(self, crew: Crew, patience: Patience) -> Launchers:
        from engine.jobs.crew import PIECES, start

        environment = {**os.environ, ATTEMPT: str(self.attempt), PIECES: str(patience.pieces)}
        with (self.run_dir / layout.WORKER_LOG).open("ab") as log:
            return start(crew, self.run_dir, lock_handle=self.lock_handle, log=log, environment=environment)

    def _tell_start(self, pid: int) -> None:
        began = process_start(pid) or 0.0
        self._write(
            ev.WorkerStart(t=time.time(), pid=pid, process_start=began, attempt=self.attempt), tries=WRITE_TRIES
        )

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

    @contextlib.contextmanager
    def _beating(self, scene: obituary.Scene) -> Iterator[None]:
        """While the worker lives: a thread writes the heartbeat."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                scene.look()
                self._write(ev.Heartbeat(t=time.time(), worker_cpu_seconds=cpu_seconds(scene.worker_pid)))

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

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
        elif self.launchers is not None:
            self.launchers.terminate()
        elif self.worker is not None:
            self.worker.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
