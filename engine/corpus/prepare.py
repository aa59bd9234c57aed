"""From the sources of a spec to a corpus: read what is not cached, decide what is trained on, report it.

Owns the order of the work and how much of a source is read. Must not know training. What is read follows from the spec
and the sources alone: a resumed run, and one that finds more in the cache than it needs, get the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.corpus.beside import Wanted
from engine.corpus.cache import SourceCache, Tell
from engine.corpus.contamination import EvaluationRuns
from engine.corpus.corpus import Corpus, Domain
from engine.corpus.faults import BadInputPolicy
from engine.corpus.report import Contaminated, CorpusReport, Progress, SourceReport
from engine.corpus.selection import Selection, Taken, heldout_documents, select, take
from engine.corpus.source import TextSource
from engine.corpus.tokenizer import TextTokenizer
from engine.errors import EngineError
from engine.jobs.spec_stream import SourceSection, StreamSection
from engine.paths import data_home

_SPARE = 1.02
"""Read more than is needed by this, for what is dropped."""
_MOST_GROWTH = 4.0
"""Of what is read from one look to the next."""
_EXAMPLES = 10


def corpus_home(stream: StreamSection) -> Path:
    """The folder of all tokenised text: [stream] cache, or the program's own."""
    return Path(stream.cache).expanduser() if stream.cache else data_home() / "corpus"


def prepare_corpus(
    sources: Sequence[SourceSection],
    stream: StreamSection,
    tokenizer_dir: Path,
    needed_tokens: Mapping[str, int] | None,
    evaluation_texts: Iterable[str],
    on_progress: Tell | None = None,
    *,
    seed: int = 17,
) -> Corpus:
    """Read, tokenise, compare and select. `needed_tokens` by source: so much is read where there is so much, whatever
    is dropped of it; a source left out is not read; None reads everything.

    Raises EngineError `corpus.*` for what is missing or unreadable beyond the policy, `model.*` for the tokenizer.
    """
    tell = on_progress if on_progress is not None else _silent
    tokenizer = TextTokenizer(tokenizer_dir)
    runs = EvaluationRuns(evaluation_texts if stream.decontaminate else (), stream.ngram_words)
    wanted = Wanted(runs if runs else None, stream.deduplicate == "near")
    policy = BadInputPolicy(stream.bad_input == "refuse", stream.bad_share)
    readings = []
    for source in sources:
        if needed_tokens is not None and not needed_tokens.get(source.name, 0):
            continue
        cache = SourceCache(
            TextSource(source, stream, tokenizer.sha256), tokenizer, corpus_home(stream), wanted, policy,
            stream.shard_tokens, tell,
        )  # fmt: skip
        readings.append(_Reading(source, cache, None if needed_tokens is None else needed_tokens[source.name]))
    for reading in readings:
        reading.cache.open()
    taken, selections = _read(readings, stream, tell)
    domains = tuple(
        Domain(
            reading.source.name,
            mine.shards,
            selection.kept,
            heldout_documents(mine, selection, tokenizer, stream.heldout_tokens),
            seed=seed,
            shuffle_documents=stream.shuffle_documents,
        )
        for reading, mine, selection in zip(readings, taken, selections, strict=True)
    )
    report = CorpusReport(
        sources=tuple(map(_report, readings, taken, selections)),
        evaluation_texts=runs.texts,
        evaluation_texts_too_short=runs.too_short,
        tokenizer_sha256=tokenizer.sha256,
    )
    for told, reading in zip(report.sources, readings, strict=True):
        _check_text(told, reading)
    key = f"{tokenizer.sha256} {seed} {stream.shuffle_documents}"
    return Corpus(domains, report, _fingerprint(key, readings, taken, selections))


@dataclass(slots=True)
class _Reading:
    """A source and how far it is read. Mutable: `tokens` grows while too much is dropped."""

    source: SourceSection
    cache: SourceCache
    needed: int | None
    tokens: int | None = None
    """To read; None is all."""

    def __post_init__(self) -> None:
        most = self.source.max_tokens or None
        self.tokens = most
        if self.needed is not None:
            self.tokens = min(round(self.needed * _SPARE) + 1, most or 1 << 62)

    def grow(self, kept: int) -> bool:
        """Read more next time where more is needed and there may be more; False where it is as it should be."""
        if self.needed is None or self.tokens is None or kept >= self.needed:
            return False
        if self.tokens == self.source.max_tokens or (self.cache.exhausted and self.tokens >= self.cache.tokens):
            return False
        factor = min(self.needed / max(kept, 1) * _SPARE, _MOST_GROWTH)
        self.tokens = min(round(self.tokens * factor) + 1, self.source.max_tokens or 1 << 62)
        return True


def _read(readings: Sequence[_Reading], stream: StreamSection, tell: Tell) -> tuple[list[Taken], list[Selection]]:
    """Until every source has what is needed of it, or nothing more to give."""
    while True:
        for reading in readings:
            reading.cache.ensure(reading.tokens)
        taken = [_taken(reading) for reading in readings]
        if readings:
            tell(Progress(source=readings[-1].source.name, doing="comparing"))
        selections = select(taken, stream)
        if not any([one.grow(two.counts.kept.tokens) for one, two in zip(readings, selections, strict=True)]):
            return taken, selections


def _taken(reading: _Reading) -> Taken:
    shards = tuple(reading.cache.shards())
    documents = take(shards, reading.tokens)
    used, left = 0, documents
    while left > 0:
        left -= len(shards[used].documents)
        used += 1
    while used < len(shards) and not len(shards[used].documents):  # may hold the faults behind the last document
        used += 1
    known = tuple(reading.cache.known(number, shard) for number, shard in enumerate(shards[:used]))
    return Taken(shards[:used], known, documents)


def _report(reading: _Reading, taken: Taken, selection: Selection) -> SourceReport:
    cache, counts = reading.cache, selection.counts
    return SourceReport(
        name=reading.source.name,
        path=reading.source.path,
        weight=reading.source.weight,
        files=cache.source.file_count,
        documents=counts.read.documents,
        tokens=counts.read.tokens,
        text_bytes=counts.text_bytes,
        kept=counts.kept,
        duplicates=counts.duplicates,
        near_duplicates=counts.near_duplicates,
        contaminated=counts.contaminated,
        contaminated_examples=_examples(cache, taken, selection),
        heldout=counts.heldout,
        faults=cache.faults_of(len(taken.shards)),
        exhausted=cache.exhausted and counts.read.tokens == cache.tokens,
        shards=len(taken.shards),
        shards_made=cache.made,
        shards_redone=cache.redone,
        seconds=cache.seconds,
        folder=str(cache.folder),
    )


def _examples(cache: SourceCache, taken: Taken, selection: Selection) -> tuple[Contaminated, ...]:
    found: list[Contaminated] = []
    first = 0
    for part in taken.parts:
        for index in np.flatnonzero(selection.contaminated[first : first + len(part)])[: _EXAMPLES - len(found)]:
            row = part[index]
            found.append(Contaminated(file=cache.source.file_name(int(row["file"])), place=int(row["place"])))
        first += len(part)
    return tuple(found)


def _check_text(told: SourceReport, reading: _Reading) -> None:
    if told.kept.tokens:
        return
    dropped = (
        (told.duplicates, "duplicates"),
        (told.near_duplicates, "near duplicates"),
        (told.contaminated, "share text with an evaluation"),
        (told.heldout, "held out"),
    )
    causes = [f"{count.documents:,} {words}" for count, words in dropped if count.documents]
    causes += [fault.words for fault in told.faults.examples[:5]]
    raise EngineError(
        "corpus.no_text",
        f"Source '{told.name}' has no document to train on.",
        cause=f"{told.documents:,} documents were read from {reading.source.path}" + "".join(f"; {c}" for c in causes),
        next_step="Check the path and the name of the field that holds the text, or leave the source out.",
    )


def _fingerprint(
    key: str, readings: Sequence[_Reading], taken: Sequence[Taken], selections: Sequence[Selection]
) -> str:
    """Over documents' digests and lengths, which with the tokenizer decide all tokens, however they are split into
    shards."""
    found = hashlib.sha256(key.encode())
    for reading, mine, selection in zip(readings, taken, selections, strict=True):
        found.update(f" {reading.source.name} {mine.documents} ".encode())
        for half in ("digest_high", "digest_low"):
            for part in mine.parts:
                found.update(np.ascontiguousarray(part[half]).data)
        found.update(mine.lengths().data)
        found.update(np.packbits(selection.kept).data)
    return found.hexdigest()


def _silent(progress: Progress) -> None:
    """Nobody wants to know."""
