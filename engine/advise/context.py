"""A longer window that was chosen: how long, by which method, trained how or not at all.

Owns the choice's type. Must not know methods' formulas (`engine.context`) nor what fits.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ContextChoice:
    """What the user decided about the window; the empty values leave it to the program."""

    length: int = 0
    """Tokens of the new window; 0: as answered to "context", or twice the model's where that is not longer."""
    method: str = AUTO
    """ "auto" measures every method on the model and takes the best; or one of `engine.context.methods` by name."""
    window: str = ""
    """full, pose or mixed (`engine.jobs.spec_context.WINDOWS`); "": full where it fits, else pose."""
    train: bool = True
    """False: extended and measured, not trained; minutes."""
