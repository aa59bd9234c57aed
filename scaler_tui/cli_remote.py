"""The grammar of `remote` and `export`.

Owns their flags. Must not know what they lead to (`scaler_tui.commands.remote`, `scaler_tui.commands.export`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from scaler_tui.cli_flags import json_flag, machine_flag


def add_remote(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Runs on another machine, over ssh."""
    remote = add(
        "remote",
        "run a spec on another machine over ssh, and watch it from here",
        "The spec, the files it names and this program are copied once (by their hash), the run is started detached "
        "there, and a mirror of it appears among the runs here: attach, logs, card, pause, stop, checkpoint and resume "
        "work on it as on any other. `remote fetch ID` brings its output. ssh is the system's own, with its own "
        "configuration (SCALER_WIZARD_SSH replaces the command).",
    )
    remote.add_argument("host", metavar="HOST", help='user@address, a name from ~/.ssh/config; or "fetch"')
    remote.add_argument("spec", metavar="SPEC", nargs="?", default="", help="a spec.toml; after fetch a run's id")
    remote.add_argument("--list", action="store_true", help="the runs HOST has; nothing is started")
    remote.add_argument("--attach", metavar="ID", default="", help="mirror a run HOST has already")
    remote.add_argument("--detach", "-d", action="store_true", help="do not watch it after the start (so with --json)")
    remote.add_argument("--force", action="store_true", help="start although the estimate there says it does not fit")
    remote.add_argument(
        "--python", metavar="PATH", default="", help="a python there that has every package; else one is set up"
    )
    remote.add_argument("--home", metavar="DIR", default="", help="a folder there for everything, on a large disk")
    remote.add_argument("--checkpoints", action="store_true", help="fetch: bring the checkpoints too")
    json_flag(remote)


def add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Job files for rented machines."""
    export = add(
        "export",
        "write a job file for SkyPilot or dstack that runs a spec on a rented machine",
        "OUT is written with a folder of the same name beside it: the spec and this program. The job goes on by itself "
        "when a spot machine is taken away: what is needed for that is kept in a mounted bucket.",
    )
    export.add_argument("tool", metavar="TOOL", choices=["sky", "dstack"], help="sky or dstack")
    export.add_argument("spec", metavar="SPEC", type=Path, help="a spec.toml; file names are relative to its folder")
    export.add_argument("--out", "-o", metavar="FILE", type=Path, default=None, help="job file (NAME.sky.yaml, ...)")
    export.add_argument("--force", action="store_true", help="replace OUT and its folder")
    export.add_argument("--name", default="", help="of the job; the spec's name when left out")
    export.add_argument(
        "--bucket", metavar="URL", default="", help="s3://, gs:// or r2:// bucket that keeps what is needed to go on"
    )
    export.add_argument("--volume", metavar="NAME", default="", help="dstack: a network volume instead of a bucket")
    export.add_argument("--on-demand", action="store_true", help="no spot machines")
    export.add_argument("--budget", metavar="USD", type=float, default=0.0, help="checkpoint and stop at this cost")
    export.add_argument("--hours", metavar="H", type=float, default=0.0, help="checkpoint and stop after so many hours")
    machine_flag(export)
    json_flag(export)
