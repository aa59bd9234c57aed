"""What approaches were measured to do on the demo model, for the matrix of the demo.

Owns the shape of `profiles/measured/demo-labs.toml`, which `python -m bench lab --report` writes. Must not know labs.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from engine.profiles import load_profile
from engine.resources import demo_model_dir

FILE = "measured/demo-labs.toml"


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One approach, in words, with where the figures are from."""

    approach: str
    """Its row of the matrix."""
    words: str
    lab: str
    day: str

    @property
    def cited(self) -> str:
        """The words with their origin."""
        return f"{self.words} (measured on the demo model, {self.day}, lab {self.lab})"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    result: tuple[Measured, ...]


def measured_performance(approach: str, model: str) -> str:
    """ "" unless `model` (an architecture's source) is the demo and a lab had this approach. Raises EngineError when
    the file is wrong."""
    if model not in ("demo", str(demo_model_dir())):
        return ""
    return next((one.cited for one in _results() if one.approach == approach), "")


@lru_cache(maxsize=1)
def _results() -> tuple[Measured, ...]:
    return load_profile(FILE, _File).result
