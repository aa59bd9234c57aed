"""The grammar of `corpus`.

Owns its flags. Must not know what they lead to (`scaler_tui.commands.corpus`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_corpus(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Large text, read and tokenised before a job needs it."""
    corpus = add(
        "corpus",
        "read, check and tokenise large text for continuation training",
        "What is unreadable is counted and located, duplicates and documents that share text with an evaluation are "
        "found, and tokens are cached: a run of the same spec starts at once. Interrupted, it goes on where it was.",
    )
    corpus.add_argument(
        "paths",
        metavar="SPEC_OR_PATH",
        nargs="+",
        help='a spec.toml with [[sources]]; or files, folders, patterns, "hub:owner/name", each a source',
    )
    corpus.add_argument("--all", action="store_true", help="of a spec: read the sources to their ends")
    given = corpus.add_argument_group("with paths (a spec says these itself)")
    given.add_argument("--model", "-m", metavar="M", default="demo", help="whose tokenizer")
    given.add_argument("--field", metavar="NAME", default="text", help="key or column that holds the text (text)")
    given.add_argument("--tokens", metavar="N", default="", help="of each source, at most: 50M; all when left out")
    given.add_argument("--near", action="store_true", help="also find documents that differ little (MinHash)")
    given.add_argument("--strict", action="store_true", help="end at the first thing that cannot be read")
    given.add_argument(
        "--against", metavar="FILE", action="append", default=[], help="evaluation text to compare with, repeatable"
    )
    given.add_argument("--cache", metavar="FOLDER", default="", help="of the tokens; else the program's own")
    corpus.add_argument("--json", action="store_true", help="the report as typed JSON on standard output")
