"""The length reports of a run's card: the model as it was, and as it is now, at every length.

Owns `lengths/` of a run directory: one report per side, and the logs from which an interrupted measurement goes on.
Must not know how anything is measured (`engine.evaluation.length_measure`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.length_measure import LengthRequest, default_lengths, measure_lengths, short_length
from engine.evaluation.length_memory import room_for
from engine.evaluation.length_text import load_text
from engine.evaluation.model import LoadedModel
from engine.evaluation.short_text import ShortScore, short_score
from engine.jobs import layout
from engine.jobs.length_report import LengthReport
from engine.jobs.spec import JobSpec
from engine.train.attempt import Attempt

LENGTHS = "lengths"
_BEFORE = "before"
_AFTER = "after"


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """`lengths/before.json`."""

    report: LengthReport
    short: ShortScore


@dataclass(frozen=True, slots=True)
class Span:
    """Which windows the two sides have, tokens."""

    original: int
    target: int
    method: str = ""


def lengths_of(spec: JobSpec, span: Span) -> tuple[int, ...]:
    """At which lengths the spec wants the card to measure; () for none."""
    if spec.evaluation.lengths or span.target <= span.original:
        return spec.evaluation.lengths
    return default_lengths(span.original, span.target)


def report_before(attempt: Attempt, loaded: LoadedModel, span: Span) -> Before:
    """Of the model as it is inside the caller's block: adapter off, original positions. Measured once per run."""
    path = attempt.run_dir / LENGTHS / f"{_BEFORE}.json"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Before)
    request = _request(attempt, span, window=span.original, step=0)
    report = _measured(attempt, loaded, request, _BEFORE)
    before = Before(report=report, short=_short(loaded, request))
    layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(before)))
    return before


def report_after(attempt: Attempt, loaded: LoadedModel, span: Span, before: Before, step: int) -> LengthReport:
    """The same of the model as it is now, short text held against `before`."""
    request = msgspec.structs.replace(
        _request(attempt, span, window=span.target, step=step),
        before=before.short,
        style=before.report.style,
        informative=before.report.informative if before.report.style else None,
        method=span.method,
    )
    report = _measured(attempt, loaded, request, _AFTER)
    layout.write_atomic(attempt.run_dir / LENGTHS / f"{_AFTER}.json", msgspec.json.format(msgspec.json.encode(report)))
    return report


def _request(attempt: Attempt, span: Span, *, window: int, step: int) -> LengthRequest:
    evaluation = attempt.spec.evaluation
    return LengthRequest(
        lengths=lengths_of(attempt.spec, span),
        original=span.original,
        window=window,
        prompts=max(evaluation.needle_prompts, 1),
        tasks=(NEEDLE,) if evaluation.needle_prompts else (),
        sliding=False,
        seed=attempt.spec.training.seed,
        model=attempt.spec.model.source,
        identity=f"{attempt.spec_hash} {step}",
    )


def _measured(attempt: Attempt, loaded: LoadedModel, request: LengthRequest, side: str) -> LengthReport:
    folder = attempt.run_dir / LENGTHS
    folder.mkdir(exist_ok=True)
    name = f"measuring {side}"

    def tell(words: str, done: int, total: int, _eta_seconds: float | None) -> None:
        attempt.phase(name, words, done, total)

    with loaded.inference():
        return measure_lengths(loaded, request, _log(folder, side), tell)


def _log(folder: Path, side: str) -> Path:
    return folder / f"{side}.jsonl"


def _short(loaded: LoadedModel, request: LengthRequest) -> ShortScore:
    """The untouched model on the short pieces that the other side will be asked, too."""
    text = load_text(loaded.tokenizer, request.text, max(request.lengths), request.documents)
    length = short_length(request.original, text)
    with loaded.inference():
        return short_score(loaded, text, length, room_for(loaded, length))
