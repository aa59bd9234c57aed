"""What can be chosen beside text and stages: benchmarks, limits of retention, loss spikes, processes; as lists.

Owns the wording for the screen and for `--plain`, and taking a choice over. Must not estimate: figures are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.advise.text_spec import GENERAL
from engine.jobs.spec_checks_stream import BASE_TEXT
from engine.jobs.spec_suites import RetentionSection
from engine.units import format_bytes, format_hours, format_usd
from scaler_tui.text_plan import TextPlan
from scaler_tui.window_choices import Option

if TYPE_CHECKING:
    from engine.advise.matrix import ApproachRow
    from engine.advise.sharded import CardCount

FIELDS = ("benchmarks", "meanwhile", "limit", "most lost", "then", "spikes", "processes")
TITLES = {
    "benchmarks": "Benchmarks",
    "meanwhile": "Meanwhile",
    "limit": "Limit on",
    "most lost": "At most",
    "then": "Else",
    "spikes": "Spikes",
    "processes": "Processes",
}
NOTHING = "none"
COUNTS = (1, 2, 4, 8)
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2)
_BENCHMARKS = {
    NOTHING: ("none", "only texts are followed"),
    "demo": ("demo", "the demo model's own skills: arithmetic, facts and more; ships with the program"),
    "arc_easy, hellaswag": ("ARC easy, HellaSwag", "common sense; their data must be cached or reachable"),
    "mmlu": ("MMLU", "broad knowledge; large; its data must be cached or reachable"),
    "gsm8k": ("GSM8K", "sums in words, answered in full; its data must be cached or reachable"),
}
_VERDICTS = {"fits": "good", "tight": "warn", "no": "bad"}


def options(plan: TextPlan, field: str, counts: Sequence[CardCount] = (), sequences: int = 0) -> tuple[Option, ...]:
    """The values of one of FIELDS. `counts`: what several cards would give; `sequences` of a step."""
    choice = plan.choice
    if field == "benchmarks":
        known = [Option(value, title, words, brief=words) for value, (title, words) in _BENCHMARKS.items()]
        now = value_of(plan, field)
        return tuple(known) if now in _BENCHMARKS else (*known, Option(now, now, "as typed", brief="as typed"))
    if field == "meanwhile":
        why = "" if choice.tasks else "no benchmark is asked"
        return (
            Option("yes", "a part of them", "100 questions of each, about 20 times in the run", why_not=why),
            Option("no", "not asked", "only before and after", why_not=why),
        )
    if field == "limit":
        return tuple(_limit_options(plan))
    if field == "most lost":
        why = "" if choice.gates else "nothing has a limit"
        return tuple(Option(f"{loss:g}", f"{loss:.0%} lost", _loss_words(loss), why_not=why) for loss in LOSSES)
    if field == "then":
        why = "" if choice.gates else "nothing has a limit"
        return (
            Option("stop", "the run stops", "at the last checkpoint that kept the limit", why_not=why),
            Option("hold", "the result is held", "the run goes on; its result is not put into output/", why_not=why),
        )
    if field == "spikes":
        back = "back to the last good checkpoint, past the data that caused it, at half the rate"
        return (
            Option("on", "go back", f"above 3 times the usual loss: {back}"),
            Option("off", "only broken ones", f"only where the loss is no number: {back}"),
        )
    return _process_options({row.cards: row for row in counts}, sequences)


def _limit_options(plan: TextPlan) -> list[Option]:
    found = [
        Option(NOTHING, "nothing", "what is lost is told, and nothing follows"),
        Option(BASE_TEXT, "base text", "the text that shows what a model forgets, measured before and after"),
    ]
    if plan.choice.general:
        found.append(Option(GENERAL, "plain English", "bits per byte of the plain English that ships with the program"))
    found += [Option(task, task, "accuracy on this benchmark") for task in plan.choice.tasks if "." not in task]
    return found


def _loss_words(loss: float) -> str:
    return f"{loss * 100:g} points of accuracy, or {loss:.0%} more bits per byte; only what is significant counts"


def _process_options(rows: Mapping[int, CardCount], sequences: int) -> tuple[Option, ...]:
    from engine.advise.sharded import words_of

    found = []
    for count in COUNTS:
        row = rows.get(count)
        title = "1, as ever" if count == 1 else f"{count}"
        why = f"a step has only {sequences} sequences" if 0 < sequences < count else ""
        if row is None:
            words = "one process" if count == 1 else f"{count} processes of one machine, one per card"
            found.append(Option(f"{count}", title, words, why_not=why))
            continue
        figures = card_figures(row)
        found.append(Option(f"{count}", title, words_of(row), figures, why_not=why, tone=_VERDICTS[row.verdict.value]))
    return tuple(found)


def card_figures(row: CardCount) -> str:
    """ "fits: 14.2 GiB each, 3,100 tokens/s, 4.1 h, $3.20, waits 8 %"."""
    verdict = {"fits": "fits", "tight": "fits tightly", "no": "does not fit"}[row.verdict.value]
    waits = f", waits {row.exchange_share * 100:.0f} %" if row.cards > 1 else ""
    return (
        f"{verdict}: {format_bytes(row.memory.likely)} each, {row.tokens_per_second.likely:,.0f} tokens/s, "
        f"{format_hours(row.hours.likely)}, {format_usd(row.cost_usd.likely)}{waits}"
    )


def value_of(plan: TextPlan, field: str) -> str:
    """The chosen value of one of FIELDS."""
    choice = plan.choice
    gate = choice.gates[0] if choice.gates else None
    return {
        "benchmarks": ", ".join(choice.tasks) or NOTHING,
        "meanwhile": "yes" if choice.tasks_meanwhile else "no",
        "limit": gate.on if gate else NOTHING,
        "most lost": f"{gate.most_lost:g}" if gate else "0.05",
        "then": gate.action if gate else "stop",
        "spikes": "on" if choice.spikes else "off",
        "processes": f"{choice.processes}",
    }[field]


def choose(plan: TextPlan, field: str, value: str) -> None:
    """Take a value over; what no longer means anything goes with it."""
    choice = plan.choice
    gate = choice.gates[0] if choice.gates else None
    if field == "benchmarks":
        tasks = () if value == NOTHING else tuple(dict.fromkeys(_words(value)))
        gates = tuple(one for one in choice.gates if one.on not in choice.tasks or one.on in tasks)
        plan.decide(tasks=tasks, gates=gates)
    elif field == "meanwhile":
        plan.decide(tasks_meanwhile=value == "yes")
    elif field == "limit":
        same = msgspec.structs.replace(gate, on=value) if gate else RetentionSection(on=value)
        plan.decide(gates=() if value == NOTHING else (same,))
    elif field == "most lost" and gate is not None:
        plan.decide(gates=(msgspec.structs.replace(gate, most_lost=float(value)),))
    elif field == "then" and gate is not None:
        plan.decide(gates=(msgspec.structs.replace(gate, action=value),))
    elif field == "spikes":
        plan.decide(spikes=value == "on")
    elif field == "processes":
        plan.decide(processes=int(value))


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]


def count_rows(row: ApproachRow | None) -> tuple[CardCount, ...]:
    """What 1, 2, 4, 8 cards like the planned one would give; () on a CPU and where nothing was appraised."""
    from engine.advise.sharded import card_counts

    if row is None or row.appraisal is None:
        return ()
    found = row.appraisal
    return card_counts(found.plan, found.machine, found.load)
