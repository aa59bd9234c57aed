"""A terminal made of a pty: counts the bytes a program sends, answers its questions, and can stop reading."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ANSWERS = {
    b"\x1b[6n": b"\x1b[1;1R",
    b"\x1b[c": b"\x1b[?62;22c",
    b"\x1b[?2026$p": b"\x1b[?2026;2$y",
    b"\x1b[?2048$p": b"\x1b[?2048;0$y",
}


class PtyTerminal:
    """Runs `arguments` in a pty of `size` (columns, rows)."""

    def __init__(
        self, arguments: list[str], *, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
    ) -> None:
        self.master, slave = pty.openpty()
        columns, rows = size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
        variables |= {"PYTHONPATH": str(ROOT), "COLUMNS": "", "LINES": "", **(env or {})}
        for name in ("COLUMNS", "LINES"):
            variables.pop(name)
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=variables,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.received = bytearray()
        self.total_bytes = 0
        self.last_byte_at = self.last_data_at = time.monotonic()

    def read(self, seconds: float = 0.0) -> bytes:
        """What arrives within `seconds`; returns early once something came."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return b""
        self.last_byte_at = self.last_data_at = time.monotonic()
        self.received += data
        self.total_bytes += len(data)
        for question, answer in ANSWERS.items():
            if question in data:
                self.send(answer)
        return data

    def send(self, data: bytes) -> None:
        """Type."""
        os.write(self.master, data)

    def read_until(self, condition: Callable[[bytes], bool], *, seconds: float = 30) -> None:
        """Read until `condition` holds for everything received so far."""
        deadline = time.monotonic() + seconds
        while not condition(bytes(self.received)):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"never came: {bytes(self.received)[-2000:]!r}")
            self.read(0.05)

    def read_until_quiet(self, quiet_seconds: float = 0.4, *, seconds: float = 30) -> int:
        """Read until nothing came for `quiet_seconds`; returns the bytes that came."""
        before = self.total_bytes
        self.last_byte_at = time.monotonic()
        deadline = time.monotonic() + seconds
        while time.monotonic() - self.last_byte_at < quiet_seconds:
            self.read(0.02)
            if time.monotonic() > deadline:
                raise AssertionError("the program never stops sending")
        return self.total_bytes - before

    def resize(self, columns: int, rows: int) -> None:
        """As a person drags the window's corner."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """The terminal is gone."""
        os.close(self.master)

    def close(self) -> None:
        """End the program, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.master)
