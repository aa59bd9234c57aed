"""The grammar of `mix`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.mix`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_mix(add: Callable[..., argparse.ArgumentParser]) -> None:
    """A training mix for longer windows."""
    mix = add(
        "mix",
        "build a training mix for a longer window from local text",
        "Long documents are sampled more inside each source, whose proportions are kept; nothing is cut or left out "
        "without a count. FILE appears when it is complete.",
    )
    mix.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a text or data file, or a folder of them, each a domain; SOURCE:2 doubles its share",
    )
    mix.add_argument("--out", "-o", metavar="FILE", required=True, help="a new .jsonl file")
    mix.add_argument("--context", "-c", metavar="N", default="32k", help="target length in tokens (32k)")
    mix.add_argument("--model", "-m", metavar="M", required=True, help="whose tokenizer counts: the model to train")
    mix.add_argument(
        "--short",
        metavar="SOURCE",
        nargs="+",
        default=[],
        help="text of the usual length; else the sources' own short documents",
    )
    mix.add_argument("--long-share", metavar="X", type=float, default=0.6, help="of the tokens in long documents (0.6)")
    mix.add_argument("--tokens", metavar="N", default="", help="size of the mix; else every long document once")
    mix.add_argument("--seed", type=int, default=17, metavar="N", help="equal seeds and sources, equal files")
    mix.add_argument("--json", action="store_true", help="the report as typed JSON on standard output")
