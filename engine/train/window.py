"""The window of a job with [context]: the method chosen once, and the extended base that everything is loaded from.

Owns `context/` of a run directory. Must not know torch, nor the loop.

    context/choice.json    the plan, and the race it came from; made by the first attempt, kept for all others
    context/race.jsonl     what the race measured
    context/model/         the base under its new config, made of links: configs come before models are built

A job without `context.length` trains a model that was extended before: its config's own window is the target, and its
certificate or config says what the window was before: before the last extension, where there were several.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.context.certificate import Certificate, Race, Training
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan
from engine.context.portability import Portability, portability
from engine.extension.extend import Decision, decide, measuring_of, new_certificate, new_order
from engine.extension.folder import write_extended
from engine.extension.losses import lost_words, unasked_choice
from engine.extension.spec_window import extended_before, options_of, reach_of
from engine.extension.staging import Order
from engine.jobs import control, layout
from engine.jobs import events as ev
from engine.jobs.card import Reader
from engine.jobs.spec import ContextSection, JobSpec
from engine.jobs.spec_context import AUTO
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.source import ModelRef
from engine.surgery.helpers import Progress
from engine.train.attempt import Attempt
from engine.train.signals import PauseRequested

CONTEXT = "context"
CHOICE = "choice.json"
MODEL = "model"
_SECONDS_BETWEEN_WORDS = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """From where to where, and in which folders."""

    ref: ModelRef
    """The base to load."""
    source: Path
    """The model as it was before the job."""
    original: int
    """L, tokens: the window before the job; of a model that came extended, the one before its last extension."""
    target: int
    """L', tokens."""
    decision: Decision | None = None
    """None where the model was extended before the job."""

    @property
    def plan(self) -> ContextPlan | None:
        return self.decision.plan if self.decision is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the journal and the card."""
        if self.decision is None:
            return ()
        config = _config(self.source)
        return notes_of(config, self.decision.plan, self.decision.race, portability(config, self.decision.plan))


def notes_of(
    config: Mapping[str, Any], plan: ContextPlan, race: Race | None, readers: tuple[Portability, ...]
) -> tuple[str, ...]:
    """How the method was chosen, what was not measured, what is to be known of it, and who loses it."""
    said: list[str] = []
    if race is not None and race.decided is not None:
        among, left_out = unasked_choice(config, plan.target)
        measured = {row.method for row in race.rows}
        left = bool(among) and measured.isdisjoint(METHODS.keys() - set(among))
        said = [f"Of all methods measured: {race.decided.reason}", *([left_out] if left else [])]
    return (*said, *plan.notes, *lost_words(readers))


def trains_window(spec: JobSpec) -> bool:
    """Whether the job has anything to do with a longer window."""
    return spec.context != ContextSection()


def find_window(attempt: Attempt, ref: ModelRef) -> Window | None:
    """The window of the job, its base made where it is not there yet. None for jobs without [context].

    Raises EngineError `context.*`, `train.window`, and those of the race's process; PauseRequested.
    """
    if not trains_window(attempt.spec):
        return None
    assert ref.path is not None
    reach_of(attempt.spec, ref.path)
    return window_of(attempt.run_dir, attempt.spec, ref, Listener(attempt))


def window_of(run_dir: Path, spec: JobSpec, ref: ModelRef, report: Listener | None = None) -> Window:
    """The same of any run directory, for merging later."""
    assert ref.path is not None
    if not spec.context.extends:
        return Window(ref, ref.path, *extended_before(ref.path))
    folder = run_dir / CONTEXT
    decision = _decision(folder, spec, ref, report)
    model = folder / MODEL
    if not model.is_dir():
        write_extended(ref.path, model, decision.plan, links="symbolic")
    plan = decision.plan
    extended = dataclasses.replace(ref, path=model)
    return Window(extended, ref.path, plan.original, plan.target, decision)


def _decision(folder: Path, spec: JobSpec, ref: ModelRef, report: Listener | None) -> Decision:
    """Kept from an earlier attempt, or made now and kept."""
    path = folder / CHOICE
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Decision)
    assert ref.path is not None
    folder.mkdir(exist_ok=True)
    config = _config(ref.path)
    order = order_of(spec, ref)
    decision = decide(order, measuring_of(order, ref.path, folder, report or _silent), config)
    layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(decision)))
    return decision


def readers_of(window: Window) -> tuple[Reader, ...]:
    """What programs make of the extended config, for the card; () where the job extended nothing."""
    if window.plan is None:
        return ()
    config = _config(window.source)
    return readers_from(portability(config, window.plan))


def readers_from(found: Iterable[Portability]) -> tuple[Reader, ...]:
    """The portability report as the card keeps it."""
    return tuple(Reader(program=one.consumer, verdict=one.verdict, why=one.why) for one in found)


def certificate_of(window: Window, spec: JobSpec, training: Training | None, links: str) -> Certificate | None:
    """For a folder that a run leaves; None where the job extended nothing."""
    decision = window.decision
    if decision is None:
        return None
    config = _config(window.source)
    readers = portability(config, decision.plan)
    return new_certificate(decision, spec.model.source, links, training=training, readers=readers)


def order_of(spec: JobSpec, ref: ModelRef, *, report: bool = False) -> Order:
    """What the spec asks of an extension. Raises EngineError `context.*`."""
    assert ref.path is not None
    context = spec.context
    among = unasked_choice(_config(ref.path), context.length)[0] if context.method == AUTO else ()
    return new_order(
        ref.path,
        spec.model.source,
        target=context.length,
        method=context.method,
        among=among,
        options=options_of(spec),
        factors=context.factors,
        seed=spec.training.seed,
        report=report,
        prompts=spec.evaluation.needle_prompts,
        lengths=spec.evaluation.lengths,
        needles=spec.evaluation.needle_prompts > 0,
    )


def _config(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")


def _silent(_progress: Progress) -> None:
    return


class Listener:
    """A measuring process's words as phases of the journal, and a control file as a pause."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._last = (0.0, "")

    def __call__(self, progress: Progress) -> None:
        now, (then, phase) = time.monotonic(), self._last
        if progress.phase == phase and now - then < _SECONDS_BETWEEN_WORDS:
            return
        self._last = (now, progress.phase)
        name = _PHASES.get(progress.phase, "extending")
        self._attempt.phase(name, progress.words, progress.done_bytes, progress.total_bytes)
        command = control.take(self._attempt.run_dir) if progress.phase != "done" else None
        if command in ("pause", "stop"):
            self._attempt.journal.write(ev.Control(t=time.time(), command=command))
            raise PauseRequested("", command)


_PHASES = {"race": "choosing method", "search": "searching factors", "evaluation": "measuring lengths"}
