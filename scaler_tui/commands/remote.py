"""`remote`: a spec on another machine, its mirror here, its output brought back.

Owns the text and JSON. Must not know ssh: the work is `engine.remote`'s.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.remote.begin import Wish
    from engine.remote.runs_there import RunThere

FETCH = "fetch"


def remote(arguments: argparse.Namespace) -> Path | None:
    """Start, list, attach or fetch, whatever the words ask for; returns the mirror to watch. Raises EngineError."""
    if arguments.host == FETCH:
        _fetch(arguments)
        return None
    asked = [name for name in ("list", "attach") if getattr(arguments, name)]
    if len(asked) + bool(arguments.spec) != 1:
        raise EngineError(
            "usage",
            "Name a SPEC to start, or one of --list and --attach ID.",
            cause=f"Given: {', '.join(asked) or 'neither'}{' and a SPEC' if arguments.spec else ''}.",
            next_step="For example: scaler-wizard remote user@gpu-box spec.toml",
        )
    if arguments.list:
        _list(arguments)
        return None
    return _attach(arguments) if arguments.attach else _start(arguments)


def watch(run_dir: Path) -> int:
    """Line by line until the run ends; Ctrl+C only leaves."""
    from scaler_tui.follow import watch as watch_run

    output.note("It does not depend on this terminal or this connection; Ctrl+C only leaves.")
    code = watch_run(run_dir)
    if code == ExitCode.DONE:
        output.note(f"Bring its output here: scaler-wizard remote fetch {run_dir.name}")
    return code


def _start(arguments: argparse.Namespace) -> Path:
    from engine.jobs.spec_toml import load_spec
    from engine.remote.begin import begin
    from engine.remote.ssh import parse_host

    spec_file = Path(arguments.spec)
    spec, host = load_spec(spec_file), parse_host(arguments.host)
    begun = begin(host, spec, base=spec_file.parent, wish=_wish(arguments), say=output.note)
    sent = {"copied_bytes": begun.sent.copied_bytes, "reused_bytes": begun.sent.reused_bytes}
    _announce(arguments, begun.run_dir, directory_there=begun.record.directory, **sent)
    return begun.run_dir


def _attach(arguments: argparse.Namespace) -> Path:
    from engine.remote.runs_there import attach
    from engine.remote.ssh import parse_host

    run_dir = attach(parse_host(arguments.host), arguments.attach, _wish(arguments))
    _announce(arguments, run_dir)
    return run_dir


def _announce(arguments: argparse.Namespace, run_dir: Path, **more: object) -> None:
    if arguments.json:
        output.emit_json({"id": run_dir.name, "directory": str(run_dir), "host": arguments.host, **more})
        return
    output.say(run_dir.name)
    output.flush()
    if arguments.detach:
        output.note(f"It runs on {arguments.host}. Watch it: scaler-wizard attach {run_dir.name}")


def _wish(arguments: argparse.Namespace) -> Wish:
    from engine.remote.begin import Wish

    return Wish(
        python=arguments.python,
        home=arguments.home,
        force=arguments.force,
        may_ask=not arguments.json and sys.stdin.isatty(),
    )


def _list(arguments: argparse.Namespace) -> None:
    from engine.remote.runs_there import runs_there
    from engine.remote.ssh import parse_host

    listed = runs_there(parse_host(arguments.host), _wish(arguments))
    if arguments.json:
        rows = [{**_plain(run), "mirrored": run.mirrored} for run in listed.runs]
        output.emit_json(rows)
        return
    if not listed.runs:
        output.say(f"{arguments.host} has no runs in {listed.place.home}.")
        return
    output.table(
        ["ID", "STATE", "TASK", "STEP", "STARTED", "HERE", "NAME"],
        [
            [
                run.id,
                run.state,
                run.task,
                f"{run.step}/{run.total_steps or '?'}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started or run.created)),
                "yes" if run.mirrored else "no",
                run.name,
            ]
            for run in listed.runs
        ],
        right=(3,),
    )
    if not all(run.mirrored for run in listed.runs):
        output.note(f"Watch one from here: scaler-wizard remote {arguments.host} --attach ID")


def _plain(run: RunThere) -> dict[str, object]:
    import msgspec

    return dict(msgspec.to_builtins(run))


def _fetch(arguments: argparse.Namespace) -> None:
    from engine.jobs.store import find_run
    from engine.remote.fetch import fetch

    run_dir = find_run(arguments.spec or "latest")
    say = output.note
    fetched = fetch(run_dir, checkpoints=arguments.checkpoints, say=say)
    if arguments.json:
        output.emit_json(
            {
                "id": run_dir.name,
                "directory": str(run_dir),
                "files": fetched.files,
                "copied_bytes": fetched.copied_bytes,
                "reused_bytes": fetched.reused_bytes,
            }
        )
    else:
        output.say(str(run_dir / "output"))
