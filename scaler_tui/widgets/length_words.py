"""A length report drawn for the card: the verdict, perplexity by length as bars, needles as heat maps, who reads it.

Owns layout for a width. Must not judge: the verdict's words are `engine.jobs.length_verdict`'s.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from textual.content import Content

from engine.jobs.card import Reader
from engine.jobs.heat_grid import HeatGrid, heat_grid, short_length, tasks_of
from engine.jobs.length_report import LengthReport
from engine.jobs.length_verdict import verdict
from scaler_tui.heat_layout import LABEL_CELLS, WIDE_CELL, Line, Piece, heat_lines, legend
from scaler_tui.race_table import change_text, perplexity_text, short_tone
from scaler_tui.widgets.heat_map import lines_content, pair_lines
from scaler_tui.widgets.status_line import toned

SIGNS = {"good": ("✓", "+"), "bad": ("✗", "x")}
GAP_CELLS = 4
LONGEST_BAR, LEGEND_CELLS = 40, 24
LEAST_SPAN = 2.0
"""The bars span a factor of at least this much: a difference of a few per cent looks like one."""
READER_TONES = {"exact": "good", "approximate": "warn", "lost": "bad"}


def headline(report: LengthReport, width: int, *, unicode: bool) -> Content:
    """The verdict as a sentence."""
    found = verdict(report)
    tone = "good" if found.effective >= report.window else "bad"
    sign = SIGNS[tone][0 if unicode else 1]
    words = found.words if unicode else found.words.replace("±", "+-")
    lines = textwrap.wrap(f"{words[:1].upper()}{words[1:]}.", max(width - 2, 20), break_on_hyphens=False)
    return Content.assemble(toned(f"{sign} ", tone), toned("\n  ".join(lines), "strong"))


def perplexity_lines(after: LengthReport, before: LengthReport | None, width: int, *, unicode: bool) -> list[Line]:
    """A line per length: before, after, and a bar for after on a logarithmic scale; where it rises, it says so."""
    if not after.perplexity:
        return []
    earlier = {point.length: point.perplexity for point in before.perplexity} if before is not None else {}
    values = [value for value in (*earlier.values(), *(p.perplexity for p in after.perplexity)) if math.isfinite(value)]
    low = math.log(min(values, default=1.0))
    high = max(math.log(max(values, default=1.0)), low + math.log(LEAST_SPAN))
    heads = ("length", *(("before",) if earlier else ()), "after")
    cells = min(width - 8 * len(heads) - 4, LONGEST_BAR)
    mark = f"  bar: after, {'┃' if unicode else '|'} before" if earlier and cells >= LEGEND_CELLS else ""
    lines: list[Line] = [(Piece("perplexity of the same closing tokens with more text before"[:width], "quiet"),)]
    lines.append((Piece("".join(f"{head:>8}" for head in heads) + mark, "quiet"),))
    for point in after.perplexity:
        was = earlier.get(point.length)
        pieces = [Piece(f"{short_length(point.length):>8}", "quiet")]
        if earlier:
            pieces.append(Piece(f"{perplexity_text(was) if was is not None else '-':>8}"))
        pieces.append(Piece(f"{perplexity_text(point.perplexity):>8}", "strong"))
        if cells >= 8:
            pieces += _bar(point.perplexity, was, low, high, cells, unicode=unicode)
        lines.append(tuple(pieces))
    return lines


def _bar(value: float, was: float | None, low: float, high: float, cells: int, *, unicode: bool) -> list[Piece]:
    """Filled to `value`, a mark at what it was before."""
    full, mark = ("█", "┃") if unicode else ("#", "|")
    filled = _cells(value, low, high, cells)
    bar = full * filled + " " * (cells - filled)
    if was is None:
        return [Piece("  "), Piece(bar.rstrip(), "busy")]
    at = _cells(was, low, high, cells) - 1
    return [Piece("  "), Piece(bar[:at], "busy"), Piece(mark, "warn"), Piece(bar[at + 1 :].rstrip(), "busy")]


def _cells(value: float, low: float, high: float, cells: int) -> int:
    share = (math.log(value) - low) / (high - low) if high > low and 0 < value < math.inf else 1.0
    return min(max(round(1 + share * (cells - 1)), 1), cells)


def short_line(report: LengthReport) -> Line:
    """What short text lost."""
    short = report.short
    if short is None:
        return ()
    figures = f"{perplexity_text(short.perplexity_before)} to {perplexity_text(short.perplexity_after)}"
    change = Piece(change_text(short.change), short_tone(short.change))
    where = Piece(f"  at {short.length:,} tokens", "quiet")
    return (Piece("short text ", "quiet"), Piece(f"{figures}  "), change, where)


def map_lines(after: LengthReport, before: LengthReport | None, width: int, *, unicode: bool) -> list[Line]:
    """A heat map per task, before and after beside each other where there is room."""
    lines: list[Line] = []
    for task in tasks_of(after.needles):
        grids = [(f"{task}, after" if before is not None else task, heat_grid(after.needles, task))]
        earlier = heat_grid(before.needles, task) if before is not None else None
        if earlier is not None:
            grids.insert(0, (f"{task}, before", earlier))
        shown = [(name, grid) for name, grid in grids if grid is not None]
        lines += _beside([_titled(name, grid, width, unicode=unicode) for name, grid in shown], width)
    return [*lines, legend(unicode=unicode)] if lines else []


def _titled(name: str, grid: HeatGrid, width: int, *, unicode: bool) -> list[Line]:
    cells = min(width, LABEL_CELLS + WIDE_CELL * len(grid.lengths))
    return [(Piece(name, "strong"),), *heat_lines(grid, cells, unicode=unicode)]


def _beside(blocks: Sequence[list[Line]], width: int) -> list[Line]:
    widths = [max(sum(len(piece.text) for piece in line) for line in block) for block in blocks]
    if len(blocks) == 2 and sum(widths) + GAP_CELLS <= width:
        return pair_lines(blocks[0], blocks[1], widths[0] + GAP_CELLS)
    return [line for block in blocks for line in block]


def reader_lines(readers: Sequence[Reader], width: int) -> Content:
    """Which programs read the model."""
    names = max((len(reader.program) for reader in readers), default=0) + 2
    lines: list[Content] = []
    for reader in readers:
        first, *rest = textwrap.wrap(f"{reader.verdict}: {reader.why}", max(width - names, 20), break_on_hyphens=False)
        said, why = first[: len(reader.verdict)], first[len(reader.verdict) :]
        program = toned(f"{reader.program:<{names}}", "quiet")
        lines.append(Content.assemble(program, toned(said, READER_TONES.get(reader.verdict, "")), why))
        lines += [Content(" " * names + text) for text in rest]
    return Content("\n").join(lines)


def length_content(
    after: LengthReport, before: LengthReport | None, readers: Sequence[Reader], width: int, *, unicode: bool
) -> Content:
    """All of it, in the order in which it is asked."""
    blocks = [headline(after, width, unicode=unicode)]
    figures = [*perplexity_lines(after, before, width, unicode=unicode), short_line(after)]
    blocks.append(lines_content(line for line in figures if line))
    blocks.append(lines_content(map_lines(after, before, width, unicode=unicode)))
    blocks.append(reader_lines(readers, width))
    return Content("\n\n").join(block for block in blocks if block.plain)
