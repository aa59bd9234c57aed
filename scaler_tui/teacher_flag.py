"""The teacher that a command's flag names: refused where it cannot be read, or where nothing would learn from it.

Owns those refusals. Must not plan.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.models.architecture import Architecture


def check_teacher_flag(
    arguments: argparse.Namespace, approach: str, answers: Answers, architecture: Architecture
) -> None:
    """Whether the chosen approach learns from the teacher that --teacher names; nothing without the flag.

    Raises EngineError `model.*`, `hub.*`, `adapter.*`, `plan.no_teacher`, `usage`.
    """
    named = getattr(arguments, "answer_teacher", None)
    if not named:
        return
    from engine.advise.approaches import find_approach
    from engine.advise.fit import teacher_asked
    from engine.advise.taught import teacher_shape
    from engine.advise.taught_spec import no_teacher
    from engine.jobs.spec_distillation import DistillationSection

    teacher_shape(DistillationSection(teacher=answers.text("teacher")), architecture)
    _, impediment = teacher_asked(answers, architecture)
    if impediment:
        raise no_teacher(impediment)
    if not find_approach(approach).teacher:
        raise EngineError(
            "usage",
            f"--teacher names {named}, but nothing learns from it: the approach is {approach}.",
            next_step="Add --approach distillation, or leave --teacher out.",
        )
