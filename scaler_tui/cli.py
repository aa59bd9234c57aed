"""The `scaler-wizard` command: subcommands, their flags, and the wizard when none is given.

Owns argument parsing only; each command's work is in `scaler_tui.commands`, the app in `scaler_tui.app`.
Must not import Textual or Rich before a command needs them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ExitCode
from scaler_tui import output

_EXIT_CODES = "exit codes: 0 done, 1 declined, 2 usage or bad input, 4 does not fit, 5 run failed, 130 interrupted"

_CONTROLS = {
    "pause": "save a checkpoint and free the machine",
    "resume": "go on from the last good checkpoint",
    "checkpoint": "save a checkpoint now and go on",
    "stop": "finish the step, save, and end the run",
}


def _answer_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per question of `profiles/questions.toml`."""
    from engine.advise.questions import flag_name, load_graph

    group = parser.add_argument_group("answers (the wizard's questions)")
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


def _machine_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        default="",
        help='what if: "RTX 4090", "2x24G", "2x RTX 3090"; everything then says SIM',
    )


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="typed JSON on standard output")


def _run_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "id",
        metavar="ID",
        nargs="?" if optional else None,
        default="latest",
        help='a run id, its unique beginning, or "latest"',
    )


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The whole grammar. Answer flags are read from the questions file only when the command needs them."""
    from engine import __version__

    parser = argparse.ArgumentParser(
        prog="scaler-wizard",
        epilog=_EXIT_CODES,
        description="Plan, run and prove fine-tuning of open language models; without a command it opens the wizard.",
    )
    parser.add_argument("--version", action="version", version=f"scaler-wizard {__version__}")
    parser.add_argument("--demo", action="store_true", help="open the wizard with the embedded demo model chosen")
    parser.add_argument("--plain", action="store_true", help="the wizard as numbered questions, line by line")
    _machine_flag(parser)
    parser.add_argument(
        "--theme", default="", help="scaler-dark, scaler-light, scaler-high-contrast, scaler-color-blind"
    )
    parser.add_argument("--ascii", action="store_true", help="no Unicode symbols")
    parser.add_argument("--no-color", action="store_true", help="no colour codes at all (also: NO_COLOR)")
    parser.add_argument("--stock-display", action="store_true", help="Textual's own drawing, without cell diffing")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)

    doctor = add("doctor", "what this machine is and what is missing")
    doctor.add_argument("--raw", action="store_true", help="also the raw output of the vendors' tools, ready to paste")
    _machine_flag(doctor)
    _json_flag(doctor)

    inspect = add("inspect", "a model's architecture, from its config and safetensors headers")
    inspect.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub id, or a known name')
    inspect.add_argument("--revision", default="")
    _json_flag(inspect)

    matrix = add("matrix", "every approach compared for a model on this machine")
    matrix.add_argument("model", metavar="MODEL", nargs="?", default="demo")
    matrix.add_argument("--explain", metavar="APPROACH", default="", help="the parts and formulas behind one row")
    _machine_flag(matrix)
    _json_flag(matrix)

    plan = add("plan", "write the spec the wizard would write, from answers given as flags")
    plan.add_argument("model", metavar="MODEL", nargs="?", default="demo")
    plan.add_argument("--approach", default="", help="a row of the matrix; the recommended one when left out")
    plan.add_argument("--write", "-o", metavar="SPEC", dest="write", default="-", help="where; - is stdout")
    _machine_flag(plan)
    _json_flag(plan)
    if argv and argv[0] in ("matrix", "plan"):
        _answer_flags(matrix)
        _answer_flags(plan)

    data = add("data", "look at training data")
    check = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True).add_parser(
        "check", help="what training would see of a file, row by row", epilog=_EXIT_CODES
    )
    check.add_argument("file", metavar="FILE", help='a .jsonl, .json, .csv, .parquet or .txt file, or "demo"')
    check.add_argument("--model", "-m", metavar="M", default="demo", help="whose tokenizer and chat template")
    check.add_argument(
        "--max-length", type=int, default=0, help="longest sequence in tokens; the model's window by default"
    )
    check.add_argument("--train-on", default="completions", choices=["completions", "last", "all"])
    check.add_argument("--heldout", default="", help="a file of held-out rows, to look for overlap")
    _json_flag(check)

    add("demo", "fine-tune the embedded demo model now and show the before/after card")

    run = add("run", "run a spec in the foreground; it survives the terminal all the same")
    run.add_argument("spec", metavar="SPEC", type=Path)
    run.add_argument("--force", action="store_true", help="start although the estimate says it does not fit")
    _json_flag(run)
    start = add("start", "run a spec in the background and print the run's id")
    start.add_argument("spec", metavar="SPEC", type=Path)
    start.add_argument("--force", action="store_true", help="start although the estimate says it does not fit")
    _json_flag(start)

    runs = add("runs", "all runs, newest first")
    _json_flag(runs)
    attach = add("attach", "watch a run in the wizard")
    _run_argument(attach, optional=True)
    logs = add("logs", "a run's log")
    _run_argument(logs, optional=True)
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the run ends")
    logs.add_argument("--worker", action="store_true", help="the worker's own output instead of the journal")
    for name, text in (
        ("pause", "save a checkpoint and free the machine"),
        ("resume", "go on from the last good checkpoint"),
        ("checkpoint", "save a checkpoint now and go on"),
        ("stop", "finish the step, save, and end the run"),
    ):
        control = add(name, text)
        _run_argument(control)
        _json_flag(control)
    card = add("card", "the before/after card of a run")
    _run_argument(card, optional=True)
    card.add_argument("--html", action="store_true", help="print the path of the HTML page instead")
    _json_flag(card)
    merge = add("merge", "write a merged model of a finished run and measure the difference")
    _run_argument(merge, optional=True)
    _json_flag(merge)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    arguments: list[argparse.Namespace] = []

    def parse() -> int:
        arguments.append(build_parser(words).parse_args(words))
        return int(ExitCode.DONE)

    code = output.guarded(parse, as_json=as_json)
    if not arguments:
        return code
    parsed = arguments[0]
    if parsed.command is None:
        return output.guarded(lambda: _wizard(parsed), as_json=False)

    def command() -> int:
        from scaler_tui import commands

        if parsed.command == "attach":
            return _attach(parsed)
        return commands.COMMANDS[parsed.command](parsed)

    return output.guarded(command, as_json=as_json)


def _wizard(arguments: argparse.Namespace) -> int:
    """The wizard: full screen, or numbered prompts with `--plain` / ACCESSIBLE=1."""
    from scaler_tui.terminal import is_interactive

    if arguments.plain or os.environ.get("ACCESSIBLE", "") not in ("", "0"):
        from scaler_tui.plain import run_plain

        return run_plain(model="demo" if arguments.demo else "", gpu=arguments.gpu)
    if not is_interactive():
        output.note("scaler-wizard: this is not a terminal, so the wizard cannot be shown.")
        output.note("  Next:  use --plain, or a command: demo, plan, run, runs. See scaler-wizard --help.")
        return int(ExitCode.BAD_INPUT)
    return _open_app(arguments, run_dir=None)


def _attach(arguments: argparse.Namespace) -> int:
    from engine.jobs.store import find_run
    from scaler_tui.terminal import is_interactive

    run_dir = find_run(arguments.id)
    if not is_interactive():
        from scaler_tui.follow import follow

        return follow(run_dir)
    return _open_app(arguments, run_dir=run_dir)


def _open_app(arguments: argparse.Namespace, *, run_dir: Path | None) -> int:
    """Decide how to draw, set what Textual reads at import, open the app, and say where the run can be found."""
    from scaler_tui.terminal import prepare_environment, probe

    policy = probe(os.environ, ascii_only=arguments.ascii, no_color=arguments.no_color)
    prepare_environment(os.environ, policy)
    from scaler_tui.app import ScalerApp, Start

    app = ScalerApp(
        policy,
        Start(demo=arguments.demo, gpu=arguments.gpu, run_dir=run_dir, theme=arguments.theme),
        stock_display=arguments.stock_display,
    )
    app.run()
    for line in app.farewell:
        output.say(line)
    if app.crash_report is not None:
        output.note(app.crash_report)
        return int(ExitCode.RUN_FAILED)
    return app.return_code or int(ExitCode.DONE)
