"""The whole length report of one model: perplexity, positions, needles, short text; resumable.

Owns the order of the steps and what each costs in tokens. Must not know how the model was made or where reports go.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.evaluation import lengths, short_text
from engine.evaluation.calibration import ENOUGH, Calibration, calibrate, calibration_tokens
from engine.evaluation.haystack import HaystackOrder, build, even_depths, shortest_length, with_room
from engine.evaluation.haystack_frame import STYLES, Writer, writer_for
from engine.evaluation.haystack_tasks import NEEDLE, TASKS
from engine.evaluation.length_log import CellLog
from engine.evaluation.length_memory import room_for
from engine.evaluation.length_text import Documents, load_text
from engine.evaluation.long_pass import Room, cache_bytes
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import Answered, answer_batch, cells
from engine.evaluation.progress import Meter, Report, silent
from engine.evaluation.short_text import ShortScore
from engine.jobs.length_report import SHORTEST_LENGTH, LengthPerplexity, LengthReport, NeedleCell, PositionLoss
from engine.jobs.length_verdict import reference_length


class LengthRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure. Equal requests of the same model give equal reports."""

    lengths: tuple[int, ...] = ()
    """Tokens; empty: half the original window, and doubling from there to the window."""
    original: int = 0
    """The window before it was extended; 0 where it was not."""
    window: int = 0
    """What the model promises as it is measured; 0 takes it from its config."""
    depths: int = 5
    prompts: int = 4
    """Per length and depth."""
    tasks: tuple[str, ...] = (NEEDLE,)
    """Empty: no needles."""
    style: str = ""
    """ "notes" or "passkey"; "" finds out by asking."""
    informative: bool | None = None
    """Whether needles say something about this model, where that was found out before (with `style`)."""
    text: str = ""
    """ "demo", "general", a file, a folder; "" chooses by the tokenizer."""
    documents: int = 8
    """At most."""
    perplexity: bool = True
    sliding: bool = True
    """Also by sliding window; several times the tokens of the rest of the perplexity."""
    before: ShortScore | None = None
    """The short text through the model before; without, the report has no regression."""
    seed: int = 0
    model: str = ""
    """What the report calls it."""
    method: str = ""
    identity: str = ""
    """Tells one model from another in a shared log."""


def default_lengths(original: int, window: int) -> tuple[int, ...]:
    """Half the original window, and doubling from there; the window last."""
    found = [max(original // 2, 1)]
    while found[-1] * 2 < window:
        found.append(found[-1] * 2)
    return (*found, window) if window > found[-1] else tuple(found)


def short_length(original: int, documents: Documents) -> int:
    """Tokens of the short pieces: the original window, or the documents where they are shorter."""
    return min(original, documents.length)


def measure_lengths(
    model: LoadedModel, request: LengthRequest, log: Path | None = None, report: Report = silent
) -> LengthReport:
    """Measure `model` as it is now. With `log`, what an earlier process finished is not done again.

    Raises EngineError `evaluation.lengths`, `evaluation.memory`, `evaluation.too_short`, `evaluation.text_too_short`,
    `evaluation.unknown_task`, and those of reading text.
    """
    asked = check_request(model, request)
    text = load_text(model.tokenizer, asked.text, max(asked.lengths), asked.documents)
    room = room_for(model, max(asked.lengths))
    cell_log = CellLog(log, request_key(model, asked, text))
    try:
        return _Measuring(model, asked, text, room, cell_log, report).run()
    finally:
        cell_log.close()


def check_request(model: LoadedModel, request: LengthRequest) -> LengthRequest:
    """The request with its defaults filled in. Raises EngineError for what cannot be measured."""
    window = request.window or model.context_length
    original = request.original or window
    found = tuple(sorted(set(request.lengths or default_lengths(original, window))))
    if found[0] < SHORTEST_LENGTH:
        raise EngineError(
            "evaluation.lengths",
            f"{found[0]} tokens are too few to measure anything.",
            next_step=f"Choose --lengths of {SHORTEST_LENGTH} and more.",
        )
    unknown = [task for task in request.tasks if task not in TASKS]
    if unknown:
        raise EngineError(
            "evaluation.unknown_task",
            f"There is no task called {unknown[0]}.",
            next_step=f"Choose from {', '.join(TASKS)}; or none.",
        )
    if request.style and request.style not in STYLES:
        raise EngineError(
            "evaluation.unknown_style",
            f"There is no way of asking called {request.style}.",
            next_step=f"Choose from {', '.join(STYLES)}.",
        )
    for name, number in (
        ("--depths", request.depths),
        ("--prompts", request.prompts),
        ("--documents", request.documents),
    ):
        if number < 1:
            raise EngineError("evaluation.number", f"{name} {number} is less than one.", next_step="Give 1 or more.")
    return msgspec.structs.replace(request, lengths=found, original=original, window=window)


def request_key(model: LoadedModel, request: LengthRequest, text: Documents) -> str:
    """Names a request, its model and the tokens of its text in a log."""
    digest = hashlib.sha256(msgspec.json.encode(request))
    digest.update(repr(sorted(model.model.config.to_dict().items(), key=str)).encode())
    for ids in text.whole():
        digest.update(array("q", ids).tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Step:
    """A cell of the report, or part of one."""

    name: str
    words: str
    tokens: int
    kind: Any
    run: Callable[[], Any]


class _Scored(msgspec.Struct, frozen=True, array_like=True):
    """`Answered` as the log keeps it."""

    depth: float
    correct: bool
    nll: float
    tokens: int


class _Sum(msgspec.Struct, frozen=True, array_like=True):
    nats: float
    tokens: int


class _Measuring:
    """One run over all steps; values by step name."""

    def __init__(
        self, model: LoadedModel, request: LengthRequest, text: Documents, room: Room, log: CellLog, report: Report
    ) -> None:
        self.model, self.request, self.text, self.room, self.log = model, request, text, room, log
        self.original = request.original
        self.longest = max(request.lengths)
        self.k = lengths.last_tokens(min(request.lengths), self.original)
        self.meter = Meter(report, 0)
        self.began = time.monotonic()
        self.values: dict[str, Any] = {}

    def run(self) -> LengthReport:
        """All of it, shortest first."""
        texts = list(self._text_steps())
        self.meter.total = sum(step.tokens for step in texts) + self._needle_tokens()
        calibration = self._calibration()
        self._all(texts)
        needles: tuple[NeedleCell, ...] = ()
        notes = self.text.notes
        if calibration is not None:
            needles, left_out = self._needles(calibration.style)
            notes += left_out
        self.meter.settle(self.meter.total)
        return self._report(calibration, needles, notes)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _all(self, steps: list[_Step]) -> None:
        for step in steps:
            self.values[step.name] = self._one(step)

    def _one(self, step: _Step) -> Any:
        done = self.meter.done + step.tokens
        found = self.log.find(step.name, step.kind)
        if found is not None:
            self.meter.skip(step.tokens)
            return found
        self.meter.say(step.words)
        began = time.monotonic()
        value = step.run()
        self.log.add(step.name, value, time.monotonic() - began)
        self.meter.settle(done)
        return value

    def _calibration(self) -> Calibration | None:
        request = self.request
        if not request.tasks:
            return None
        if request.style:
            informative = 1.0 if request.informative in (None, True) else 0.0
            return Calibration(style=request.style, accuracy=informative, length=0)
        tokens = calibration_tokens(self.original)
        run = lambda: calibrate(self.model, min(self.original, self.longest), self.room, request.seed)  # noqa: E731
        found: Calibration = self._one(_Step("calibration", "finding how to ask", tokens, Calibration, run))
        return found

    def _text_steps(self) -> Iterator[_Step]:
        text, count = self.text, len(self.text.texts)
        if self.request.perplexity:
            for length in self.request.lengths:
                words = f"perplexity at {length:,}"
                yield _Step(f"last/{length}", words, length * count, tuple[float, ...], self._last(length))
            words = f"losses by position to {self.longest:,}"
            yield _Step("positions", words, self.longest * count, tuple[PositionLoss, ...], self._positions)
            for length in self.request.lengths if self.request.sliding else ():
                stride = lengths.stride_for(length, self.longest)
                tokens = lengths.sliding_tokens(text.length, length, stride) * count
                yield _Step(f"sliding/{length}", f"sliding window of {length:,}", tokens, _Sum, self._sliding(length))
        if self.request.before is not None:
            tokens = self.request.before.tokens
            yield _Step("short", "short text against the base", tokens, ShortScore, self._short)

    def _last(self, length: int) -> Callable[[], tuple[float, ...]]:
        return lambda: lengths.last_k(self.model, self.text, length, self.k, self.room, self.meter.add)

    def _positions(self) -> tuple[PositionLoss, ...]:
        return lengths.by_position(self.model, self.text, self.room, self.meter.add)

    def _sliding(self, length: int) -> Callable[[], _Sum]:
        def run() -> _Sum:
            stride = lengths.stride_for(length, self.longest)
            found = lengths.sliding(self.model, self.text, length, stride, self.room, self.meter.add)
            return _Sum(found.nats, found.tokens)

        return run

    def _short(self) -> ShortScore:
        length = short_length(self.original, self.text)
        return short_text.short_score(self.model, self.text, length, self.room, self.meter.add)

    # ── needles ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _needle_tokens(self) -> int:
        """About: what the haystacks and their questions will take."""
        request = self.request
        if not request.tasks:
            return 0
        return len(request.tasks) * request.prompts * sum(request.lengths) + calibration_tokens(self.original)

    def _needles(self, style: str) -> tuple[tuple[NeedleCell, ...], tuple[str, ...]]:
        """The grid of every task, and a note for lengths too short for one."""
        writer = writer_for(self.model.tokenizer, style, self.text.own)
        found: list[NeedleCell] = []
        notes: list[str] = []
        for task in self.request.tasks:
            roomy, left_out = with_room(writer, task, self.request.lengths)
            notes += left_out
            for length in roomy:
                found += cells(task, length, self._grid(writer, task, length))
            notes += self._beyond(task, found)
        if not found:
            least = min(shortest_length(writer, task) for task in self.request.tasks)
            raise EngineError(
                "evaluation.too_short",
                f"{self.longest} tokens are too few for any of the tasks.",
                next_step=f"Choose --lengths of {least} and more, or --tasks none.",
            )
        return tuple(found), tuple(notes)

    def _beyond(self, task: str, found: list[NeedleCell]) -> list[str]:
        """A note where a harder task is too hard for this model at any length."""
        within = [cell for cell in found if cell.task == task and cell.length <= self.original]
        share = sum(cell.accuracy for cell in within) / len(within) if within else 1.0
        if task == NEEDLE or share >= ENOUGH:
            return []
        return [f"{task}: {share:.0%} within the original window; what it shows beyond says little about length."]

    def _grid(self, writer: Writer, task: str, length: int) -> list[Answered]:
        depths = even_depths(self.request.depths)
        rows = self.room.rows(length, cache_bytes(self.model, length) * len(depths))
        answers: list[Answered] = []
        for first in range(0, self.request.prompts, rows):
            numbers = range(first, min(first + rows, self.request.prompts))
            step = _Step(
                f"{task}/{length}/{first}-{numbers.stop}",
                f"{task} at {length:,}",
                length * len(numbers),
                tuple[_Scored, ...],
                self._asked(writer, [HaystackOrder(task, length, depths, self.request.seed, n) for n in numbers]),
            )
            answers += [Answered(e.depth, e.correct, e.nll, e.tokens) for e in self._one(step)]
        return answers

    def _asked(self, writer: Writer, orders: list[HaystackOrder]) -> Callable[[], tuple[_Scored, ...]]:
        def run() -> tuple[_Scored, ...]:
            parts = zip(*(build(writer, order) for order in orders), strict=True)
            found = [entry for part in parts for row in answer_batch(self.model, part, self.room) for entry in row]
            return tuple(_Scored(e.depth, e.correct, e.nll, e.tokens) for e in found)

        return run

    # ── the report ──────────────────────────────────────────────────────────────────────────────────────────────
    def _report(
        self, calibration: Calibration | None, needles: tuple[NeedleCell, ...], notes: tuple[str, ...]
    ) -> LengthReport:
        request = self.request
        short = self.values.get("short")
        informative = True
        if calibration is not None:
            informative = calibration.informative
            if not informative:
                notes += (
                    f"Within its original window the model answers {calibration.accuracy:.0%} of the needles, under "
                    f"{ENOUGH:.0%} in every style: needles say nothing about it.",
                )
        return LengthReport(
            model=request.model,
            window=request.window,
            original=self.original,
            perplexity=self._perplexities(),
            positions=self.values.get("positions", ()),
            needles=needles,
            short=short_text.regression(request.before, short) if request.before and short else None,
            style=calibration.style if calibration is not None else "",
            informative=informative,
            text=self.text.origin,
            documents=len(self.text.texts),
            seed=request.seed,
            seconds=time.monotonic() - self.began + self.log.seconds,
            method=request.method,
            notes=notes,
        )

    def _perplexities(self) -> tuple[LengthPerplexity, ...]:
        request = self.request
        if not request.perplexity:
            return ()
        reference = reference_length(request.lengths, self.original, request.window)
        found = {length: self.values[f"last/{length}"] for length in request.lengths}
        slid = {length: self.values.get(f"sliding/{length}") for length in request.lengths}
        count = len(self.text.texts)
        return tuple(lengths.entry(length, found, reference, count, _sum(slid[length])) for length in request.lengths)


def _sum(found: _Sum | None) -> lengths.LossSum | None:
    return None if found is None else lengths.LossSum(found.nats, found.tokens)
