"""What each stage of a job did, counted from its journal: steps, tokens by source, time, waiting, losses.

Owns the counting, with what a resume or a recovery makes void taken back. Must not know files or how a card is drawn.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from engine.jobs import events as ev


class StageFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a job, or a job without stages as a whole."""

    stage: int
    """From 1; 0 in a job without stages."""
    name: str = ""
    task: str = ""
    first_step: int = 0
    """Steps before it."""
    steps: int = 0
    tokens: int = 0
    domains: dict[str, int] = {}
    """Tokens by source, in jobs that stream."""
    training_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Of these: how long the device waited for data."""
    loss_first: float | None = None
    """Mean training loss of its first tenth of the steps."""
    loss_last: float | None = None
    eval_first: float | None = None
    """Held-out loss at or after its first step."""
    eval_last: float | None = None
    recoveries: int = 0

    @property
    def wait_share(self) -> float:
        """Of its training time."""
        return self.wait_seconds / self.training_seconds if self.training_seconds else 0.0


@dataclass(slots=True)
class _Columns:
    """A row per step that still counts, by rising step."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    waits: array[float] = field(default_factory=lambda: array("d"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    domains: dict[str, array[int]] = field(default_factory=dict)

    def add(self, event: ev.Step) -> None:
        for name in event.domains:
            if name not in self.domains:
                self.domains[name] = array("q", bytes(8 * len(self.steps)))
        self.steps.append(event.step)
        self.tokens.append(event.tokens)
        self.seconds.append(event.step_seconds)
        self.waits.append(event.wait_seconds)
        self.losses.append(event.loss)
        for name, column in self.domains.items():
            column.append(event.domains.get(name, 0))

    def cut(self, step: int) -> None:
        """Forget everything after `step`."""
        kept = len(self.steps)
        while kept and self.steps[kept - 1] > step:
            kept -= 1
        for counted in (self.steps, self.tokens, *self.domains.values()):
            del counted[kept:]
        for measured in (self.seconds, self.waits, self.losses):
            del measured[kept:]

    def slice_of(self, first: int, last: int) -> slice:
        """Rows of the steps first + 1 to last."""
        inside = [index for index, step in enumerate(self.steps) if first < step <= last]
        return slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)


class _Counter:
    """Takes events one by one."""

    def __init__(self) -> None:
        self.columns = _Columns()
        self.stages: dict[int, ev.Stage] = {}
        self.evaluations: list[tuple[int, float]] = []
        self.recovered_at: list[int] = []

    def take(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.Step():
                self.columns.cut(event.step - 1)
                self.columns.add(event)
            case ev.Start(resumed_step=step):
                self._rewind(step)
            case ev.Recovery(step=step, back_to_step=back):
                self.recovered_at.append(step)
                self._rewind(back)
            case ev.Eval(step=step, loss=loss):
                self.evaluations.append((step, loss))
            case ev.Stage(state="begin"):
                self.stages[event.index] = event
            case _:
                pass

    def _rewind(self, step: int) -> None:
        self.columns.cut(step)
        self.evaluations = [one for one in self.evaluations if one[0] <= step]

    def figures(self) -> tuple[StageFigures, ...]:
        last_step = self.columns.steps[-1] if self.columns.steps else 0
        if not self.stages:
            return (self._of(StageFigures(stage=0), last_step),) if last_step else ()
        begun = [self.stages[index] for index in sorted(self.stages)]
        ends = [*(stage.first_step for stage in begun[1:]), max(last_step, begun[-1].first_step)]
        return tuple(
            self._of(
                StageFigures(stage=stage.index, name=stage.name, task=stage.task, first_step=stage.first_step), end
            )
            for stage, end in zip(begun, ends, strict=True)
        )

    def _of(self, stage: StageFigures, last_step: int) -> StageFigures:
        rows, columns = self.columns.slice_of(stage.first_step, last_step), self.columns
        losses = columns.losses[rows]
        tenth = max(len(losses) // 10, 1)
        first = stage.first_step
        evaluated = [loss for step, loss in self.evaluations if first <= step <= last_step]
        domains = {name: sum(column[rows]) for name, column in columns.domains.items()}
        return msgspec.structs.replace(
            stage,
            steps=len(losses),
            tokens=sum(columns.tokens[rows]),
            domains={name: count for name, count in domains.items() if count},
            training_seconds=sum(columns.seconds[rows]),
            wait_seconds=sum(columns.waits[rows]),
            loss_first=sum(losses[:tenth]) / tenth if losses else None,
            loss_last=sum(losses[-tenth:]) / tenth if losses else None,
            eval_first=evaluated[0] if evaluated and losses else None,
            eval_last=evaluated[-1] if len(evaluated) > 1 and losses else None,
            recoveries=sum(first < step <= last_step or (step == 0 and first == 0) for step in self.recovered_at),
        )


def stage_figures(events: Iterable[ev.AnyEvent]) -> tuple[StageFigures, ...]:
    """The figures of each stage, by its number; of a job without stages one entry, or none before its first step."""
    counter = _Counter()
    for event in events:
        counter.take(event)
    return counter.figures()
