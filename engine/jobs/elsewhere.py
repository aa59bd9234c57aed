"""Runs that work on another machine and have a mirror here: where they are, how fresh the mirror is, passing words on.

Owns `remote.json` (written once) and `link.json` (rewritten by whoever tails the run) inside the mirror, which is a run
directory like any other. Must not know ssh: that is `engine.remote`, asked in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import layout
from engine.jobs.lock import take

REMOTE = "remote.json"
LINK = "link.json"
TAIL_LOCK = "tail.lock"
FRESH_SECONDS = 30.0
"""The tail rewrites `link.json` at least every few seconds; older than this it cannot be at work."""


class RemoteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`remote.json`: where a run really is, and how it is reached."""

    host: str
    directory: str
    """The run directory there."""
    ssh: tuple[str, ...] = ("ssh",)
    python: str
    """That runs our end of the connection."""
    program: tuple[str, ...]
    """What `scaler-wizard` is there; subcommands follow."""
    environment: tuple[tuple[str, str], ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    """Each file name of the spec there, and what it is a copy of here."""


class LinkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`link.json`: how the mirror stands, by this machine's clock."""

    heard: float
    """When the host last said anything; 0 when it never did."""
    looked: float
    """When this was written."""
    connected: bool
    working: bool
    """Whether a runner or a worker held the run when the host last said something."""
    code: str = ""
    what: str = ""
    cause: str = ""
    next_step: str = ""


def record_of(run_dir: Path) -> RemoteRecord | None:
    """Where the run really is; None for a run of this machine. Raises EngineError `run.damaged`."""
    try:
        return msgspec.json.decode((run_dir / REMOTE).read_bytes(), type=RemoteRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            "run.damaged",
            f"The mirror {run_dir.name} is damaged: {REMOTE} cannot be read.",
            cause=str(error),
            next_step="Make it again: scaler-wizard remote HOST --attach ID.",
        ) from error


def is_elsewhere(run_dir: Path) -> bool:
    """Whether the run directory is a mirror; costs one look at the disk."""
    return (run_dir / REMOTE).is_file()


def link_of(run_dir: Path) -> LinkRecord:
    """How the mirror stands."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((run_dir / LINK).read_bytes(), type=LinkRecord)
    return LinkRecord(heard=0.0, looked=0.0, connected=False, working=True)


def is_followed(run_dir: Path) -> bool:
    """Is a process bringing the mirror up to date?"""
    handle = take(run_dir / TAIL_LOCK)
    if handle is None:
        return True
    os.close(handle)
    return False


def warning_of(run_dir: Path, now: float | None = None) -> str:
    """What to know about the mirror of a run that is not over; "" while it is fresh."""
    now = time.time() if now is None else now
    link = link_of(run_dir)
    if link.connected and now - link.looked < FRESH_SECONDS:
        return ""
    record = record_of(run_dir)
    host = record.host if record else "its host"
    heard = f"since {time.strftime('%H:%M:%S', time.localtime(link.heard))}" if link.heard else "yet"
    if is_followed(run_dir):
        why = f" ({link.cause or link.what})" if link.what else ""
        return f"Nothing was heard from {host} {heard}{why}; the run goes on there. Trying again."
    step = link.next_step or f"Attach it again: scaler-wizard attach {run_dir.name}"
    return f"Not followed from here {heard.replace('yet', 'any more')}; the run goes on on {host}. {step}"


def follow(run_dir: Path, *, although_over: bool = False) -> None:
    """See that a process brings the mirror up to date; nothing for a run of this machine, nor, unless asked, for one
    that was over when its host last said something. Returns when it has begun."""
    if is_elsewhere(run_dir) and (although_over or link_of(run_dir).working) and not is_followed(run_dir):
        _ask(run_dir, "follow")


def pass_on(run_dir: Path, command: str) -> bytes:
    """Ask the host for `command`: pause, stop, checkpoint, resume or merge; its answer as JSON. Raises EngineError: the
    host's own refusal, or that it cannot be reached."""
    return _ask(run_dir, command)


class _Told(msgspec.Struct):
    error: dict[str, str]


def _ask(run_dir: Path, word: str) -> bytes:
    from engine.jobs.launch import child_environment, module_command

    result = subprocess.run(
        [*module_command("engine.remote"), word, str(run_dir)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=child_environment(),
        start_new_session=True,
    )
    if result.returncode == 0:
        return result.stdout
    known = ExitCode(result.returncode) if result.returncode in set(ExitCode) else ExitCode.RUN_FAILED
    try:
        told = msgspec.json.decode((result.stdout.splitlines() or [b""])[-1], type=_Told).error
    except msgspec.MsgspecError:
        last = (result.stderr.decode(errors="replace").strip().splitlines() or ["It ended without a word."])[-1]
        told = {"code": "remote.failed", "what": f"{word} could not be passed on.", "cause": last, "next_step": ""}
    raise EngineError(told["code"], told["what"], cause=told["cause"], next_step=told["next_step"], exit_code=known)


def write_link(run_dir: Path, link: LinkRecord) -> None:
    """Replace `link.json`; readers see the old one or the new one."""
    staging = run_dir / f".{LINK}"
    staging.write_bytes(msgspec.json.encode(link))
    staging.replace(run_dir / LINK)


def write_record(run_dir: Path, record: RemoteRecord) -> None:
    """Make a run directory a mirror. The record is its owner's alone: the ssh command in it may hold what is secret."""
    layout.write_atomic(run_dir / REMOTE, msgspec.json.format(msgspec.json.encode(record)) + b"\n", private=True)
