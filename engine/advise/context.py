"""A longer window that was chosen: how long, by which method, trained how or not at all.

Owns the choice's type, what the program fills in where the user left it open, and why a model's window cannot or need
not be longer. Must not know methods' formulas (`engine.context`) nor what fits (`engine.advise.longer`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.answers import Answers
from engine.models.architecture import Architecture

AUTO = "auto"
FULL, POSE, MIXED = "full", "pose", "mixed"
LONGEST = 1 << 24


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
    curriculum: tuple[int, ...] = ()
    """full only: lengths trained one after another, in equal parts of the steps; empty is one length."""
    factors: str = ""
    """longrope, longrope2: the file with their searched factors."""


def completed(choice: ContextChoice | None, architecture: Architecture, answers: Answers) -> ContextChoice:
    """The choice with a length; the window may still be open."""
    chosen = choice or ContextChoice()
    if chosen.length:
        return chosen
    asked, present = answers.context, architecture.context_length or answers.context
    return replace(chosen, length=min(asked if asked > present else 2 * present, LONGEST))


def impediment(choice: ContextChoice | None, architecture: Architecture, answers: Answers) -> str:
    """Why this model's window cannot, or need not, be made longer, in one sentence; "" when it can."""
    present = architecture.context_length
    if architecture.rope.kind == "none":
        within = f" of {present:,} tokens" if present else ""
        return (
            f"{architecture.name} has no rotary positions, so its window{within} cannot be scaled; "
            "models with RoPE (Llama, Qwen, Mistral, Gemma) can be."
        )
    asked = choice.length if choice is not None and choice.length else answers.context
    if asked <= present:
        return (
            f"{architecture.name} already reads {present:,} tokens, which covers the {asked:,} asked for: "
            "no longer window is needed."
        )
    return ""


def window_words(choice: ContextChoice, present: int) -> str:
    """ "8,192 to 32,768 tokens by PoSE"."""
    how = {FULL: "in full length", POSE: "by PoSE", MIXED: "in mixed windows"}.get(choice.window, "")
    return f"{present:,} to {choice.length:,} tokens {how if choice.train else 'without training'}".strip()
