"""The grammar of `schedule`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.schedule`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from scaler_tui.cli_flags import json_flag, machine_flag


def add_schedule(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What a job will do, before it does it."""
    schedule = add(
        "schedule",
        "draw what a spec will do over its tokens, with an estimate per stage; starts nothing",
        "Learning rate, batch, length, mix of sources and parameters over the tokens; then memory, time and money of "
        "every stage and of the whole job. Text is sampled, or counted where it is tokenised already.",
    )
    schedule.add_argument("spec", type=Path, metavar="SPEC", help="a spec.toml")
    machine_flag(schedule)
    json_flag(schedule)
