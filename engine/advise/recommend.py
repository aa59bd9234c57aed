"""Which approach to take and what any other would cost instead, by the rules in `profiles/approaches.toml`.

Owns the choice, its sentence, the price of choosing otherwise, and warnings. Must not compute estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.advise.answers import Answers
from engine.advise.approaches import find_approach, rule_for
from engine.advise.matrix import ApproachRow
from engine.estimate.estimate import Verdict
from engine.jobs.spec_distillation import SELF
from engine.units import format_bytes, format_hours, format_usd

TIMELINE_HOURS = {"hours": 12.0, "days": 7 * 24.0, "weeks": 60 * 24.0, "months": 365 * 24.0}


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommendation."""

    approach: str
    why: str
    otherwise: dict[str, str]
    warnings: tuple[str, ...]


def recommend(rows: tuple[ApproachRow, ...], answers: Answers) -> Advice:
    """The preferred approach of the goal that fits; if none does, the nearest that does, and why not the wish."""
    rule = rule_for(answers.goal, answers.text("data"))
    first = find_approach(rule.prefer[0])
    if first.itself is not None and answers.text("teacher") == SELF:
        rule = msgspec.structs.replace(rule, why=first.itself.why)
    by_id = {row.id: row for row in rows}
    wanted = tuple(by_id[name] for name in rule.prefer if name in by_id)
    preferred = tuple(row for row in wanted if not row.impediment)
    wish = preferred[0]
    limits = _Limits.of(answers)
    chosen = _choose(preferred, rows, limits)
    objection = limits.objection(wish)
    if wanted[0].impediment and chosen in preferred:
        words = "stays within the window it has" if wanted[0].id == "context" else "needs none"
        why = f"{wanted[0].impediment} {chosen.title} {words}."
    elif chosen.verdict is Verdict.NO:
        why = f"Nothing fits this machine; {chosen.title} comes nearest: {chosen.verdict_reason}."
    elif objection and chosen is not wish and wish.verdict is not Verdict.NO:
        way = rule.why.format(title=wish.title, adjective="way")
        why = f"{way} But {objection}; {chosen.title} is the nearest that fits and meets that."
    elif chosen in preferred and (
        chosen is wish or wish.verdict is Verdict.FITS or {wish.id, chosen.id} <= {"lora", "qlora"}
    ):
        adjective = "fastest way" if chosen.id == "lora" else "way"
        why = rule.why.format(title=chosen.title, adjective=adjective)
    else:
        way = rule.why.format(title=wish.title, adjective="way")
        fits = "fits" if chosen.verdict is Verdict.FITS else "may fit"
        why = (
            f"{way} {wish.title} does not work here ({wish.verdict_reason}); {chosen.title} is the nearest that {fits}."
        )
    others = {row.id: _instead(row, chosen) for row in rows if row is not chosen}
    return Advice(chosen.id, why, others, _warnings(chosen, answers, rule.warnings))


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the answers allow: hours, money, and whether only proven methods will do."""

    hours: float
    usd: float
    proven_only: bool

    @classmethod
    def of(cls, answers: Answers) -> _Limits:
        limit = TIMELINE_HOURS.get(answers.text("timeline"), NO_LIMIT)
        return cls(limit, answers.number("budget_usd") or NO_LIMIT, answers.text("use_case") == "production")

    def objection(self, row: ApproachRow) -> str:
        """Why the row does not meet them; "" when it does."""
        if row.hours.likely > self.hours:
            return f"it takes about {format_hours(row.hours.likely)} here and you have {format_hours(self.hours)}"
        if row.cost_usd.likely > self.usd:
            return f"it costs about {format_usd(row.cost_usd.likely)} and the limit is {format_usd(self.usd)}"
        if self.proven_only and "expansion" in row.id:
            return "a product asks for proven methods and growing is research"
        return ""


def _choose(preferred: tuple[ApproachRow, ...], rows: tuple[ApproachRow, ...], limits: _Limits) -> ApproachRow:
    """First what fits and meets the limits, then what fits; preferred rows before the others that run from here."""
    candidates = preferred + tuple(sorted((row for row in rows if row.runnable), key=_need))
    within = tuple(row for row in candidates if not limits.objection(row))
    for among in (within, candidates):
        for verdict in (Verdict.FITS, Verdict.TIGHT):
            for row in among:
                if row.verdict is verdict:
                    return row
    possible = tuple(row for row in rows if not row.impediment)
    return min(possible, key=lambda row: (_need(row), row.hours.likely))


def _need(row: ApproachRow) -> float:
    return row.vram.likely or row.ram.likely


def _instead(row: ApproachRow, chosen: ApproachRow) -> str:
    memory = _need(row) - _need(chosen)
    kind = "VRAM" if row.vram.likely else "RAM"
    parts = [
        _delta(memory, format_bytes, kind),
        _delta(row.hours.likely - chosen.hours.likely, format_hours, ""),
        _delta(row.cost_usd.likely - chosen.cost_usd.likely, format_usd, ""),
    ]
    sentence = f"{row.title} instead: {', '.join(parts)}."
    if row.verdict is not Verdict.FITS:
        word = "does not fit" if row.verdict is Verdict.NO else "is tight"
        sentence += f" It {word}: {row.verdict_reason}."
    return sentence


def _delta(amount: float, form: object, suffix: str) -> str:
    text = form(abs(amount))  # type: ignore[operator]
    return f"{text}{' ' + suffix if suffix else ''} {'more' if amount >= 0 else 'less'}"


def _warnings(chosen: ApproachRow, answers: Answers, ruled: tuple[str, ...]) -> tuple[str, ...]:
    warnings = list(ruled)
    limit = TIMELINE_HOURS.get(answers.text("timeline"), NO_LIMIT)
    if chosen.hours.likely > limit:
        time = format_hours(chosen.hours.likely)
        warnings.append(f"{chosen.title} takes about {time} here, longer than the {format_hours(limit)} you have.")
    budget = answers.number("budget_usd")
    if budget and chosen.cost_usd.high > budget:
        sure = "costs" if chosen.cost_usd.low > budget else "may cost"
        warnings.append(f"It {sure} more than {format_usd(budget)}: up to {format_usd(chosen.cost_usd.high)}.")
    if answers.text("use_case") == "production" and "expansion" in chosen.id:
        warnings.append("For a product use proven methods: a pretrained model of the wanted size, with an adapter.")
    if answers.goal == "reasoning" and chosen.id in ("lora", "qlora"):
        warnings.append("An adapter specialises; it adds little general ability.")
    if not chosen.runnable:
        warnings.append(chosen.not_runnable_reason)
    return tuple(warnings)


NO_LIMIT = float("inf")
