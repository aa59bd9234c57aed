"""A length report in one sentence, and the gate on short text.

Owns the effective length, its three conditions with their limits, and the words. Must not know torch or how a report
was made. Effective length: the largest measured length where needles are answered (90 %), the closing tokens'
perplexity does not rise, and short text is within its bound; every shorter length must hold too. Perplexity rises where
it is more than 5 %, and more than twice the standard error, above the best shorter length from the original window on:
within that window a model may be as it was trained. What was not measured is named, never assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.jobs.length_report import LengthPerplexity, LengthReport, ShortRegression

NEEDLE_SHARE = 0.9
RISE_SHARE = 0.05
"""Of the perplexity of the same closing tokens, from one length to the next."""
ERRORS_APART = 2.0
SHORT_SHARE = 0.05
"""How much worse short text may be; the wizard and specs can set another bound."""


@dataclass(frozen=True, slots=True)
class LengthState:
    """One measured length; None for what was not measured."""

    length: int
    needle: float | None
    """Share of all prompts of all tasks that count at this length."""
    rising: bool | None
    """Whether the closing tokens got worse; None without a length to compare with."""

    @property
    def holds(self) -> bool:
        """Nothing that was measured speaks against it."""
        return (self.needle is None or self.needle >= NEEDLE_SHARE) and not self.rising


@dataclass(frozen=True, slots=True)
class LengthVerdict:
    """What a report comes down to."""

    effective: int
    """Tokens; 0 where not even the shortest measured length holds, or nothing was measured."""
    words: str
    """ "works to 16k (needle 97 %), degrades from 18k, short text +0.4 %"."""
    short_ok: bool | None
    """None where short text was not compared."""
    complete: bool
    """Whether needles, perplexity and short text were all measured, and needles say something."""
    states: tuple[LengthState, ...] = ()


def tokens_in_words(tokens: int) -> str:
    """16384 -> "16k", 1536 -> "1.5k", 900 -> "900"."""
    if tokens < 1024:
        return str(tokens)
    for divisor, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= divisor:
            return f"{tokens / divisor:.1f}".removesuffix(".0") + unit
    raise AssertionError


def needle_accuracy(report: LengthReport, length: int) -> float | None:
    """Share of right answers at a length over all depths of the plain needle task, or of all tasks without it."""
    found = [cell for cell in report.needles if cell.length == length]
    plain = [cell for cell in found if cell.task == "needle"] or found
    prompts = sum(cell.prompts for cell in plain)
    return sum(cell.accuracy * cell.prompts for cell in plain) / prompts if prompts else None


def reference_length(lengths: tuple[int, ...], original: int, window: int) -> int:
    """The length that longer ones must not be worse than: the longest measured within the original window, or within a
    quarter of the window of a model that was not extended; 0 where none was measured."""
    within = original if original < window else window // 4
    return max((length for length in lengths if length <= within), default=0)


def length_states(report: LengthReport) -> tuple[LengthState, ...]:
    """Every measured length, shortest first. Needles that say nothing about the model are left out."""
    perplexities = {entry.length: entry for entry in report.perplexity}
    reference = reference_length(tuple(perplexities), report.original, report.window)
    needles = {cell.length for cell in report.needles} if report.informative else set()
    found = []
    best: LengthPerplexity | None = None
    for length in sorted(perplexities.keys() | needles):
        entry = perplexities.get(length)
        rising = None
        if entry is not None:
            rising = _rises(entry, best) if reference else None
            if reference and length >= reference and (best is None or entry.perplexity < best.perplexity):
                best = entry
        found.append(LengthState(length, needle_accuracy(report, length) if length in needles else None, rising))
    return tuple(found)


def _rises(entry: LengthPerplexity, best: LengthPerplexity | None) -> bool:
    if best is None:
        return False
    rise = entry.perplexity / best.perplexity - 1 if entry.rise is None else entry.rise
    return rise > RISE_SHARE and math.log1p(rise) > ERRORS_APART * entry.rise_error


def short_exceeds(short: ShortRegression | None, bound: float) -> bool:
    """The gate: whether short text got worse by more than `bound` (0.05 is 5 %); a `bound` of 0 never stops."""
    return short is not None and bound > 0 and not short.change <= bound


def verdict(report: LengthReport, short_bound: float = SHORT_SHARE) -> LengthVerdict:
    """The report in words; with a bound of 0 short text does not count against it."""
    states = length_states(report)
    held = 0
    for state in states:
        if not state.holds:
            break
        held = state.length
    broken = next((state for state in states if not state.holds), None)
    short_bad = short_exceeds(report.short, short_bound)
    parts = [_reach(states, held), *_break(broken, held), _short(report.short, short_bad, short_bound)]
    missing = _missing(report)
    words = ", ".join(part for part in parts if part)
    complete = not missing and report.short is not None
    return LengthVerdict(
        effective=0 if short_bad else held,
        words=f"{words}; {'; '.join(missing)}" if missing else words,
        short_ok=None if report.short is None else not short_bad,
        complete=complete,
        states=states,
    )


def _reach(states: tuple[LengthState, ...], held: int) -> str:
    if not states:
        return "nothing was measured by length"
    if not held:
        return f"does not work at {tokens_in_words(states[0].length)}{_reason(states[0])}, the shortest length measured"
    state = next(state for state in states if state.length == held)
    shown = f" (needle {100 * state.needle:.0f} %)" if state.needle is not None else ""
    return f"works to {tokens_in_words(held)}{shown}"


def _break(broken: LengthState | None, held: int) -> list[str]:
    if broken is None or not held:
        return []
    return [f"degrades from {tokens_in_words(broken.length)}{_reason(broken)}"]


def _reason(state: LengthState) -> str:
    reasons = []
    if state.needle is not None and state.needle < NEEDLE_SHARE:
        reasons.append(f"needle {100 * state.needle:.0f} %")
    if state.rising:
        reasons.append("perplexity rises")
    return f" ({', '.join(reasons)})" if reasons else ""


def _short(short: ShortRegression | None, bad: bool, bound: float) -> str:
    if short is None:
        return "short text not compared"
    change = f"{100 * short.change:+.1f}"
    change = "±0.0" if change in ("+0.0", "-0.0") else change
    return f"short text {change} %" + (f", over the bound of {100 * bound:g} %" if bad else "")


def _missing(report: LengthReport) -> list[str]:
    found = []
    if report.needles and not report.informative:
        found.append("needles say nothing about this model: it does not answer them within its original window")
    elif not report.needles:
        found.append("needles not measured")
    if not report.perplexity:
        found.append("perplexity not measured")
    return found
