"""Predicted against measured in a few lines of text and as JSON.

Owns the summary's form. Must not know how results came about.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from engine.rehearsal.orders import EdgeFound
from engine.units import GIB, MIB
from tests.gpu.rows import Result

TIERS = {
    "formula_alloc_error": "formula allocated",
    "formula_reserved_error": "formula reserved",
    "formula_process_error": "formula process",
    "dry_alloc_error": "dry run allocated",
    "probe_process_error": "probe process",
}


def errors_of(results: Iterable[Result], tier: str) -> list[float]:
    """Signed errors of one tier."""
    return [result.errors[tier] for result in results if tier in result.errors]


def as_text(results: Sequence[Result]) -> str:
    """Every configuration in a line, then each tier by method: mean of the absolute errors, worst signed error."""
    lines = [
        f"{'configuration':47} {'model':31} {'alloc':>7} {'form.':>7} {'dry':>7} {'reserved':>8} {'process':>8} "
        f"{'ctx MiB':>7} {'tokens/s':>9}"
    ]
    for result in results:
        lines.append(_line(result))
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.configuration.method].append(result)
    lines += ["", f"{'errors, mean / worst':22}" + "".join(f"{name:>22}" for name in TIERS.values())]
    for name, group in [*sorted(groups.items()), ("all", list(results))]:
        cells = "".join(f"{_mean_and_worst(errors_of(group, tier)):>22}" for tier in TIERS)
        lines.append(f"{name:12}{len(group):4} rows {cells}")
    return "\n".join(lines)


def _line(result: Result) -> str:
    found, errors = result.measured, result.errors
    head = f"{result.configuration.title[:47]:47} {result.configuration.model.name[:31]:31}"
    if found is None:
        return f"{head} {result.problem}"
    if found.out_of_memory:
        return f"{head} out of memory in {found.out_of_memory}, {found.asked / MIB:,.0f} MiB asked"
    return (
        f"{head} {found.allocated / GIB:7.3f} {_percent(errors, 'formula_alloc_error'):>7} "
        f"{_percent(errors, 'dry_alloc_error'):>7} {found.reserved / GIB:8.3f} {found.process / GIB:8.3f} "
        f"{found.context / MIB:7.0f} {found.tokens_per_second:9,.0f} {result.problem}"
    ).rstrip()


def _percent(errors: dict[str, float], name: str) -> str:
    return f"{errors[name]:+.1%}" if name in errors else "-"


def _mean_and_worst(errors: list[float]) -> str:
    if not errors:
        return "-"
    return f"{statistics.fmean(map(abs, errors)):.2%} / {max(errors, key=abs):+.2%}"


def edge_line(title: str, found: EdgeFound, likely: int, cautious: int) -> str:
    """One cap: the true edge and the formula's."""
    error = f"{likely / found.longest - 1:+.1%}" if found.longest else ("right" if not likely else "too hopeful")
    return (
        f"{title[:40]:40} {found.cap_gib:5.0f} GiB: longest {found.longest:7,} (fails at {found.shortest_failed:,}); "
        f"formula {likely:7,} likely ({error}), {cautious:7,} sure"
    )


def as_json(results: Sequence[Result], edges: Sequence[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Figures by tier, problems, edges."""
    tiers = {}
    for tier, name in TIERS.items():
        errors = errors_of(results, tier)
        if errors:
            tiers[name] = {
                "rows": len(errors),
                "mean": statistics.fmean(map(abs, errors)),
                "bias": statistics.fmean(errors),
                "worst": max(errors, key=abs),
            }
    measured = [result for result in results if result.measured is not None]
    inside = [
        result.formula.low <= result.measured.process <= result.formula.high
        for result in measured
        if result.measured is not None and result.measured.process
    ]
    return {
        **facts,
        "configurations": len(results),
        "measured": len(measured),
        "process_in_range": sum(inside),
        "process_read": len(inside),
        "tiers": tiers,
        "problems": {f"{r.configuration.title}, {r.configuration.model.name}": r.problem for r in results if r.problem},
        "edges": list(edges),
    }
