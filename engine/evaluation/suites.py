"""Perplexity suites: how well a model predicts several texts, each in nats per token and in bits per byte.

Owns both figures and the per-document sums they are made of. Must not know where texts come from (`suite_text`) nor
what is done with the figures (`retention`).

A document d is a text of B(d) bytes in UTF-8, which a tokenizer turns into t_1 ... t_n. Before t_1 stands the start
token t_0: the tokenizer's beginning-of-text token, else its end-of-text token, else token 0; it is given and never
scored. A text that begins with the start token itself has it as its t_0, and its bytes do not count.

    nats(d) = - sum over i = 1 .. n of  ln p(t_i | t_0 ... t_i-1)

    nats per token = sum of nats(d) / sum of n(d)
    bits per byte  = sum of nats(d) / (ln 2 * sum of B(d))

Every token of the text is scored exactly once and nothing else is (no end token). Bits per byte are therefore a code
length of the same bytes whatever the tokenizer, and comparable between tokenizers; nats per token are not, because they
divide by how many pieces a tokenizer happens to make. A tokenizer that puts several tokens before a text (t_0 is one of
them) is given all of them. A document longer than the window is scored in windows that do not overlap, each after its
last token before as the only context, as in lm-eval's `loglikelihood_rolling`; `suite_text` cuts documents so that this
is rare. The code length of text by a language model: Shannon 1948; per byte as in Gao et al., The Pile
(arXiv:2101.00027), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.data.rows import EncodedRow, RowKind
from engine.data.tokenizer import ChatTokenizer
from engine.evaluation.findings import SuiteSums, SuiteText
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import positions_at_once, row_batches
from engine.evaluation.suite_text import USUAL_WINDOW

Progress = Callable[[int, int], None]
"""(documents done, documents in all)."""


def measure_suite(model: LoadedModel, suite: SuiteText, on_progress: Progress = lambda *_: None) -> SuiteSums:
    """Every document through `model` as it is now, in evaluation mode; draws nothing from any random generator."""
    documents = [_rows_of(model, text) for text in suite.documents]
    rows = [row for document in documents for row in document.rows]
    owners = [number for number, document in enumerate(documents) for _ in document.rows]
    nats = [0.0] * len(documents)
    for done, (row, amount) in enumerate(_row_nats(model, rows), start=1):
        nats[owners[row]] += amount
        if done % 16 == 0 or done == len(rows):
            on_progress(min(round(done * len(documents) / len(rows)), len(documents)), len(documents))
    return SuiteSums(
        suite=suite.name,
        nats=tuple(nats),
        tokens=tuple(document.scored for document in documents),
        text_bytes=tuple(document.text_bytes for document in documents),
    )


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as rows of at most a window; the first `given` tokens of each are context."""

    rows: tuple[EncodedRow, ...]
    scored: int
    text_bytes: int


def named_start(tokenizer: ChatTokenizer) -> int | None:
    """The token that a tokenizer names for the beginning of a text, else for its end; None where it names neither."""
    return tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id


def _rows_of(model: LoadedModel, text: str) -> _Document:
    tokenizer, window = model.tokenizer, model.context_length or USUAL_WINDOW
    ids = tokenizer.encode(text)
    size = len(text.encode())
    before = tokenizer.with_start(())
    start = named_start(tokenizer)
    if ids and ids[0] == start:
        size -= len(tokenizer.token_text(ids[0]).encode())
        before, ids = ids[:1], ids[1:]
    before = before or (start or 0,)
    rows = [_row((*before, *ids[: window - len(before)]), len(before))] if ids else []
    for begin in range(window - len(before), len(ids), window - 1):
        rows.append(_row(ids[begin - 1 : begin - 1 + window], 1))
    return _Document(tuple(rows), len(ids), size if ids else 0)


def _row(ids: Sequence[int], given: int) -> EncodedRow:
    trained = (False,) * given + (True,) * (len(ids) - given)
    return EncodedRow(input_ids=tuple(ids), trained=trained, line=0, kind=RowKind.TEXT, full_length=len(ids))


def _row_nats(model: LoadedModel, rows: Sequence[EncodedRow]) -> list[tuple[int, float]]:
    """(row, summed cross-entropy in nats) of each row, float64 sums of float32 losses."""
    found: list[tuple[int, float]] = []
    with model.inference():
        for batch in row_batches(model, rows):
            first = 0
            sums = torch.zeros(len(batch.indices), dtype=torch.float64)
            for logits in model.logit_pieces(batch.wanted, positions_at_once(model)):  # (C, V)
                part = slice(first, first + len(logits))
                losses = torch.nn.functional.cross_entropy(logits.float(), batch.targets[part], reduction="none")
                sums.index_add_(0, batch.owners[part], losses.double().cpu())
                first += len(logits)
            found += zip(batch.indices, sums.tolist(), strict=True)
    return found
