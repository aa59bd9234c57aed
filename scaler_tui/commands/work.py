"""Subcommands about runs: start, follow, list, control, read the card.

Owns their text and JSON. Must not know how a run works: it asks `engine.jobs`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from engine.units import format_bytes, format_duration, format_usd
from scaler_tui import output


def demo(_: argparse.Namespace) -> int:
    """Fine-tune the embedded demo model in the foreground and print its card."""
    from scaler_tui.demo import demo_spec

    return start_and_follow(demo_spec(), as_json=False)


def run(arguments: argparse.Namespace) -> int:
    """A spec in the foreground: the run is detached all the same, this only follows it."""
    spec = _fitting_spec(arguments.spec, force=arguments.force)
    return start_and_follow(spec, as_json=arguments.json)


def start(arguments: argparse.Namespace) -> int:
    """A spec in the background."""
    from engine.jobs import launch

    run_dir = launch.start(_fitting_spec(arguments.spec, force=arguments.force))
    if arguments.json:
        output.emit_json({"id": run_dir.name, "directory": str(run_dir)})
    else:
        output.say(run_dir.name)
        output.note(f"Running in the background. Watch it: scaler-wizard attach {run_dir.name}")
    return int(ExitCode.DONE)


def _fitting_spec(path: Path, *, force: bool) -> JobSpec:
    """Load the spec and hold its prediction against this machine's free memory. Raises EngineError."""
    from engine.jobs.spec_toml import load_spec
    from scaler_tui.preflight import check_fit

    spec = load_spec(path)
    return check_fit(spec, force=force)


def start_and_follow(spec: JobSpec, *, as_json: bool) -> int:
    from engine.jobs import launch
    from scaler_tui.follow import follow

    run_dir = launch.start(spec)
    output.note(f"Run {run_dir.name} works in the background; this only watches. Ctrl+C stops it after saving.")
    code = follow(run_dir, quiet=as_json)
    if as_json:
        _emit_card(run_dir)
    elif code == ExitCode.DONE:
        _print_card(run_dir)
    return code


def runs(arguments: argparse.Namespace) -> int:
    """All runs, newest first."""
    from engine.jobs.store import list_runs

    summaries = list_runs()
    if arguments.json:
        output.emit_json(summaries)
        return int(ExitCode.DONE)
    if not summaries:
        output.say("No runs yet. Start one: scaler-wizard demo")
        return int(ExitCode.DONE)
    output.table(
        ["ID", "STATE", "TASK", "STEP", "LOSS", "STARTED", "NAME"],
        [
            [
                s.id,
                str(s.state),
                s.task,
                f"{s.step}/{s.total_steps or '?'}",
                f"{s.loss:.3f}" if s.loss is not None else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(s.started)) if s.started else "",
                s.name,
            ]
            for s in summaries
        ],
        right=(3, 4),
    )
    return int(ExitCode.DONE)


def logs(arguments: argparse.Namespace) -> int:
    """The journal as lines, or the worker's raw output."""
    from engine.jobs.store import find_run
    from scaler_tui.follow import print_log, print_worker_log

    run_dir = find_run(arguments.id)
    if arguments.worker:
        print_worker_log(run_dir)
    else:
        print_log(run_dir, follow=arguments.follow)
    return int(ExitCode.DONE)


def control(arguments: argparse.Namespace) -> int:
    """pause, checkpoint, stop."""
    from engine.jobs.control import request
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    request(run_dir, arguments.command)
    return _controlled(run_dir, arguments, f"{arguments.command} requested; it takes effect when the step is complete.")


def resume(arguments: argparse.Namespace) -> int:
    """Go on from the newest checkpoint that verifies."""
    from engine.jobs.control import resume as resume_run
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    resume_run(run_dir)
    return _controlled(run_dir, arguments, f"Resumed. Watch it: scaler-wizard attach {run_dir.name}")


def _controlled(run_dir: Path, arguments: argparse.Namespace, text: str) -> int:
    if arguments.json:
        output.emit_json({"id": run_dir.name, "directory": str(run_dir), "requested": arguments.command})
    else:
        output.say(text)
    return int(ExitCode.DONE)


def card(arguments: argparse.Namespace) -> int:
    """The before/after card."""
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    if arguments.html:
        output.say(str(run_dir / "card.html"))
    elif arguments.json:
        _emit_card(run_dir)
    else:
        _print_card(run_dir)
    return int(ExitCode.DONE)


def _emit_card(run_dir: Path) -> None:
    from engine.jobs.card_io import read_card

    output.emit_json(read_card(run_dir))


def _print_card(run_dir: Path) -> None:
    """The card as aligned text."""
    from engine.jobs.card_io import read_card

    c = read_card(run_dir)
    output.say()
    output.say(
        f"{c.name or c.run_id}: {c.task} of {c.model}, {c.steps} steps, trained {format_duration(c.training_seconds)}"
    )
    output.say()
    rows = [["Task loss (held-out rows)", f"{c.before.task_loss:.3f}", f"{c.after.task_loss:.3f}"]]
    if c.before.exact_match is not None and c.after.exact_match is not None:
        rows.append(
            [
                f"Exact match ({c.after.exact_match_rows} held-out rows)",
                f"{c.before.exact_match:.0%}",
                f"{c.after.exact_match:.0%}",
            ]
        )
    if c.before.base_perplexity is not None and c.after.base_perplexity is not None:
        rows.append(
            [
                "Perplexity of base text (forgetting)",
                f"{c.before.base_perplexity:.2f}",
                f"{c.after.base_perplexity:.2f}",
            ]
        )
    output.table(["", "BEFORE", "AFTER"], rows, right=(1, 2))
    for sample in c.samples[:4]:
        output.say()
        output.say(f"  Prompt  {sample.prompt}")
        output.say(f"  Before  {sample.before}")
        output.say(f"  After   {sample.after}")
    output.say()
    for line in c.predicted:
        output.say("  " + _promise(line.name, line.unit, line.low, line.high, line.measured))
    if c.cost_usd:
        output.say(f"  Cost so far: {format_usd(c.cost_usd)}")
    output.say(f"  Adapter: {run_dir / c.adapter.path} ({format_bytes(c.adapter.size_bytes)})")
    if c.merged is not None:
        output.say(
            f"  Merged model: {run_dir / c.merged.path} ({format_bytes(c.merged.size_bytes)}), "
            f"same top token at {c.merged.same_top_token:.1%} of positions"
        )
    output.say(f"  Page: {run_dir / 'card.html'}")


def _promise(name: str, unit: str, low: float, high: float, measured: float) -> str:
    def show(value: float) -> str:
        if unit == "bytes":
            return format_bytes(value)
        return format_duration(value) if unit in ("s", "seconds") else f"{value:,.0f} {unit}"

    return f"{name.capitalize()}: predicted {show(low)} to {show(high)}, measured {show(measured)}"


def merge(arguments: argparse.Namespace) -> int:
    """Merge in a process of its own: this one never imports torch."""
    from engine.jobs.card_io import read_card

    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    result = subprocess.run(
        [sys.executable, "-m", "engine.train.merge", str(run_dir)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise EngineError(
            "merge.failed",
            f"Merging the adapter of {run_dir.name} failed.",
            cause=(result.stderr.strip() or result.stdout.strip()).splitlines()[-1]
            if result.stderr or result.stdout
            else "",
            next_step="The adapter itself is untouched in output/adapter.",
            exit_code=ExitCode.RUN_FAILED,
        )
    if arguments.json:
        output.emit_json(read_card(run_dir).merged)
    else:
        output.say(result.stdout.strip())
    return int(ExitCode.DONE)
