"""The rows on which mixes of adapters are scored: a small part of a file, the same one every time, in two halves.

Owns the choice. Must not know models or adapters. Weights are searched on the first half; the second is for saying how
good they are on rows that were not searched on. Which rows are taken follows from their text alone, so that their order
in the file and repetitions of rows do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.load import prepare, resolve_file
from engine.data.rows import EncodedRow
from engine.errors import EngineError
from engine.jobs.spec import DataSection, TrainOn

FEWEST_TOKENS, MOST_TOKENS = 512, 16_384
OPERATIONS_PER_SCORE = 4e10
"""On a processor: about a second of two cores."""
LONGEST_ROW = 2048


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What is measured; no row is in both."""

    search: tuple[EncodedRow, ...]
    check: tuple[EncodedRow, ...]
    """Empty where the file has one row only."""
    data: str

    @property
    def digest(self) -> str:
        """Of tokens and masks."""
        told = hashlib.sha256()
        for row in (*self.search, *self.check):
            told.update(repr((row.input_ids, row.trained)).encode())
        return told.hexdigest()[:16]


def token_budget(parameters: int, device: str) -> int:
    """Tokens whose score takes about a second: 2 operations per parameter and token."""
    if device != "cpu":
        return MOST_TOKENS
    return min(max(int(OPERATIONS_PER_SCORE / (2 * max(parameters, 1))), FEWEST_TOKENS), MOST_TOKENS)


def read_rows(
    data: str, tokenizer_folder: Path, window: int, train_on: TrainOn = TrainOn.COMPLETIONS
) -> list[EncodedRow]:
    """Every usable row of a file ("demo" is the demo's held-out ones). Raises EngineError `data.*`."""
    section = DataSection(
        train=str(resolve_file(data, "heldout")),
        heldout="",
        heldout_fraction=0.0,
        base_text="",
        max_length=min(window or LONGEST_ROW, LONGEST_ROW),
        train_on=train_on,
    )
    return list(prepare(section, tokenizer_folder).train)


def chosen_rows(rows: Iterable[EncodedRow], data: str, tokens: int) -> ScoredRows:
    """About `tokens` for each half. Raises EngineError `adapter.no_rows`."""
    distinct = {row.digest + row.part.to_bytes(4, "big"): row for row in rows}
    groups: dict[bytes, list[EncodedRow]] = {}
    for row in distinct.values():
        groups.setdefault(row.digest, []).append(row)
    ordered = [groups[digest] for digest in sorted(groups)]
    if not ordered:
        raise EngineError("adapter.no_rows", f"{data} has no row to score on.", next_step="Name another file.")
    return ScoredRows(_some(ordered[::2], tokens), _some(ordered[1::2], tokens), data)


def _some(groups: Sequence[list[EncodedRow]], tokens: int) -> tuple[EncodedRow, ...]:
    """Whole rows until there are enough tokens; at least one."""
    found: list[EncodedRow] = []
    counted = 0
    for group in groups:
        if found and counted >= tokens:
            break
        for row in group:
            found.append(row)
            counted += len(row.input_ids)
    return tuple(found)
