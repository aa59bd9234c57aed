"""The grammar of `lab`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.lab`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from scaler_tui.cli_flags import json_flag


def add_lab(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Several approaches against each other."""
    lab = add(
        "lab",
        "run several approaches on the same model, data and budget, and report which won",
        "Every arm with every seed is a run of its own, one after the other. Ctrl+C stops after saving; the same "
        "command goes on with what is left, and with a finished lab only writes the report again.",
    )
    lab.add_argument("lab", metavar="LAB", nargs="?", default="", help="a LAB.toml, or a ready lab (see --list)")
    what = lab.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="the labs that ship with the program")
    what.add_argument("--dry-run", action="store_true", help="arms, steps, tokens, FLOPs and time; nothing is started")
    what.add_argument("--report", action="store_true", help="write the report from the runs that are there")
    json_flag(lab)
