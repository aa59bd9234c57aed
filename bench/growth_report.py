"""From measured runs to the table and the picture in EXPANSION.md.

Owns the reading of `bench.growth`'s results: means over seeds, readings at equal tokens and at equal
operations. Must not train anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "EXPANSION.md"
PICTURE = ROOT / "assets" / "growth.svg"
BEGIN, END = "<!-- growth table: begin -->", "<!-- growth table: end -->"
BASE = "continue the base"
SHOWN = (BASE, "LoRA, rank 128", "random, wide shape", "hybrid, pad", "depth, identity", "depth, LESA", "depth, SOLAR")
COLOURS = ("#4c566a", "#88a", "#bf616a", "#2e9e6b", "#3b6ea8", "#b48ead", "#d08770")


@dataclass(frozen=True, slots=True)
class Curve:
    """Means over seeds of one arm."""

    arm: str
    seeds: int
    parameters: int
    trained: int
    step_operations: float
    tokens_per_step: int
    steps: tuple[int, ...]
    old: tuple[float, ...]
    new: tuple[float, ...]
    right: tuple[float, ...]
    spread: float
    """Largest minus smallest last new loss over seeds."""

    def at(self, step: float, values: Sequence[float]) -> float:
        """A value between evaluations, on the straight line between them; the last one beyond the end."""
        for index in range(1, len(self.steps)):
            low, high = self.steps[index - 1], self.steps[index]
            if step <= high:
                share = (step - low) / (high - low)
                return values[index - 1] + share * (values[index] - values[index - 1])
        return values[-1]

    def first_below(self, values: Sequence[float], level: float) -> float | None:
        """The step at which `values` first come down to `level`; None when they never do."""
        if values[0] <= level:
            return 0.0
        for index in range(1, len(self.steps)):
            if values[index] <= level:
                fall = values[index - 1] - values[index]
                share = (values[index - 1] - level) / fall if fall else 1.0
                return self.steps[index - 1] + share * (self.steps[index] - self.steps[index - 1])
        return None


def curves(path: Path) -> dict[str, Curve]:
    """Means over seeds by arm, in the order of the file."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        if line.strip():
            tree = json.loads(line)
            groups.setdefault(tree["arm"], []).append(tree)
    return {arm: _curve(arm, runs) for arm, runs in groups.items()}


def _curve(arm: str, runs: list[dict[str, Any]]) -> Curve:
    steps = tuple(point["step"] for point in runs[0]["points"])

    def column(key: str) -> tuple[float, ...]:
        return tuple(mean(run["points"][index][key] for run in runs) for index in range(len(steps)))

    last = [run["points"][-1]["new_loss"] for run in runs]
    first = runs[0]
    return Curve(
        arm,
        len(runs),
        first["parameters"],
        first["trained"],
        first["step_operations"],
        first["tokens_per_step"],
        steps,
        column("old_loss"),
        column("new_loss"),
        column("new_right"),
        max(last) - min(last),
    )


def table(found: dict[str, Curve]) -> str:
    """Markdown: one row per arm, equal tokens first, then equal operations."""
    base = found[BASE]
    tokens_step = min(curve.steps[-1] for curve in found.values())
    operations = min(curve.steps[-1] * curve.step_operations for curve in found.values())
    base_old = base.old[0]
    rows = [
        "| start from | parameters (trained) | old loss at growth | equal tokens: old | new (spread) | facts right "
        "| equal operations: old | new | tokens to the base's old loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for curve in found.values():
        spent = operations / curve.step_operations
        back = curve.first_below(curve.old, base_old * 1.02)
        rows.append(
            f"| {curve.arm} | {curve.parameters / 1e6:.2f} M ({curve.trained / 1e6:.2f} M) | {curve.old[0]:.3f} "
            f"| {curve.at(tokens_step, curve.old):.3f} | {curve.at(tokens_step, curve.new):.3f} ({curve.spread:.3f}) "
            f"| {100 * curve.at(tokens_step, curve.right):.0f} % "
            f"| {curve.at(spent, curve.old):.3f} | {curve.at(spent, curve.new):.3f} "
            f"| {'never' if back is None else f'{round(back * curve.tokens_per_step):,}'} |"
        )
    seeds = {curve.seeds for curve in found.values()}
    note = (
        f"Means over {min(seeds)}{'' if len(seeds) == 1 else f' to {max(seeds)}'} seeds; {tokens_step} steps of "
        f"{base.tokens_per_step} tokens; equal operations: {operations / 1e12:.1f} · 10¹² each. Losses in nats per "
        "answer token. The base's old loss counts as reached within 2 %."
    )
    return "\n".join((*rows, "", note))


def picture(found: dict[str, Curve]) -> str:
    """An SVG of old and new loss over tokens for the arms in `SHOWN`."""
    shown = [(found[name], colour) for name, colour in zip(SHOWN, COLOURS, strict=True) if name in found]
    panels = [
        _panel(shown, lambda curve: curve.old, "old skills: loss on held-out chats", 60),
        _panel(shown, lambda curve: curve.new, "new skill: loss on held-out phrasing", 500),
    ]
    legend = "".join(
        f'<rect x="{60 + 125 * index}" y="330" width="12" height="12" fill="{colour}"/>'
        f'<text x="{76 + 125 * index}" y="340">{curve.arm}</text>'
        for index, (curve, colour) in enumerate(shown)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="960" height="360" font-family="sans-serif" font-size="11">'
        '<rect width="960" height="360" fill="white"/>' + "".join(panels) + legend + "</svg>\n"
    )


def _panel(shown: list[tuple[Curve, str]], values: Callable[[Curve], Sequence[float]], title: str, left: int) -> str:
    import math

    width, height, top = 400, 250, 40
    longest = min(curve.steps[-1] for curve, _ in shown)
    numbers = [
        number
        for curve, _ in shown
        for step, number in zip(curve.steps, values(curve), strict=True)
        if step <= longest and number > 0
    ]
    low, high = math.log(min(numbers)), math.log(max(numbers))

    def place(step: float, number: float) -> str:
        x = left + width * step / longest
        y = top + height * (1 - (math.log(number) - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    lines = []
    for curve, colour in shown:
        points = [
            place(step, number) for step, number in zip(curve.steps, values(curve), strict=True) if step <= longest
        ]
        lines.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    ticks = "".join(
        f'<text x="{left - 6}" y="{top + height * (1 - share) + 4:.0f}" text-anchor="end">'
        f"{math.exp(low + share * (high - low)):.2f}</text>"
        for share in (0.0, 0.5, 1.0)
    )
    tokens = longest * shown[0][0].tokens_per_step
    return (
        f'<text x="{left}" y="26" font-size="13">{title} (log scale)</text>'
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ccc"/>'
        f'{ticks}<text x="{left + width}" y="{top + height + 16}" text-anchor="end">{tokens:,} tokens</text>'
        + "".join(lines)
    )


def write_report(path: Path) -> None:
    """Put the table into EXPANSION.md between its marks, and the picture beside the other assets."""
    found = curves(path)
    PICTURE.write_text(picture(found))
    text = PAGE.read_text()
    head, rest = text.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    PAGE.write_text(f"{head}{BEGIN}\n{table(found)}\n{END}{tail}")
    print(table(found))
