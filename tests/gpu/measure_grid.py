"""`python -m tests.gpu.measure_grid --out DIR`: real runs against the estimates, and the true edge.

Writes DIR/rows.csv and DIR/summary.json; with --append FOLDER the rows are added to FOLDER/<card>.csv as well. Without
a card that torch can use it says so and exits 0. What the time limit cut is listed, never dropped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from engine.estimate.rehearsal import DryRun
from engine.hardware import nvidia
from engine.hardware.cpu import read_cpu
from engine.rehearsal.orders import Edge, EdgeFound, Measurement, Order
from engine.units import GIB, MIB
from tests.gpu.grid import Configuration, configurations, edge_configurations
from tests.gpu.predictions import DryRuns, dry_allocated, formula, longest_sequence
from tests.gpu.rows import Result, append, line_of, next_number, slug
from tests.gpu.running import Clock, Outcome, run
from tests.gpu.summary import as_json, as_text, edge_line

CAPS_GIB = (8.0, 12.0, 16.0, 24.0)
EDGE_SHARE = 0.3
"""Of the time, kept for the search of edges."""
ROOM_FOR_CONTEXTS_GIB = 4.0
LARGE_CARD_GIB = 40


def main(arguments: list[str] | None = None) -> int:
    """Measure, compare, write."""
    options = _options(arguments)
    if not nvidia.probe(3.0).gpus:
        print("No NVIDIA card answers here, so there is nothing to measure: the GPU check needs one.")
        return 0
    clock = Clock(options.seconds)
    chosen = configurations()[: options.only] if options.only else configurations()
    first = run(Order(rehearsal=chosen[0].rehearsal, device="auto"), clock)
    if first.measured is None or first.measured.device != "cuda":
        print(f"There is a card, but torch cannot use it here. {first.problem}".strip())
        return 0
    print(f"{_describe(first.measured)}\n", flush=True)
    work = ThreadPoolExecutor(max_workers=_parallel(options.parallel, first.measured))
    dry = DryRuns(max(read_cpu().cores - 6, 1)) if options.dry else None
    asked: dict[bytes, Any] = {key: dry.start(one) for key, one in _unique(chosen).items()} if dry else {}
    reserve = options.seconds * EDGE_SHARE if options.edges else 0.0
    with tempfile.TemporaryDirectory() as folder:
        lock = str(Path(folder) / "card")
        grid_clock = clock.but(reserve)
        pending = [work.submit(_measure, one, lock, grid_clock) for one in chosen]
        outcomes = [future.result() for future in pending]
    edges = _edges(first.measured, clock) if options.edges else []
    results = [
        _result(one, _completed(outcome, first.measured), asked.get(_key(one)), clock)
        for one, outcome in zip(chosen, outcomes, strict=True)
    ]
    if dry:
        dry.close()
    work.shutdown()
    _write(results, edges, first.measured, options)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure_grid", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(".bench/gpu-check"), help="folder of rows.csv and summary.json"
    )
    parser.add_argument("--append", type=Path, help="folder of measured rows by card; new rows go to the end")
    parser.add_argument("--only", type=positive, default=0, help="the first N configurations only")
    parser.add_argument("--parallel", type=positive, default=0, help="processes at once; one at a time uses the card")
    parser.add_argument("--seconds", type=positive, default=420, help="time limit; what it cuts is listed")
    parser.add_argument("--no-edges", dest="edges", action="store_false", help="leave out the search under caps")
    parser.add_argument("--no-dry", dest="dry", action="store_false", help="leave out the dry runs")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A whole number from 1 up. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from error
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{value} is not from 1 to 1,000,000")
    return value


def _describe(found: Measurement) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"{found.card}, {found.total / GIB:.1f} GiB, driver {found.driver}, {versions}"


def _parallel(wanted: int, found: Measurement) -> int:
    """Processes that wait hold a CUDA context each, which a small card cannot spare."""
    return wanted or (4 if found.total / GIB >= LARGE_CARD_GIB else 1)


def _key(configuration: Configuration) -> bytes:
    return msgspec.json.encode(configuration.rehearsal)


def _unique(chosen: Sequence[Configuration]) -> dict[bytes, Configuration]:
    return {_key(one): one for one in chosen}


def _measure(configuration: Configuration, lock: str, clock: Clock) -> Outcome:
    order = Order(
        rehearsal=configuration.rehearsal,
        device="cuda",
        paged=configuration.paged,
        expandable=configuration.work.expandable_segments,
        seconds=1.0,
        alone=False,
        lock=lock,
    )
    outcome = run(order, clock)
    found = outcome.measured
    said = f"{found.allocated / GIB:.3f} GiB" if found and not found.out_of_memory else outcome.problem or "OOM"
    print(f"  {configuration.title}, {configuration.model.name}: {said}", flush=True)
    return outcome


def _completed(outcome: Outcome, alone: Measurement) -> Outcome:
    """Where NVML does not list processes, the context is that of the first run, which had the card to itself."""
    found = outcome.measured
    if found is None or found.process or not alone.context or found.out_of_memory:
        return outcome
    process = found.reserved + alone.context
    source = "reserved and the context of a run alone"
    return Outcome(msgspec.structs.replace(found, process=process, context=alone.context, process_source=source))


def _result(configuration: Configuration, outcome: Outcome, asked: Future[Any] | None, clock: Clock) -> Result:
    dry, problem = _dry(asked, clock)
    problems = "; ".join(one for one in (outcome.problem, problem) if one)
    return Result(configuration, formula(configuration), outcome.measured, dry, problem=problems)


def _dry(asked: Future[Any] | None, clock: Clock) -> tuple[DryRun | None, str]:
    if asked is None:
        return None, ""
    try:
        text, problem = asked.result(timeout=max(clock.left, 0.1))
    except NotYet:
        return None, "the dry run was not done in time"
    except Exception as error:
        return None, f"the dry run failed: {type(error).__name__}"
    return (msgspec.json.decode(text, type=DryRun), "") if text else (None, f"dry run: {problem}")


def _edges(found: Measurement, clock: Clock) -> list[dict[str, Any]]:
    """The longest sequence under each cap, measured and by the formula; a process each, side by side where they fit."""
    caps = tuple(cap for cap in CAPS_GIB if cap * GIB < found.total)
    chosen = edge_configurations()
    together = len(chosen) * max(caps, default=0.0) + ROOM_FOR_CONTEXTS_GIB <= found.total / GIB
    print("\nThe longest sequence under a cap of the allocator:", flush=True)
    with ThreadPoolExecutor(len(chosen) if together else 1) as pool:
        asked = [pool.submit(_edge, one, caps, clock, 1 if together else len(chosen)) for one in chosen]
        return [line for future in asked for line in future.result()]


def _edge(configuration: Configuration, caps: tuple[float, ...], clock: Clock, in_turn: int) -> list[dict[str, Any]]:
    work = configuration.work
    likely = {cap: longest_sequence(work, cap) for cap in caps}
    order = Order(
        rehearsal=configuration.rehearsal,
        device="cuda",
        alone=False,
        seconds=max((clock.left - 45.0) / in_turn, 1.0),
        edges=tuple(Edge(cap_gib=cap, guess=max(likely[cap], 512)) for cap in caps),
    )
    outcome = run(order, clock)
    name = f"{configuration.title}, {configuration.model.name}"
    answered = {one.cap_gib: one for one in outcome.measured.edges} if outcome.measured else {}
    lines = []
    for cap in caps:
        answer = answered.get(cap)
        if answer is None:
            problem = outcome.problem or "skipped: the time limit was reached"
            print(f"  {name}, {cap:.0f} GiB: {problem}", flush=True)
            lines.append({"configuration": name, "cap_gib": cap, "problem": problem})
            continue
        cautious = longest_sequence(work, cap, slack="high")
        print("  " + edge_line(name, answer, likely[cap], cautious), flush=True)
        lines.append(_edge_facts(configuration, name, answer, likely[cap], cautious))
    return lines


def _edge_facts(
    configuration: Configuration, name: str, answer: EdgeFound, likely: int, cautious: int
) -> dict[str, Any]:
    ran = [one for one in answer.attempts if one.ran and one.sequence == answer.longest]
    facts: dict[str, Any] = {
        "configuration": name,
        "cap_gib": answer.cap_gib,
        "longest": answer.longest,
        "shortest_failed": answer.shortest_failed,
        "formula_likely": likely,
        "formula_sure": cautious,
        "attempts": [[one.sequence, one.ran, one.allocated, one.reserved] for one in answer.attempts],
    }
    if ran:
        there = replace(configuration, work=replace(configuration.work, sequence=answer.longest))
        said = formula(there)
        facts["allocated_error_at_edge"] = said.allocated / ran[0].allocated - 1
        facts["reserved_error_at_edge"] = said.reserved / ran[0].reserved - 1
    return facts


def _write(results: list[Result], edges: list[dict[str, Any]], found: Measurement, options: argparse.Namespace) -> None:
    date = datetime.date.today().isoformat()
    kept = options.append / f"{slug(found.card)}.csv" if options.append else None
    number = next_number(kept, date) if kept else 1
    measured = [result for result in results if result.measured is not None]
    lines = [line_of(result, number + index, date) for index, result in enumerate(measured)]
    options.out.mkdir(parents=True, exist_ok=True)
    rows = options.out / "rows.csv"
    rows.unlink(missing_ok=True)
    append(rows, lines)
    facts = {
        "date": date,
        "card": found.card,
        "driver": found.driver,
        "total_bytes": found.total,
        "versions": found.versions,
        "workspace_bytes": found.workspace,
        "context_bytes_alone": found.context,
        "process_source_alone": found.process_source,
        "dry_seconds": [round(result.dry.seconds, 1) for result in results if result.dry],
        "dry_allocated": {
            f"{r.configuration.title}, {r.configuration.model.name}": dry_allocated(r.configuration, r.dry)
            for r in results
            if r.dry
        },
    }
    summary = as_json(results, edges, facts)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"\n{as_text(results)}\n")
    print(f"workspaces {found.workspace / MIB:.1f} MiB, context {found.context / MIB:.0f} MiB ({found.process_source})")
    print(f"process in the promised range: {summary['process_in_range']} of {summary['process_read']}")
    print(f"rows: {rows}")
    if kept:
        append(kept, lines)
        print(f"appended {len(lines)} rows to {kept}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # dry runs that the time limit left behind must not hold it up
