"""The grammar of `adapters sweep` and `adapters score`, and what they have in common with `mix`.

Owns their flags. Must not know what they lead to (`scaler_tui.commands.adapters_sweep`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

METHODS = ("exact", "linear", "ties", "dare", "dare_ties", "magnitude", "svd")


def add_sweep(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Two verbs of `adapters`; `add` makes a parser from a name and what it does."""
    sweep = add("sweep", "find good weights for a mix on your own rows")
    _common(sweep)
    sweep.add_argument("--tries", type=_tries, default=40, metavar="N", help="sets of weights that are measured (40)")
    sweep.add_argument("--fresh", action="store_true", help="measure again what an earlier sweep measured")
    score = add("score", "measure one mix beside its base and each adapter alone")
    _common(score)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", metavar="ADAPTER[=WEIGHT]", nargs="+", help="folders or runs")
    parser.add_argument(
        "--data", metavar="FILE", default="", help="rows to measure on; left out: those that the first run held out"
    )  # fmt: skip
    parser.add_argument("--base", metavar="MODEL", default="", help="the model under them; left out: as they name it")
    how_to_mix(parser)
    parser.add_argument("--seed", type=int, default=17, metavar="N", help="of dare, and of where a search looks (17)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--json", action="store_true", help="typed JSON on standard output")
    parser.add_argument("--json-lines", action="store_true", help="a line of JSON per figure, as it comes")


def how_to_mix(parser: argparse.ArgumentParser) -> None:
    """The flags of a method, the same wherever adapters become one."""
    parser.add_argument("--method", choices=METHODS, default="exact", help="how updates become one (exact)")
    parser.add_argument(
        "--density", type=_share, default=0.5, metavar="X", help="what ties, dare, magnitude keep (0.5)"
    )
    parser.add_argument("--signs", choices=("total", "frequency"), default="total", help="of ties, dare_ties (total)")
    parser.add_argument("--rank", type=_rank, default=0, metavar="R", help="of the result; 0 is what is exact")


def _rank(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_536:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 65,536")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _tries(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 10,000")
    return value
