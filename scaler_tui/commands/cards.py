"""Subcommands about results: the before/after card, and the merged model.

Owns their text and JSON. Must not measure: the worker and the merge process do, and write it down.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs import layout
from engine.units import format_bytes, format_count, format_duration, format_usd
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.card import Card, MergeCheck, PredictedMeasured

_SAMPLES_SHOWN = 4


def card(arguments: argparse.Namespace) -> int:
    """The before/after card."""
    from engine.jobs.card_io import read_card
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    if arguments.html:
        read_card(run_dir)  # the page is written with it; without a card there is the same error
        page = str(run_dir / layout.CARD_PAGE)
        output.emit_json({"html": page}) if arguments.json else output.say(page)
    elif arguments.json:
        emit_card(run_dir)
    else:
        print_card(run_dir)
    return int(ExitCode.DONE)


def has_card(run_dir: Path) -> bool:
    """Whether a card was written."""
    return (run_dir / layout.CARD).is_file()


def emit_card(run_dir: Path) -> None:
    """The card as `card.json` holds it. Raises EngineError when there is none."""
    from engine.jobs.card_io import read_card

    output.emit_json(read_card(run_dir))


def print_card(run_dir: Path) -> None:
    """The card as aligned text. Raises EngineError when there is none."""
    from engine.jobs.card_io import read_card

    c = read_card(run_dir)
    output.say()
    output.say(
        f"{c.name or c.run_id}: {c.task} of {c.model}, {c.steps} steps, trained {format_duration(c.training_seconds)}"
    )
    output.say()
    if rows := _score_rows(c):
        output.table(["", "BEFORE", "AFTER"], rows, right=(1, 2))
    for growth in c.growths:
        size = f"{format_count(growth.parameters_before)} to {format_count(growth.parameters_after)} parameters"
        proven = "no proof" if growth.proof is None else "proof passed" if growth.proof.passed else "proof failed"
        output.say(f"  Grown: {size} ({', '.join(growth.operators.values())}), {proven}")
    print_results(c)
    print_abilities(c)
    _print_lengths(c)
    for sample in c.samples[:_SAMPLES_SHOWN]:
        output.say()
        for label, text in (("Prompt", sample.prompt), ("Before", sample.before), ("After", sample.after)):
            output.say(f"  {label:<7} {' '.join(text.split())}")
    output.say()
    for promise in c.predicted:
        output.say("  " + _promise(promise))
    if c.cost_usd:
        output.say(f"  Cost: {format_usd(c.cost_usd)}")
    for text in c.notes:
        output.say(f"  Note: {text}")
    output.say(f"  {c.adapter.kind.capitalize()}: {run_dir / c.adapter.path} ({format_bytes(c.adapter.size_bytes)})")
    if c.merged is not None:
        output.say("  " + _merged(run_dir, c.merged))
    output.say(f"  Page: {run_dir / layout.CARD_PAGE}")


def print_results(c: Card) -> None:
    """Teacher, mix and exports; nothing of what there is not."""
    from scaler_tui import results_text

    for heading, lines in results_text.sections(c):
        output.say()
        output.say(heading)
        for line in lines:
            output.say(f"  {line}")


def print_abilities(c: Card) -> None:
    """Retention, texts, benchmarks, stages and recoveries; nothing of what was not measured."""
    from scaler_tui import abilities_text

    for heading, lines in abilities_text.sections(c):
        output.say()
        output.say(heading)
        for line in lines:
            output.say(f"  {line}")


def _print_lengths(c: Card) -> None:
    """What was measured by length, and who reads the model; nothing where nothing was."""
    from engine.jobs.length_verdict import verdict
    from scaler_tui.commands.extend import print_report

    if c.lengths_after is None:
        return
    output.say()
    if c.lengths_before is not None:
        output.say(f"Before: {verdict(c.lengths_before).words}")
    print_report(c.lengths_after)
    if c.readers:
        output.say()
    for reader in c.readers:
        output.say(f"  {reader.program}: {reader.verdict}. {reader.why}")


def _score_rows(c: Card) -> list[list[str]]:
    before, after = c.before, c.after
    if before is None or after is None:
        return []
    rows = []
    if after.has_task_loss:
        rows.append(["Task loss (held-out rows)", f"{before.task_loss:.3f}", f"{after.task_loss:.3f}"])
    if before.exact_match is not None and after.exact_match is not None:
        heading = f"Exact match ({after.exact_match_rows} held-out rows)"
        rows.append([heading, f"{before.exact_match:.0%}", f"{after.exact_match:.0%}"])
    if before.base_perplexity is not None and after.base_perplexity is not None:
        heading = "Perplexity of base text (forgetting)"
        rows.append([heading, f"{before.base_perplexity:.2f}", f"{after.base_perplexity:.2f}"])
    return rows


def _promise(promise: PredictedMeasured) -> str:
    def show(value: float) -> str:
        if promise.unit == "bytes":
            return format_bytes(value)
        return format_duration(value) if promise.unit in ("s", "seconds") else f"{value:,.0f} {promise.unit}"

    name, low, high = promise.name.capitalize(), show(promise.low), show(promise.high)
    return f"{name}: predicted {low} to {high}, measured {show(promise.measured)}"


def _merged(run_dir: Path, check: MergeCheck) -> str:
    stored = ""
    if check.stored_base_difference is not None and check.stored_base_same_top_token is not None:
        stored = (
            f"; against it on the unquantised base: same top token at {check.stored_base_same_top_token:.1%}, "
            f"logits differ by at most {check.stored_base_difference:.1e} of their range"
        )
    return (
        f"Merged model: {run_dir / check.path} ({format_bytes(check.size_bytes)}); against the adapter on its "
        f"{check.base_dtype} base: same top token at {check.same_top_token:.1%} of positions, "
        f"loss {check.merged_task_loss:.3f} and {check.adapter_task_loss:.3f}{stored}"
    )


def merge(arguments: argparse.Namespace) -> int:
    """Merge in a process of its own: this one never imports torch."""
    from engine.jobs import elsewhere
    from engine.jobs.card import MergeCheck
    from engine.jobs.launch import child_environment, module_command
    from engine.jobs.store import find_run

    run_dir = find_run(arguments.id)
    if elsewhere.is_elsewhere(run_dir):
        return _merge_elsewhere(run_dir, as_json=arguments.json)
    if not arguments.json:
        output.note(f"Merging the adapter of {run_dir.name}; this takes a while for a large model ...")
    result = subprocess.run(
        [*module_command("engine.train.merge"), str(run_dir)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=child_environment(),
    )
    line = (result.stdout.splitlines() or [b""])[-1]
    if result.returncode != 0:
        raise _merge_error(run_dir, line, result.stderr.decode(errors="replace"), result.returncode)
    check = msgspec.json.decode(line, type=MergeCheck)
    output.emit_json(check) if arguments.json else output.say(_merged(run_dir, check))
    return int(ExitCode.DONE)


def _merge_elsewhere(run_dir: Path, *, as_json: bool) -> int:
    """On its host, which has the base model. Raises EngineError."""
    from engine.jobs import elsewhere
    from engine.jobs.card import MergeCheck

    check = msgspec.json.decode(elsewhere.pass_on(run_dir, "merge"), type=MergeCheck)
    if as_json:
        output.emit_json(check)
    else:
        output.say(_merged(run_dir, check))
        output.note(f"It lies on its host. Bring it here: scaler-wizard remote fetch {run_dir.name}")
    return int(ExitCode.DONE)


class _Reported(msgspec.Struct):
    """The error object that the merge process prints."""

    error: dict[str, str]


def _merge_error(run_dir: Path, line: bytes, log: str, code: int) -> EngineError:
    """The error the process told, else what can be said about its death."""
    kept = "The adapter itself is untouched in output/adapter."
    try:
        told = msgspec.json.decode(line, type=_Reported).error
    except msgspec.MsgspecError:
        last = (log.strip().splitlines() or [f"Its process ended with code {code}."])[-1]
        return EngineError(
            "merge.failed",
            f"Merging the adapter of {run_dir.name} failed.",
            cause="The system ended it, most likely for lack of memory." if code == -9 else last,
            next_step=kept,
            exit_code=ExitCode.RUN_FAILED,
        )
    exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.RUN_FAILED
    return EngineError(
        told.get("code", "merge.failed"),
        told.get("what", "Merging failed."),
        cause=told.get("cause", ""),
        next_step=told.get("next_step", "") or kept,
        exit_code=exit_code,
    )
