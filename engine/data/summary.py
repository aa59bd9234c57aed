"""The data report: what happened to every row, in figures.

Owns the report's types and the builder that counts while rows stream by (it keeps lengths and digests, not rows). Must
not know where rows come from.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path

from engine.data.rows import REASON_TEXT, DropReason, EncodedRow, FileFormat, Note, Problem, RowKind, SourceRow

EXAMPLES_PER_REASON = 5
SAMPLE_ROWS = 3
SAMPLE_TOKENS = 512
LONGEST_ROWS = 5
HISTOGRAM_BINS = 10


@dataclass(frozen=True, slots=True)
class Located:
    line: int
    detail: str


@dataclass(frozen=True, slots=True)
class DroppedRows:
    """Every row left out for one reason; the first few of them with their place."""

    reason: DropReason
    text: str
    rows: int
    examples: tuple[Located, ...]


@dataclass(frozen=True, slots=True)
class LengthBin:
    low: int
    high: int
    """Tokens, both ends included, before anything is cut."""
    rows: int


@dataclass(frozen=True, slots=True)
class TokenView:
    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The mask of one row, token by token."""

    line: int
    tokens: tuple[TokenView, ...]
    tokens_hidden: int
    """Tokens beyond the first SAMPLE_TOKENS, not shown."""


@dataclass(frozen=True, slots=True)
class PartReport:
    """One file: training rows, held-out rows, or base text."""

    path: str
    sha256: str
    format: FileFormat
    located_by: str
    """Whether places in this file are a "line" or a "row"."""
    kinds: dict[str, int]
    """Rows understood, by kind."""
    rows_read: int
    rows_kept: int
    rows_dropped: int
    rows_truncated: int
    truncated: tuple[Located, ...]
    tokens_cut: int
    dropped: tuple[DroppedRows, ...]
    tokens: int
    trained_tokens: int
    notes: dict[str, int]
    """Rows with each `Note`."""
    ignored_fields: tuple[str, ...]

    @property
    def trained_share(self) -> float:
        return self.trained_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything to know before a run starts."""

    train: PartReport
    heldout: PartReport | None
    """None when held-out rows are set aside from the training file or not wanted."""
    base_text: PartReport | None
    heldout_rows: int
    max_length: int
    train_on: str
    template_origin: str
    lengths: tuple[LengthBin, ...]
    longest: tuple[Located, ...]
    duplicates: int
    duplicate_examples: tuple[Located, ...]
    contaminated: int
    """Held-out rows that are also training rows."""
    shared_prompts: int
    """Held-out rows whose question is also a training row's, with the same or another answer."""
    sequences: int
    """Sequences per epoch, packed when the section asks for packing."""
    packing: bool
    fill: float
    """Share of the sequences' tokens that are rows: 1.0 is no padding at all."""
    samples: tuple[SampleRow, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The report as `data check --json` prints it."""
        return asdict(self)


@dataclass(slots=True)
class PartBuilder:
    """Counts one file's rows as they pass."""

    path: Path
    format: FileFormat
    sha256: str
    kinds: Counter[str] = field(default_factory=Counter)
    rows_read: int = 0
    rows_kept: int = 0
    rows_truncated: int = 0
    tokens_cut: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    ignored: set[str] = field(default_factory=set)
    lengths: array[int] = field(default_factory=lambda: array("I"))
    full_lengths: array[int] = field(default_factory=lambda: array("I"))
    digests: dict[bytes, int] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    duplicates: int = 0
    duplicate_examples: list[Located] = field(default_factory=list)
    longest_heap: list[tuple[int, int]] = field(default_factory=list)
    _truncated: list[Located] = field(default_factory=list)
    _dropped: dict[DropReason, list[Located]] = field(default_factory=dict)
    _dropped_rows: Counter[DropReason] = field(default_factory=Counter)

    def saw(self, item: SourceRow | Problem) -> None:
        """A row came out of the file."""
        self.rows_read += 1
        if isinstance(item, SourceRow):
            self.kinds[item.kind.value] += 1
            self.ignored.update(item.ignored)

    def dropped(self, problem: Problem) -> None:
        self._dropped_rows[problem.reason] += 1
        examples = self._dropped.setdefault(problem.reason, [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(Located(problem.line, printable(problem.detail)))

    def kept(self, row: EncodedRow) -> None:
        self.tokens += len(row.input_ids)
        self.trained_tokens += row.trained_tokens
        self.lengths.append(len(row.input_ids))
        self.full_lengths.append(row.full_length)
        if row.part:
            return
        self.rows_kept += 1
        self.notes.update(note.value for note in row.notes)
        self._remember_longest(row)
        if row.truncated:
            self._note_cut(row)
        if row.digest in self.digests:
            self.duplicates += 1
            if len(self.duplicate_examples) < EXAMPLES_PER_REASON:
                self.duplicate_examples.append(
                    Located(row.line, f"repeats {self.format.located_by} {self.digests[row.digest]}")
                )
        else:
            self.digests[row.digest] = row.line
            self.prompts.add(row.prompt_digest)

    def _note_cut(self, row: EncodedRow) -> None:
        self.rows_truncated += 1
        self.tokens_cut += row.full_length - len(row.input_ids)
        if len(self._truncated) < EXAMPLES_PER_REASON:
            self._truncated.append(Located(row.line, f"{row.full_length} tokens cut to {len(row.input_ids)}"))

    def _remember_longest(self, row: EncodedRow) -> None:
        entry = (row.full_length, -row.line)
        if len(self.longest_heap) < LONGEST_ROWS:
            heappush(self.longest_heap, entry)
        else:
            heappushpop(self.longest_heap, entry)

    def dropped_rows(self, reason: DropReason) -> int:
        return self._dropped_rows[reason]

    @property
    def longest(self) -> tuple[Located, ...]:
        ordered = sorted(self.longest_heap, reverse=True)
        return tuple(Located(-negative_line, f"{tokens} tokens") for tokens, negative_line in ordered)

    def report(self) -> PartReport:
        dropped = tuple(
            DroppedRows(reason, REASON_TEXT[reason], rows, tuple(self._dropped[reason]))
            for reason, rows in self._dropped_rows.most_common()
        )
        return PartReport(
            path=str(self.path),
            sha256=self.sha256,
            format=self.format,
            located_by=self.format.located_by,
            kinds=dict(self.kinds),
            rows_read=self.rows_read,
            rows_kept=self.rows_kept,
            rows_dropped=self._dropped_rows.total(),
            rows_truncated=self.rows_truncated,
            truncated=tuple(self._truncated),
            tokens_cut=self.tokens_cut,
            dropped=dropped,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            notes=dict(self.notes),
            ignored_fields=tuple(sorted(map(printable, self.ignored)))[:20],
        )


def printable(text: str) -> str:
    """Text that can be written as UTF-8 and read on one screen."""
    return text.encode("utf-8", "replace").decode("utf-8")[:300]


def length_bins(lengths: array[int]) -> tuple[LengthBin, ...]:
    """About ten bins of equal, round width that cover every length."""
    if not lengths:
        return ()
    longest = max(lengths)
    width = next(
        w for power in range(12) for w in (10**power, 2 * 10**power, 5 * 10**power) if w * HISTOGRAM_BINS >= longest
    )
    counts = Counter((length - 1) // width for length in lengths)
    return tuple(LengthBin(i * width + 1, (i + 1) * width, counts[i]) for i in range(max(counts) + 1))


def part_warnings(part: PartReport, train_on_all: bool) -> list[str]:
    """What deserves a look in one file."""
    found: list[str] = []
    if part.rows_dropped:
        found.append(f"{part.rows_dropped:,} of {part.rows_read:,} rows are left out.")
    if part.rows_truncated:
        share = part.rows_truncated / part.rows_kept
        whole = "Every row is" if share == 1 else f"{part.rows_truncated:,} rows ({share:.0%}) are"
        found.append(f"{whole} cut at max_length; {part.tokens_cut:,} tokens are lost.")
    if not train_on_all and part.trained_share < 0.05:
        found.append(f"Only {part.trained_share:.1%} of the tokens carry loss.")
    if len(part.kinds) > 1:
        kinds = ", ".join(f"{rows:,} {kind}" for kind, rows in part.kinds.items())
        found.append(f"The file mixes kinds of rows: {kinds}.")
    if part.kinds.get(RowKind.TEXT) and len(part.kinds) == 1 and not train_on_all:
        found.append("Plain text has no answers: every token carries loss.")
    return found


def note_warnings(part: PartReport, texts: dict[Note, str]) -> list[str]:
    """Notes as sentences, with the number of rows."""
    return [f"{part.notes[note.value]:,} rows: {text}." for note, text in texts.items() if part.notes.get(note.value)]
