"""In which form a teacher fits beside a student that is loaded already.

Owns the choice of held = "auto". Must not know how a form is loaded. What the student still needs is not known exactly
before its first step; the plan's estimate is (`engine.advise`), this is a rule of thumb with room to spare.
"""

from __future__ import annotations

from engine.errors import EngineError, ExitCode
from engine.evaluation.length_memory import free_bytes
from engine.evaluation.model import LoadedModel
from engine.hardware.memory import read_ram
from engine.jobs.spec_distillation import Held
from engine.train.found_teacher import FoundTeacher
from engine.train.model import trainable_parameters

_PACKED_BYTES = 0.6
"""Per number in 4 bits, scales included."""
_STATE_BYTES = 12
"""Per trained number: a gradient and two moments in float32."""
_FOR_ACTIVATIONS = 0.35
"""Of what is free now."""


def choose_held(found: FoundTeacher, student: LoadedModel) -> Held:
    """The most exact form that fits: in the compute type, in 4 bits, in host memory. Raises EngineError
    `distill.does_not_fit`."""
    free = free_bytes(student.device)
    room = free * (1 - _FOR_ACTIVATIONS) - _STATE_BYTES * trainable_parameters(student.model)
    whole = found.parameters * student.compute_dtype.itemsize
    packed = found.parameters * _PACKED_BYTES
    if whole <= room:
        return Held.RESIDENT
    if packed <= room and _packs():
        return Held.NF4
    if student.device.startswith("cuda") and whole <= read_ram().available_bytes * (1 - _FOR_ACTIVATIONS):
        return Held.OFFLOADED
    raise EngineError(
        "distill.does_not_fit",
        f"The teacher {found.name} does not fit beside the student.",
        cause=f"Its weights take {whole / 1e9:.1f} GB, or {packed / 1e9:.1f} GB in 4 bits; of the {free / 1e9:.1f} GB "
        f"that are free, about {max(room, 0) / 1e9:.1f} GB are not needed for training.",
        next_step='Set distillation.held = "cached": its logits are written before the student is loaded. Or choose a '
        "smaller teacher.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _packs() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except Exception:  # a broken native library raises whatever it likes
        return False
    return True
