"""Good weights for several adapters on rows of the user: searched on one half of them, told on the other as well.

Owns the log, so that a kill costs one figure, and the report. Must not know how adapters are put on a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.evaluation.length_log import CellLog
from engine.evaluation.mix_rows import ScoredRows
from engine.evaluation.mix_search import Try, Weights, best_of, fixed_tries, search
from engine.jobs.mix_lines import Measured, SweepReport, Tried

Say = Callable[[Tried], None]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is searched. `score` is given weights and whether the rows are those of the check."""

    adapters: tuple[str, ...]
    method: str
    rows: ScoredRows
    score: Callable[[Weights, bool], float]
    """Nats per trained token."""
    tries: int
    seed: int = 17
    identity: str = ""
    """Of base, adapters, method and number type: figures of another are not this one's."""
    log: Path | None = None
    say: Say = field(default=lambda _: None)


def run_sweep(sweep: Sweep) -> SweepReport:
    """Measure, and say what was found. With a log a killed sweep goes on where it was. Raises EngineError."""
    began = time.monotonic()
    log = CellLog(sweep.log, f"mix {sweep.identity} {sweep.rows.digest} {sweep.seed}")
    try:
        tries = _searched(sweep, log)
        return _report(sweep, log, tries, began)
    finally:
        log.close()


def _searched(sweep: Sweep, log: CellLog) -> list[Try]:
    count = len(sweep.adapters)
    total = max(sweep.tries, len(fixed_tries(count)))
    checks = 3 + count if count > 1 else 2
    tries: list[Try] = []
    spent: list[float] = []

    def score(weights: Weights) -> float:
        began = time.monotonic()
        loss, fresh = _measured(sweep, log, weights, check=False)
        if fresh:
            spent.append(time.monotonic() - began)
        return loss

    for one in search(score, count, sweep.tries, sweep.seed):
        tries.append(one)
        best = best_of(tries)
        left = total - len(tries) + (checks if sweep.rows.check else 0)
        eta = sum(spent) / len(spent) * left if spent else None
        sweep.say(
            Tried(
                number=len(tries),
                total=total,
                what=one.what,
                weights=one.weights,
                loss=one.loss,
                best=best.weights,
                best_loss=best.loss,
                eta_seconds=eta,
            )
        )
    return tries


def _measured(sweep: Sweep, log: CellLog, weights: Weights, *, check: bool) -> tuple[float, bool]:
    """The loss, and whether it was measured now."""
    cell = f"{'check' if check else 'search'} {','.join(f'{weight:g}' for weight in weights)}"
    found = log.find(cell, float)
    if found is not None:
        return found, False
    began = time.monotonic()
    loss = sweep.score(weights, check)
    log.add(cell, loss, time.monotonic() - began)
    return loss, True


def _report(sweep: Sweep, log: CellLog, tries: list[Try], began: float) -> SweepReport:
    def told(one: Try) -> Measured:
        checked = _measured(sweep, log, one.weights, check=True)[0] if sweep.rows.check else None
        return Measured(weights=one.weights, loss=one.loss, check_loss=checked)

    def of(what: str) -> list[Try]:
        return [one for one in tries if one.what == what]

    rows = sweep.rows
    equal = of("equal")
    return SweepReport(
        adapters=sweep.adapters,
        method=sweep.method,
        base=told(of("base")[0]),
        alone=tuple(told(one) for one in of("alone")),
        equal=told(equal[0]) if equal else None,
        best=told(best_of(tries)),
        tries=len(tries),
        rows=len(rows.search),
        tokens=sum(row.trained_tokens for row in rows.search),
        check_rows=len(rows.check),
        check_tokens=sum(row.trained_tokens for row in rows.check),
        data=rows.data,
        seconds=time.monotonic() - began + log.seconds,
    )
