"""Sources of text for tests, and a corpus made of them with the demo model's tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.corpus.corpus import Corpus, Domain
from engine.corpus.prepare import prepare_corpus
from engine.jobs.spec_stream import SourceSection, StreamSection
from engine.resources import demo_model_dir

WORDS = tuple(
    f"{one}{other}" for one in ("sun", "moon", "tree", "river", "stone") for other in ("light", "rise", "bed")
)


def texts(count: int, *, seed: int = 1, longest: int = 60) -> list[str]:
    """Documents that differ, each with its number in it."""
    draw = random.Random(seed)
    return [
        f"{seed} number {number} " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, longest)))
        for number in range(count)
    ]


def write_rows(path: Path, rows: Iterable[str], field: str = "text") -> Path:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: row}) + "\n" for row in rows), encoding="utf-8")
    return path


def stream_of(cache: Path, **changes: Any) -> StreamSection:
    """Small shards in a folder of their own; unreadable input never ends the work."""
    section = StreamSection(cache=str(cache), shard_tokens=1024, bad_share=1.0, heldout_share=0.0)
    return msgspec.structs.replace(section, **changes)


def prepared(
    sources: Mapping[str, Path | str],
    stream: StreamSection,
    needed: Mapping[str, int] | None = None,
    evaluation: Sequence[str] = (),
    **changes: Any,
) -> Corpus:
    """A corpus of named paths; `changes` go to every source."""
    sections = [SourceSection(name=name, path=str(path), **changes) for name, path in sources.items()]
    return prepare_corpus(sections, stream, demo_model_dir(), needed, evaluation)


def document_ids(domain: Domain, number: int) -> NDArray[np.uint32]:
    """All tokens of a document, its end token included; also of one that is not trained on."""
    tokens, begin, end = domain._place(number)
    return tokens[begin:end].astype(np.uint32)


def all_ids(corpus: Corpus, name: str = "text") -> list[int]:
    """The first epoch of a domain."""
    domain = corpus.domain(name)
    return domain.read(0, domain.tokens).ids.tolist()
