"""Frank words before an expansion: research, hardware, data, time, and what a pretrained model would give instead.

Owns filling this plan's figures into the texts of `profiles/approaches.toml`. Must not know who shows them or when they
were agreed to.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.advise.approaches import frank_texts
from engine.advise.matrix import ApproachRow, Matrix
from engine.units import format_bytes, format_count, format_hours


@dataclass(frozen=True, slots=True)
class FrankWord:
    """One thing to know before spending anything."""

    label: str
    text: str
    source: str


def frank_words(approach: str, matrix: Matrix, tokens: float) -> tuple[FrankWord, ...]:
    """What must be said before `approach` starts; empty for approaches that need no warning. `tokens`: of the run."""
    row, larger, lora = (matrix.row(name) for name in (approach, "pretrained-larger", "lora-large"))
    figures = {
        "model": matrix.model,
        "grown": format_count(row.final_parameters),
        "added": format_count(max(row.final_parameters - row.base_parameters, 0)),
        "memory": _memory(row),
        "hours": format_hours(row.hours.likely),
        "tokens": format_count(tokens),
        "larger": _larger(larger),
        "larger_memory": _memory(larger),
        "lora_memory": _memory(lora),
        "lora_hours": format_hours(lora.hours.likely),
    }
    return tuple(
        FrankWord(word.label, word.text.format(**figures), word.source)
        for word in frank_texts()
        if approach in word.approaches
    )


def needs_frank_words(approach: str) -> bool:
    """Whether an approach may only start once its warnings were agreed to."""
    return any(approach in word.approaches for word in frank_texts())


def _memory(row: ApproachRow) -> str:
    return f"{format_bytes(row.vram.likely)} VRAM" if row.vram.likely else f"{format_bytes(row.ram.likely)} RAM"


def _larger(row: ApproachRow) -> str:
    name = row.settings.partition(",")[0]
    return (
        name if row.settings and not name.startswith("micro") else f"a pretrained {format_count(row.final_parameters)}"
    )
