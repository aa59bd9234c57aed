"""`extend`: methods raced on the model, the extended folder with its check and report, in words and as JSON.

Owns the text and JSON of the command, and what an interruption says. Methods are `engine.context`'s, the folder is
`engine.extension`'s. Must not import torch: what needs it runs in processes of its own.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_duration
from scaler_tui import context_text, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.context.certificate import Certificate, Race
    from engine.context.plan import ContextPlan
    from engine.context.portability import Portability
    from engine.jobs.length_report import LengthReport
    from engine.jobs.race_lines import SearchDone
    from engine.surgery.helpers import Progress
    from scaler_tui.growth_progress import Silent

PHASES = {
    "race": "measuring methods",
    "search": "searching factors",
    "folder": "writing",
    "check": "checking the folder",
    "evaluation": "measuring lengths",
}
_SLOW_SECONDS = 20 * 60
"""Measuring that takes longer is announced with the flags that make it short."""


_WITH_FACTORS, _WITHOUT_SEARCH = " (longrope2 among them)", " of those that need no search"


def extend(arguments: argparse.Namespace) -> int:
    """Choose a method, write the folder, check and measure it; or show what each method would be."""
    if not arguments.json_lines:
        return _extend(arguments)
    try:
        return _extend(arguments)
    except EngineError as error:  # a line like the others, for whoever reads them
        output.emit_json({"error": error.as_dict()}, indent=0)
        return int(error.exit_code)


def _extend(arguments: argparse.Namespace) -> int:
    check_together(arguments)
    if arguments.resume:
        return _resume(arguments)
    from scaler_tui.commands import extend_plans

    wanted = extend_plans.wanted(arguments)
    if arguments.dry_run:
        from scaler_tui.commands.extend_dry_run import dry_run

        return dry_run(arguments, wanted)
    if arguments.race:
        from scaler_tui.commands.extend_race import race_only

        return race_only(arguments, wanted)
    if arguments.out is None:
        raise EngineError(
            "usage", "OUT is missing.", next_step="Name a new folder: scaler-wizard extend MODEL OUT --context 32k."
        )
    from engine.extension.extend import ExtendRequest
    from scaler_tui.commands.extend_training import trainer

    extend_plans.require_measurable(wanted)
    request = ExtendRequest(
        source=wanted.folder,
        out=arguments.out.expanduser(),
        order=wanted.order,
        allowed=_allowed(arguments),
        confirm=_confirm(arguments),
        on_race=_on_race(arguments),
        train=trainer(arguments, wanted.order),
    )
    if not arguments.json:
        _announce(wanted)
    return _carry_out(arguments, request)


def check_together(arguments: argparse.Namespace) -> None:
    """Flags that exclude or need each other. Raises EngineError `usage`."""
    modes = [f"--{name.replace('_', '-')}" for name in ("dry_run", "resume", "race") if getattr(arguments, name)]
    if len(modes) > 1:
        raise EngineError("usage", f"{' and '.join(modes)} exclude each other.", next_step="Give one of them.")
    if not arguments.resume and not arguments.context:
        raise EngineError(
            "usage", "It is not said how long the window should be.", next_step="Add --context 32k, or a multiple: 4x."
        )
    if arguments.resume and arguments.out is None:
        raise EngineError("usage", "OUT is missing.", next_step="Name the folder of the interrupted attempt.")
    if (arguments.json_lines or arguments.log) and not arguments.race:
        raise EngineError(
            "usage", "--json-lines and --log belong to --race.", next_step="Add --race, or leave them out."
        )
    if arguments.seed < 0:
        raise EngineError("usage", f"--seed is {arguments.seed}.", next_step="Give a whole number from 0 on.")
    if arguments.no_report and arguments.method == "auto" and not arguments.resume:
        raise EngineError(
            "usage",
            "--no-report measures nothing, and --method auto chooses by measuring.",
            next_step="Name a method, for example --method yarn, or leave out --no-report.",
        )
    _check_used(arguments)
    if arguments.train and (arguments.race or arguments.no_report):
        other = "--race" if arguments.race else "--no-report"
        raise EngineError("usage", f"--train and {other} exclude each other.", next_step="Give one of them.")
    if arguments.steps and not arguments.train:
        raise EngineError("usage", "--steps belongs to --train.", next_step="Add --train FILE, or leave out --steps.")


def _check_used(arguments: argparse.Namespace) -> None:
    """Flags that would have no effect beside others, and searches too small to begin. Raises EngineError `usage`,
    `search.budget`."""
    from engine.context.search_budget import FEWEST_EVALUATIONS, USUAL_EVALUATIONS
    from scaler_tui.commands.extend_plans import search_shape

    search = [name for name in ("search_minutes", "evaluations") if getattr(arguments, name)]
    if arguments.resume:
        from scaler_tui.commands.extend_again import check_same

        check_same(arguments)
    if len(search) > 1:
        raise _useless("--search-minutes and --evaluations both say how long to search.", "Give one of them.")
    if search and arguments.factors is not None:
        raise _useless(f"{_flag(search[0])} searches factors, and --factors has them.", "Give one of them.")
    shaping = search_shape(arguments)
    if (
        shaping
        and not search
        and not arguments.resume
        and (arguments.factors is not None or arguments.method == "auto")
    ):
        raise _useless(
            f"{_flag(shaping[0])} shapes a search, and nothing is searched here.",
            "Add --search-minutes or --evaluations, or leave it out.",
        )
    if arguments.no_report and not arguments.resume:
        for name in ("quick", "prompts", "race"):
            if getattr(arguments, name):
                raise _useless(
                    f"--no-report measures nothing, and {_flag(name)} is for measuring.", "Give one of them."
                )
    if arguments.copy and (arguments.race or arguments.dry_run):
        other = "--race" if arguments.race else "--dry-run"
        raise _useless(f"--copy is for the weights of OUT, and {other} writes none.", "Give one of them.")
    if arguments.gpu and not arguments.dry_run:
        raise _useless(
            "--gpu plans for another card, and what is written here is measured and checked on this machine.",
            "Add --dry-run, or leave out --gpu.",
        )
    if arguments.evaluations and arguments.evaluations < FEWEST_EVALUATIONS:
        raise EngineError(
            "search.budget",
            f"{arguments.evaluations} evaluations are too few for a search.",
            cause="The known methods that it begins with take some by themselves.",
            next_step=f"Give it {FEWEST_EVALUATIONS} at the least; {USUAL_EVALUATIONS} is usual.",
        )


def _useless(what: str, next_step: str) -> EngineError:
    return EngineError("usage", what, next_step=next_step)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# ── carrying it out ──────────────────────────────────────────────────────────────────────────────────────────────
def _carry_out(arguments: argparse.Namespace, request: Any) -> int:
    from engine.extension.extend import extend as make
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    try:
        with ends_when_told(), growth_view(quiet=arguments.json) as view:
            certificate = make(request, shown_by(view))
    except KeyboardInterrupt:
        raise _interrupted(arguments) from None
    finish(arguments, certificate)
    return int(ExitCode.DONE)


def _resume(arguments: argparse.Namespace) -> int:
    """The order is the interrupted attempt's, whatever flags are given now; losses may be accepted now."""
    from engine.extension.extend import ExtendRequest, read_order
    from scaler_tui.commands.expand_plans import model_folder
    from scaler_tui.commands.extend_training import trainer

    out = arguments.out.expanduser()
    order = read_order(out)
    request = ExtendRequest(
        source=model_folder(arguments.model),
        out=out,
        order=order,
        allowed=_allowed(arguments),
        confirm=_confirm(arguments),
        on_race=_on_race(arguments),
        train=trainer(arguments, order),
        resume=True,
    )
    return _carry_out(arguments, request)


def shown_by(view: Silent) -> Callable[[Progress], None]:
    """Passes the steps' words on to a view; what is said when all is done is said by the result."""

    def report(progress: Progress) -> None:
        if progress.phase != "done":
            phase = PHASES.get(progress.phase, progress.phase)
            view.show(phase, progress.done_bytes, progress.total_bytes, counts_bytes=False)

    return report


def _interrupted(arguments: argparse.Namespace) -> EngineError:
    from engine.extension.extend import staging_folder

    kept = staging_folder(arguments.out.expanduser())
    if not kept.exists():
        return EngineError("interrupted", "Interrupted; nothing was written.", exit_code=ExitCode.INTERRUPTED)
    words = ["scaler-wizard", "extend", arguments.model, str(arguments.out), "--resume"]
    return EngineError(
        "interrupted",
        f"Interrupted; what was measured is kept in {kept}.",
        next_step=f"Go on with: {shlex.join(words)}. Or remove that folder.",
        exit_code=ExitCode.INTERRUPTED,
    )


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _allowed(arguments: argparse.Namespace) -> tuple[str, ...]:
    from engine.extension.losses import ALL, consumers_named

    return (ALL,) if arguments.yes else consumers_named(arguments.allow_loss)


def _confirm(arguments: argparse.Namespace) -> Callable[[ContextPlan, tuple[Portability, ...]], bool] | None:
    """A person at the terminal is asked; nobody else is."""
    from scaler_tui.terminal import is_interactive

    if arguments.json or not is_interactive():
        return None

    def ask(plan: ContextPlan, losses: tuple[Portability, ...]) -> bool:
        from scaler_tui.prompts import Back, Left, choose

        output.note("")
        for line in context_text.portability_rows(losses):
            output.note(line)
        question = f"Write it with {plan.method} all the same"
        try:
            return choose(question, ["No, leave it", "Yes, that program is not for me"], suggested=1) == 2
        except (Left, Back):
            return False

    return ask


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _announce(wanted: Any) -> None:
    """What is about to be done, and how long it will about take."""
    order = wanted.order
    how = order.method
    if how == "auto":
        also = order.searches or order.options.long_divisors
        how = f"the method that measures best{_WITH_FACTORS if also else _WITHOUT_SEARCH}"
    output.note(
        f"Extending {wanted.name} from {wanted.window:,} to {order.target:,} tokens "
        f"({order.target / wanted.window:g}x) with {how}."
    )
    seconds = wanted.measuring_seconds
    if seconds is not None and order.report:
        usual, low, high = (format_duration(value) for value in (seconds.likely, seconds.low, seconds.high))
        output.note(f"  Measuring takes about {usual} ({low} to {high}).")
        if seconds.likely > _SLOW_SECONDS:
            output.note("  Shorter: --quick, fewer --prompts, or a named --method with --no-report.")


def _on_race(arguments: argparse.Namespace) -> Callable[[Race], None]:
    def show(race: Race) -> None:
        if not arguments.json:
            output.draw("\r\x1b[K" if _draws() else "")
            print_race(race)

    return show


def _draws() -> bool:
    import sys

    from scaler_tui.terminal import draws_in_place

    return draws_in_place(sys.stderr)


def print_race(race: Race) -> None:
    """The methods beside each other, the rule, and what it chose."""
    headings, rows, right = context_text.race_table(race)
    output.table(headings, rows, right=right)
    output.say(context_text.race_origin(race))
    if race.decided is not None:
        output.say(f"Rule: {race.decided.rule}" if race.decided.rule else "")
        output.say(f"Chosen: {race.decided.reason}")
    output.say()


def print_search(done: SearchDone) -> None:
    """What a search found beside the known methods that it began with, on both of its objectives."""
    headings, rows, right = context_text.search_table(done)
    output.table(headings, rows, right=right)
    output.say(context_text.search_origin(done))


def finish(arguments: argparse.Namespace, certificate: Certificate) -> None:
    """The result as JSON or in words."""
    if arguments.json:
        output.emit_json(context_text.result_json(certificate, str(arguments.out)))
    else:
        print_result(certificate, arguments.out)


def print_result(certificate: Certificate, out: Path) -> None:
    """What was made, who reads it, and what it is worth at every length."""
    from engine.models.resolve import folder_word

    plan = certificate.plan
    output.say(f"{plan.method}: {context_text.plan_words(plan)}.")
    for note in plan.notes:
        output.say(f"  ! {note}")
    if certificate.check is not None:
        for line in context_text.check_words(certificate.check):
            output.say(f"  {line}")
    if certificate.search is not None:
        output.say()
        print_search(certificate.search)
    output.say()
    output.say("Who reads it")
    for line in context_text.portability_rows(certificate.portability):
        output.say(f"  {line}")
    if certificate.report is not None:
        output.say()
        print_report(certificate.report)
        for note in certificate.report.notes:
            output.say(f"  ! {note}")
    output.say()
    output.say(f"Written      {folder_word(out)} in {format_duration(certificate.seconds)}")
    output.say(f"Certificate  {out / 'extension.json'}")


def print_report(report: LengthReport) -> None:
    """Perplexity by length, the needles as heat maps, short text, and the verdict."""
    from engine.jobs.heat_grid import heat_grid, tasks_of
    from engine.jobs.length_verdict import verdict
    from scaler_tui.heat_text import heat_text

    output.say(f"Verdict: {verdict(report).words}")
    if report.perplexity:
        output.say()
        headings, rows = context_text.perplexity_table(report)
        output.table(headings, rows, right=range(len(headings)))
    width, color, unicode = _paper()
    for task in tasks_of(report.needles):
        grid = heat_grid(report.needles, task)
        if grid is None:
            continue
        output.say()
        output.say(f"{task}: % of prompts answered, by length and by depth (0 % is the beginning)")
        for line in heat_text(grid, width, color=color, unicode=unicode):
            output.say(line)
    words = context_text.short_words(report)
    if words:
        output.say()
        output.say(words)


def _paper() -> tuple[int, bool, bool]:
    """(cells, colour, Unicode) of this standard output."""
    import os
    import shutil
    import sys

    from scaler_tui.terminal import draws_in_place, probe

    policy = probe(os.environ)
    return shutil.get_terminal_size().columns, policy.color and draws_in_place(sys.stdout), policy.unicode
