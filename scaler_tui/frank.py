"""Frank words before an expansion, and that they were agreed to once: by a key in the wizard, by a flag elsewhere.

Owns when they must be agreed to and where that is remembered. The words are the engine's and the profiles'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError
from scaler_tui import output
from scaler_tui.preferences import load_preferences, save_preferences

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.advise.grown import Grown
    from engine.hardware.machine import Machine
    from engine.models.architecture import Architecture


def must_agree(approach: str) -> bool:
    """Whether the warnings of this approach are still to be agreed to."""
    from engine.advise.frank import needs_frank_words

    return needs_frank_words(approach) and not load_preferences().agreed_to_expansion


def agree() -> None:
    """Remember it: nobody is asked twice."""
    save_preferences(msgspec.structs.replace(load_preferences(), agreed_to_expansion=True))


def require_agreement(
    approach: str,
    architecture: Architecture,
    machine: Machine,
    answers: Answers,
    grown: Grown | None,
    *,
    agreed: bool,
) -> None:
    """Say the warnings beside the output, in one line once they were agreed to. Raises EngineError
    `plan.not_understood` until then."""
    from engine.advise.amounts import data_tokens
    from engine.advise.approaches import frank_line
    from engine.advise.compare import build_matrix
    from engine.advise.frank import frank_words, needs_frank_words

    if not needs_frank_words(approach):
        return
    if not agreed and not must_agree(approach):
        output.note(frank_line())
        return
    matrix = build_matrix(architecture, machine, answers, {approach: grown} if grown else None)
    for word in frank_words(approach, matrix, data_tokens(answers)[1]):
        output.note(f"{word.label}: {word.text}")
    if not agreed:
        raise EngineError(
            "plan.not_understood",
            f"{matrix.row(approach).title} is research; its warnings above must be agreed to once.",
            next_step="Add --understood. It is remembered.",
        )
    agree()
