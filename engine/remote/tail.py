"""The process that keeps a mirror up to date: it listens to the host, comes back when the connection is lost, and ends
when nobody works on the run any more.

`python -m engine.remote tail RUN_DIR`. Owns that process and `link.json`. Must not know what the events mean. Nothing
depends on it: killed and started again it goes on at the byte it had reached.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import elsewhere
from engine.jobs.elsewhere import LinkRecord, RemoteRecord
from engine.jobs.launch import child_environment, module_command
from engine.jobs.lock import take
from engine.remote.farside import Far, listening, reach, told_error
from engine.remote.faults import DROPPED, PASSING
from engine.remote.mirror import Mirror
from engine.remote.ssh import Host, Talk

SILENT_SECONDS = 20.0
"""The host says something every two seconds; after this the connection counts as lost."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
LINK_SECONDS = 5.0
"""`link.json` is rewritten at least so often."""
BEGIN_SECONDS = 60.0
LOG = "tail.log"

_LOCK_PATIENCE_SECONDS = 5.0
_READ_BYTES = 1 << 18


class Frame(msgspec.Struct, frozen=True):
    """The line before some bytes, or a word about the run."""

    file: str = ""
    offset: int | None = None
    """Where the bytes belong in a file that grows; none for a file that is replaced."""
    bytes: int = 0
    working: bool | None = None
    error: dict[str, str] | None = None


def start(run_dir: Path) -> None:
    """Start the process, in a session of its own and with init for a parent; nothing when one is at work."""
    with (run_dir / LOG).open("ab") as log:
        starter = subprocess.Popen(
            [*module_command("engine.remote"), "tail", str(run_dir), "--detach"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=run_dir,
            env=child_environment(),
            start_new_session=True,
        )
    starter.wait(BEGIN_SECONDS)


def work(run_dir: Path, *, detach: bool) -> int:
    """Follow the run to its end; returns the exit code."""
    record = elsewhere.record_of(run_dir)
    if record is None:
        raise EngineError("run.not_elsewhere", f"Run {run_dir.name} is one of this machine's own.")
    handle = take(run_dir / elsewhere.TAIL_LOCK, _LOCK_PATIENCE_SECONDS)
    if handle is None:
        return int(ExitCode.DONE)
    if detach and os.fork():
        os._exit(0)  # the child keeps the lock: both share the open file
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Tailer(run_dir, record).run()


def far_of(record: RemoteRecord) -> Far:
    """A connection to the host of a mirror. Raises EngineError."""
    return reach(Host(record.host, record.ssh), python=record.python)


class Tailer:
    """One process's work."""

    def __init__(self, run_dir: Path, record: RemoteRecord) -> None:
        self.mirror = Mirror(run_dir)
        self.run_dir = run_dir
        self.record = record
        self.link = elsewhere.link_of(run_dir)
        self.wait_seconds = FIRST_WAIT_SECONDS

    def run(self) -> int:
        """Listen, and come back, until the run is over or coming back is useless."""
        while True:
            try:
                self._listen()
                return int(ExitCode.DONE)
            except EngineError as error:
                self._tell(connected=False, error=error)
                # A host was known once: without a network there are no names. Of a run that is over nothing new comes.
                if error.code not in (*PASSING, "remote.unknown_host") or not self.link.working:
                    return int(error.exit_code)
            self._rest()

    def _listen(self) -> None:
        """One connection's worth; returns when nobody works on the run any more. Raises EngineError."""
        where = {"offsets": self.mirror.offsets(), "whole": self.mirror.whole()}
        with listening(far_of(self.record), "tail", directory=self.record.directory, **where) as talk:
            frames = Frames(talk)
            while True:
                frame, content = frames.next()
                if frame.error is not None:
                    raise told_error(self.record.host, frame.error)
                self.wait_seconds = FIRST_WAIT_SECONDS
                if frame.working is not None:
                    self._tell(connected=True, working=frame.working)
                    if not frame.working:
                        return
                elif frame.offset is None:
                    self.mirror.replace(frame.file, content)
                else:
                    self.mirror.append(frame.file, frame.offset, content)

    def _tell(self, *, connected: bool, working: bool | None = None, error: EngineError | None = None) -> None:
        now, before = time.time(), self.link
        self.link = LinkRecord(
            heard=now if connected else before.heard,
            looked=now,
            connected=connected,
            working=before.working if working is None else working,
            code=error.code if error else "",
            what=error.what if error else "",
            cause=error.cause if error else "",
            next_step=error.next_step if error else "",
        )
        same = (self.link.connected, self.link.working) == (before.connected, before.working)
        if same and error is None and now - before.looked < LINK_SECONDS:
            self.link = before
            return
        elsewhere.write_link(self.run_dir, self.link)

    def _rest(self) -> None:
        time.sleep(self.wait_seconds)
        self.wait_seconds = min(2 * self.wait_seconds, LONGEST_WAIT_SECONDS)


class Frames:
    """Frames out of a stream, with an end to patience."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.buffer = b""

    def next(self) -> tuple[Frame, bytes]:
        """The next frame and its bytes. Raises EngineError `remote.dropped`, or what ssh says."""
        while (end := self.buffer.find(b"\n")) < 0:
            self._more()
        line, self.buffer = self.buffer[:end], self.buffer[end + 1 :]
        try:
            frame = msgspec.json.decode(line, type=Frame)
        except msgspec.MsgspecError as error:
            what = f"{self.talk.host.name} said something that cannot be read."
            raise EngineError(DROPPED, what, cause=str(error)) from error
        while len(self.buffer) < frame.bytes:
            self._more()
        content, self.buffer = self.buffer[: frame.bytes], self.buffer[frame.bytes :]
        return frame, content

    def _more(self) -> None:
        handle = self.talk.out.fileno()
        readable, _, _ = select.select([handle], [], [], SILENT_SECONDS)
        if not readable:
            raise EngineError(DROPPED, f"{self.talk.host.name} has said nothing for {SILENT_SECONDS:.0f} s.")
        chunk = os.read(handle, _READ_BYTES)
        if not chunk:
            self.talk.process.wait()
            raise self.talk.lost()
        self.buffer += chunk
