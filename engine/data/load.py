"""From a spec's data section to rows that are ready to train on, with the report about them.

Owns the order of things: find the files, set rows aside, encode, refuse what must not start. Must not know torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from engine.data.encoding import EncodeOptions, RowEncoder, digests
from engine.data.files import detect_format, file_digest
from engine.data.formats import read_rows
from engine.data.masking import round_trip_error
from engine.data.packing import fill_ratio, plan_packing
from engine.data.rows import NOTE_TEXT, DropReason, EncodedRow, Problem, SourceRow
from engine.data.summary import (
    SAMPLE_ROWS,
    SAMPLE_TOKENS,
    DataReport,
    PartBuilder,
    PartReport,
    SampleRow,
    TokenView,
    length_bins,
    note_warnings,
    part_warnings,
)
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs.spec import DataSection, TrainOn
from engine.resources import demo_rows_file, profiles_dir

DEMO = "demo"
GENERAL = "general"
HELD_OUT = "Held out:"
ROUND_TRIP_LIMIT = 0.1
"""Above this share of rows that do not round-trip the template is at fault, not the rows."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    train: tuple[EncodedRow, ...]
    heldout: tuple[EncodedRow, ...]
    """With `prompt_ids` and `answer`, for exact match; the mask is that of training."""
    base_text: tuple[EncodedRow, ...]
    """Every token but the first is trained, that is, measured."""
    report: DataReport
    tokenizer: ChatTokenizer


@dataclass(slots=True)
class _Part:
    """One file on its way through the encoder."""

    builder: PartBuilder
    rows: list[EncodedRow] = field(default_factory=list)


def resolve_file(source: str, part: str) -> Path:
    """The file that a section names; "demo" and "demo-long" are the embedded ones for `part` (train, heldout or
    base_text), "general" the plain English that ships with the program."""
    if source == GENERAL and part == "base_text":
        return profiles_dir() / "base_text.txt"
    return demo_rows_file(source, part) or Path(source).expanduser()


def prepare(section: DataSection, model_dir: Path, *, now: datetime | None = None) -> PreparedData:
    """Encoded rows and their report. `now` fixes the date for templates that print today's, so that a run resumed
    tomorrow sees the same tokens. Raises EngineError for everything that must not start."""
    return _Preparation(section, model_dir, now, keep=True).run()


def prepare_beside(section: DataSection, model_dir: Path, *, now: datetime | None = None) -> PreparedData:
    """The same for a job that trains on text from elsewhere: tokenizer, base text, and held-out rows where
    `section.heldout` is a file of the user's own; no row to train on. Raises EngineError as `prepare` does."""
    return _Preparation(section, model_dir, now, keep=True).beside()


def survey(section: DataSection, model_dir: Path) -> DataReport:
    """The report of `prepare` in little memory: rows are counted and let go."""
    return _Preparation(section, model_dir, None, keep=False).run().report


class _Preparation:
    def __init__(self, section: DataSection, model_dir: Path, now: datetime | None, *, keep: bool) -> None:
        self.section = section
        self.keep = keep
        self.train_path = resolve_file(section.train, "train")
        self.train_format = detect_format(self.train_path)
        self.tokenizer = ChatTokenizer.load(model_dir, now=now)
        self.samples: list[SampleRow] = []
        self.warnings: list[str] = []

    def run(self) -> PreparedData:
        section = self.section
        aside = self._set_aside() if not section.heldout and section.heldout_fraction > 0 else frozenset()
        train, own_heldout = self._train(aside)
        heldout = self._heldout(own_heldout)
        base = self._base_text()
        report = self._report(train.builder, heldout, base, from_file=bool(section.heldout))
        return PreparedData(
            train=tuple(train.rows),
            heldout=tuple(heldout.rows) if heldout else (),
            base_text=tuple(base.rows) if base else (),
            report=report,
            tokenizer=self.tokenizer,
        )

    def beside(self) -> PreparedData:
        """Everything but rows to train on."""
        named = self.section.heldout not in ("", DEMO)
        heldout = self._heldout(_Part(self._builder(self.train_path))) if named else None
        base = self._base_text()
        report = self._report(self._builder(self.train_path), heldout, base, from_file=named)
        report = replace(report, warnings=tuple(text for text in report.warnings if text.startswith(HELD_OUT)))
        return PreparedData(
            train=(),
            heldout=tuple(heldout.rows) if heldout else (),
            base_text=tuple(base.rows) if base else (),
            report=report,
            tokenizer=self.tokenizer,
        )

    def _set_aside(self) -> frozenset[bytes]:
        """Digests of the held-out rows: the smallest ones, so that order and repetitions in the file do not matter."""
        rows = read_rows(self.train_path, self.train_format)
        known = {digests(row)[0] for row in rows if isinstance(row, SourceRow)}
        if len(known) < 2:
            return frozenset()
        count = min(max(1, round(len(known) * self.section.heldout_fraction)), len(known) - 1)
        return frozenset(sorted(known)[:count])

    def _builder(self, path: Path) -> PartBuilder:
        return PartBuilder(path=path, format=detect_format(path), sha256=file_digest(path))

    def _train(self, aside: frozenset[bytes]) -> tuple[_Part, _Part]:
        options = EncodeOptions(self.section.max_length, self.section.train_on)
        train = _Part(self._builder(self.train_path))
        own_heldout = _Part(self._builder_like(train.builder))
        encoder = RowEncoder(self.tokenizer, options)
        asker = RowEncoder(self.tokenizer, EncodeOptions(options.max_length, options.train_on, keep_prompts=True))
        later: list[SourceRow] = []
        for row in encoder.encode(self._split(train.builder, aside, later)):
            self._take(train, row)
        for row in asker.encode(later):
            if isinstance(row, Problem):
                train.builder.dropped(row)
            else:
                own_heldout.builder.kept(row)
                own_heldout.rows.append(row)
        self._refuse_unusable(train.builder, encoder)
        if not encoder.end_is_token:
            self.warnings.append("The chat template closes no answer with an end token: the model may not stop.")
        return train, own_heldout

    @staticmethod
    def _builder_like(builder: PartBuilder) -> PartBuilder:
        return PartBuilder(path=builder.path, format=builder.format, sha256=builder.sha256)

    def _split(self, builder: PartBuilder, aside: frozenset[bytes], later: list[SourceRow]) -> Iterator[SourceRow]:
        """Training rows as they are read; problems are counted and held-out rows put in `later`."""
        for item in read_rows(self.train_path, self.train_format):
            builder.saw(item)
            if isinstance(item, Problem):
                builder.dropped(item)
            elif aside and digests(item)[0] in aside:
                later.append(item)
            else:
                yield item

    def _take(self, part: _Part, row: EncodedRow | Problem) -> None:
        if isinstance(row, Problem):
            part.builder.dropped(row)
            return
        part.builder.kept(row)
        if self.keep:
            part.rows.append(row)
        if len(self.samples) < SAMPLE_ROWS:
            self.samples.append(self._sample(row))

    def _sample(self, row: EncodedRow) -> SampleRow:
        shown = zip(row.input_ids[:SAMPLE_TOKENS], row.trained, strict=False)
        views = tuple(TokenView(self.tokenizer.token_text(token), trained) for token, trained in shown)
        return SampleRow(row.line, views, len(row.input_ids) - len(views))

    def _heldout(self, own: _Part) -> _Part | None:
        section = self.section
        if not section.heldout:
            if section.heldout_fraction > 0 and not own.rows:
                self.warnings.append("There are too few different rows to set any aside: nothing is held out.")
            return own
        options = EncodeOptions(section.max_length, section.train_on, keep_prompts=True)
        return self._other_file(resolve_file(section.heldout, "heldout"), options)

    def _base_text(self) -> _Part | None:
        if not self.section.base_text or not self.keep:
            return None
        options = EncodeOptions(self.section.max_length, TrainOn.ALL, close_text=False)
        return self._other_file(resolve_file(self.section.base_text, "base_text"), options)

    def _other_file(self, path: Path, options: EncodeOptions) -> _Part:
        part = _Part(self._builder(path))
        encoder = RowEncoder(self.tokenizer, options)

        def rows() -> Iterator[SourceRow]:
            for item in read_rows(path, part.builder.format):
                part.builder.saw(item)
                if isinstance(item, Problem):
                    part.builder.dropped(item)
                else:
                    yield item

        for row in encoder.encode(rows()):
            if isinstance(row, Problem):
                part.builder.dropped(row)
            else:
                part.builder.kept(row)
                part.rows.append(row)
        self._refuse_unusable(part.builder, encoder)
        return part

    def _refuse_unusable(self, builder: PartBuilder, encoder: RowEncoder) -> None:
        failed = builder.dropped_rows(DropReason.ROUND_TRIP)
        if failed and failed >= ROUND_TRIP_LIMIT * (failed + builder.rows_kept):
            where = f"{failed:,} rows of {builder.path} fail, the first at {'; '.join(encoder.round_trip_failures)}"
            raise round_trip_error(self.tokenizer, where)
        if builder.trained_tokens:
            return
        untrained = builder.dropped_rows(DropReason.ALL_CUT) + builder.dropped_rows(DropReason.NOTHING_TRAINED)
        place = builder.format.located_by
        causes = [
            f"{drop.rows:,} rows: {drop.text} (first at {place} {drop.examples[0].line}: {drop.examples[0].detail})"
            for drop in builder.report().dropped
        ]
        raise EngineError(
            "data.no_trained_tokens" if untrained else "data.no_rows",
            f"{builder.path} has no {'token to train on' if untrained else 'usable row'}.",
            cause=". ".join(causes),
            next_step=f"Raise max_length above {encoder.max_length}, or shorten the prompts."
            if builder.dropped_rows(DropReason.ALL_CUT)
            else "Give rows with messages, instruction/output, prompt/completion or text.",
        )

    def _report(self, train: PartBuilder, heldout: _Part | None, base: _Part | None, *, from_file: bool) -> DataReport:
        section = self.section
        held = heldout.rows if heldout else []
        part = train.report()
        sequences = len(plan_packing(train.lengths, section.max_length)) if section.packing else len(train.lengths)
        contaminated = sum(row.digest in train.digests for row in held if not row.part)
        shared = sum(row.prompt_digest in train.prompts for row in held if not row.part)
        if heldout:
            self.warnings += [f"{HELD_OUT} {text}" for text in note_warnings(heldout.builder.report(), NOTE_TEXT)]
        self._warn(part, contaminated, train.duplicates)
        return DataReport(
            train=part,
            heldout=heldout.builder.report() if heldout and from_file else None,
            base_text=base.builder.report() if base else None,
            heldout_rows=sum(not row.part for row in held),
            max_length=section.max_length,
            train_on=section.train_on.value,
            template_origin=self.tokenizer.template.origin,
            lengths=length_bins(train.full_lengths),
            longest=train.longest,
            duplicates=train.duplicates,
            duplicate_examples=tuple(train.duplicate_examples),
            contaminated=contaminated,
            shared_prompts=shared,
            sequences=sequences,
            packing=section.packing,
            fill=fill_ratio(train.lengths, sequences, section.max_length),
            samples=tuple(self.samples),
            warnings=tuple(self.warnings),
        )

    def _warn(self, part: PartReport, contaminated: int, duplicates: int) -> None:
        self.warnings += part_warnings(part, self.section.train_on is TrainOn.ALL)
        self.warnings += note_warnings(part, NOTE_TEXT)
        if duplicates:
            self.warnings.append(f"{duplicates:,} rows repeat an earlier one; they are kept.")
        if contaminated:
            self.warnings.append(f"{contaminated:,} held-out rows are training rows too: scores on them mean nothing.")
        if self.section.train != DEMO and self.section.heldout == DEMO:
            self.warnings.append("The held-out rows are the demo's, not yours: they say nothing about your task.")
        if self.tokenizer.template.is_default and set(part.kinds) & {"chat", "sharegpt"}:
            self.warnings.append(
                "The model has no chat template: turns are written as '### User:' and '### Assistant:', "
                "and must be written so when the model is used."
            )
