"""Connections through the system's own ssh: its configuration, its keys, its agent, one connection shared by all.

Owns how ssh is called and the private folder of the shared connections. Must not know what runs on the other side. The
program may be replaced with SCALER_WIZARD_SSH ("ssh -F other_config"); whatever ~/.ssh/config says about a host holds.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.errors import EngineError
from engine.remote.faults import ssh_error

PROGRAM = "SCALER_WIZARD_SSH"
"""Environment variable: the ssh command, with options."""
PERSIST_SECONDS = 600
"""A shared connection outlives its last use by so long, so that a password is asked for once."""
CONNECT_SECONDS = 15
ALIVE_SECONDS = 5
"""Between signs of life; after three missing ones the connection counts as lost."""

_LOST = 255
_LONGEST_FOLDER = 45
"""The path of a Unix socket has at most 104 bytes, of which ssh needs 59: a name of 40 and a suffix of 17."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host as ssh knows it, and how ssh is called."""

    name: str
    program: tuple[str, ...] = ("ssh",)

    def command(self, script: str, *, may_ask: bool = False) -> list[str]:
        """The words that run `script` in a POSIX shell there, whatever the login shell is."""
        return [
            *self.program,
            *(f"-o{option}" for option in self._options(may_ask)),
            "-T",
            "--",
            self.name,
            f"exec sh -c {shlex.quote(script)}",
        ]

    def _options(self, may_ask: bool) -> Iterator[str]:
        yield from ("LogLevel=INFO", f"ConnectTimeout={CONNECT_SECONDS}")
        yield from (f"ServerAliveInterval={ALIVE_SECONDS}", "ServerAliveCountMax=3")
        yield from (f"ControlPath={control_folder()}/%C", "ControlMaster=auto", f"ControlPersist={PERSIST_SECONDS}")
        yield from ("RemoteCommand=none", "ForwardX11=no", "ClearAllForwardings=yes")
        yield f"BatchMode={'no' if may_ask else 'yes'}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command there left."""

    code: int
    out: bytes
    err: str


def parse_host(text: str) -> Host:
    """Raises EngineError `remote.host` for what is no name of a host, `remote.no_ssh` without an ssh."""
    if not text or text.startswith("-") or any(character.isspace() for character in text):
        raise EngineError(
            "remote.host",
            f"'{text}' is no name of a host.",
            next_step="Write user@address, a name from ~/.ssh/config, or ssh://user@address:port.",
        )
    program = tuple(shlex.split(os.environ.get(PROGRAM, ""))) or ("ssh",)
    if shutil.which(program[0]) is None:
        raise EngineError(
            "remote.no_ssh",
            f"There is no {program[0]} on this machine.",
            next_step="Install the OpenSSH client (Debian, Ubuntu: apt install openssh-client).",
        )
    return Host(text, program)


def control_folder() -> Path:
    """A folder nobody else can look into, with a path short enough for a socket. Raises EngineError."""
    name = f"scaler-wizard-ssh-{os.getuid()}"
    places = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")
    base = next(
        (place for place in places if place and os.access(place, os.W_OK) and len(place) < _LONGEST_FOLDER - len(name)),
        "/tmp",
    )
    folder = Path(base) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EngineError(
            "remote.control_folder",
            f"{folder} is not yours alone, so connections cannot be shared through it.",
            next_step=f"Remove {folder}.",
        )
    return folder


@contextmanager
def talking(host: Host, script: str, *, may_ask: bool = False) -> Iterator[Talk]:
    """A command there with both streams open; it is ended when the block is left."""
    # A shared connection that stays in the background keeps its standard error: a file does not wait for it.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            host.command(script, may_ask=may_ask),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            start_new_session=not may_ask,
        )
        talk = Talk(host, process, said)
        try:
            yield talk
        finally:
            talk.close()


class Talk:
    """One running command there."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.host = host
        self.process = process
        self._said = said
        assert process.stdin is not None
        assert process.stdout is not None
        self.to = process.stdin
        self.out = process.stdout

    def send(self, content: bytes) -> None:
        """All of it. Raises BrokenPipeError when nobody reads any more."""
        left = memoryview(content)
        while left:
            left = left[self.to.write(left) :]

    def close(self) -> None:
        """End it: the other side sees its input end."""
        for stream in (self.to, self.out):
            with contextlib.suppress(OSError):  # what was not sent is lost with the connection
                stream.close()
        if self.process.poll() is None:
            try:
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def said(self) -> str:
        """What ssh and the command wrote to standard error so far."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def lost(self) -> EngineError:
        """Why the connection is gone."""
        return ssh_error(self.host.name, self.said())


def ask(host: Host, script: str, data: Iterable[bytes] = (), *, may_ask: bool = False) -> Answer:
    """Run `script` there with `data` as its input. Raises EngineError when there is no connection, or none any more."""
    with talking(host, script, may_ask=may_ask) as talk:
        try:
            for piece in data:
                talk.send(piece)
            talk.to.close()
        except BrokenPipeError:
            pass  # it says why
        out = talk.out.read()
        code = talk.process.wait()
        if code == _LOST:
            raise talk.lost()
        return Answer(code, out, talk.said())
