"""Which way of asking a model understands, found by asking.

Owns the short try and its rule. Must not know lengths beyond the original window: a model that does not answer needles
there says nothing about longer ones, however its positions are scaled.
"""

from __future__ import annotations

import msgspec

from engine.errors import EngineError
from engine.evaluation.haystack import HaystackOrder, build, shortest_length
from engine.evaluation.haystack_frame import STYLES, Writer
from engine.evaluation.haystack_tasks import NEEDLE
from engine.evaluation.long_pass import Room
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import answer

ENOUGH = 0.9
"""Share of right answers within the original window from which on needles say something."""
LONGEST = 512
_PROMPTS = 4
_DEPTHS = (0.1, 0.5, 0.9)


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The better way of asking, and how well it works."""

    style: str
    accuracy: float
    length: int

    @property
    def informative(self) -> bool:
        return self.accuracy >= ENOUGH


def calibrate(model: LoadedModel, original: int, room: Room, seed: int = 0) -> Calibration:
    """Twelve short questions in each style; the more right answers win, then the lower loss.

    Call it on the model before it is extended. Raises EngineError `evaluation.too_short` when the window has no room
    for a question.
    """
    tried: list[tuple[float, float, Calibration]] = []
    refusal: EngineError | None = None
    for style in STYLES:
        try:
            writer = Writer(model.tokenizer, style)
            length = min(original, LONGEST, max(original // 2, 2 * shortest_length(writer, NEEDLE)))
            orders = [HaystackOrder(NEEDLE, length, _DEPTHS, seed, number) for number in range(_PROMPTS)]
            stacks = [stack for order in orders for stack in build(writer, order)]
        except EngineError as error:
            refusal = error
            continue
        answers = [entry for row in answer(model, stacks, room) for entry in row]
        accuracy = sum(entry.correct for entry in answers) / len(answers)
        nll = sum(entry.nll for entry in answers) / sum(entry.tokens for entry in answers)
        tried.append((accuracy, -nll, Calibration(style=style, accuracy=accuracy, length=length)))
    if not tried:
        assert refusal is not None
        raise refusal
    return max(tried, key=lambda entry: entry[:2])[2]


def calibration_tokens(original: int) -> int:
    """About how many tokens that takes."""
    return 2 * _PROMPTS * min(original, LONGEST)
