"""The report of a corpus as lines of text.

Owns wording and alignment. Must not know how text is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.corpus.faults import WORDS, FaultKind
from engine.corpus.report import CorpusReport, SourceReport
from engine.units import format_bytes, format_count, format_duration

_COLUMNS = ("source", "documents", "tokens", "text", "to train on", "held out", "duplicate", "shared", "unreadable")
_EXAMPLES = 5


def corpus_lines(report: CorpusReport) -> Iterator[str]:
    """Everything, the outcome first."""
    kept = sum(source.kept.tokens for source in report.sources)
    documents = sum(source.kept.documents for source in report.sources)
    yield f"{format_count(kept)} tokens in {documents:,} documents to train on"
    yield ""
    yield from _table(report)
    for source in report.sources:
        yield ""
        yield from _source(source)
    yield ""
    yield _compared(report)


def _table(report: CorpusReport) -> Iterator[str]:
    rows = [_COLUMNS, *(_row(source) for source in report.sources)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _row(source: SourceReport) -> tuple[str, ...]:
    return (
        source.name,
        f"{source.documents:,}",
        format_count(source.tokens),
        format_bytes(source.text_bytes),
        format_count(source.kept.tokens),
        f"{source.heldout.documents:,}",
        f"{source.duplicates.documents + source.near_duplicates.documents:,}",
        f"{source.contaminated.documents:,}",
        f"{source.faults.documents:,}",
    )


def _source(source: SourceReport) -> Iterator[str]:
    files = f"{source.files:,} file{'s' if source.files != 1 else ''} of " if source.files else ""
    ending = "read to the end" if source.exhausted else "read as far as asked for"
    yield f"{source.name}: {files}{source.path}, {ending}; {source.bytes_per_token:.2f} bytes per token"
    cached = source.shards - source.shards_made - source.shards_redone
    parts = [f"{cached:,} from the cache"] if cached > 0 else []
    parts += [f"{source.shards_made:,} made in {format_duration(source.seconds)}"] if source.shards_made else []
    parts += [f"{source.shards_redone:,} found damaged and made again"] if source.shards_redone else []
    yield f"  shards: {', '.join(parts)}; {source.folder}"
    if source.near_duplicates.documents:
        near = source.near_duplicates
        yield f"  near duplicates: {near.documents:,} documents, {near.tokens:,} tokens"
    for example in source.contaminated_examples[:_EXAMPLES]:
        yield f"  shares a run of words with an evaluation: {example.file}, document at {example.place:,}"
    counts = {kind: number for kind, number in source.faults.counts.items() if kind is not FaultKind.BLANK}
    if counts:
        yield "  ! " + ", ".join(f"{number:,} {WORDS[kind]}" for kind, number in sorted(counts.items()))
        for fault in source.faults.examples[:_EXAMPLES]:
            yield f"    {fault.words}"
        more = source.faults.total - len(source.faults.examples[:_EXAMPLES])
        if more > 0:
            yield f"    and {more:,} more"
    if blank := source.faults.counts.get(FaultKind.BLANK, 0):
        yield f"  {blank:,} documents hold no text and were passed over"


def _compared(report: CorpusReport) -> str:
    if not report.evaluation_texts:
        return "No evaluation text was given, so nothing was compared with one."
    short = report.evaluation_texts_too_short
    texts = f"{report.evaluation_texts:,} evaluation text{'s' if report.evaluation_texts != 1 else ''}"
    return f"Compared with {texts}" + (
        f", of which {short:,} are too short to be found in a document." if short else "."
    )
