"""What the memory goes to, as a stacked bar against the line of what is free, and the same in words.

Owns the drawing of one estimate. Must not compute any figure: parts, range and free memory are given.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from engine.estimate.estimate import Estimate
from engine.units import format_bytes, format_range

_TONES = (
    "$primary", "$accent", "$secondary", "$success", "$warning", "$foreground 80%", "$primary", "$accent", "$secondary"
)  # fmt: skip
_SHADES = "█▒▓░▚▌▄▝▗"
"""As many as there can be parts: told apart without colour."""
_LETTERS = "WAGOCLTPS"
SMALLEST_SHARE = 0.02
"""Parts below this share of the whole are told together."""
ZOOM = 4
"""Where more than this many times the need is free, the bar shows the need and names the free memory."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the bar."""

    name: str
    amount_bytes: float
    cells: int
    shade: str
    tone: str


def parts_of(estimate: Estimate) -> list[tuple[str, float]]:
    """(name, bytes) of the parts worth a segment; the small ones share the last one."""
    least = SMALLEST_SHARE * max(estimate.likely, 1.0)
    large = [(part.name, part.amount) for part in estimate.breakdown if part.amount >= least]
    small = [part for part in estimate.breakdown if 0 < part.amount < least]
    rest = sum(part.amount for part in small)
    worth = rest > least / 20
    return [*large, (", ".join(part.name for part in small), rest)] if worth else large


def scale_bytes(estimate: Estimate, free_bytes: float) -> float:
    """How many bytes the whole width of the bar stands for."""
    need = max(estimate.high, 1.0)
    return need * 1.15 if free_bytes > ZOOM * need else max(need, free_bytes) * 1.02


def segments(estimate: Estimate, free_bytes: float, width: int, *, unicode: bool) -> list[Segment]:
    """The parts in cells. Cells are shared by cumulated sums, so that they add up to the likely figure's length."""
    scale = scale_bytes(estimate, free_bytes)
    out: list[Segment] = []
    summed, drawn = 0.0, 0
    taken: set[str] = set()
    for index, (name, amount) in enumerate(parts_of(estimate)):
        summed += amount
        end = round(summed / scale * width)
        letter = next((c for c in name.upper() + _LETTERS if c.isalpha() and c not in taken), "#")
        taken.add(letter)
        shade = _SHADES[index % len(_SHADES)] if unicode else letter
        out.append(Segment(name, amount, end - drawn, shade, _TONES[index % len(_TONES)]))
        drawn = end
    return out


def bar_content(estimate: Estimate, free_bytes: float, width: int, *, unicode: bool) -> Content:
    """The bar: parts up to the likely figure, a line to the upper bound, and a mark where free memory ends."""
    scale = scale_bytes(estimate, free_bytes)
    cells: list[tuple[str, str]] = []
    for segment in segments(estimate, free_bytes, width, unicode=unicode):
        cells += [(segment.shade, segment.tone)] * segment.cells
    high = min(round(estimate.high / scale * width), width)
    cells += [("─" if unicode else "-", "$foreground 70%")] * max(high - len(cells), 0)
    cells += [(" ", "")] * max(width - len(cells), 0)
    if free_bytes <= scale:
        mark = "$error bold" if estimate.high > free_bytes else "$foreground bold"
        cells[min(max(round(free_bytes / scale * width), 0), width - 1)] = ("┃" if unicode else "|", mark)
    return Content.assemble(*((text, tone) if tone else text for text, tone in cells[:width]))


def words(estimate: Estimate, free_bytes: float, place: str) -> str:
    """ "likely 806 MiB (584 MiB–1.24 GiB) of 19.4 GiB RAM free"."""
    span = format_range(format_bytes(estimate.low), format_bytes(estimate.high))
    return f"likely {format_bytes(estimate.likely)} ({span}) of {format_bytes(free_bytes)} {place} free"


class FitBar(Widget):
    """Bar, then words: likely and range against free, then every part with its mark."""

    DEFAULT_CSS = "FitBar { height: auto; width: 1fr; }"

    estimate: reactive[Estimate | None] = reactive(None, layout=True)
    free_bytes: reactive[float] = reactive(0.0)
    legend: reactive[bool] = reactive(True, layout=True)

    def show(self, estimate: Estimate, free_bytes: float, place: str) -> None:
        """`place` is "RAM" or "VRAM"."""
        self._place = place
        self.free_bytes = free_bytes
        self.estimate = estimate

    def render(self) -> RenderResult:
        """Up to three kinds of line."""
        estimate = self.estimate
        if estimate is None:
            return Content("")
        policy = getattr(self.app, "policy", None)
        unicode = policy.unicode if policy else True
        width = max(self.content_size.width or self.app.size.width - 2, 20)
        place = self._place
        head = Content.assemble(("Memory    ", "bold"), words(estimate, self.free_bytes, place))
        bar = bar_content(estimate, self.free_bytes, width, unicode=unicode)
        lines = [head, bar]
        if self.legend:
            lines += self._legend(estimate, width, unicode=unicode)
        return Content("\n").join(lines)

    def _legend(self, estimate: Estimate, width: int, *, unicode: bool) -> list[Content]:
        lines, line = [], Content("")
        for segment in segments(estimate, self.free_bytes, width, unicode=unicode):
            entry = Content.assemble(
                (segment.shade, segment.tone), f" {segment.name} {format_bytes(segment.amount_bytes)}   "
            )
            if line.cell_length and line.cell_length + entry.cell_length - 3 > width:
                lines.append(line)
                line = Content("")
            line = line.append(entry)
        return [*lines, line] if line.cell_length else lines
