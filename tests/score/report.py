"""The score as text and as JSON: by source, by class, constants used, rows left out.

Owns sums and wording. Must not know how a row is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from engine.estimate.stacks import Stack
from engine.units import GIB
from tests.score.results import Scored, Skipped
from tests.score.stack_of import MODERN, MODERN_EAGER, OTHER

KINDS = ("allocated", "reserved", "process")


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of one kind of figure over some rows, as shares."""

    rows: int
    mean_absolute: float
    mean_signed: float
    worst_signed: float
    """The error farthest from zero, with its sign."""
    lowest: float
    """The most that was promised too little."""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One source or one class."""

    name: str
    rows: int
    scored: int
    skipped: int
    errors: tuple[ErrorSummary | None, ...]
    """In the order of KINDS."""
    verdicts: int
    verdicts_right: int
    budget: ErrorSummary | None
    """Frontier rows: memory of the published length against the budget."""
    length: ErrorSummary | None
    rate: ErrorSummary | None
    """Tokens per second."""


def summary_of_errors(errors: Iterable[float | None]) -> ErrorSummary | None:
    """None when there are none."""
    values = [error for error in errors if error is not None]
    if not values:
        return None
    return ErrorSummary(
        len(values), fmean(map(abs, values)), fmean(values), max(values, key=abs), min(values)
    )  # fmt: skip


def summary_of(name: str, scored: Sequence[Scored], skipped: Sequence[Skipped]) -> GroupSummary:
    """One line of a table."""
    judged = [one.judged_right for one in scored if one.judged_right is not None and one.longest is None]
    return GroupSummary(
        name,
        len(scored) + len(skipped),
        len(scored),
        len(skipped),
        tuple(summary_of_errors(one.errors[index] for one in scored) for index in range(len(KINDS))),
        len(judged),
        sum(judged),
        summary_of_errors(one.budget_error for one in scored),
        summary_of_errors(one.length_error for one in scored),
        summary_of_errors(one.rate_error for one in scored),
    )


def by_source(scored: Sequence[Scored], skipped: Sequence[Skipped]) -> list[GroupSummary]:
    """One line per source, in the file's order."""
    names = dict.fromkeys([*(one.row.source for one in scored), *(one.row.source for one in skipped)])
    return [
        summary_of(
            name,
            [one for one in scored if one.row.source == name],
            [one for one in skipped if one.row.source == name],
        )
        for name in names
    ]


def by_class(scored: Sequence[Scored]) -> list[GroupSummary]:
    """Modern, modern eager, 2023 and foreign."""
    groups = (MODERN, MODERN_EAGER, OTHER)
    return [summary_of(group, [one for one in scored if one.group == group], []) for group in groups]


def constants_used(scored: Sequence[Scored]) -> list[tuple[str, Stack, int]]:
    """Framework and stack of the rows -> constants, with how many rows."""
    seen: Counter[tuple[str, Stack]] = Counter()
    for one in scored:
        label = one.row.framework + (f" · {one.row.stack}" if one.row.stack else "")
        seen[label, one.work.stack] += 1
    return [(label, stack, count) for (label, stack), count in seen.items()]


def as_text(scored: Sequence[Scored], skipped: Sequence[Skipped], *, rows: bool) -> str:
    """The whole report."""
    lines = ["Errors are predicted / measured - 1; below zero means too little was promised.", ""]
    for title, groups in (("BY SOURCE", by_source(scored, skipped)), ("BY CLASS", by_class(scored))):
        lines.append(title)
        for group in groups:
            lines.extend(_group_lines(group))
        lines.append("")
    lines.append("CONSTANTS USED (framework · stack -> constants)")
    shown: set[Stack] = set()
    for label, stack, count in constants_used(scored):
        lines.append(f"  {label} -> {stack.id} ({count} rows)")
        if stack not in shown:
            shown.add(stack)
            lines.append(f"      {_constants(stack)}")
    lines.extend(["", f"ROWS NOT SCORED ({len(skipped)})"])
    lines.extend(f"  {one.row.id}  {one.row.source[:40]}: {one.reason}" for one in skipped)
    if rows:
        lines.extend(["", "ROWS SCORED", *(_row_line(one) for one in scored)])
    return "\n".join(lines)


def as_json(scored: Sequence[Scored], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "sources": [_group_json(group) for group in by_source(scored, skipped)],
        "classes": [_group_json(group) for group in by_class(scored)],
        "constants": [
            {"rows_of": label, "stack": stack.id, "rows": count, "values": _values(stack)}
            for label, stack, count in constants_used(scored)
        ],
        "skipped": [{"id": one.row.id, "source": one.row.source, "reason": one.reason} for one in skipped],
        "rows": [_row_json(one) for one in scored],
    }


def _group_lines(group: GroupSummary) -> list[str]:
    verdicts = f"verdicts {group.verdicts_right}/{group.verdicts} right" if group.verdicts else "no verdicts"
    lines = [f"  {group.name}: {group.scored} of {group.rows} rows scored, {group.skipped} not; {verdicts}"]
    more = (("budget", group.budget), ("longest sequence", group.length), ("tokens/s", group.rate))
    for kind, summary in (*zip(KINDS, group.errors, strict=True), *more):
        if summary is not None:
            lines.append(
                f"      {kind:<16} n {summary.rows:>3}   mean abs {summary.mean_absolute:6.2%}"
                f"   mean {summary.mean_signed:+7.2%}   worst {summary.worst_signed:+7.2%}"
                f"   lowest {summary.lowest:+7.2%}"
            )
    return lines


def _row_line(one: Scored) -> str:
    said = (one.predicted.allocated, one.predicted.reserved, one.predicted.process)
    was = (one.measured.allocated, one.measured.reserved, one.measured.process)
    figures = "  ".join(
        f"{kind} {now / GIB:.2f}" + (f" for {then / GIB:.2f} ({now / then - 1:+.1%})" if then else "")
        for kind, now, then in zip(KINDS, said, was, strict=True)
    )
    job = f"{one.work.batch} x {one.work.sequence}"
    length = "" if one.longest is None else f"  longest {one.longest:,} for {one.row.sequence or 0:,}"
    rate = "" if one.rate_error is None else f"  tokens/s {one.rate_error:+.0%}"
    return (
        f"  {one.row.id} {one.row.model[-24:]} {one.row.method[:12]} {job} [{one.work.stack.id}]"
        f" {figures}  {one.predicted.phase}  {one.verdict}{length}{rate}"
    )


def _constants(stack: Stack) -> str:
    return ", ".join(f"{name} {value}" for name, value in _values(stack).items() if name != "id")


def _values(stack: Stack) -> dict[str, Any]:
    return asdict(stack)


def _group_json(group: GroupSummary) -> dict[str, Any]:
    return {
        "name": group.name,
        "rows": group.rows,
        "scored": group.scored,
        "skipped": group.skipped,
        "errors": {kind: _errors_json(group.errors[index]) for index, kind in enumerate(KINDS)},
        "budget": _errors_json(group.budget),
        "longest_sequence": _errors_json(group.length),
        "tokens_per_second": _errors_json(group.rate),
        "verdicts": group.verdicts,
        "verdicts_right": group.verdicts_right,
    }


def _errors_json(summary: ErrorSummary | None) -> dict[str, float] | None:
    return None if summary is None else {field.name: getattr(summary, field.name) for field in fields(summary)}


def _row_json(one: Scored) -> dict[str, Any]:
    return {
        "id": one.row.id,
        "source": one.row.source,
        "class": one.group,
        "stack": one.work.stack.id,
        "phase": one.predicted.phase,
        "predicted_bytes": dict(
            zip(KINDS, (one.predicted.allocated, one.predicted.reserved, one.predicted.process), strict=True)
        ),
        "process_range_bytes": [one.predicted.low, one.predicted.high],
        "errors": dict(zip(KINDS, one.errors, strict=True)),
        "verdict": one.verdict,
        "ran": one.ran,
        "longest_sequence": one.longest,
        "budget_error": one.budget_error,
        "length_error": one.length_error,
        "rate_error": one.rate_error,
    }
