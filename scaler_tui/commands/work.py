"""Subcommands about runs: start, follow, list, read the log, control.

Owns their text and JSON. Must not know how a run works: it asks `engine.jobs`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from scaler_tui import output
from scaler_tui.preflight import Checked


def demo(arguments: argparse.Namespace) -> int:
    """Fine-tune the embedded demo model in the foreground and print its card."""
    from scaler_tui.demo import demo_spec

    return start_and_follow(demo_spec(), as_json=arguments.json)


def run(arguments: argparse.Namespace) -> int:
    """A spec in the foreground: the run is detached all the same, this only follows it."""
    if arguments.keep:
        from scaler_tui.commands.kept import run_kept

        return run_kept(arguments)
    return _run_checked(checked_file(arguments), as_json=arguments.json, hosts=arguments.nodes)


def start(arguments: argparse.Namespace) -> int:
    """A spec in the background."""
    from engine.jobs.launch import launch
    from scaler_tui.preflight import create

    run_dir = create(checked_file(arguments))
    _keep_hosts(run_dir, arguments.nodes)
    launch(run_dir)
    if arguments.json:
        output.emit_json({"id": run_dir.name, "directory": str(run_dir)})
    else:
        output.say(run_dir.name)
        output.note(f"Running in the background. Watch it: scaler-wizard attach {run_dir.name}")
    return int(ExitCode.DONE)


def checked_file(arguments: argparse.Namespace) -> Checked:
    """Load the spec and hold it against this machine, saying what is worth saying. Raises EngineError."""
    from engine.jobs.spec_toml import load_spec, naming_lines
    from scaler_tui.preflight import check

    spec = load_spec(arguments.spec)
    with naming_lines(arguments.spec):
        spec = _on_processes(spec, arguments)
        return _announced(check(spec, base=arguments.spec.parent, force=arguments.force))


def _on_processes(spec: JobSpec, arguments: argparse.Namespace) -> JobSpec:
    """The spec with what --processes and --nodes say instead of its [distributed]. Raises EngineError."""
    import msgspec

    section, changes = spec.distributed, {}
    if arguments.processes:
        changes["processes"] = arguments.processes
    if arguments.nodes is not None:
        from engine.jobs.crew import read_hosts
        from engine.remote.hosts import check_hosts

        hosts = read_hosts(arguments.nodes)
        check_hosts(hosts)
        changes["nodes"] = len(hosts)
        changes["processes"] = arguments.processes or hosts[0].slots or section.processes
    elif section.nodes > 1:
        from engine.jobs.launch import nodes_missing

        raise nodes_missing(spec)
    return msgspec.structs.replace(spec, distributed=msgspec.structs.replace(section, **changes)) if changes else spec


def _keep_hosts(run_dir: Path, hosts: Path | None) -> None:
    """The list of machines becomes part of the run, for a resume too."""
    from engine.jobs import layout

    if hosts is not None:
        layout.write_atomic(run_dir / layout.HOSTS, hosts.read_bytes())


def _announced(checked: Checked) -> Checked:
    """Says what is worth saying before anything is spent; of stages and streams the schedule with its figures."""
    if checked.job is not None:
        from scaler_tui.commands.schedule import look_of_stdout
        from scaler_tui.schedule_text import job_lines

        for line in job_lines(checked.job, look_of_stdout()):
            output.note(line)
        told = set(checked.job.warnings)
        checked = replace(checked, notes=tuple(note for note in checked.notes if note not in told))
    for text in checked.notes:
        output.note(text)
    return checked


def start_and_follow(spec: JobSpec, *, as_json: bool) -> int:
    """Check, start and watch a spec whose file names are relative to the current folder. Raises EngineError."""
    from scaler_tui.preflight import check

    return _run_checked(_announced(check(spec, base=Path.cwd(), force=False)), as_json=as_json)


def _run_checked(checked: Checked, *, as_json: bool, hosts: Path | None = None) -> int:
    from engine.jobs.launch import launch
    from scaler_tui.commands.cards import emit_card, has_card, print_card
    from scaler_tui.follow import Interrupts, follow
    from scaler_tui.preflight import create

    with Interrupts() as interrupts:
        run_dir = create(checked)
        _keep_hosts(run_dir, hosts)
        launch(run_dir)
        output.note(f"Run {run_dir.name} works in the background; this only watches. Ctrl+C stops it after saving.")
        code = follow(run_dir, interrupts, quiet=as_json)
    if as_json:
        if has_card(run_dir) and code != ExitCode.RUN_FAILED:
            emit_card(run_dir)
        else:
            _emit_end(run_dir)
    elif has_card(run_dir) and code == ExitCode.DONE:
        print_card(run_dir)
    return code


def _emit_end(run_dir: Path) -> None:
    """How a run without a card ended, as an error object with the run's id."""
    from engine.jobs.store import load_state

    state = load_state(run_dir)
    error = EngineError(
        f"run.{state.state.value}",
        state.what or f"Run {run_dir.name} is {state.state.value} at step {state.step}.",
        cause=state.cause,
        next_step=f"Go on with: scaler-wizard resume {run_dir.name}" if state.state.is_resumable else state.next_step,
    )
    output.emit_json({"error": error.as_dict(), "id": run_dir.name, "directory": str(run_dir)})


def runs(arguments: argparse.Namespace) -> int:
    """All runs, newest first."""
    from engine.jobs.store import list_runs

    summaries = list_runs()
    if arguments.json:
        output.emit_json([summary.as_dict() for summary in summaries])
        return int(ExitCode.DONE)
    if not summaries:
        output.say("No runs yet. Start one: scaler-wizard demo")
        return int(ExitCode.DONE)
    output.table(
        ["ID", "STATE", "TASK", "STEP", "LOSS", "STARTED", "NAME"],
        [
            [
                s.id,
                str(s.state),
                s.task,
                f"{s.step}/{s.total_steps or '?'}",
                f"{s.shown_loss:.3f}" if s.shown_loss is not None else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(s.started or s.created)),
                s.name,
            ]
            for s in summaries
        ],
        right=(3, 4),
    )
    return int(ExitCode.DONE)


def logs(arguments: argparse.Namespace) -> int:
    """The journal as lines, or the worker's raw output."""
    from engine.jobs.store import find_run
    from scaler_tui.follow import print_log, print_worker_log

    run_dir = find_run(arguments.id)
    if arguments.worker and arguments.json:
        raise EngineError(
            "usage", "--worker shows raw text, which has no JSON form.", next_step="Leave out --worker or --json."
        )
    if arguments.worker:
        print_worker_log(run_dir, follow=arguments.follow)
    else:
        print_log(run_dir, follow=arguments.follow, as_json=arguments.json)
    return int(ExitCode.DONE)


def control(arguments: argparse.Namespace) -> int:
    """pause, checkpoint, stop."""
    from engine.jobs.control import request
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    request(run_dir, arguments.command)
    return _controlled(run_dir, arguments, f"{arguments.command} requested; it takes effect when the step is complete.")


def resume(arguments: argparse.Namespace) -> int:
    """Go on from the newest checkpoint that verifies."""
    from engine.jobs.control import resume as resume_run
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    resume_run(run_dir, processes=arguments.processes)
    return _controlled(run_dir, arguments, f"Resumed. Watch it: scaler-wizard attach {run_dir.name}")


def _controlled(run_dir: Path, arguments: argparse.Namespace, text: str) -> int:
    if arguments.json:
        output.emit_json({"id": run_dir.name, "directory": str(run_dir), "requested": arguments.command})
    else:
        output.say(f"Run {run_dir.name}: {text}")
    return int(ExitCode.DONE)
