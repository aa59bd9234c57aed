"""What the page before a run says beside its settings: a refusal with ways out, savings, answers of dry run and probe.

Owns the wording and its wrapping. Must not decide or compute: verdicts, fixes and figures are the engine's.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from textual.content import Content

from engine.errors import EngineError, ExitCode
from engine.estimate.estimate import Verdict
from scaler_tui.frank import must_agree
from scaler_tui.limit_choices import card_figures, count_rows

if TYPE_CHECKING:
    from engine.advise.figures import Refined
    from engine.advise.matrix import ApproachRow
    from engine.jobs.spec import JobSpec
    from scaler_tui.wizard import Wizard

REFUSED = "plan.does_not_fit"
"""The engine's refusal that the user may overrule."""
MOST_SAVINGS = 3
MINIMUM_WIDTH = 30


def refused_content(error: EngineError, no_sign: str, width: int) -> Content:
    """What, cause, and every proposed way out on a line of its own."""
    fixes = re.split(r"\s*\(\d+\)\s+", error.next_step)
    parts: list[str | tuple[str, str]] = [(f"{no_sign} {error.what}\n", "bold $text-error")]
    if error.cause:
        parts.append(f"{error.cause}\n")
    if fixes[1:]:
        parts.append(("\nWhat would make it fit, cheapest first\n", "bold"))
        parts += [*([f"{fixes[0]}\n"] if fixes[0] else []), *_numbered(fixes[1:], width)]
    elif error.next_step:
        parts.append(f"{error.next_step}\n")
    if error.code == REFUSED:
        parts += [("F", "bold"), " plans it all the same; the run may fail, and its journal says that you insisted.\n"]
    return Content.assemble(*parts)


def savings_content(row: ApproachRow | None, width: int) -> Content:
    """What would make the job fit, or cheaper when it does, and how far its settings could go."""
    from engine.advise.fixes import fixes_for, savings_for

    if row is None or row.appraisal is None:
        return Content("")
    fixes, savings = fixes_for(row.appraisal), savings_for(row.appraisal)
    parts: list[str | tuple[str, str]] = []
    if fixes or savings:
        heading = "What would make it fit, cheapest first" if fixes else "What would make it faster or cheaper"
        parts.append((f"{heading}\n", "bold"))
        parts += _numbered([fix.sentence for fix in (fixes or savings)[:MOST_SAVINGS]], width)
    parts += [f"{line}\n" for line in textwrap.wrap(_room(row), max(width, MINIMUM_WIDTH))]
    return Content.assemble(*parts, *_cards(row))


def _cards(row: ApproachRow) -> list[str | tuple[str, str]]:
    """What several cards like the planned one would give; nothing on a CPU, and for steps too small to share."""
    counts = count_rows(row)
    if len(counts) < 2:
        return []
    lines = [f"  {row.cards} {'card ' if row.cards == 1 else 'cards'}  {card_figures(row)}\n" for row in counts]
    return [("On several such cards\n", "bold"), *lines]


def not_startable(
    wizard: Wizard, spec: JobSpec | None, row: ApproachRow | None, approach: str, *, forced: bool
) -> EngineError | None:
    """Why a plan cannot start here and now; None where it can."""
    if wizard.machine is not None and wizard.machine.simulated:
        return EngineError(
            "review.simulated",
            "This plan is for a simulated machine, so it cannot start here.",
            next_step="Write the spec (w), copy it to that machine, and run: scaler-wizard run spec.toml. "
            "Or plan for this machine (x).",
        )
    unready = not_ready(wizard, row, approach)
    if unready is not None and unready is not wizard.data_problem:
        return unready
    trains = spec is not None and spec.needs_data
    if row is not None and row.verdict is Verdict.NO and trains and not forced:
        return EngineError(
            "fit.no",
            f"{row.title} does not fit this machine.",
            cause=row.verdict_reason,
            next_step="Choose a row that fits, a smaller model, or another card.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    return unready


def not_ready(wizard: Wizard, row: ApproachRow | None, approach: str) -> EngineError | None:
    """Why a plan cannot start on any machine yet: warnings that nobody agreed to, rows that cannot be used."""
    if must_agree(approach):
        return EngineError(
            "plan.not_understood",
            f"{row.title if row else 'This'} is research, and its warnings are not agreed to yet.",
            next_step="Read the lines at the top of the page, and press a. You are asked only once.",
        )
    return wizard.data_problem if wizard.data_is_checked else None


def refined_words(answer: Refined | EngineError | None) -> str:
    """An answer of dry run or probe, what went wrong, or that it is at work."""
    if answer is None:
        return "at work; the figures appear here. Nothing waits for it."
    if isinstance(answer, EngineError):
        return " ".join(text for text in (answer.what, answer.cause, answer.next_step) if text)
    return answer.sentence


def _room(row: ApproachRow) -> str:
    from engine.advise.inverse import room_of

    assert row.appraisal is not None
    room = [f"{answer.question} {answer.name}" for answer in room_of(row.appraisal.plan) if answer.memory is not None]
    return f"Largest that fits, each with the rest as it is: {', '.join(room)}" if room else ""


def _numbered(sentences: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for number, sentence in enumerate(sentences, start=1):
        start = f"  {number}. "
        lines += textwrap.wrap(
            sentence,
            max(width, MINIMUM_WIDTH),
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_on_hyphens=False,
        )
    return [f"{line}\n" for line in lines]
