"""Prompts for retrieval at a length: hay with notes in it, and questions, each exactly so many tokens.

Owns lengths and places, counted in tokens. Must not know torch or models.

    head │ hay, note at depth 0, hay, note at depth 0.5, hay, note at depth 1 │ question about one of them, its answer
    └──────────────────────── shared by all questions ────────────────────────┘ └────── same length for each ──────┘

One haystack serves all depths: the notes that one question asks for are what another must not be misled by, there are
never fewer than four, and a model's pass over the shared part is needed once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.evaluation.haystack_frame import Ids, Piece, Writer
from engine.evaluation.haystack_tasks import NEEDLES_AT_LEAST, TASKS, Ask, Hidden, hide, most_asks

NOTES_SHARE = 0.5
"""Of the hay, at the most, where there is a choice."""


@dataclass(frozen=True, slots=True)
class Question:
    """What follows the shared part."""

    depth: float
    ids: Ids
    """Question, beginning of the answer, answer: the prompt ends with its last token."""
    scored: tuple[int, ...]
    """Indices in `ids` of the tokens that the model must choose by itself."""
    place: int
    """Index in the prompt where the note that is asked for begins."""


@dataclass(frozen=True, slots=True)
class Haystack:
    """Prompts of equal length with a common beginning."""

    task: str
    length: int
    head_tokens: int
    shared: Ids
    questions: tuple[Question, ...]

    def prompt(self, number: int) -> Ids:
        """The whole prompt of one question, `length` tokens."""
        return self.shared + self.questions[number].ids

    @property
    def tokens(self) -> int:
        """Tokens that have to go through a model once."""
        return len(self.shared) + sum(len(question.ids) for question in self.questions)


@dataclass(frozen=True, slots=True)
class HaystackOrder:
    """Which haystacks: the same order gives the same tokens on every machine."""

    task: str
    length: int
    depths: tuple[float, ...]
    seed: int = 0
    number: int = 0
    """Which of several samples."""
    salt: str = ""
    """Draws that no seed of another salt gives: what was fitted to one is judged on another."""


def even_depths(count: int) -> tuple[float, ...]:
    """From 0 to 1; the middle for one."""
    return (0.5,) if count == 1 else tuple(index / (count - 1) for index in range(count))


def build(writer: Writer, order: HaystackOrder) -> tuple[Haystack, ...]:
    """One haystack, or several where the notes of all depths would not fit into one; depths in order.

    Raises EngineError `evaluation.too_short` when not even one question fits, `evaluation.unknown_task`.
    """
    if order.task not in TASKS:
        raise EngineError(
            "evaluation.unknown_task",
            f"There is no task called {order.task}.",
            next_step=f"Choose from {', '.join(TASKS)}.",
        )
    seed = f"{order.salt}{order.seed}|{order.task}|{writer.style}|{order.length}|{order.number}"
    count = _asks_that_fit(writer, order)
    made = []
    for part, start in enumerate(range(0, len(order.depths), count)):
        draw = random.Random(f"{seed}|{part}")
        made.append(_stack(writer, order, order.depths[start : start + count], draw))
    return tuple(made)


def shortest_length(writer: Writer, task: str) -> int:
    """Tokens of a prompt with one question, its distractors and no hay."""
    hidden = hide(task, writer, (0.5,), random.Random(0))
    notes = [note.text for ask in hidden.asks for note in ask.notes] + [note.text for note in hidden.distractors]
    return len(writer.head) + len(_tokens(writer, hidden.asks[0])[0]) + sum(map(len, writer.after_all(notes)))


def with_room(writer: Writer, task: str, lengths: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The lengths that have room for a question, and a sentence for each of the others."""
    least = shortest_length(writer, task)
    notes = (
        f"{task} is not measured at {length:,} tokens: question and notes take {least}."
        for length in lengths
        if length < least
    )
    return tuple(length for length in lengths if length >= least), tuple(notes)


def _asks_that_fit(writer: Writer, order: HaystackOrder) -> int:
    least = shortest_length(writer, order.task)
    if order.length < least:
        raise EngineError(
            "evaluation.too_short",
            f"{order.length} tokens are too few for the task {order.task}: question, answer and {NEEDLES_AT_LEAST} "
            f"notes alone take {least}.",
            next_step=f"Choose --lengths of {least} and more, or leave that task out with --tasks.",
        )
    hidden = hide(order.task, writer, (0.5,), random.Random(0))
    note_tokens = sum(map(len, writer.after_all([note.text for note in hidden.asks[0].notes])))
    room = order.length - len(writer.head) - len(_tokens(writer, hidden.asks[0])[0])
    share = 1.0 if hidden.line is not None else NOTES_SHARE
    return max(1, min(int(room * share) // note_tokens, most_asks(order.task, writer), len(order.depths)))


def _tokens(writer: Writer, ask: Ask) -> tuple[Ids, tuple[int, ...]]:
    """Ids of question and answer, and which of them are scored."""
    ids: list[int] = []
    scored: list[int] = []
    for piece in ask.question:
        assert isinstance(piece, Piece)
        added = writer.after(piece.text)
        if piece.scored:
            scored += range(len(ids), len(ids) + len(added))
        ids += added
    return tuple(ids), tuple(scored)


def _stack(writer: Writer, order: HaystackOrder, depths: tuple[float, ...], draw: random.Random) -> Haystack:
    hidden = hide(order.task, writer, depths, draw)
    asked = [_tokens(writer, ask) for ask in hidden.asks]
    sizes = {len(ids) for ids, _ in asked}
    assert len(sizes) == 1, "questions of one haystack take the same number of tokens"
    room = order.length - len(writer.head) - sizes.pop()
    body, places = _body(writer, hidden, room, draw)
    shared = writer.head + body
    questions = tuple(
        Question(ask.depth, ids, scored, len(writer.head) + place)
        for ask, (ids, scored), place in zip(hidden.asks, asked, places, strict=True)
    )
    assert all(len(shared) + len(question.ids) == order.length for question in questions)
    return Haystack(order.task, order.length, len(writer.head), shared, questions)


def _body(writer: Writer, hidden: Hidden, room: int, draw: random.Random) -> tuple[Ids, list[int]]:
    """Exactly `room` tokens of hay and notes, and where each question's first note begins."""
    placed = [
        (note, number, not index) for number, ask in enumerate(hidden.asks) for index, note in enumerate(ask.notes)
    ]
    placed += [(note, -1, False) for note in hidden.distractors]
    texts = writer.after_all([note.text for note, _, _ in placed])
    hay = _hay(writer, hidden, room - sum(map(len, texts)), draw)
    total = sum(map(len, hay))
    notes = [(note.depth, number, first, ids) for (note, number, first), ids in zip(placed, texts, strict=True)]
    # At equal depths what is asked for comes first when it is the beginning that is meant, and last at the end.
    notes.sort(key=lambda entry: (entry[0], (entry[1] < 0) == (entry[0] < 0.5)))
    places = [0] * len(hidden.asks)
    body: list[int] = []
    waiting = iter(hay)
    passed = 0
    following = next(waiting, None)
    for depth, number, first, ids in notes:
        while following is not None and passed + len(following) / 2 <= depth * total:
            body += following
            passed += len(following)
            following = next(waiting, None)
        if first:
            places[number] = len(body)
        body += ids
    while following is not None:
        body += following
        following = next(waiting, None)
    assert len(body) == room
    return tuple(body), places


def _hay(writer: Writer, hidden: Hidden, tokens: int, draw: random.Random) -> list[Ids]:
    """Pieces of exactly `tokens` tokens in all."""
    pieces: list[Ids] = []
    left = tokens
    while hidden.line is not None and left > 0:
        piece = writer.after(hidden.line(draw))
        if len(piece) > left:
            break
        pieces.append(piece)
        left -= len(piece)
    if writer.in_order:
        return pieces + _in_order(writer, left, draw)
    longest = max(map(len, writer.hay))
    while left > 2 * longest:
        piece = draw.choice(writer.hay)
        pieces.append(piece)
        left -= len(piece)
    return pieces + _exactly(writer, left, draw)


def _in_order(writer: Writer, tokens: int, draw: random.Random) -> list[Ids]:
    """The text from some sentence on, from its beginning again where it ends; the last piece is cut."""
    pieces: list[Ids] = []
    at = draw.randrange(len(writer.hay))
    while tokens > 0:
        piece = writer.hay[at % len(writer.hay)][:tokens]
        pieces.append(piece)
        tokens -= len(piece)
        at += 1
    return pieces


def _exactly(writer: Writer, tokens: int, draw: random.Random) -> list[Ids]:
    """Up to three sentences of exactly `tokens` tokens; where none add up, the end of one more comes first."""
    by_size: dict[int, list[Ids]] = {}
    for piece in writer.hay:
        by_size.setdefault(len(piece), []).append(piece)
    for sizes in _sums(tuple(sorted(by_size)), tokens, 3):
        return [draw.choice(by_size[size]) for size in sizes]
    pieces: list[Ids] = []
    smallest = min(by_size)
    while tokens >= smallest:
        size = draw.choice([size for size in by_size if size <= tokens])
        pieces.append(draw.choice(by_size[size]))
        tokens -= size
    return [draw.choice(writer.hay)[-tokens:], *pieces] if tokens else pieces


def _sums(sizes: tuple[int, ...], total: int, terms: int) -> list[tuple[int, ...]]:
    """One way to write `total` as a sum of at most `terms` sizes; nothing when there is none."""
    if total == 0:
        return [()]
    if terms == 0 or total < 0:
        return []
    for size in sizes:
        for rest in _sums(sizes, total - size, terms - 1):
            return [(size, *rest)]
    return []
