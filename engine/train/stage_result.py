"""What a stage of training on whole weights found out, and what is kept of it for later attempts.

Owns `stages/NN/result.json`. Must not know how a stage is trained (`engine.train.grown_stage`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.data.load import PreparedData
from engine.evaluation.answers import Question
from engine.evaluation.measure import Measurement
from engine.evaluation.retention import Comparison
from engine.jobs import layout
from engine.jobs.spec import JobSpec
from engine.train.attempt import Outcome
from engine.train.measuring import yardstick_of

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class StageResult:
    """How a stage ended; `outcome` is set when the run ends here."""

    data_sha256: str
    before: Measurement
    after: Measurement | None
    questions: tuple[Question, ...]
    trained_parameters: int
    outcome: Outcome | None = None
    compared: Comparison | None = None
    """With the job's parent model; None where an earlier attempt did that, or the run ends here."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """`stages/NN/result.json`: what the card needs of a stage that ended in an earlier attempt."""

    data_sha256: str
    before: Measurement
    after: Measurement | None
    trained_parameters: int


def keep_result(folder: Path, result: StageResult) -> None:
    """For a later attempt, which does not train this stage again."""
    kept = _Kept(
        data_sha256=result.data_sha256,
        before=result.before,
        after=result.after,
        trained_parameters=result.trained_parameters,
    )
    layout.write_atomic(folder / RESULT, msgspec.json.format(msgspec.json.encode(kept)))


def kept_result(folder: Path, spec: JobSpec, data: PreparedData) -> StageResult | None:
    """None where the stage has not ended."""
    if not (folder / RESULT).is_file():
        return None
    kept = msgspec.json.decode((folder / RESULT).read_bytes(), type=_Kept)
    questions = tuple(yardstick_of(spec, data).questions)
    return StageResult(kept.data_sha256, kept.before, kept.after, questions, kept.trained_parameters)
