"""Flags that several subcommands share. Owns their words."""

from __future__ import annotations

import argparse


def machine_flag(parser: argparse.ArgumentParser, *, default: str = argparse.SUPPRESS) -> None:
    """A subcommand leaves the value alone when the flag is not given, so that it may also stand before the command."""
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        default=default,
        help='what if: "RTX 4090", "2x24G", "2x RTX 3090"; everything then says SIM',
    )


def json_flag(parser: argparse.ArgumentParser, text: str = "typed JSON on standard output") -> None:
    """Every command's `--json`."""
    parser.add_argument("--json", action="store_true", help=text)
