"""The flags of `verify`, and those of `eval` that are about abilities. Owns their words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from scaler_tui.cli_flags import json_flag

Add = Callable[..., argparse.ArgumentParser]

_VERIFY_MORE = (
    "Logits, greedy generation with a key-value cache, a second load from disk and what every layer adds, on the same "
    "tokens; layer by layer where memory is short. The exit code is 0 when they compute the same function, rounding to "
    "16 bits allowed for, 1 when they do not, 2 when they cannot be compared."
)


def ability_flags(command: argparse.ArgumentParser) -> None:
    """Texts, benchmarks and the parent: any of them makes `eval` compare abilities instead of lengths."""
    group = command.add_argument_group("abilities, in place of lengths")
    group.add_argument(
        "--suite", action="append", default=[], metavar="[NAME=]TEXT",
        help="bits per byte of a text: general, demo, a file or a folder; more than once",
    )  # fmt: skip
    group.add_argument("--against", default="", metavar="PARENT", help="what was lost: the model before, or a run's")
    group.add_argument(
        "--adapter", action="append", default=[], metavar="FOLDER",
        help="also MODEL with this adapter (a folder or a run), all on one base in memory; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--limit", type=_count, default=0, metavar="N", help="of a benchmark named in --tasks: only N questions"
    )


def add_verify(add: Add) -> None:
    """Two folders, one function?"""
    command = add("verify", "whether two models compute the same function, with figures", _VERIFY_MORE)
    for name, letter, place in (("first", "A", "the model to go by"), ("second", "B", "the one held against it")):
        command.add_argument(
            name, metavar=letter, help=f'{place}: "demo", a folder, an adapter\'s folder, a hub id, or a run'
        )
    command.add_argument("--base", default="", metavar="MODEL", help="the base of an adapter that names another place")
    command.add_argument("--text", type=Path, metavar="FILE", help="text to compare on, instead of the demo's")
    command.add_argument("--tokens", type=_count, default=0, metavar="N", help="how many tokens of it (256)")
    command.add_argument(
        "--quantization", choices=("none", "nf4", "fp4"), default="none", help="pack the second model so first"
    )
    command.add_argument(
        "--tolerance", type=_tolerance, metavar="X",
        help="of logits, relative to their range (1e-4); given, rounding to 16 bits is not allowed for",
    )  # fmt: skip
    command.add_argument("--out", type=Path, metavar="FILE", help="also write the report, as JSON")
    json_flag(command)


def _tolerance(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no tolerance; a number from 0 on")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small; at least 1")
    return number
