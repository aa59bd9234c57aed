"""Streamed text as planned steps: one item is everything that one optimizer step computes, read while the step before
is computed.

Owns turning slices of a corpus into micro-batches. Must not know how text is read or mixed (`engine.corpus`), nor the
loop. Every sequence is full: a contiguous cut of a source's stream. Documents in it cannot see each other, as their
positions begin at 0, and no document's first token is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.corpus.corpus import Corpus
from engine.corpus.steps import Position, Slice, StreamPlan
from engine.jobs.spec import JobSpec
from engine.schedule.steps import StageSteps
from engine.train.course import Course
from engine.train.documents_log import DocumentRecord
from engine.train.step_batches import ORIGINAL


class StreamSteps(Dataset[list[dict[str, Any]]]):
    """The steps of one stage; item i is the list of micro-batches of step i + 1."""

    def __init__(self, spec: JobSpec, corpus: Corpus, found: StageSteps, start: Position, course: Course) -> None:
        """`spec` and `found` are the stage's; `start` is where the stage before ended."""
        read = [source for source in spec.sources if source.weight > 0]
        self._corpus = corpus
        self._steps = found.steps
        self._batch_size = spec.training.batch_size
        self.course = course
        self._plan = StreamPlan(
            [source.name for source in read],
            [source.weight for source in read],
            found.length,
            found.sequences_of,
            start,
        )
        domains = [corpus.domain(source.name) for source in read]
        self.documents = sum(domain.documents for domain in domains)
        self.tokens = sum(domain.tokens for domain in domains)
        """Of one epoch of every source of the stage."""
        self.trained_tokens = self.tokens - self.documents
        """No document's first token is predicted; that of a sequence which begins inside one is not either."""
        self._reader = ThreadPoolExecutor(1, "corpus-reader")
        self._ahead: tuple[int, Future[list[dict[str, Any]]]] | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Step `index`, and the next one is begun to be read."""
        expected, self._ahead = self._ahead, None
        step = expected[1].result() if expected is not None and expected[0] == index else self._read(index)
        if index + 1 < self._steps:
            self._ahead = (index + 1, self._reader.submit(self._read, index + 1))
        return step

    # ── what a step was made of ───────────────────────────────────────────────────────────────────────────────────
    def passes_after(self, steps: int) -> float:
        """Passes over the stage's sources after so many steps; what was passed over does not count."""
        before = self._plan.tokens_before
        skipped = behind = 0
        passed = sorted((one.first_window, one.last_window + 1) for one in self.course.setbacks if one.back_to < steps)
        for first, end in passed:  # one that went further back passes over again what is passed over
            skipped += max(before(end) - before(max(first, behind)), 0)
            behind = max(behind, end)
        return (before(self.course.windows_before(steps)) - skipped) / max(self.tokens, 1)

    def domains_of(self, index: int) -> dict[str, int]:
        """Tokens of step `index` by source."""
        found: dict[str, int] = {}
        for one in self._slices(index):
            found[one.domain] = found.get(one.domain, 0) + one.tokens
        return found

    def documents_of(self, index: int) -> Iterator[DocumentRecord]:
        """What step `index` was made of."""
        for one in self._slices(index):
            for piece in self._corpus.domain(one.domain).documents_in(one.first_token, one.tokens):
                yield DocumentRecord(one.domain, piece.document, piece.epoch, piece.from_token, piece.to_token)

    def position_after(self, steps: int) -> Position:
        """Where every source stands after so many steps."""
        return self._plan.position_after(self.course.windows_before(steps))

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _slices(self, index: int) -> tuple[Slice, ...]:
        return self._plan.step(self.course.window_of(index))

    def _read(self, index: int) -> list[dict[str, Any]]:
        slices, size = self._slices(index), self._batch_size
        return [self._batch(slices[first : first + size]) for first in range(0, len(slices), size)]

    def _batch(self, slices: Sequence[Slice]) -> dict[str, Any]:
        """A micro-batch as `engine.train.batches.Collator` makes it. numpy only: this runs beside the step."""
        pieces = [self._corpus.domain(one.domain).read(one.first_token, one.tokens) for one in slices]
        ids = np.stack([piece.ids for piece in pieces]).astype(np.int64)  # (B, T)
        wanted = np.zeros(ids.shape, np.bool_)
        wanted[:, :-1] = np.stack([piece.predicted() for piece in pieces])[:, 1:]  # token t predicts t + 1
        positions = np.flatnonzero(wanted)
        return {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(np.stack([piece.positions() for piece in pieces]).astype(np.int64)),
            "positions": torch.from_numpy(positions),
            "targets": torch.from_numpy(ids.reshape(-1)[positions + 1]),
            "tokens": int(ids.size),
            "trained_tokens": len(positions),
            ORIGINAL: False,
        }
