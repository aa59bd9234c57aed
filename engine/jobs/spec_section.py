"""What every table of a spec is made of, and the kinds of job there are.

Owns the base of the sections and the words of `task` and `schedule`. Must not know any field.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the spec; unknown keys are errors, so a typo cannot pass silently."""


class Schedule(StrEnum):
    """Of the learning rate, after its warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    WSD = "wsd"
    """Warm up, stay, decay (MiniCPM, arXiv 2404.06395)."""


class Task(StrEnum):
    QLORA = "qlora"
    LORA = "lora"
    MIX = "mix"
    """Several adapters become one; nothing is trained."""
    EXPAND = "expand"
    """Grow and prove; nothing is trained."""
    EXTEND = "extend"
    """A longer window, measured; nothing is trained."""
    FULL = "full"
    """Every parameter learns."""
    NEW_BLOCKS = "new_blocks"
    """Only tensors that growth added as a whole learn; everything old is frozen (LLaMA-Pro)."""
    NEW_COORDINATES = "new_coordinates"
    """Added tensors and the added parts of widened matrices learn first, then everything."""
    QLORA_GROWN = "qlora_grown"
    """Modules that growth left alone are frozen in 4 bits; whatever it added or widened learns in full."""

    @property
    def trains(self) -> bool:
        """Whether there is a training loop at all."""
        return self not in (Task.EXPAND, Task.EXTEND, Task.MIX)

    @property
    def trains_adapter(self) -> bool:
        """Whether the result is an adapter beside an untouched model."""
        return self in (Task.QLORA, Task.LORA)

    @property
    def trains_model(self) -> bool:
        """Whether the result is a whole model folder that was trained."""
        return self.trains and not self.trains_adapter

    @property
    def needs_growth(self) -> bool:
        """Whether the model must have been grown: which parameters learn is read from its certificate."""
        return self in (Task.NEW_BLOCKS, Task.NEW_COORDINATES, Task.QLORA_GROWN)
