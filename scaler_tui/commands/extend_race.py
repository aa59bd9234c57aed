"""`extend --race`: methods measured, or factors searched, and nothing written but a log.

Owns what is printed of it: the lines as they come (`--json-lines`), the table, or one JSON object.
Whoever reads the lines may end this process at any time; the measuring process then ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from scaler_tui import context_text, output
from scaler_tui.terminal import ends_when_told

if TYPE_CHECKING:
    from engine.context.method import Options
    from engine.extension.staging import Order
    from scaler_tui.commands.extend_plans import Wanted


def race_only(arguments: argparse.Namespace, wanted: Wanted) -> int:
    """Raises EngineError `context.*` and those of the measuring process."""
    from engine.context.method import Options
    from engine.jobs.spec_context import AUTO, SEARCHED
    from scaler_tui.commands.extend_plans import require_measurable

    require_measurable(wanted)
    method = wanted.order.method
    if method != AUTO and (method not in SEARCHED or wanted.order.options != Options()):
        raise EngineError(
            "usage",
            f"--race compares methods, or searches factors; --method {method} leaves nothing to measure.",
            next_step="Leave out --method, or take --method longrope2.",
        )
    quiet = arguments.json or arguments.json_lines
    if not arguments.log and (method != AUTO or wanted.order.searches):
        arguments.log = search_log(wanted.order)
        if not quiet:
            output.note(f"Kept in {arguments.log}; interrupted, the same command goes on from there.")
    with ends_when_told(), _folder(arguments.log) as folder:
        if method == AUTO:
            _race(arguments, wanted, folder, quiet=quiet)
        else:
            _search(arguments, wanted, folder, method, quiet=quiet)
    return int(ExitCode.DONE)


def search_log(order: Order) -> Path:
    """Where a search is kept for which no --log is named: its factors may have taken hours. The same order has the same
    log. Raises EngineError `home.unwritable`."""
    import hashlib

    import msgspec

    from engine.paths import ensure_writable, state_home

    measured = msgspec.structs.replace(order, check=True, report=True, links="hard", consumers=())
    key = hashlib.sha256(msgspec.json.encode(measured)).hexdigest()[:16]
    return ensure_writable(state_home() / "races") / f"{order.method}-{order.target}-{key}.jsonl"


def _race(arguments: argparse.Namespace, wanted: Wanted, folder: Path, *, quiet: bool) -> None:
    from engine.extension.extend import race_all
    from scaler_tui.commands.extend import print_race, print_search

    with _measuring(arguments, wanted, folder, quiet=quiet) as measuring:
        race, _, found = race_all(wanted.order, measuring)
    if arguments.json_lines:
        return
    if arguments.json:
        output.emit_json(race)
        return
    if found is not None:
        print_search(found)
        output.say()
    print_race(race)
    if found is not None:
        output.say(f"LongRoPE2's factors: --method longrope2 --factors {shlex.quote(str(measuring.searched_log))}")


def _search(arguments: argparse.Namespace, wanted: Wanted, folder: Path, method: str, *, quiet: bool) -> None:
    from engine.extension import steps
    from engine.extension.extend import seed_note
    from scaler_tui.commands.extend import print_search

    order = wanted.order
    with _measuring(arguments, wanted, folder, quiet=quiet) as measuring:
        factors, done = steps.search(measuring, method, order)
    if arguments.json_lines:
        return
    if arguments.json:
        output.emit_json({"factors": factors, "search": done, "log": str(arguments.log)})
        return
    print_search(done)
    output.say(f"Pairs divided by {context_text.factor_range(factors.long)}")
    if note := seed_note(done):
        output.say(note)
    words = _use(arguments, wanted, method, factors.applied(order.options))
    output.say(f"Use it: {shlex.join(words)}")


def _use(arguments: argparse.Namespace, wanted: Wanted, method: str, options: Options) -> list[str]:
    """The command that writes a folder with what was found; losses that it would refuse are accepted by name."""
    from engine.context.planner import plan_context
    from engine.context.portability import portability
    from engine.extension.losses import flags_of, losses_that_matter
    from engine.jobs.heat_grid import short_length

    order = wanted.order
    out = f"{Path(wanted.name).name}-{short_length(order.target)}"
    words = ["scaler-wizard", "extend", arguments.model, out, "--context", str(order.target)]
    words += ["--method", method, "--factors", str(arguments.log)]
    plan = plan_context(wanted.config, order.target, method, options, wanted.name)
    lost = losses_that_matter(portability(wanted.config, plan), order.consumers)
    words += ["--for", arguments.consumers] if arguments.consumers else []
    return [*words, "--allow-loss", flags_of(lost)] if lost else words


@contextlib.contextmanager
def _measuring(arguments: argparse.Namespace, wanted: Wanted, folder: Path, *, quiet: bool) -> Iterator[Any]:
    """The measuring's settings with a view of its progress around it."""
    from dataclasses import replace

    from engine.extension.extend import measuring_of
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view

    log = arguments.log.expanduser().absolute() if arguments.log else None
    with growth_view(quiet=quiet) as view:
        measuring = measuring_of(wanted.order, wanted.folder, folder, shown_by(view))
        try:
            yield replace(measuring, log=log, hear=_passed_on if arguments.json_lines else None)
        except EngineError as error:
            if error.code == "extension.helper_failed":  # its advice is for a folder in the making
                kept = f"; what was measured is kept in {log}" if log else ""
                error.next_step = f"Give the same command again{kept}."
            raise


def _passed_on(raw: bytes) -> None:
    """A line as it came, at once. An error is told by this process itself."""
    if not raw.startswith(b'{"error"'):
        output.say_block(raw.decode(errors="replace"))
        output.flush()


@contextlib.contextmanager
def _folder(log: Path | None) -> Iterator[Path]:
    """Where the processes' stderr goes; beside the log where there is one, for whoever looks for a cause."""
    if log is None:
        with tempfile.TemporaryDirectory(prefix="scaler-wizard-race-") as folder:
            yield Path(folder)
    else:
        from engine.extension.staging import unwritable

        parent = log.expanduser().absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(parent, error) from error
        yield parent
