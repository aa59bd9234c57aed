"""Starting a run so that nothing about the terminal can reach it.

Owns the detached runner process: own session, no pipe, no terminal, no parent that matters. Must not know what the
runner does. The command started here forks once more and leaves, so the runner belongs to init at once: it is no
zombie of the wizard when it ends, and no child of it when the wizard is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import elsewhere, layout, lock
from engine.jobs import events as ev
from engine.jobs.journal import read_tail_events
from engine.jobs.spec import JobSpec
from engine.jobs.state import RunPhase
from engine.jobs.store import create_run, load_run_spec
from engine.jobs.summary import quick_state
from engine.paths import ensure_writable, runs_dir
from engine.units import MIB, format_bytes

if TYPE_CHECKING:
    from engine.jobs.crew import Crew

LAUNCH_SECONDS = 60.0
"""A runner on a busy machine is up in a second or two; beyond this something is wrong."""
MINIMUM_FREE_BYTES = 64 * MIB
LOCKED_EXIT_CODE = 3

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def start(spec: JobSpec, *, base: Path | None = None, needed_bytes: int = MINIMUM_FREE_BYTES) -> Path:
    """Create a run and launch it; returns its directory. `needed_bytes` is the disk the whole job will take."""
    if spec.distributed.nodes > 1:
        raise nodes_missing(spec)
    require_free_disk(ensure_writable(runs_dir()), needed_bytes)
    run_dir = create_run(spec, base=base)
    launch(run_dir)
    return run_dir


def require_free_disk(directory: Path, needed_bytes: int) -> None:
    """Raises EngineError `disk.full` when `directory` has less free than `needed_bytes`."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise EngineError(
            "disk.full",
            f"{directory} has {format_bytes(free_bytes)} free; {format_bytes(needed_bytes)} are needed.",
            next_step="Free some space, or set SCALER_WIZARD_HOME to a folder on a larger disk.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def refuse_when_held(run_dir: Path) -> None:
    """Raises EngineError `run.live` when a runner or a worker has the run."""
    if lock.is_held(run_dir):
        raise EngineError(
            "run.live",
            f"Run {run_dir.name} is being worked on already.",
            cause="Its runner, or a worker whose runner was killed, is alive.",
            next_step=f"Watch it with `scaler-wizard attach {run_dir.name}`, or stop it first.",
        )


def launch(run_dir: Path, *, wait_seconds: float = LAUNCH_SECONDS, processes: int = 0) -> int:
    """Start the detached runner and wait until it has reported in; returns its pid. Raises EngineError when
    somebody has the run, it is finished, its spec was edited, or the disk is full.

    `processes` per machine instead of the spec's, from this attempt on until another one is named."""
    run_dir = run_dir.resolve()
    if not (run_dir / layout.SPEC).is_file():
        raise EngineError("run.damaged", f"{run_dir} has no {layout.SPEC}; it is not a run directory.")
    if elsewhere.is_elsewhere(run_dir):
        raise EngineError("run.elsewhere", f"Run {run_dir.name} is a mirror; it works on another machine.")
    refuse_when_held(run_dir)
    crew = crew_of(run_dir, load_run_spec(run_dir), processes)
    if quick_state(run_dir).state is RunPhase.FINISHED:
        raise EngineError("run.finished", f"Run {run_dir.name} is finished; there is nothing to resume.")
    require_free_disk(run_dir, MINIMUM_FREE_BYTES)
    runner_journal = run_dir / layout.RUNNER_JOURNAL
    offset = runner_journal.stat().st_size if runner_journal.exists() else 0
    with (run_dir / layout.RUNNER_LOG).open("ab") as log:
        starter = subprocess.Popen(
            [*module_command("engine.jobs.runner"), "--detach", *_crew_arguments(crew), str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=run_dir,
            env=child_environment(),
            start_new_session=True,
        )
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        for event in read_tail_events(runner_journal, max_bytes=1 << 20, after=offset):
            if isinstance(event, ev.RunnerStart):
                starter.wait()
                return event.pid
        if starter.poll() == LOCKED_EXIT_CODE:
            refuse_when_held(run_dir)
        if starter.poll():
            break
        time.sleep(0.02)
    raise _no_runner(run_dir)


def crew_of(run_dir: Path, spec: JobSpec, processes: int = 0) -> Crew | None:
    """The processes of this run's next attempt; None for the one worker of most runs. A number of `processes` is
    remembered in the run directory. Raises EngineError when its list of machines is bad, `run.nodes_missing` when it
    needs one and has none."""
    section = spec.distributed
    remembered = run_dir / layout.PROCESSES
    if processes:
        layout.write_atomic(remembered, b"%d\n" % processes)
    elif remembered.is_file():
        processes = int(remembered.read_bytes())
    listed = run_dir / layout.HOSTS
    if section.nodes > 1 and not listed.is_file():
        raise nodes_missing(spec)
    if not processes and section.world == 1 and section.strategy != "fsdp2" and not listed.is_file():
        return None
    from engine.jobs.crew import Crew, Host, read_hosts

    hosts = read_hosts(listed) if listed.is_file() else (Host("localhost"),)
    return Crew(
        processes=processes or section.processes,
        hosts=tuple(Host(host.name) for host in hosts) if processes else hosts,
        restarts=section.restarts,
        hang_seconds=section.hang_seconds,
    )


def nodes_missing(spec: JobSpec) -> EngineError:
    """A spec counts machines and does not name them."""
    return EngineError(
        "run.nodes_missing",
        f"The spec wants {spec.distributed.nodes} machines (distributed.nodes); it is not said which.",
        next_step="Start it with `scaler-wizard run SPEC --nodes hosts.txt`, a file with one machine per line: "
        "host[:processes]; or set distributed.nodes = 1.",
    )


def _crew_arguments(crew: Crew | None) -> list[str]:
    return [] if crew is None else ["--crew", msgspec.json.encode(crew).decode()]


def _no_runner(run_dir: Path) -> EngineError:
    log = layout.read_tail(run_dir / layout.RUNNER_LOG, max_bytes=2000).decode(errors="replace").strip()
    return EngineError(
        "run.no_runner",
        f"The runner of {run_dir.name} did not start.",
        cause=log.splitlines()[-1] if log else "It wrote nothing to runner.log.",
        next_step=f"Look into {run_dir / layout.RUNNER_LOG}.",
        exit_code=ExitCode.RUN_FAILED,
    )


def module_command(module: str) -> list[str]:
    """How our own modules are run: the run directory, which is the working directory, is no place to import from."""
    return [sys.executable, "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """The environment of runner and worker: the same program, the same home, whatever their working directory."""
    environment = dict(os.environ)
    home = environment.get("SCALER_WIZARD_HOME")
    if home:
        environment["SCALER_WIZARD_HOME"] = str(Path(home).expanduser().absolute())
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if str(_PACKAGE_PARENT) not in installed:
        rest = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment["PYTHONPATH"] = os.pathsep.join([str(_PACKAGE_PARENT), *rest])
    return environment
