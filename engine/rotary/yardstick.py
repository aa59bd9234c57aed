"""What every method of a race is measured with: the same texts, needles and short pieces, made once.

Owns the yardstick and one method's measurement with it. Must not know methods, logs or who listens. Sliding windows and
losses by position are left to the full evaluation: they take several times as many tokens and decide nothing here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from engine.evaluation.calibration import Calibration
from engine.evaluation.haystack import Haystack, HaystackOrder, build, with_room
from engine.evaluation.haystack_frame import writer_for
from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.length_text import Documents
from engine.evaluation.lengths import entry, last_k, last_tokens
from engine.evaluation.long_pass import Room
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import Answered, answer_batch, batches, cells
from engine.evaluation.progress import Meter
from engine.evaluation.short_text import MOST_PIECES, regression, short_score
from engine.jobs.length_report import LengthPerplexity, LengthReport, NeedleCell, ShortRegression
from engine.jobs.length_verdict import reference_length


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Build it with `new_yardstick`."""

    model: LoadedModel
    documents: Documents
    lengths: tuple[int, ...]
    """Of the perplexity, rising."""
    original: int
    calibration: Calibration
    room: Room
    stacks: tuple[tuple[Haystack, ...], ...]
    """By length, rising: those from the window on that have room for a question."""
    seed: int
    notes: tuple[str, ...] = field(default=())

    @property
    def target(self) -> int:
        return self.lengths[-1]

    @property
    def needle_lengths(self) -> tuple[int, ...]:
        return tuple(stacks[0].length for stacks in self.stacks)

    @property
    def short_tokens(self) -> int:
        """Of the short pieces."""
        return len(self.documents.pieces(self.original, MOST_PIECES)) * self.original

    @property
    def tokens(self) -> int:
        """That go through the model for one method."""
        needles = sum(stack.tokens for stacks in self.stacks for stack in stacks)
        return len(self.documents.texts) * sum(self.lengths) + self.short_tokens + needles

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every token that is measured on."""
        digest = hashlib.sha256()
        for text in self.documents.texts:
            digest.update(repr(text).encode())
        for stacks in self.stacks:
            for stack in stacks:
                digest.update(repr((stack.shared, [question.ids for question in stack.questions])).encode())
        return digest.hexdigest()

    def reports(self, begun: LengthReport, before: ShortRegression | None, meter: Meter) -> Iterator[LengthReport]:
        """The report of the model as it is now, growing with every figure; the last is complete.

        `begun` names model and method; figures that it has are not measured again, perplexities where it has them all.
        `before` is the untouched model's short text; None for the untouched itself. The longest texts come first: their
        speed is the estimate's.
        """
        report = msgspec.structs.replace(
            begun,
            style=self.calibration.style,
            informative=self.calibration.informative,
            text=self.documents.origin,
            documents=len(self.documents.texts),
            seed=self.seed,
            notes=self.notes,
        )
        if len(report.perplexity) == len(self.lengths):
            meter.skip(sum(self.lengths) * len(self.documents.texts))
        else:  # from the start: a rise takes the loss of every token, which reports do not carry
            for found in self._perplexities(report.window, meter):
                report = msgspec.structs.replace(report, perplexity=found)
                yield report
        if report.short is None:
            meter.say("short text")
            report = msgspec.structs.replace(report, short=self._short(before, meter))
            yield report
        else:
            meter.skip(self.short_tokens)
        asked = {cell.length for cell in report.needles}
        for stacks in reversed(self.stacks):
            if stacks[0].length in asked:
                meter.skip(sum(stack.tokens for stack in stacks))
                continue
            meter.say(f"needles at {stacks[0].length:,}")
            report = msgspec.structs.replace(report, needles=(*self._needles(stacks, meter), *report.needles))
            yield report

    def _perplexities(self, window: int, meter: Meter) -> Iterator[tuple[LengthPerplexity, ...]]:
        """Of the lengths measured so far, rising; the longest is measured first."""
        k = last_tokens(self.lengths[0], self.original)
        reference = reference_length(self.lengths, self.original, window)
        found: dict[int, tuple[float, ...]] = {}
        for length in reversed(self.lengths):
            meter.say(f"perplexity at {length:,}")
            found[length] = last_k(self.model, self.documents, length, k, self.room, meter.add)
            yield tuple(entry(known, found, reference, len(self.documents.texts)) for known in sorted(found))

    def _short(self, before: ShortRegression | None, meter: Meter) -> ShortRegression:
        score = short_score(self.model, self.documents, self.original, self.room, meter.add)
        found = regression(score, score)
        return found if before is None else msgspec.structs.replace(found, perplexity_before=before.perplexity_before)

    def _needles(self, stacks: tuple[Haystack, ...], meter: Meter) -> tuple[NeedleCell, ...]:
        found: list[Answered] = []
        for batch in batches(self.model, stacks, self.room):
            for answers in answer_batch(self.model, batch.stacks, self.room):
                found += answers
            meter.add(sum(stack.tokens for stack in batch.stacks))
        return cells(NEEDLE, stacks[0].length, found)


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is measured."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    prompts: int
    """Needles per length and depth."""
    seed: int


def new_yardstick(
    model: LoadedModel, documents: Documents, original: int, calibration: Calibration, room: Room, amounts: Amounts
) -> Yardstick:
    """Texts and needles of these amounts. Lengths without room for a needle are left out, with a note."""
    writer = writer_for(model.tokenizer, calibration.style, documents.own)
    wanted = [length for length in amounts.lengths if length >= min(original, amounts.lengths[-1])]
    roomy, left_out = with_room(writer, NEEDLE, wanted)
    by_length = []
    for length in roomy:
        orders = [HaystackOrder(NEEDLE, length, amounts.depths, amounts.seed, n) for n in range(amounts.prompts)]
        by_length.append(tuple(stack for order in orders for stack in build(writer, order)))
    return Yardstick(
        model,
        documents,
        amounts.lengths,
        original,
        calibration,
        room,
        tuple(by_length),
        amounts.seed,
        (*documents.notes, *left_out),
    )
