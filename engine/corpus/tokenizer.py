"""Text to ids of whole documents and back: the tokenizer as corpora use it.

Owns what stands around a document (the start tokens that the tokenizer adds by itself, the end token always) and the
tokenizer's identity. Must not know shards.

    text      "once upon"          "a time"
    ids       S 17 4 E             S 9 E           S: start tokens, often none    E: end token, always
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpus.order import Integers
from engine.corpus.shards import token_type
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError

_SEGMENT_CHARACTERS = 1 << 17
"""Longer documents are tokenised in parts: the library needs some 80 bytes per character, and a core works on each."""
_GROUP_CHARACTERS = 1 << 20
"""Tokenised in one call."""
_PARALLEL = "TOKENIZERS_PARALLELISM"


class TextTokenizer:
    """Loaded once per corpus; may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises EngineError `model.no_tokenizer`, `model.tokenizer_broken`, `corpus.no_end_token`."""
        self._tokenizer = ChatTokenizer.load(folder)
        end = self._tokenizer.eos_id
        if end is None:
            raise EngineError(
                "corpus.no_end_token",
                f"The tokenizer in {folder} names no end token, so documents cannot be told apart.",
                next_step='Name one in tokenizer_config.json as "eos_token".',
            )
        self._start = np.array(self._tokenizer.start_ids, np.uint32)
        self._end = end
        self.kind: np.dtype[Any] = token_type(self._tokenizer.vocabulary)
        identity = hashlib.sha256((folder / "tokenizer.json").read_bytes())
        identity.update(f"{self._start.tolist()} {end}".encode())
        self.sha256 = identity.hexdigest()
        self.version = importlib.metadata.version("tokenizers")

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], Integers]:
        """Ids of all documents one behind the other, and where each ends. Text of special tokens becomes those
        tokens, as everywhere else; a document of more than 131,072 characters is cut for this between two words."""
        if not texts:
            return np.empty(0, self.kind), np.empty(0, np.int64)
        parts: list[NDArray[np.uint32]] = []
        lengths: list[int] = []
        counts: list[int] = []
        for group in _groups(texts, counts):
            encodings = self._tokenizer.encode_batch_fast(group)
            ids = array("I")
            for encoding in encodings:
                ids.fromlist(encoding.ids)
            parts.append(np.frombuffer(ids, np.uint32))
            lengths.extend(len(encoding) for encoding in encodings)
        return self._framed(np.concatenate(parts), np.add.reduceat(lengths, np.cumsum([0, *counts[:-1]])))

    def _framed(self, ids: NDArray[np.uint32], lengths: Integers) -> tuple[NDArray[Any], Integers]:
        """Start and end tokens around documents of `lengths` tokens."""
        around = len(self._start) + 1
        ends = np.cumsum(lengths + around)
        framed = np.empty(len(ids) + around * len(lengths), self.kind)
        is_text = np.ones(len(framed), np.bool_)
        is_text[ends - 1] = False
        framed[ends - 1] = self._end
        begins = ends - lengths - around
        for offset, token in enumerate(self._start):
            is_text[begins + offset] = False
            framed[begins + offset] = token
        framed[is_text] = ids
        return framed, ends

    def texts(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """The texts of documents from all their ids; equal to what was read where the tokenizer forgets nothing."""
        return self._tokenizer.decode_batch([ids[len(self._start) : -1].tolist() for ids in documents])

    def beginning(self, ids: NDArray[Any]) -> str:
        """The text of the first ids of a document."""
        (text,) = self._tokenizer.decode_batch([ids[len(self._start) :].tolist()])
        return text


def _groups(texts: Sequence[str], counts: list[int]) -> Iterator[list[str]]:
    """Texts, or parts of long ones, some millions of characters at a time; `counts` gets the parts of each text."""
    group: list[str] = []
    size = 0
    for text in texts:
        parts = _parts(text)
        counts.append(len(parts))
        for part in parts:
            if group and size + len(part) > _GROUP_CHARACTERS:
                yield group
                group, size = [], 0
            group.append(part)
            size += len(part)
    if group:
        yield group


def _parts(text: str) -> list[str]:
    parts, start = [], 0
    while len(text) - start > _SEGMENT_CHARACTERS:
        limit = start + _SEGMENT_CHARACTERS
        # A word takes the space before it along, so that a cut before the space is one that the tokenizer makes too.
        end = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
        end = limit if end <= start else end
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the library use its threads for a while, whatever the process has set for its own good."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PARALLEL, None)
        else:
            os.environ[_PARALLEL] = before
