"""Loss and exact match of a model on rows, in one forward pass per batch.

Owns batching by length and the per-row verdicts. Must not know adapters, runs or files.

Exact match needs no generation: a greedy answer equals the reference exactly when, with the reference as context, the
model's first choice is the reference's token at every position of the answer and of the end-of-turn token after it. The
first position where that fails is the first token where greedy decoding would leave the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.rows import EncodedRow
from engine.evaluation.head import Wanted, summed_loss
from engine.evaluation.model import LoadedModel

TOKENS_PER_BATCH = 4096
LOGIT_BYTES_PER_BATCH = 256 * 1024**2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RowScores:
    """Sums over all rows, and one verdict per row in the order given."""

    loss_sum: float
    tokens: int
    answered: tuple[bool | None, ...]
    """Whether the greedy answer equals the reference; None where a row has no answer to compare."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy per trained token, nats."""
        return self.loss_sum / max(self.tokens, 1)

    @property
    def exact_match(self) -> float | None:
        verdicts = [verdict for verdict in self.answered if verdict is not None]
        return sum(verdicts) / len(verdicts) if verdicts else None

    @property
    def exact_match_rows(self) -> int:
        return sum(verdict is not None for verdict in self.answered)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """T is the longest row's length; N counts the trained tokens of all rows."""

    indices: list[int]
    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    positions: Tensor  # (N,) flat positions that predict a trained token
    targets: Tensor  # (N,)
    owners: Tensor  # (N,) row inside the batch
    in_answer: Tensor  # (N,) whether the token belongs to the last answer

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.input_ids, self.position_ids, self.positions)


def score_rows(model: LoadedModel, rows: Sequence[EncodedRow], on_progress: Progress | None = None) -> RowScores:
    """Evaluate `rows` in evaluation mode; the model's mode and its gradients are left as they were."""
    answered: list[bool | None] = [None] * len(rows)
    loss_sum = torch.zeros((), dtype=torch.float64)
    tokens = done = 0
    with model.inference():
        for batch in row_batches(model, rows):
            first = 0
            right: list[Tensor] = []
            for logits in model.logit_pieces(batch.wanted, positions_at_once(model)):  # (C, V)
                targets = batch.targets[first : first + len(logits)]
                loss_sum += summed_loss(logits, targets).double().cpu()
                right.append((logits.argmax(-1) == targets).cpu())
                first += len(logits)
            tokens += len(batch.targets)
            _judge(batch, torch.cat(right), answered)
            done += len(batch.indices)
            if on_progress is not None:
                on_progress(done, len(rows))
    return RowScores(float(loss_sum), tokens, tuple(answered))


def _judge(batch: RowBatch, right: Tensor, answered: list[bool | None]) -> None:
    for row, index in enumerate(batch.indices):
        of_answer = batch.in_answer & (batch.owners == row)  # (N,)
        if bool(of_answer.any()):
            answered[index] = bool(right[of_answer].all())


def answer_span(row: EncodedRow) -> range:
    """Indices of the last answer's tokens and of the end-of-turn token after it; empty when it cannot be compared."""
    start = len(row.prompt_ids)
    if start == 0 or row.truncated or row.input_ids[:start] != row.prompt_ids:
        return range(0)
    end = start
    while end < len(row.input_ids) and row.trained[end]:
        end += 1
    return range(start, end)


def positions_at_once(model: LoadedModel) -> int:
    """Positions whose logits may exist at one time."""
    return max(1, LOGIT_BYTES_PER_BATCH // (4 * model.vocab_size))


def row_batches(model: LoadedModel, rows: Sequence[EncodedRow]) -> Iterator[RowBatch]:
    """Rows of similar length together: little padding, and a bound on tokens and on logits."""
    tokens_limit = min(TOKENS_PER_BATCH, positions_at_once(model))
    group: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i)):
        width = len(rows[index].input_ids)  # the longest so far
        if group and width * (len(group) + 1) > tokens_limit:
            yield _collate(model, rows, group)
            group = []
        group.append(index)
    if group:
        yield _collate(model, rows, group)


def _collate(model: LoadedModel, rows: Sequence[EncodedRow], indices: list[int]) -> RowBatch:
    width = max(len(rows[index].input_ids) for index in indices)
    input_ids = torch.full((len(indices), width), model.pad_id, dtype=torch.long)
    position_ids = torch.empty((len(indices), width), dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    in_answer: list[bool] = []
    for number, index in enumerate(indices):
        row = rows[index]
        length = len(row.input_ids)
        input_ids[number, :length] = torch.tensor(row.input_ids)
        position_ids[number, :length] = torch.arange(length)
        position_ids[number, length:] = torch.arange(width - length)  # padding is a segment of its own
        answer = answer_span(row)
        for token in range(1, length):
            if row.trained[token]:
                positions.append(number * width + token - 1)
                targets.append(row.input_ids[token])
                owners.append(number)
                in_answer.append(token in answer)
    device = model.device
    return RowBatch(
        indices,
        input_ids.to(device),
        position_ids.to(device),
        torch.tensor(positions, dtype=torch.long, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        torch.tensor(owners, dtype=torch.long),
        torch.tensor(in_answer, dtype=torch.bool),
    )
