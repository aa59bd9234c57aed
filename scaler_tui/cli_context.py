"""The grammar of `extend` and `eval`. Owns their flags; must not import what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from scaler_tui.cli_evaluation import ability_flags
from scaler_tui.cli_flags import json_flag, machine_flag

Add = Callable[..., argparse.ArgumentParser]

_MORE = (
    "Without training, in minutes: methods are measured on the model, the best is written as a plain folder of linked "
    "weights under a new config, loaded, checked and measured at every length. The source is only read; OUT appears "
    "when it is complete. Interrupted, it goes on with --resume."
)
_EVAL_MORE = (
    "Perplexity by length, a grid of needles by length and depth, and short text against the base. Interrupted, it "
    "goes on with the same flags and --resume. With --suite, benchmarks in --tasks, or --against: bits per byte and "
    "right answers, and what was lost of the parent's."
)


def add_extend(add: Add, *, named: bool) -> None:
    """A longer window: how long, by which method, for which programs."""
    extend = add("extend", "give a model a longer window, measured and checked at every length", _MORE)
    extend.add_argument("model", metavar="MODEL", help='"demo", a folder with safetensors, or a cached hub id')
    extend.add_argument("out", metavar="OUT", type=Path, nargs="?", help="a new folder; not with --dry-run or --race")
    extend.add_argument("--context", metavar="N", default="", help="tokens of the new window: 32k, 131072, or 4x")
    how = extend.add_argument_group("how")
    how.add_argument("--method", default="auto", metavar="NAME", help=_method_help(named=named))
    how.add_argument("--among", default="", metavar="NAMES", help="auto: measure only these methods, as yarn,ntk,abf")
    how.add_argument("--theta", type=float, default=None, metavar="BASE", help="abf: the new rotary base")
    how.add_argument(
        "--factors", type=Path, metavar="FILE", help="longrope2, longrope, auto: extension.json, a search's log, or CSV"
    )
    how.add_argument(
        "--search-minutes", type=_minutes, default=0.0, metavar="M", help="longrope2, longrope, auto: so long a search"
    )
    how.add_argument(
        "--evaluations", type=_count, default=0, metavar="N", help="or a search of so many sets of factors"
    )
    how.add_argument("--search-documents", type=_count, metavar="N", help="texts that every set is tried on, else 3")
    how.add_argument(
        "--search-text-weight", type=_weight, metavar="W", help="of the text's loss beside the needles', else 0.25"
    )
    how.add_argument("--factor", type=float, metavar="S", help="ntk, ntk-critical, abf: in place of N over the window")
    how.add_argument("--attention-factor", type=float, metavar="M", help="yarn, by-parts, or with --factors: m")
    how.add_argument("--critical-pair", type=_count, metavar="I", help="ntk-critical, or longrope2 with --factors")
    how.add_argument("--seed", type=int, default=17, metavar="N", help="of needles and of the search")
    how.add_argument(
        "--train",
        nargs="+",
        metavar="FILE",
        default=[],
        help="also train it at length on these files",
    )
    how.add_argument(
        "--steps", type=_count, default=0, metavar="N", help="with --train: optimizer steps; else one pass"
    )
    shown = extend.add_argument_group("measuring")
    shown.add_argument("--text", default="", metavar="FILE", help="documents to measure on; demo, general, a file")
    shown.add_argument("--prompts", type=_count, default=0, metavar="N", help="needles per length and depth")
    _add_loading(shown)
    shown.add_argument("--quick", action="store_true", help="fewer lengths, depths and prompts")
    shown.add_argument("--no-report", action="store_true", help="of a named method: write and check it, unmeasured")
    shown.add_argument(
        "--race", action="store_true", help="measure the methods (or search longrope2) and write nothing"
    )
    shown.add_argument("--json-lines", action="store_true", help="with --race: progress and figures as they come")
    shown.add_argument("--log", type=Path, metavar="FILE", help="with --race: kept there, and gone on from")
    _add_output(extend)
    machine_flag(extend)
    json_flag(extend)


def _add_loading(group: argparse._ArgumentGroup) -> None:
    """How a model is held while it is measured; what is written does not change with it."""
    group.add_argument(
        "--quantization", choices=("none", "nf4", "fp4"), default="none", help="measure it in 4 bits, in less memory"
    )
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="measure it in this type"
    )


def _add_output(extend: argparse.ArgumentParser) -> None:
    group = extend.add_argument_group("output")
    group.add_argument(
        "--for",
        dest="consumers",
        default="",
        metavar="PROGRAMS",
        help="where it will run: transformers, transformers-4, vllm, llama.cpp; losses there are refused",
    )
    group.add_argument("--allow-loss", default="", metavar="PROGRAMS", help="accept that these will not read it")
    group.add_argument("--yes", action="store_true", help="accept every loss")
    group.add_argument("--copy", action="store_true", help="copy the weights instead of linking them")
    group.add_argument("--dry-run", action="store_true", help="what each method would be; nothing is written")
    group.add_argument("--resume", action="store_true", help="go on where an interrupted extend into OUT stopped")


def add_eval(add: Add) -> None:
    """Measure a model by length."""
    command = add("eval", "measure a model: at every length, on texts and benchmarks, against its parent", _EVAL_MORE)
    command.add_argument("model", metavar="MODEL", help='"demo", a folder, a cached hub id, or a run')
    command.add_argument("--base", default="", metavar="MODEL", help="the model before; its short text is compared")
    command.add_argument("--lengths", default="", metavar="LIST", help="4k,8k,16k; else up to the window by doubling")
    command.add_argument("--depths", type=_count, default=0, metavar="N", help="places of a needle per length (5)")
    command.add_argument("--prompts", type=_count, default=0, metavar="N", help="needles per length and depth (4)")
    command.add_argument(
        "--tasks",
        default="",
        metavar="LIST",
        help="needle, multi-needle, key-value, variables; or none (needle). Or lm-eval's benchmarks, .yaml files, demo",
    )
    command.add_argument("--text", default="", metavar="FILE", help="documents to measure on; demo, general, a file")
    command.add_argument("--seed", type=int, default=17, metavar="N", help="of the needles")
    ability_flags(command)
    _add_loading(command.add_argument_group("loading"))
    command.add_argument("--out", type=Path, metavar="FILE", help="also write the report, as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="also write it as a page")
    command.add_argument("--resume", action="store_true", help="go on where the same measurement was interrupted")
    json_flag(command)


def _method_help(*, named: bool) -> str:
    """The methods by name, read only when they are asked for."""
    if not named:
        return "auto, or a method by name"
    from engine.context.methods import METHODS

    told = "; ".join(f"{method.id} ({method.title})" for method in METHODS.values())
    return (
        "auto measures all that need no search, with --search-minutes, --evaluations or --factors longrope2 too, and "
        f"takes the best; or one of: {told}. CONTEXT.md says what each does"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than one")
    return number


def _weight(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no weight from 0 on")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no time in minutes")
    return number
