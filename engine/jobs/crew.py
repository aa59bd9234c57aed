"""The processes of a run on several cards, as the runner sees them: started by torchrun, watched, ended, started again.

Owns the command lines, the watching and the decision to restart. Must not know torch, nor what the processes do. Each
machine has one launcher (`python -m torch.distributed.run`), here or over ssh; all meet at the first one's address. The
launchers' own restarts are not used: they see that a process has died, never that it hangs, and they would restart
after bad input as well.

    runner ─► launcher ─► rank 0, 1, ...  ─► ranks/0000.json, 0001.json, ... ─► runner: all well? who is it? again?
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from engine.errors import EngineError
from engine.jobs import checkpoints, ranks
from engine.jobs import events as ev
from engine.jobs.liveness import host_name

WORKER_MODULE = "engine.train.worker"
SSH = "SCALER_WIZARD_SSH"
"""The command that reaches other machines, with its options."""
PIECES = "SCALER_WIZARD_PIECES"
"""Tells the ranks into how many pieces micro-batches are split since memory ran out."""
LOCALHOST = "localhost"
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
"""Says within 20 s when a machine is out of reach."""
_SSH_FAILED = 255
"""What ssh ends with when the connection was not made or was lost."""
MOST_PIECES = 1024
"""Micro-batches have no more rows that could be computed one by one."""
_ENDING_SECONDS = 20.0
_PORTS = 20_000
_FIRST_PORT = 30_000
_CARRIED = ("PYTHONPATH", "PYTHONSAFEPATH", "SCALER_WIZARD_", "HF_", "OMP_", "NCCL_", "GLOO_", "CUDA_DEVICE_ORDER")
_KEPT_BACK = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Every user of either machine could read a command's words; a token is logged in with on the other machine."""


class Host(msgspec.Struct, frozen=True):
    """A machine of the run."""

    name: str
    slots: int = 0
    """Processes there; 0 for as many as the spec says."""


class Crew(msgspec.Struct, frozen=True, kw_only=True):
    """Which processes a run has; handed from the launch to the runner."""

    processes: int
    """Per machine."""
    hosts: tuple[Host, ...] = (Host("localhost"),)
    restarts: int = 3
    hang_seconds: float = 30.0

    @property
    def world(self) -> int:
        return sum(host.slots or self.processes for host in self.hosts)


def read_hosts(path: Path) -> tuple[Host, ...]:
    """Lines `host[:slots]`; blank lines and # comments do not count. Raises EngineError `hosts.unreadable`,
    `hosts.bad_line`, `hosts.none`, `hosts.unequal`, `hosts.each_its_own`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror or str(error) if isinstance(error, OSError) else "It is not UTF-8 text."
        raise EngineError("hosts.unreadable", f"The list of machines {path} cannot be read.", cause=cause) from error
    hosts = tuple(
        _host(text, number, path) for number, line in enumerate(lines, 1) if (text := line.partition("#")[0].strip())
    )
    if not hosts:
        raise EngineError(
            "hosts.none", f"{path} names no machine.", next_step="Write one machine per line: node1:8 for 8 cards."
        )
    if len({host.slots for host in hosts}) > 1:
        raise EngineError(
            "hosts.unequal",
            f"The machines in {path} have different numbers of processes.",
            cause="A spec counts processes per machine.",
            next_step="Write the same :slots behind every machine, or none.",
        )
    _refuse_own_names(hosts, path)
    return hosts


def _refuse_own_names(hosts: Sequence[Host], path: Path) -> None:
    """All meet at the first one's address, under which the others must find it."""
    own = [host.name for host in hosts if _is_loopback(host.name)]
    if own and len(own) < len(hosts):
        raise EngineError(
            "hosts.each_its_own",
            f"{path} has {own[0]} beside other machines.",
            cause=f"{own[0]} is another machine on each of them, so they would not find each other.",
            next_step=f"Write the name or address that the others know it by; this machine calls itself {host_name()}, "
            "and under that name needs no ssh.",
        )


def _is_loopback(name: str) -> bool:
    if name == LOCALHOST:
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def is_here(host: Host) -> bool:
    """Whether this machine is meant, which takes no ssh."""
    own = host_name()
    return host.name in (LOCALHOST, own, own.partition(".")[0])


def _host(text: str, number: int, path: Path) -> Host:
    name, _, slots = text.partition(":")
    plain = name and not name.startswith("-") and not any(letter.isspace() for letter in name)
    if not plain or (slots and (not slots.isdecimal() or int(slots) < 1)):
        raise EngineError(
            "hosts.bad_line",
            f"Line {number} of {path} is not host[:slots]: {text!r}.",
            next_step="Write a name or an address, and behind a colon how many processes run there: node1:8",
        )
    return Host(name, int(slots or 0))


@dataclass(slots=True)
class Launchers:
    """The launchers of one attempt; the first is what liveness looks at."""

    crew: Crew
    run_dir: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    dismissed: bool = False
    """The first rank had left in good order, and the rest was ended here."""

    @property
    def first(self) -> subprocess.Popen[bytes]:
        return self.processes[0]

    @property
    def exit_code(self) -> int | None:
        """The first that is not 0, once all have ended; None while one has not."""
        codes = [process.poll() for process in self.processes]
        if None in codes:
            return None
        return 0 if self.dismissed else next((code for code in codes if code), 0)

    def lost_host(self) -> str:
        """A machine to which the connection was lost or never made; "" while there is none."""
        pairs = zip(self.crew.hosts, self.processes, strict=False)
        return next((host.name for host, one in pairs if not is_here(host) and one.poll() == _SSH_FAILED), "")

    def wait(self, seconds: float) -> None:
        """Until one ends, or so long."""
        running = next((process for process in self.processes if process.poll() is None), None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if running is not None:
                running.wait(seconds)

    def terminate(self) -> None:
        """Pass a wish to end on."""
        for process in self.processes:
            process.terminate()

    def end(self) -> None:
        """End every rank at once, then the launchers; they cannot be asked, since one of them does not answer."""
        signs = ranks.read_signs(self.run_dir, self.crew.world)
        for sign in signs:
            if sign.is_here and not ranks.is_gone(sign):
                with contextlib.suppress(OSError):
                    os.kill(sign.pid, signal.SIGKILL)
        elsewhere = ending_elsewhere(signs)
        for host in self.crew.hosts if elsewhere else ():
            if not is_here(host):
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    subprocess.run([*_ssh(), host.name, elsewhere], timeout=_ENDING_SECONDS, capture_output=True)
        deadline = time.monotonic() + _ENDING_SECONDS
        while self.exit_code is None and time.monotonic() < deadline:
            self.wait(ranks.POLL_SECONDS)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def ending_elsewhere(signs: Sequence[ranks.Sign]) -> str:
    """A shell line that ends the ranks of whichever other machine it runs on: the names in a list of machines need not
    be those that the machines have for themselves. "" where all ranks are here."""
    pids: dict[str, list[str]] = {}
    for sign in signs:
        if not sign.is_here:
            pids.setdefault(sign.host, []).append(str(sign.pid))
    lines = [
        f'if [ "$(uname -n)" = {shlex.quote(host)} ]; then kill -9 {" ".join(ids)}; fi' for host, ids in pids.items()
    ]
    return "; ".join(lines)


def start(crew: Crew, run_dir: Path, *, lock_handle: int, log: BinaryIO, environment: dict[str, str]) -> Launchers:
    """One launcher per machine. Raises OSError when a program cannot be run."""
    ranks.clear_signs(run_dir)
    launchers = Launchers(crew, run_dir)
    environment = {**environment, "PYTHONSAFEPATH": "1"}  # the run directory is no place to import from
    try:
        for command in commands(crew, run_dir, environment):
            launchers.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=run_dir,
                    env=environment,
                    pass_fds=(lock_handle,),
                    process_group=0,
                )
            )
    except OSError:
        launchers.end()
        raise
    return launchers


def commands(crew: Crew, run_dir: Path, environment: dict[str, str]) -> Iterator[list[str]]:
    """What is run for each machine, the first one's first."""
    attempt = environment.get("SCALER_WIZARD_ATTEMPT", "1")
    first = crew.hosts[0].name
    for number, host in enumerate(crew.hosts):
        command = [sys.executable, "-P", "-m", "torch.distributed.run"]
        command += [f"--nnodes={len(crew.hosts)}", f"--nproc-per-node={host.slots or crew.processes}"]
        command += ["--max-restarts=0", f"--rdzv-id={run_dir.name}-{attempt}", "--rdzv-backend=c10d"]
        if len(crew.hosts) == 1:
            command += ["--rdzv-endpoint=localhost:0", "--local-addr=localhost"]
        else:
            port = _FIRST_PORT + zlib.crc32(f"{run_dir.name} {attempt}".encode()) % _PORTS
            command += [f"--rdzv-endpoint={first}:{port}", f"--rdzv-conf=is_host={int(number == 0)}"]
            command += [f"--local-addr={host.name}"]
        command += ["--module", WORKER_MODULE, str(run_dir)]
        yield command if is_here(host) else _remote(host.name, command, run_dir, environment)


def _remote(host: str, command: list[str], run_dir: Path, environment: dict[str, str]) -> list[str]:
    """Over ssh: the same program at the same place, in the same folder."""
    carried = {
        name: value for name, value in environment.items() if name.startswith(_CARRIED) and name not in _KEPT_BACK
    }
    assignments = [f"{name}={value}" for name, value in sorted(carried.items())]
    line = f"cd {shlex.quote(str(run_dir))} && exec env {shlex.join([*assignments, *command])}"
    return [*_ssh(), host, line]


def _ssh() -> list[str]:
    return shlex.split(os.environ.get(SSH, _SSH))


def attend(launchers: Launchers) -> ranks.Trouble | None:
    """Watch until all have ended. What was wrong, and then all of them were ended here; None when they ended by
    themselves and none says why, or were ended after the first one had left."""
    watch = ranks.Watch(launchers.run_dir, launchers.crew.world, launchers.crew.hang_seconds)
    while True:
        over = launchers.exit_code is not None
        trouble = watch.look(time.monotonic())
        if trouble is None and not watch.is_over and (host := launchers.lost_host()):
            trouble = ranks.Trouble("process lost", (), watch.step, f"The connection to {host} (ssh) is lost.")
        if trouble is not None:
            launchers.end()
            return trouble
        if watch.is_overdue:
            launchers.end()
            launchers.dismissed = True
            return None
        if over:
            return ranks.cut_off(ranks.read_signs(launchers.run_dir, launchers.crew.world))
        launchers.wait(ranks.POLL_SECONDS)


# ── what follows ──────────────────────────────────────────────────────────────────────────────────────────────────
_RESTARTED = ("process lost", "process hung")


@dataclass(slots=True)
class Patience:
    """How often all processes were started again. Mutable: it is used up."""

    crew: Crew
    restarts: int = 0
    """Because a process was lost or hung."""
    splits: int = 0
    """Because memory ran out in a step."""
    pieces: int = 1

    def again(self, trouble: ranks.Trouble, run_dir: Path) -> tuple[bool, ev.Recovery | None]:
        """Whether to start again, and the event that says so where the journal does not have it yet. Not where the
        trouble would come again, or has come too often."""
        if trouble.kind == "again":
            return True, None
        back = checkpoints.newest_step(run_dir)
        where = f"from the checkpoint of step {back}" if back else "from the beginning: there was no checkpoint yet"
        if trouble.kind == "out of memory" and max(self.pieces, trouble.pieces) < MOST_PIECES:
            self.pieces = max(self.pieces, trouble.pieces) * 2
            self.splits += 1
            remedy = (
                f"All processes go on {where}, every micro-batch in {self.pieces} pieces; the batch as a whole is "
                f"the same (restart {self.splits} for memory)."
            )
        elif trouble.kind in _RESTARTED and self.restarts < self.crew.restarts:
            self.restarts += 1
            remedy = f"All processes were ended and start again {where} (restart {self.restarts} of "
            remedy += f"{self.crew.restarts})."
        else:
            return False, None
        what = trouble.what if trouble.failure is None else f"{trouble.what} {trouble.failure.cause}".rstrip()
        return True, ev.Recovery(
            t=time.time(), step=trouble.step, trouble=trouble.kind, what=what, back_to_step=back, remedy=remedy
        )


def obituary(trouble: ranks.Trouble, crew: Crew, run_dir: Path, exit_code: int) -> ev.WorkerExit:
    """The end of a run that does not start again, in words."""
    step = checkpoints.newest_step(run_dir)
    where = f"resume from step {step}" if step else "start it again; there was no checkpoint yet"
    next_step = f"Press r to {where} (or `scaler-wizard resume {run_dir.name}`)."
    cause = ""
    if trouble.failure is not None:
        cause, next_step = trouble.failure.cause, trouble.failure.next_step or next_step
    elif crew.restarts and trouble.kind in _RESTARTED:
        cause = f"It started again {crew.restarts} times before (distributed.restarts)."
    return ev.WorkerExit(t=time.time(), exit_code=exit_code, what=trouble.what, cause=cause, next_step=next_step)
