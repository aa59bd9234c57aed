"""The most bytes that torch's CPU allocator had handed out at once during a part of a program, by torch's profiler.

Owns reading the profiler's memory events. Every allocation from the first line on is seen, so nothing has to be known
about what existed before.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

WATCHED = "watched part"


@dataclass(frozen=True, slots=True)
class Live:
    """Bytes at the largest moment of the watched part."""

    peak: int
    at_start: int
    blocks: tuple[tuple[str, int], ...]
    """What was alive at the peak, for a failing test: blocks of one size, and their sum, the largest first."""


def watch(build: Callable[[], Any], part: Callable[[Any], Any], folder: Path) -> Live:
    """Live bytes during `part(build())`; `build` runs first and is counted too."""
    trace = folder / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        built = build()
        with record_function(WATCHED):
            part(built)
    seen.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    trace.unlink()
    del built
    return _peak(events)


def _peak(events: list[dict[str, Any]]) -> Live:
    watched = next(event for event in events if event["name"] == WATCHED and event["ph"] == "X")
    begin, end = watched["ts"], watched["ts"] + watched["dur"]
    changes = sorted(
        (event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0),
        key=lambda event: (event["ts"], event["args"].get("Ev Idx", 0)),
    )
    alive: dict[int, int] = {}
    live = at_start = peak = 0
    largest: dict[int, int] = {}
    for change in changes:
        size, address = int(change["args"]["Bytes"]), int(change["args"]["Addr"])
        live += size
        if size > 0:
            alive[address] = size
        else:
            alive.pop(address, None)
        if change["ts"] < begin:
            at_start = live
        elif change["ts"] <= end and live > peak:
            peak, largest = live, dict(alive)
    sizes: dict[int, int] = defaultdict(int)
    for size in largest.values():
        sizes[size] += 1
    sums = [(f"{count} x {size:,}", count * size) for size, count in sizes.items()]
    return Live(peak, at_start, tuple(sorted(sums, key=lambda block: -block[1])))
