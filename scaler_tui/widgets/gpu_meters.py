"""Meters of the machine while it trains: processor, memory, and one to many GPUs.

Owns how meters shrink: two lines per GPU, one line each, then one line for all with lowest, median and highest. Memory
of several GPUs is never added up. Must not know where the readings come from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from textual import events
from textual.content import Content

from engine.jobs.events import GpuMeter
from engine.jobs.state import RunState
from engine.units import format_bytes
from scaler_tui.widgets.status_line import FixedText, toned

LABEL_CELLS = 5
LONGEST_BAR, SHORTEST_BAR = 24, 4
FULL_PERCENT = 95.0
"""Memory above this is marked."""


def _bar(share: float, cells: int, *, unicode: bool, tone: str) -> Content:
    full, empty = ("━", "─") if unicode else ("#", "-")
    filled = round(min(max(share, 0.0), 1.0) * cells)
    return Content.assemble(toned(full * filled, tone), toned(empty * (cells - filled), "quiet"))


def bytes_of(used: float, total: float) -> str:
    """ "11.2 of 24.0 GiB", with the unit once when both share it."""
    first, last = format_bytes(used), format_bytes(total)
    number, _, unit = first.partition(" ")
    return f"{number} of {last}" if last.endswith(f" {unit}") else f"{first} of {last}"


def _row(label: str, share: float | None, figures: Sequence[str], width: int, *, unicode: bool) -> Content:
    """Label, bar if there is room, and as many of `figures` as fit whole."""
    texts = [figure for figure in figures if figure]
    room = width - LABEL_CELLS - 1
    while len(texts) > 1 and len("  ".join(texts)) > room:
        texts.pop()
    text = "  ".join(texts)
    bar_cells = min(LONGEST_BAR, room - len(text) - 1, max(width // 3, SHORTEST_BAR))
    parts = [toned(f"{label:<{LABEL_CELLS}} ", "quiet")]
    if share is not None and bar_cells >= SHORTEST_BAR:
        tone = "warn" if label in ("RAM", "VRAM") and share * 100 >= FULL_PERCENT else "busy"
        parts += [_bar(share, bar_cells, unicode=unicode, tone=tone), Content(" ")]
    return Content.assemble(*parts, text)


def _degrees(celsius: float | None, *, unicode: bool) -> str:
    return "" if celsius is None else f"{celsius:.0f} {'°C' if unicode else 'C'}"


def _watts(watts: float | None) -> str:
    return "" if watts is None else f"{watts:.0f} W"


def _gpu_rows(gpu: GpuMeter, many: bool, width: int, rows_left: int, *, unicode: bool) -> list[Content]:
    label = f"GPU{gpu.index}" if many else "GPU"
    utilization = gpu.utilization_percent
    busy = "" if utilization is None else f"{utilization:.0f} %"
    heat = [_degrees(gpu.temperature_celsius, unicode=unicode), _watts(gpu.power_watts)]
    memory = bytes_of(gpu.used_bytes, gpu.total_bytes)
    share = gpu.used_bytes / gpu.total_bytes if gpu.total_bytes else 0.0
    if rows_left >= 2:
        first = _row(label, None if utilization is None else utilization / 100, [busy, *heat], width, unicode=unicode)
        return [first, _row("VRAM", share, [memory], width, unicode=unicode)]
    return [_row(label, share, [memory, busy, *heat], width, unicode=unicode)]


def _spread(values: Sequence[float], unit: str, *, unicode: bool) -> str:
    dash = "–" if unicode else "-"
    low, high = min(values), max(values)
    if round(low) == round(high):
        return f"{low:.0f} {unit}"
    return f"{low:.0f}{dash}{high:.0f} {unit} (median {median(values):.0f})"


def _collapsed(gpus: Sequence[GpuMeter], width: int, *, unicode: bool) -> list[Content]:
    """All GPUs in two lines: the range of each figure, and the fullest card."""
    busy = [gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None]
    hottest = [gpu.temperature_celsius for gpu in gpus if gpu.temperature_celsius is not None]
    fullest = max(gpus, key=lambda gpu: gpu.used_bytes / max(gpu.total_bytes, 1))
    share = fullest.used_bytes / max(fullest.total_bytes, 1)
    figures = [
        _spread(busy, "%", unicode=unicode) if busy else "",
        f"max {_degrees(max(hottest), unicode=unicode)}" if hottest else "",
    ]
    memory = [bytes_of(fullest.used_bytes, fullest.total_bytes), f"fullest: GPU{fullest.index}"]
    busy_share = median(busy) / 100 if busy else None
    return [
        _row(f"{len(gpus)}xGPU", busy_share, figures, width, unicode=unicode),
        _row("VRAM", share, memory, width, unicode=unicode),
    ]


def meter_lines(state: RunState, width: int, rows: int, *, unicode: bool, cores: int) -> list[Content]:
    """The meters in at most `rows` lines of `width` cells (at least three lines)."""
    if state.cpu_percent is None:
        return [toned("Readings come with the first step.", "quiet")]
    heat = "" if state.gpus else _degrees(state.temperature_celsius, unicode=unicode)
    busy_cores = state.cpu_percent / 100
    lines = [_row("CPU", busy_cores / max(cores, 1), [f"{busy_cores:.1f} cores busy", heat], width, unicode=unicode)]
    if state.ram_bytes is not None and state.ram_total_bytes:
        memory = bytes_of(state.ram_bytes, state.ram_total_bytes)
        lines.append(_row("RAM", state.ram_bytes / state.ram_total_bytes, [memory], width, unicode=unicode))
    gpus, left = state.gpus, rows - len(lines)
    if not gpus:
        return lines
    if len(gpus) > 1 and len(gpus) > left:
        return [*lines, *_collapsed(gpus, width, unicode=unicode)[: max(left, 1)]]
    per_gpu = 2 if 2 * len(gpus) <= left else 1
    for gpu in gpus:
        lines += _gpu_rows(gpu, len(gpus) > 1, width, per_gpu, unicode=unicode)
    return lines


class GpuMeters(FixedText):
    """The meters; `rows` limits their height."""

    def __init__(self, *, rows: int = 6, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.rows = rows
        self._state: RunState | None = None
        self._unicode = True

    def show_state(self, state: RunState, *, unicode: bool) -> None:
        """Draw for the present width."""
        self._state, self._unicode = state, unicode
        width = self.content_size.width or 40
        lines = meter_lines(state, width, self.rows, unicode=unicode, cores=os.cpu_count() or 1)
        self.show(Content("\n").join(lines))

    def on_resize(self, event: events.Resize) -> None:
        if self._state is not None:
            self.show_state(self._state, unicode=self._unicode)
