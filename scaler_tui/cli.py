"""The `scaler-wizard` command: subcommands, their flags, and the wizard when none is given.

Owns argument parsing only; each command's work is in `scaler_tui.commands`, the app in `scaler_tui.app`.
Must not import Textual or Rich before a command needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import EngineError, ExitCode
from scaler_tui import output
from scaler_tui.cli_adapters import add_adapters
from scaler_tui.cli_chat import add_chat, opens_screen, screen_of
from scaler_tui.cli_context import add_eval, add_extend
from scaler_tui.cli_corpus import add_corpus
from scaler_tui.cli_evaluation import add_verify
from scaler_tui.cli_expand import add_expand
from scaler_tui.cli_export import add_export
from scaler_tui.cli_flags import json_flag, machine_flag
from scaler_tui.cli_lab import add_lab
from scaler_tui.cli_mix import add_mix
from scaler_tui.cli_remote import add_remote
from scaler_tui.cli_schedule import add_schedule

_EXIT_CODES = "exit codes: 0 done, 1 declined, 2 usage or bad input, 4 does not fit, 5 run failed, 130 interrupted"
_SPEC_FILES = "File names in the spec are relative to the spec's own folder."
_THEMES = ("scaler-dark", "scaler-light", "scaler-high-contrast", "scaler-color-blind")
_CONTROLS = {
    "pause": "save a checkpoint and free the machine",
    "resume": "go on from the last good checkpoint",
    "checkpoint": "save a checkpoint now and go on",
    "stop": "finish the step, save, and end the run",
}


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an error like any other: with what to do next, and as JSON when asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"epilog": _EXIT_CODES, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise EngineError(
            "usage",
            f"{message}." if not message.endswith((".", ")")) else message,
            cause=" ".join(self.format_usage().split()),
            next_step=_near_command(message) or f"See {self.prog} --help.",
        )


def _near_command(message: str) -> str:
    """A mistyped subcommand's likely meaning; "" when it is something else."""
    import difflib

    words = message.split("'")
    if not message.startswith("argument COMMAND: invalid choice") or len(words) < 2:
        return ""
    near = difflib.get_close_matches(words[1], words[3::2], n=2, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def _length(text: str) -> int:
    number = int(text)
    if number < 8:
        raise argparse.ArgumentTypeError(f"{number} is too short; sequences have at least 8 tokens")
    return number


def _answer_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per question of `profiles/questions.toml`."""
    from engine.advise.questions import flag_name, load_graph

    group = parser.add_argument_group("answers (the wizard's questions; each has a default)")
    for question in load_graph().questions:
        if question.id == "model":
            continue
        options = ", ".join(str(option.value) for option in question.options if option.value != "")
        group.add_argument(
            flag_name(question),
            dest=f"answer_{question.id}",
            metavar="VALUE",
            default=None,
            help=(f"{question.text} ({options})" if options else question.text).replace("%", "%%"),
        )


def _run_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "id",
        metavar="ID",
        nargs="?" if optional else None,
        default="latest",
        help='a run id, its unique beginning or ending, a run directory, or "latest"'
        + (" (the default)" if optional else ""),
    )


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The whole grammar. Answer flags are read from the questions file only when the command needs them."""
    from engine import __version__

    parser = _Parser(
        prog="scaler-wizard",
        description="Plan, run and prove fine-tuning of open language models; without a command it opens the wizard.",
    )
    parser.add_argument("--version", action="version", version=f"scaler-wizard {__version__}")
    parser.add_argument("--demo", action="store_true", help="open the wizard with the embedded demo model chosen")
    parser.add_argument("--plain", action="store_true", help="the wizard as numbered questions (also: ACCESSIBLE=1)")
    machine_flag(parser, default="")
    parser.add_argument("--theme", default="", metavar="THEME", choices=["", *_THEMES], help=", ".join(_THEMES))
    parser.add_argument("--ascii", action="store_true", help="no Unicode symbols")
    parser.add_argument("--no-color", action="store_true", help="no colour codes at all (also: NO_COLOR)")
    parser.add_argument("--stock-display", action="store_true", help="Textual's own drawing, without cell diffing")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text}. {more}".strip())

    _add_looks(add, with_answers=any(word in ("matrix", "plan", "estimate") for word in argv))
    add_expand(add, named="expand" in argv)
    add_extend(add, named="extend" in argv)
    add_eval(add)
    add_verify(add)
    add_mix(add)
    add_adapters(add, named="adapters" in argv)
    add_corpus(add)
    add_remote(add)
    add_export(add)
    add_lab(add)
    add_schedule(add)
    add_chat(add)
    _add_runs(add)
    return parser


def _add_looks(add: Callable[..., argparse.ArgumentParser], *, with_answers: bool) -> None:
    """The commands that start nothing."""
    doctor = add("doctor", "what this machine is and what is missing")
    doctor.add_argument("--raw", action="store_true", help="also the raw output of the vendors' tools, ready to paste")
    machine_flag(doctor)
    json_flag(doctor)

    inspect = add("inspect", "a model's architecture, from its config and safetensors headers")
    inspect.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub id, or a known name')
    inspect.add_argument("--revision", default="", help="commit or tag on the hub")
    json_flag(inspect)

    matrix = add("matrix", "every approach compared for a model on this machine")
    matrix.add_argument("--explain", metavar="APPROACH", default="", help="the parts and formulas behind one row")
    plan = add("plan", "write the spec the wizard would write, from answers given as flags")
    plan.add_argument("--approach", default="", help="a row of the matrix; the recommended one when left out")
    plan.add_argument("--growth", metavar="NAME", default="", help="of an expansion: wider, deeper, mixed, experts ...")
    plan.add_argument("--understood", action="store_true", help="of an expansion: its warnings were read; needed once")
    plan.add_argument("--method", metavar="NAME", default="", help="of a longer window: auto, yarn, ntk ... (auto)")
    plan.add_argument(
        "--window", default="", choices=["", "full", "pose", "mixed"], metavar="HOW",
        help="of a longer window: full, pose or mixed; the gentlest that fits when left out",
    )  # fmt: skip
    plan.add_argument("--zero-shot", action="store_true", help="of a longer window: measured, not trained; minutes")
    plan.add_argument(
        "--source", action="append", default=[], metavar="PATH[=WEIGHT]",
        help="with --data text: a file, a folder, a pattern or hub:owner/name to go on training on, and its share",
    )  # fmt: skip
    plan.add_argument("--name", default="", help="a name for the run")
    plan.add_argument("--write", "-o", metavar="SPEC", default="-", help="a new file; - is standard output")
    for command in (matrix, plan):
        command.add_argument("model", metavar="MODEL", nargs="?", default="demo", help="as for inspect")
        machine_flag(command)
        json_flag(command)
        if with_answers:
            _answer_flags(command)

    _add_estimate(add, with_answers=with_answers)

    prices = add("prices", "what cards cost to rent, with source and age")
    prices.add_argument("card", metavar="CARD", nargs="?", default="", help='one card, "RTX 4090"; all when left out')
    prices.add_argument("--refresh", action="store_true", help="fetch fresh prices first (needs gpuhunt, a network)")
    json_flag(prices)

    scores = add("scores", "what was predicted of past runs and what came, and what this machine has taught")
    json_flag(scores)

    checks = add("data", "look at training data").add_subparsers(
        dest="data_command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    check = checks.add_parser("check", help="what training would see of a file, row by row")
    check.add_argument("file", metavar="FILE", help='a .jsonl, .json, .csv, .parquet or .txt file, or "demo"')
    check.add_argument("--model", "-m", metavar="M", default="demo", help="whose tokenizer and chat template")
    check.add_argument(
        "--max-length", type=_length, default=0, help="longest sequence in tokens; the model's window by default"
    )
    check.add_argument("--train-on", default="completions", choices=["completions", "last", "all"])
    check.add_argument("--heldout", default="", help="a file of held-out rows, to look for overlap")
    json_flag(check)


def _add_estimate(add: Callable[..., argparse.ArgumentParser], *, with_answers: bool) -> None:
    """What one job needs; it starts nothing, so its exit code does not tell the verdict."""
    estimate = add(
        "estimate",
        "what one job needs and whether it fits: memory, RAM, disk, hours, money",
        "The exit code is 0 whatever the verdict is: the question was answered.",
    )
    estimate.add_argument("model", metavar="SPEC", help='a spec.toml; or "demo", a folder, a hub id, a known model')
    tier = estimate.add_mutually_exclusive_group()
    tier.add_argument("--dry-run", action="store_true", help="build the job on fake tensors and follow its memory")
    tier.add_argument("--probe", action="store_true", help="measure memory and speed on this machine, about a minute")
    estimate.add_argument("--again", action="store_true", help="probe again although this machine was probed before")
    estimate.add_argument("--approach", metavar="ID", default="", help="of a model: a row of the matrix")
    for name, text in (("sequence", "tokens per row"), ("batch", "rows per micro-batch"), ("rank", "of the adapter")):
        estimate.add_argument(f"--{name}", metavar="N", default=None, help=f"{text}; replaces the planned one")
    estimate.add_argument("--quantization", default="", choices=["", "none", "nf4"], metavar="KIND", help="none or nf4")
    estimate.add_argument(
        "--largest",
        action="append",
        choices=["sequence", "batch", "rank", "model"],
        metavar="WHAT",
        help="also: the largest sequence, batch, rank or model that fits",
    )
    estimate.add_argument(
        "--finish-in", metavar="TIME", default="", help="also: the cheapest card that is done in 12h, 3d ..."
    )
    estimate.add_argument("--cards", action="store_true", help="also what 1, 2, 4 and 8 such cards would give")
    machine_flag(estimate)
    json_flag(estimate)
    if with_answers:
        _answer_flags(estimate)


def _processes_flag(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--processes", type=_count, default=0, metavar="N", help=text)


def _count(text: str) -> int:
    """A number of processes; raises ValueError, which argparse turns into a refusal."""
    if not 1 <= int(text) <= 1024:
        raise ValueError(text)
    return int(text)


def _add_runs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands about runs."""
    demo = add("demo", "fine-tune the embedded demo model now and show the before/after card")
    run = add("run", "run a spec in the foreground; it survives the terminal all the same", _SPEC_FILES)
    start = add("start", "run a spec in the background and print the run's id", _SPEC_FILES)
    for command in (run, start):
        command.add_argument("spec", metavar="SPEC", type=Path, help="a spec.toml; see scaler-wizard plan")
        command.add_argument("--force", action="store_true", help="start although the estimate says it does not fit")
        _processes_flag(command, "processes on each machine, one per card, instead of the spec's")
        command.add_argument(
            "--nodes", metavar="HOSTS", type=Path, help="a file of machines, host[:processes] a line, reached by ssh"
        )
    run.add_argument(
        "--keep", metavar="DIR", default="", help="a folder that outlives this machine: what it takes to go on is there"
    )
    for command in (demo, run, start, add("runs", "all runs, newest first")):
        json_flag(command)

    attach = add("attach", "watch a run in the wizard; line by line where there is no terminal")
    logs = add("logs", "a run's log")
    card = add("card", "the before/after card of a run")
    merge = add("merge", "write a merged model of a finished run and measure the difference")
    for command in (attach, logs, card, merge):
        _run_argument(command, optional=True)
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the run ends")
    logs.add_argument("--worker", action="store_true", help="the worker's own output instead of the journal")
    json_flag(logs, "one JSON object per line: time, level, message")
    card.add_argument("--html", action="store_true", help="print the path of the HTML page instead")
    for command in (card, merge):
        json_flag(command)
    for name, text in _CONTROLS.items():
        control = add(name, text)
        _run_argument(control)
        json_flag(control)
        if name == "resume":
            _processes_flag(control, "processes on each machine from now on, where it was another number")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    output.prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    return output.guarded(lambda: _dispatch(words), as_json="--json" in words)


def _dispatch(words: list[str]) -> int:
    try:
        parsed = build_parser(words).parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if parsed.command is None:
        return _wizard(parsed)
    if parsed.command == "attach":
        return _attach(parsed)
    if parsed.command == "remote":
        return _remote(parsed)
    if parsed.command == "chat" and opens_screen(parsed):
        return _open_app(parsed, run_dir=None)
    from scaler_tui import commands

    return commands.COMMANDS[parsed.command](parsed)


def _wizard(arguments: argparse.Namespace) -> int:
    """The wizard: full screen, or numbered prompts with `--plain` / ACCESSIBLE=1."""
    from scaler_tui.terminal import is_interactive

    if arguments.plain or os.environ.get("ACCESSIBLE", "") not in ("", "0"):
        from scaler_tui.plain import run_plain

        return run_plain(model="demo" if arguments.demo else "", gpu=arguments.gpu)
    if not is_interactive():
        raise EngineError(
            "terminal.missing",
            "This is not a terminal, so the wizard cannot be shown.",
            next_step="Use --plain, or a command: demo, plan, run, runs. See scaler-wizard --help.",
        )
    return _open_app(arguments, run_dir=None)


def _attach(arguments: argparse.Namespace) -> int:
    from engine.jobs.elsewhere import follow as bring_up_to_date
    from engine.jobs.store import find_run
    from scaler_tui.terminal import is_interactive

    run_dir = find_run(arguments.id)
    bring_up_to_date(run_dir, although_over=True)
    if not is_interactive():
        from scaler_tui.follow import watch

        return watch(run_dir)
    return _open_app(arguments, run_dir=run_dir)


def _remote(arguments: argparse.Namespace) -> int:
    """A run on another machine; where there is a terminal the wizard opens on its mirror."""
    from scaler_tui.commands import remote
    from scaler_tui.terminal import is_interactive

    run_dir = remote.remote(arguments)
    if run_dir is None or arguments.detach or arguments.json:
        return int(ExitCode.DONE)
    return _open_app(arguments, run_dir=run_dir) if is_interactive() else remote.watch(run_dir)


def _open_app(arguments: argparse.Namespace, *, run_dir: Path | None) -> int:
    """Decide how to draw, set what Textual reads at import, open the app, and say where the run can be found."""
    from scaler_tui.terminal import prepare_environment, probe

    policy = probe(os.environ, ascii_only=arguments.ascii, no_color=arguments.no_color)
    prepare_environment(os.environ, policy)
    from scaler_tui.app import ScalerApp, Start

    first = (lambda: _run_screen(run_dir)) if run_dir is not None else None
    app = ScalerApp(
        policy,
        Start(demo=arguments.demo, gpu=arguments.gpu, first=first or screen_of(arguments), theme=arguments.theme),
        stock_display=arguments.stock_display,
    )
    app.run()
    for line in app.farewell:
        output.say(line)
    if app.crash_report is not None:
        output.note(app.crash_report)
        return int(ExitCode.RUN_FAILED)
    return app.return_code or int(ExitCode.DONE)


def _run_screen(run_dir: Path) -> Any:
    from scaler_tui.screens.run import RunScreen

    return RunScreen(run_dir)
