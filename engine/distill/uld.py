"""A teacher with another tokenizer: which positions of two token rows stand at the same place of a text, and a distance
of distributions that needs no common tokens.

Owns the alignment and the distance. Must not know how the teacher was loaded, nor the mix of losses.

    text       T h e   h e r o n   s t o o d
    student   [The     ][ heron      ][ stood     ]        a position is known where both have read the same text:
    teacher   [The][ he][ron         ][ st][ood   ]        behind "The", "The heron", "The heron stood"

The universal logit distillation loss (Boizard et al., arXiv 2402.12030, equation 5) compares the n-th token of one row
with the n-th of the other and cuts the longer row. Here positions are compared whose tokens end at the same character,
so both distributions are about what follows the same words; positions without a counterpart have no loss of the
teacher. The teacher reads the student's text as it stands, control tokens of the student's template included, behind
the start token that its own tokenizer wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.data.tokenizer import ChatTokenizer
from engine.distill.knowledge import FullLogits
from engine.distill.segments import Segment, segments_of
from engine.distill.teacher import ModelTeacher, ModelView
from engine.evaluation.head import Wanted

if TYPE_CHECKING:
    from tokenizers import Encoding


_KEPT_ROWS = 1 << 16
"""Rows whose alignment is remembered."""


def uld_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over n of |p(n) - q(n)|, the n-th largest probability of each: the 1-Wasserstein distance of two
    distributions when moving between any two tokens costs the same (arXiv 2402.12030, equations 4 and 5).

    Logits (C, Vs) and (C, Vt) -> (C,), 0 to 2, no factor of T; the smaller vocabulary ends in zeros. float64 stays.
    """
    q, p = (_sorted(logits, temperature) for logits in (student, teacher))  # (C, Vs), (C, Vt)
    width = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(one, (0, width - one.shape[-1])) for one in (q, p))
    return (p - q).abs().sum(-1)


def _sorted(logits: Tensor, temperature: float) -> Tensor:
    kind = torch.float64 if logits.dtype is torch.float64 else torch.float32
    return torch.softmax(logits.to(kind) / temperature, -1).sort(-1, descending=True).values


@dataclass(slots=True)
class UldKnowledge:
    """`Knowledge` of a teacher that cuts texts in its own way."""

    teacher: ModelTeacher
    """Gives all of its logits."""
    student: ChatTokenizer
    asked: int = 0
    """Positions so far."""
    aligned: int = 0
    """Those with a counterpart."""
    _seen: dict[tuple[int, ...], _Aligned] = field(default_factory=dict)

    def at(self, wanted: Wanted) -> UldView:
        """Runs the teacher on its own tokens of every row's text."""
        rows = list(segments_of(wanted))
        found = [self._aligned(row) for row in rows]
        ids: list[int] = []
        places: list[int] = []
        positions: list[int] = []
        index: list[int] = []
        for row, one in zip(rows, found, strict=True):
            for place in row.wanted:
                counterpart = one.counterparts.get(place, -1)
                index.append(len(positions) if counterpart >= 0 else -1)
                if counterpart >= 0:
                    positions.append(len(ids) + counterpart)
            ids += one.ids
            places += range(len(one.ids))
        self.asked += len(index)
        self.aligned += len(positions)
        device = wanted.positions.device
        rows_of = torch.tensor(index, dtype=torch.long, device=device)
        if not positions:
            return UldView(self.teacher, None, rows_of)
        asked = Wanted(torch.tensor([ids]), torch.tensor([places]), torch.tensor(positions))
        return UldView(self.teacher, self.teacher.at(asked), rows_of)

    def _aligned(self, row: Segment) -> _Aligned:
        """Rows come again in every epoch."""
        found = self._seen.get(row.ids)
        if found is None:
            if len(self._seen) >= _KEPT_ROWS:
                self._seen.clear()
            limit = self.teacher.loaded.context_length
            found = self._seen[row.ids] = aligned(row.ids, self.student, self.teacher.loaded.tokenizer, limit)
        return found


@dataclass(frozen=True, slots=True)
class UldView:
    """`TeacherView` of one micro-batch: the teacher's logits at the counterparts."""

    teacher: ModelTeacher
    view: ModelView | None
    """None where nothing is aligned."""
    index: Tensor  # (N,), rows of the view's states; -1 for unknown

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """Hidden states are of other tokens."""
        return ()

    def chunk(self, first: int, last: int) -> FullLogits:
        """(C, Vt), and which of them are known."""
        index = self.index[first:last]
        known = index >= 0
        if self.view is None:
            return FullLogits(torch.zeros((len(index), 1), device=index.device), known)
        states = self.view.states[index.clamp_min(0)]
        return FullLogits(self.teacher.logits_of(states), known)


@dataclass(frozen=True, slots=True)
class _Aligned:
    """A row in the teacher's tokens."""

    ids: tuple[int, ...]
    counterparts: dict[int, int]
    """Position of the student -> position of the teacher that has read the same text."""


def aligned(ids: Sequence[int], student: ChatTokenizer, teacher: ChatTokenizer, limit: int = 0) -> _Aligned:
    """A row of the student in the teacher's tokens, at most `limit` of them (0: all), and which positions agree.

    Where the student's text is not cut into the same tokens again (a row that ends inside a character), positions
    from there on have no counterpart.
    """
    own = student.start_ids if tuple(ids[: len(student.start_ids)]) == student.start_ids else ()
    text = student.decode(ids[len(own) :])
    mine, other = student.encode_batch([text])[0], teacher.encode_batch([text])[0]
    again = next((n for n, (a, b) in enumerate(zip(mine.ids, ids[len(own) :], strict=False)) if a != b), len(mine.ids))
    start = teacher.start_ids if tuple(other.ids[: len(teacher.start_ids)]) != teacher.start_ids else ()
    theirs = dict(_ends(other, len(start)))
    found = {place: theirs[end] for end, place in _ends(mine, len(own)) if place < len(own) + again and end in theirs}
    if own and start:
        found[len(own) - 1] = len(start) - 1  # neither has read anything yet
    all_ids = (*start, *other.ids)
    limit = limit or len(all_ids)
    return _Aligned(all_ids[:limit], {place: there for place, there in found.items() if there < limit})


def _ends(encoding: Encoding, first: int) -> Iterator[tuple[int, int]]:
    """Character at which a token ends, and its position, where the text up to there is whole: the next token begins
    behind it. Parts of one character have its whole span."""
    spans = encoding.offsets
    for place, (_, end) in enumerate(spans):
        if place + 1 == len(spans) or spans[place + 1][0] >= end:
            yield end, first + place
