"""The flags of `chat`, and whether it opens the screen. Owns their words; must not import what they do."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from scaler_tui.cli_flags import json_flag

if TYPE_CHECKING:
    from textual.screen import Screen

    from scaler_tui.chat_sides import ChatAsked
    from scaler_tui.chat_state import ChatSettings

Add = Callable[..., argparse.ArgumentParser]

_MORE = (
    "Side by side with --compare: the base is loaded once, adapters change under it. Every side answers with the same "
    "seed. Prompts and answers are saved with the run, in chats/. Without a terminal, or with --prompt or --json: line "
    "by line; lines on standard input are questions of one conversation."
)


def add_chat(add: Add) -> None:
    """Talk to a model."""
    chat = add("chat", "talk to a run, a model or adapters, side by side", _MORE)
    chat.add_argument(
        "model", metavar="MODEL", nargs="?", default="latest",
        help='a run, "demo", a folder, an adapter\'s folder, a cached hub id; "latest" run when left out',
    )  # fmt: skip
    chat.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="WITH",
        help="also ask: base, another run, an adapter's folder, a model's folder",
    )  # fmt: skip
    chat.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FOLDER",
        help="also this adapter, on MODEL's base; repeatable",
    )
    chat.add_argument("--base", default="", metavar="MODEL", help="the base of adapters that name another place")
    how = chat.add_argument_group("answers")
    how.add_argument("--seed", type=_seed, default=17, metavar="N", help="the same for every side and answer (17)")
    how.add_argument(
        "--temperature", type=_temperature, default=0.7, metavar="T", help="0 is the likeliest token (0.7)"
    )
    how.add_argument("--top-p", type=_share, default=0.95, metavar="P", help="of the likeliest tokens only (0.95)")
    how.add_argument("--max-new-tokens", type=_count, default=256, metavar="N", help="of an answer, at most (256)")
    how.add_argument("--system", default="", metavar="TEXT", help="what the model is told first")
    how.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="ask this and leave; again for the next turn"
    )
    loading = chat.add_argument_group("loading")
    kind = loading.add_mutually_exclusive_group()
    kind.add_argument(
        "--quantization", choices=("none", "nf4", "fp4"), default="", help="of every model; else as it was trained"
    )
    kind.add_argument(
        "--full-precision", dest="quantization", action="store_const", const="none", help="a 4-bit run's base unpacked"
    )
    loading.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="(auto)")
    loading.add_argument("--threads", type=_threads, default=0, metavar="N", help="of the processor (all)")
    chat.add_argument("--plain", action="store_true", default=argparse.SUPPRESS, help="lines instead of the screen")
    json_flag(chat, "typed JSON: one document with --prompt, else a line per question")


def opens_screen(arguments: argparse.Namespace) -> bool:
    """Whether a full screen is wanted and can be shown."""
    from scaler_tui.terminal import is_interactive

    lines = arguments.plain or arguments.json or arguments.prompt or os.environ.get("ACCESSIBLE", "") not in ("", "0")
    return not lines and is_interactive()


def screen_of(arguments: argparse.Namespace) -> Callable[[], Screen[None]] | None:
    """How to make the screen of `chat`; None for another command."""
    if arguments.command != "chat":
        return None

    def make() -> Screen[None]:
        from scaler_tui.screens.chat import ChatScreen

        return ChatScreen(asked_of(arguments), settings_of(arguments))

    return make


def asked_of(arguments: argparse.Namespace) -> ChatAsked:
    """Who is talked to."""
    from scaler_tui.chat_sides import ChatAsked

    return ChatAsked(
        arguments.model, tuple(arguments.compare), tuple(arguments.adapter), arguments.base, arguments.quantization
    )


def settings_of(arguments: argparse.Namespace) -> ChatSettings:
    """How they answer."""
    from engine.jobs.chat_lines import Sampling
    from scaler_tui.chat_state import ChatSettings

    sampling = Sampling(
        seed=arguments.seed,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_new_tokens=arguments.max_new_tokens,
    )
    return ChatSettings(sampling, arguments.system, arguments.dtype, arguments.threads)


def _seed(text: str) -> int:
    from engine.jobs.chat_lines import SEEDS

    number = int(text) if text.isdecimal() and len(text) < 20 else -1
    if not 0 <= number < SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is no seed; a whole number from 0 to {SEEDS - 1:,}")
    return number


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < 20 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no count; a whole number from 1 on")
    return number


def _threads(text: str) -> int:
    number, processors = _count(text), os.cpu_count() or 1
    if number > processors:
        raise argparse.ArgumentTypeError(f"{number} threads are too many; this machine has {processors} processors")
    return number


def _number(text: str) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _temperature(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no temperature; a number from 0 to 100")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of probability; above 0 and at most 1")
    return number
