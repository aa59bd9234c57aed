"""The grammar of `expand`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.expand`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from scaler_tui.cli_flags import json_flag, machine_flag


def add_expand(add: Callable[..., argparse.ArgumentParser], *, named: bool) -> None:
    """Growing a model: which size, how, and where to."""
    expand = add(
        "expand",
        "grow a model to any larger size that computes the same, and prove it",
        "The source is only read; OUT appears when it is complete and proven. Without a size the plans for about twice "
        "the parameters are shown.",
    )
    expand.add_argument("model", metavar="MODEL", help='"demo", a folder with safetensors, or a cached hub id')
    expand.add_argument("out", metavar="OUT", type=Path, nargs="?", help="a new folder; not needed with --dry-run")
    sizes = expand.add_argument_group("size: a number of parameters, or dimensions (what is left out is completed)")
    sizes.add_argument("--to", metavar="SIZE", default="", help="parameters to reach: 7B, 900M")
    for name, text in _GROWN_SIZES.items():
        sizes.add_argument(f"--{name}", metavar="N", type=_dimension, default=0, help=text)
    how = expand.add_argument_group("how")
    how.add_argument(
        "--plan", default="", metavar="NAME", help="wider, deeper, mixed or experts; the best when left out"
    )
    how.add_argument("--operator", action="append", metavar="NAME", default=[], help=_operator_help(named=named))
    how.add_argument("--seed", type=int, default=17, metavar="N", help="of the free values; equal seeds, equal bytes")
    how.add_argument(
        "--dtype",
        default="",
        metavar="TYPE",
        choices=["", "bfloat16", "float16", "float32"],
        help="cast to bfloat16, float16 or float32; else kept",
    )
    how.add_argument("--shard-size", default="4GB", metavar="SIZE", help="of the output's files (4GB)")
    how.add_argument("--dry-run", action="store_true", help="plans, sizes and time; nothing is written")
    how.add_argument("--resume", action="store_true", help="go on where an interrupted expand into OUT stopped")
    how.add_argument("--undo", action="store_true", help="MODEL was grown: recover what it was grown from into OUT")
    how.add_argument("--no-proof", action="store_true", help="write it unproven; the certificate says so")
    how.add_argument("--proof-text", metavar="FILE", type=Path, help="plain text to prove it on; else the demo corpus")
    machine_flag(expand)
    json_flag(expand)


_GROWN_SIZES = {
    "hidden": "width of the residual stream",
    "ffn": "width of the feed-forward layers",
    "layers": "layers",
    "heads": "query heads",
    "kv-heads": "key/value heads; the KV cache follows",
    "experts": "experts; a dense model becomes a mixture",
}


def _operator_help(*, named: bool) -> str:
    """The operators by name, read only when they are asked for."""
    if not named:
        return "an operator, repeatable"
    from engine.expansion.operators import OPERATORS

    kept = {True: "exact", False: "changes the function"}
    told = "; ".join(f"{name} ({kept[operator.exact != 'never']})" for name, operator in OPERATORS.items())
    return f"NAME or AXIS=NAME, repeatable: {told}. EXPANSION.md says what each does"


def _dimension(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is no size")
    return number
