"""What went wrong, in words for people: from any exception to what, cause and next step.

Owns the wording. Must not know the run. The traceback belongs into the worker's log, which the caller writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import EngineError
from engine.helper_process import is_out_of_memory
from engine.jobs import checkpoints, layout

_LESS_MEMORY = (
    "Halve training.batch_size and double training.gradient_accumulation, which trains the same; "
    "set gradient_checkpointing = true; or shorten data.max_length."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """The texts of an End event."""

    what: str
    cause: str
    next_step: str


def explain(error: BaseException) -> Failure:
    """Never raises."""
    if isinstance(error, EngineError):
        return Failure(error.what, error.cause, error.next_step)
    text = str(error).strip()
    first_line = text.splitlines()[0] if text else ""
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return Failure("The graphics card ran out of memory.", first_line, _LESS_MEMORY)
    if is_out_of_memory(error):
        return Failure("This machine ran out of memory (RAM).", first_line or kind, _LESS_MEMORY)
    if checkpoints.is_disk_full(error):
        return Failure(
            "There is no room left on the disk.",
            first_line,
            "Free some space, then resume the run; its last good checkpoint is kept.",
        )
    return Failure(
        "The run failed with an error that scaler-wizard does not know.",
        f"{kind}: {first_line}" if first_line else kind,
        f"The full report is in {layout.WORKER_LOG} of the run directory; resume tries again from the last checkpoint.",
    )
