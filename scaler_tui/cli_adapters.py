"""The grammar of `adapters`.

Owns its flags but for those of sweeps and merges. Must not know what they lead to (`scaler_tui.commands.adapters`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaler_tui.cli_flags import json_flag
from scaler_tui.cli_sweep import add_sweep, how_to_mix

_MIX = (
    "Updates themselves are mixed, whatever kind of LoRA they come from; the result is an adapter (plain LoRA; DoRA "
    "where an exact sum needs it), or with --merged a whole model. Told for every matrix: how far it is from the true "
    "weighted sum. First every adapter is mixed alone at weight 1, which has to give itself back."
)


def add_adapters(add: Callable[..., argparse.ArgumentParser], *, named: bool) -> None:
    """`adapters`, and its verbs where the command is `named` on the line."""
    adapters = add("adapters", "list, inspect, mix, merge, measure and test LoRA adapters in peft's form")
    if not named:
        return
    from scaler_tui.commands.adapters_merge import add_merge

    verbs: Any = adapters.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def verb(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=f"{text}. {more}".strip())
        return parser

    _add_looks(verb)
    _add_mix(verb)
    add_merge(verb)
    add_sweep(verb)


def _add_looks(verb: Callable[..., argparse.ArgumentParser]) -> None:
    listed = verb("list", "the adapters of runs, and those in folders")
    listed.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help="folders to look into, three deep")
    inspect = verb("inspect", "what an adapter is, for which base, and how much it changes every matrix")
    inspect.add_argument("adapter", metavar="ADAPTER", help="a peft folder or a run")
    inspect.add_argument("--matrices", action="store_true", help="a line for every matrix instead of every layer")
    test = verb(
        "test",
        "whether mixing gives an adapter back when it is alone at weight 1",
        "The mix is written, read again and held against the original, at most 1e-5 off; the exit code is 5 where it "
        "is more.",
    )
    test.add_argument("adapters", metavar="ADAPTER", nargs="+", help="peft folders or runs")
    test.add_argument("--peft", action="store_true", help="also load both with peft and compare logits; needs the base")
    for parser in (inspect, test):
        parser.add_argument("--base", metavar="MODEL", default="", help="the model under it; left out: as it names it")
    for parser in (listed, inspect, test):
        json_flag(parser)


def _add_mix(verb: Callable[..., argparse.ArgumentParser]) -> None:
    mix = verb("mix", "several adapters of one base become one", _MIX)
    mix.add_argument(
        "adapters",
        metavar="ADAPTER[=WEIGHT]",
        nargs="+",
        help="peft folders or runs; weight 1 when left out, negative takes away what it learnt",
    )
    mix.add_argument("--out", "-o", metavar="FOLDER", type=Path, required=True, help="a new folder")
    mix.add_argument("--base", metavar="MODEL", default="", help="the model under them; left out: as they name it")
    how_to_mix(mix)
    mix.add_argument("--seed", type=int, default=17, metavar="N", help="of what dare drops (17)")
    mix.add_argument("--merged", action="store_true", help="a whole model instead of an adapter")
    mix.add_argument(
        "--dtype", choices=("stored", "float32", "bfloat16", "float16"), default="stored", help="with --merged"
    )
    mix.add_argument("--matrices", action="store_true", help="a line for every matrix")
    mix.add_argument(
        "--no-test", action="store_true", help="skip the self-test; with --merged: do not compare with the adapters"
    )
    mix.add_argument("--force", action="store_true", help="replace what a mix or a merge wrote there")
    json_flag(mix)
