"""One line that says what a run is doing, how far it is, and how long it still takes.

Owns how that line shrinks with the width: the bar goes first, figures are never cut. Must not know journals.
"""

from __future__ import annotations

from textual.content import Content

from engine.jobs.events import Growth
from engine.jobs.state import RunPhase, RunState
from engine.units import format_bytes, format_duration
from scaler_tui.growth_progress import remaining_seconds
from scaler_tui.widgets.status_line import FixedText, clip, toned

SHORTEST_BAR = 6
WRITING = "writing"
"""The phase of growing that counts bytes; the others count steps."""


DETAILED = (
    "choosing method", "searching factors", "measuring lengths", "mixing", "caching logits", "exporting", "merging",
)  # fmt: skip
"""Phases whose count is told with what is being measured."""


def growth_now(state: RunState) -> Growth | None:
    """The surgery's newest word while it is at work."""
    return state.growth if state.state is RunPhase.GROWING else None


def counted(state: RunState) -> tuple[int, int, str]:
    """(done, total, what is counted) of the current phase; total 0 means it cannot be counted."""
    growth = growth_now(state)
    if growth is not None:
        return growth.done_bytes, growth.total_bytes, "bytes" if growth.phase == WRITING else "step"
    if state.phase in ("", "training") or not state.state.is_live:
        return state.step, state.total_steps, "step"
    return state.phase_done, state.phase_total, ""


def progress_text(state: RunState) -> str:
    """ "training  step 84 of 120"."""
    done, total, noun = counted(state)
    phase = state.phase if state.state.is_live and state.phase else ""
    if not state.state.is_live and state.state is not RunPhase.QUEUED:
        phase = "done" if state.state is RunPhase.FINISHED else f"{state.state.value} at"
    growth = growth_now(state)
    parts = [f"growing: {growth.phase}" if growth else phase or state.state.value]
    if total and noun == "bytes":
        parts.append(f"{format_bytes(done)} of {format_bytes(total)}")
    elif total:
        parts.append(f"{noun} {done:,} of {total:,}".strip())
    elif noun == "step" and done:
        parts.append(f"{noun} {done:,}")
    return (" " if parts[0].endswith(" at") else "  ").join(parts)


def remaining_text(state: RunState) -> str:
    """ "1 min 12 s left", or how long it took."""
    if state.state.is_live:
        if growth_now(state) is not None:
            return growth_remaining_text(state)
        if state.eta_seconds is not None and state.phase == "training":
            return f"{format_duration(state.eta_seconds)} left"
        return ""
    return f"worked {format_duration(state.working_seconds)}" if state.working_seconds else ""


def growth_remaining_text(state: RunState) -> str:
    """What the rest of the surgery's phase takes at its speed so far."""
    growth = growth_now(state)
    if growth is None:
        return ""
    left = remaining_seconds(growth.done_bytes, growth.total_bytes, growth.t - state.growth_began)
    return "" if left is None else f"{format_duration(left)} left"


def progress_line(state: RunState, width: int, *, unicode: bool) -> Content:
    """The whole line in exactly `width` cells or fewer."""
    left, right = progress_text(state), remaining_text(state)
    done, total, _ = counted(state)
    share = min(max(done / total, 0.0), 1.0) if total else None
    percent = f"{int(share * 100)} %" if share is not None else ""
    fixed = len(left) + len(percent) + len(right) + 2 + 2 * bool(percent) + 2 * bool(right)
    bar_cells = width - fixed - 2
    if state.phase in DETAILED and state.phase_detail and bar_cells - len(state.phase_detail) - 2 >= SHORTEST_BAR:
        left, bar_cells = f"{left}  {state.phase_detail}", bar_cells - len(state.phase_detail) - 2
    parts: list[Content] = [Content(" "), toned(left, "strong")]
    if share is not None and bar_cells >= SHORTEST_BAR:
        full, empty = ("━", "─") if unicode else ("#", "-")
        filled = int(share * bar_cells)
        parts += [Content("  "), toned(full * filled, "busy"), toned(empty * (bar_cells - filled), "quiet")]
    elif share is None and (detail := _detail(state)) and state.state.is_live and bar_cells > SHORTEST_BAR:
        parts += [Content("  "), toned(clip(detail, bar_cells, unicode=unicode), "quiet")]
    room = width - sum(part.cell_length for part in parts)
    for text in (percent, right):
        if text and room >= len(text) + 2:
            parts.append(Content(f"  {text}"))
            room -= len(text) + 2
    return Content.assemble(*parts)


def _detail(state: RunState) -> str:
    growth = growth_now(state)
    return growth.words if growth else state.phase_detail


class ProgressLine(FixedText):
    """Phase, step, bar, percent, time left."""

    def show_state(self, state: RunState, *, unicode: bool) -> None:
        """Draw for the present width."""
        self.show(progress_line(state, self.content_size.width or 80, unicode=unicode))
