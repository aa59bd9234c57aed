"""Whether a teacher with another tokenizer says anything at all: looked at once, after the first step.

Owns the words and the refusal. Must not know how positions are aligned (`engine.distill.uld`).
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.distill.uld import UldKnowledge
from engine.errors import EngineError, ExitCode
from engine.train.attempt import Attempt

LEAST_SHARE = 0.5
"""Of the trained positions that have a counterpart; below it is warned."""


@dataclass(slots=True)
class AlignmentCheck:
    """Of one training. Mutable: it looks once."""

    knowledge: UldKnowledge
    attempt: Attempt
    done: bool = False

    def look(self) -> None:
        """At the beginning of every step; speaks once something was asked. Raises EngineError
        `distill.nothing_aligned`."""
        asked, aligned = self.knowledge.asked, self.knowledge.aligned
        if self.done or not asked:
            return
        self.done = True
        if not aligned:
            raise EngineError(
                "distill.nothing_aligned",
                "The teacher has nothing to say: at no trained position have both tokenizers read the same text.",
                cause=f"None of {asked:,} positions of the first step has a counterpart in the teacher's tokens.",
                next_step='Choose a teacher whose tokenizer keeps text as it is, or set distillation.teacher = "".',
                exit_code=ExitCode.RUN_FAILED,
            )
        words = f"The teacher speaks at {aligned:,} of {asked:,} trained positions of the first step"
        share = f"{100 * aligned / asked:.0f} %"
        if aligned < LEAST_SHARE * asked:
            self.attempt.warn(f"{words}, {share}: at the others tokens of the two end at different characters.")
        else:
            self.attempt.say(f"{words}, {share}.")
