"""The grammar of `remote`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.remote`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from scaler_tui.cli_flags import json_flag


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
