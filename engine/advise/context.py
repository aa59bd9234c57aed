"""A longer window that was chosen: how long, by which method, trained how or not at all.

Owns the choice's type, what the program fills in where the user left it open, and why a model's window cannot or need
not be longer. Must not know methods' formulas (`engine.context`) nor what fits (`engine.advise.longer`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.answers import Answers
from engine.jobs.spec_context import AUTO
from engine.models.architecture import Architecture

DEMO, DEMO_DOCUMENTS = "demo", "demo-long"
FULL, POSE, MIXED = "full", "pose", "mixed"
LONGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class ContextChoice:
    """What the user decided about the window; the empty values leave it to the program."""

    length: int = 0
    """Tokens of the new window; 0: as answered to "context", or twice the model's where that is not longer."""
    method: str = AUTO
    """ "auto" measures every method that needs no search and takes the best; or one of
    `engine.context.methods` by name."""
    window: str = ""
    """full, pose or mixed (`engine.jobs.spec_context.WINDOWS`); "": full where it fits, else pose."""
    train: bool = True
    """False: extended and measured, not trained; minutes."""
    measured: tuple[int, ...] = ()
    """Lengths at which the model is measured; empty: half the old window, and doubling to the new one."""
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


def answers_at_length(answers: Answers) -> Answers:
    """The embedded demo's rows are short chats; what a longer window is trained on are its documents."""
    if answers.text("data") != DEMO:
        return answers
    return replace(answers.with_values(data=DEMO_DOCUMENTS), measured_tokens=None)


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


# ── what measuring at length takes ────────────────────────────────────────────────────────────────────────────────
DOCUMENTS = 8
RACE_DOCUMENTS, RACE_PROMPTS = 6, 2
RACED_METHODS = 9
"""The model untouched, and the methods that need no search."""


def measured_lengths(original: int, window: int) -> tuple[int, ...]:
    """Half the original window, and doubling from there; the window last. The worker's own choice
    (`engine.evaluation.length_measure.default_lengths`)."""
    found = [max(original // 2, 1)]
    while found[-1] * 2 < window:
        found.append(found[-1] * 2)
    return (*found, window) if window > found[-1] else tuple(found)


def report_tokens(lengths: tuple[int, ...], prompts: int) -> float:
    """Tokens read for one length report: one haystack serves all depths, every document is read at every length."""
    return float((DOCUMENTS + prompts) * sum(lengths))


def race_tokens(lengths: tuple[int, ...]) -> float:
    """Tokens read for a race of all methods."""
    return float(RACED_METHODS * (RACE_DOCUMENTS + RACE_PROMPTS) * sum(lengths))


def measuring_tokens(choice: ContextChoice, original: int, prompts: int) -> float:
    """All of a job: the race where the method is open, then a report before and one after training; without training
    one of the result."""
    lengths = choice.measured or measured_lengths(original, choice.length)
    race = race_tokens(measured_lengths(original, choice.length)) if choice.method == AUTO else 0.0
    return race + (2 if choice.train else 1) * report_tokens(lengths, prompts)
