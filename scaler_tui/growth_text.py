"""Expansion plans in words and figures: columns to hold side by side, what an operator keeps, what will be done.

Owns the wording for the command line, `--plain` and the wizard alike. Must not plan or estimate: figures are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.units import format_bytes, format_count, format_hours

if TYPE_CHECKING:
    from engine.expansion.axes import Dims
    from engine.expansion.planner import PlanChoice, Source

CHANGES = "changes"
NO_FIGURE = "-"


@dataclass(frozen=True, slots=True)
class Measure:
    """One need of a plan."""

    label: str
    text: str
    amount: float
    """For the bar; 0 where there is none."""
    share: float = 0.0
    """Of the largest amount among the columns."""
    rank: int = 0
    """Which need loses its bar first where room is short: the highest."""


@dataclass(frozen=True, slots=True)
class PlanColumn:
    """One plan as a column; the model as it is, is the first one."""

    name: str
    title: str
    shape: tuple[tuple[str, str], ...]
    measures: tuple[Measure, ...]
    exact: str
    """ "exact", "changes", or "" for the model as it is."""
    recommended: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """What training a plan takes, as far as it is known."""

    memory_bytes: float = 0.0
    hours: float = 0.0
    fits: str = ""
    """ "fits", "tight" or "no"; "" when nobody looked."""


TITLES = {"wider": "Wider", "feed-forward": "Wider FFN", "deeper": "Deeper", "mixed": "Both", "experts": "Experts"}
"""Short enough for a column; anything else is called as the planner calls it."""


def plan_columns(
    source: Source, choices: Sequence[PlanChoice], needs: Mapping[str, Need], *, place: str, tokens: float
) -> tuple[PlanColumn, ...]:
    """The model as it is, then each plan. `place` is "VRAM" or "RAM"; `tokens` those that the hours are for."""
    before = source.layout.dims
    columns = [
        PlanColumn(
            name="",
            title="Now",
            shape=_shape(before, before),
            measures=_measures(
                source.parameters, choices[0].kv_cache_bytes_per_token / choices[0].kv_cache_factor,
                _stored_bytes(source, choices[0]), Need(), place, tokens,
            ),
            exact="",
        )
    ]  # fmt: skip
    for choice in choices:
        need = needs.get(choice.id, Need())
        columns.append(
            PlanColumn(
                name=choice.id,
                title=TITLES.get(choice.id, choice.title),
                shape=_shape(choice.plan.after, before),
                measures=_measures(
                    choice.parameters, choice.kv_cache_bytes_per_token, choice.disk_bytes, need, place, tokens
                ),
                exact="exact" if choice.exact else CHANGES,
                recommended=choice.recommended and len(choices) > 1,
            )
        )
    return _with_shares(_without_idle_rows(columns, before))


def _stored_bytes(source: Source, choice: PlanChoice) -> float:
    return choice.disk_bytes / max(choice.parameters, 1) * source.parameters


def _shape(dims: Dims, before: Dims) -> tuple[tuple[str, str], ...]:
    ffn = dims.expert_ffn if before.experts else dims.ffn
    experts = f"{dims.experts}, {dims.experts_per_token} each" if dims.experts else NO_FIGURE
    return (
        ("Layers", f"{dims.layers}"),
        ("Hidden", f"{dims.hidden:,}"),
        ("FFN", f"{ffn:,}"),
        ("Heads/KV", f"{dims.heads}/{dims.kv_heads}"),
        ("Experts", experts),
    )


def _measures(
    parameters: float, cache: float, disk: float, need: Need, place: str, tokens: float
) -> tuple[Measure, ...]:
    memory = format_bytes(need.memory_bytes) if need.memory_bytes else NO_FIGURE
    hours = format_hours(need.hours) if need.hours else NO_FIGURE
    if need.fits == "no":
        memory += " !"
    return (
        Measure("Parameters", format_count(parameters), parameters),
        Measure("KV/token", format_bytes(cache), cache, rank=2),
        Measure("Disk", format_bytes(disk), disk, rank=4),
        Measure(place, memory, need.memory_bytes, rank=1),
        Measure(f"{short_count(tokens)} tokens", hours, need.hours, rank=3),
    )


def short_count(count: float) -> str:
    """ "5B", "600K": for a heading, without digits that say nothing."""
    text = format_count(count)
    digits, unit = text.rstrip("TBMK"), text[len(text.rstrip("TBMK")) :]
    return f"{float(digits):g}{unit}"


def _without_idle_rows(columns: list[PlanColumn], before: Dims) -> list[PlanColumn]:
    """Experts are only a row where there are some."""
    if before.experts or any(dict(column.shape)["Experts"] != NO_FIGURE for column in columns):
        return columns
    return [replace(column, shape=tuple(row for row in column.shape if row[0] != "Experts")) for column in columns]


def _with_shares(columns: list[PlanColumn]) -> tuple[PlanColumn, ...]:
    largest = [max(column.measures[index].amount for column in columns) for index in range(len(columns[0].measures))]
    return tuple(
        replace(
            column,
            measures=tuple(
                replace(measure, share=measure.amount / top if top else 0.0)
                for measure, top in zip(column.measures, largest, strict=True)
            ),
        )
        for column in columns
    )


_AXES = {"kv_heads": "KV heads", "ffn": "FFN", "expert_ffn": "expert FFN", "shared_ffn": "shared FFN"}


def operators_words(operators: Mapping[str, str]) -> str:
    """ "hidden by zero-padding, layers by identity blocks"."""
    from engine.expansion.operators import OPERATORS

    by_name: dict[str, list[str]] = {}
    for axis, name in operators.items():
        by_name.setdefault(name, []).append(_AXES.get(axis, axis.replace("_", " ")))
    return "; ".join(
        f"{', '.join(axes)} by {OPERATORS[name].title if name in OPERATORS else name}" for name, axes in by_name.items()
    )


def plan_words(choice: PlanChoice) -> list[str]:
    """What is to be said about one plan: why (not), with which operators, what was completed, what is lost."""
    sentences = [choice.reason] if choice.reason else []
    sentences.append(f"Grows {operators_words(choice.plan.operators)}.")
    if choice.active_parameters != choice.parameters:
        sentences.append(f"A token passes through {format_count(choice.active_parameters)} of the parameters.")
    sentences += [f"{note[:1].upper()}{note[1:]}" for note in choice.checked.notes]
    return [*sentences, *(warning for warning in choice.checked.warnings if warning not in choice.reason)]
