"""The words and tables of a longer window: methods beside each other, who reads the result, what was measured.

Owns texts and rows; commands print them. Must not know how a method works, how anything is measured, or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.jobs.heat_grid import short_length
from engine.units import format_duration
from scaler_tui.race_state import needle_share
from scaler_tui.race_table import change_text, perplexity_text

if TYPE_CHECKING:
    from engine.context.certificate import Certificate, FolderCheck, Race
    from engine.context.plan import ContextPlan
    from engine.context.portability import Portability
    from engine.jobs.length_report import LengthReport, NeedleCell
    from engine.jobs.race_lines import SearchDone

NO_FIGURE = "."
_SIGNS = {"exact": "+", "approximate": "!", "lost": "x"}


def plan_words(plan: ContextPlan) -> str:
    """ "256 to 1,024 tokens (4x): pairs divided by 1 to 4, m 1.139"."""
    scaling = plan.scaled.scaling
    low, high = min(scaling.divisors), max(scaling.divisors)
    words = f"{plan.original:,} to {plan.target:,} tokens ({plan.factor:g}x): pairs divided by {low:.4g} to {high:.4g}"
    if abs(scaling.attention_factor - 1) > 1e-9:
        words += f", m {scaling.attention_factor:.4g}"
    return words


def factor_range(divisors: Sequence[float]) -> str:
    """ "1 to 4"."""
    return f"{min(divisors):.4g} to {max(divisors):.4g}"


def portability_rows(readers: Sequence[Portability]) -> list[str]:
    """A line per program."""
    names = max((len(one.consumer) for one in readers), default=0)
    verdicts = max((len(one.verdict) for one in readers), default=0)
    return [
        f"{_SIGNS.get(one.verdict, ' ')} {one.consumer:<{names}}  {one.verdict:<{verdicts}}  {one.why}"
        for one in readers
    ]


def portability_short(readers: Sequence[Portability]) -> str:
    """ "lost in llama.cpp; approximate in vLLM", or "exact everywhere"."""
    parts = []
    for verdict in ("lost", "approximate"):
        names = [one.consumer for one in readers if one.verdict == verdict]
        if names:
            parts.append(f"{verdict} in {', '.join(names)}")
    return "; ".join(parts) or "exact everywhere"


# ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────────
def race_table(race: Race) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Headings, rows and the columns that stand right: methods down, what was measured across."""
    lengths = sorted({entry.length for row in race.rows for entry in row.report.perplexity})
    asked = sorted({cell.length for row in race.rows for cell in row.report.needles})
    headings = ["METHOD"]
    headings += [f"PPL {short_length(length)}" for length in lengths]
    headings += [f"NEEDLE {short_length(length)}" for length in asked]
    headings += ["SHORT TEXT", "TIME", ""]
    winner = race.decided.method if race.decided else ""
    order = {name: place for place, name in enumerate(race.decided.ranking)} if race.decided else {}
    rows = []
    for row in sorted(race.rows, key=lambda one: order.get(one.method, len(order))):
        figures = _figures(row.report, lengths, asked)
        rows.append(
            [
                f"{'* ' if row.method == winner else '  '}{row.method}",
                *figures,
                format_duration(row.seconds) if row.seconds else NO_FIGURE,
                row.problem,
            ]
        )
    return headings, rows, tuple(range(1, len(headings) - 1))


def _figures(report: LengthReport, lengths: Sequence[int], asked: Sequence[int]) -> list[str]:
    found = {entry.length: entry.perplexity for entry in report.perplexity}
    cells = [perplexity_text(found[length]) if length in found else NO_FIGURE for length in lengths]
    for length in asked:
        share = needle_share(report, length)
        cells.append(NO_FIGURE if share is None else f"{share * 100:.0f} %")
    cells.append(change_text(report.short.change) if report.short else NO_FIGURE)
    return cells


def race_origin(race: Race) -> str:
    """Where the figures are from: "measured on this machine without any training, in 41 s; text: ..."."""
    report = race.rows[0].report if race.rows else None
    about = f"; text: {report.text}, seed {report.seed}" if report is not None and report.text else ""
    return f"Measured on this machine, without any training, in {format_duration(race.seconds)}{about}."


# ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────
def search_table(done: SearchDone) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Headings, rows and the columns that stand right: what was found and what it began with, on both objectives."""
    known = sorted(done.seeds, key=lambda one: one.score)
    if done.origin.startswith("seed "):
        found, known = done.origin.removeprefix("seed "), [one for one in known if f"seed {one.name}" != done.origin]
    else:
        found = "found"
    rows = [_search_row(f"* {found}", done.best, done.needle_nll, done.perplexity)]
    rows += [_search_row(f"  {one.name}", one.score, one.needle_nll, one.perplexity) for one in known]
    return ["FACTORS", "SCORE", "NATS PER NEEDLE TOKEN", "PERPLEXITY"], rows, (1, 2, 3)


def _search_row(name: str, score: float, nats: float | None, perplexity: float | None) -> list[str]:
    return [
        name,
        f"{score:.4f}",
        NO_FIGURE if nats is None else f"{nats:.4f}",
        NO_FIGURE if perplexity is None else perplexity_text(perplexity),
    ]


def search_origin(done: SearchDone) -> str:
    """What the score is made of, and how much was tried."""
    score = f"nats per needle token + {done.weight:g} x ln(perplexity)"
    if not done.needles:
        score = "ln(perplexity) alone: the model does not answer needles within its own window"
    return f"Score, lower is better: {score}. {done.evaluations} evaluations in {format_duration(done.seconds)}."


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────
def perplexity_table(report: LengthReport) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: length, perplexity of the closing tokens, where it was measured the same by sliding window."""
    sliding = any(entry.sliding is not None for entry in report.perplexity)
    headings = ["LENGTH", "PERPLEXITY", *(["SLIDING"] if sliding else []), "TOKENS"]
    rows = []
    for entry in report.perplexity:
        other = NO_FIGURE if entry.sliding is None else perplexity_text(entry.sliding)
        figures = [perplexity_text(entry.perplexity), *([other] if sliding else [])]
        rows.append([short_length(entry.length), *figures, f"{entry.tokens:,}"])
    return headings, rows


def short_words(report: LengthReport) -> str:
    """ "Short text (256 tokens): perplexity 9.87 before, 9.91 after: +0.4 %"; "" where it was not measured."""
    short = report.short
    if short is None:
        return ""
    return (
        f"Short text ({short_length(short.length)} tokens): perplexity {perplexity_text(short.perplexity_before)} "
        f"before, {perplexity_text(short.perplexity_after)} after: {change_text(short.change)}"
    )


def check_words(check: FolderCheck) -> list[str]:
    """What was seen of the folder."""
    words = [
        f"Frequencies of {check.modules} rotary module{'s' if check.modules != 1 else ''} equal the formula "
        f"(largest relative difference {check.largest_error:.1e})."
    ]
    if check.cache_equal:
        words.append(
            f"Generation across {check.boundary:,} tokens with a KV cache equals recomputation "
            f"({check.generated} tokens, logits within {check.logit_difference:.1e})."
        )
    elif check.reason:
        words.append(check.reason)
    return words


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def report_json(report: LengthReport | None) -> dict[str, Any] | None:
    """Perplexity by length, needle accuracy by length and depth, short text before and after.

    "needle" is what the verdict counts: the plain needles, or all tasks without them. Others have their own names.
    """
    if report is None:
        return None
    others = sorted({cell.task for cell in report.needles} - {"needle"})
    short = report.short
    return {
        "perplexity": {str(entry.length): entry.perplexity for entry in report.perplexity},
        "needle": _shares([cell for cell in report.needles if cell.task == "needle"] or report.needles),
        **{task: _shares([cell for cell in report.needles if cell.task == task]) for task in others},
        "short_regression": {}
        if short is None
        else {
            "length": short.length,
            "tokens": short.tokens,
            "perplexity_before": short.perplexity_before,
            "perplexity_after": short.perplexity_after,
            "change": short.change,
        },
    }


def _shares(cells: Sequence[NeedleCell]) -> dict[str, dict[str, float]]:
    """Right answers by length and depth."""
    sums: dict[tuple[int, float], tuple[float, int]] = {}
    for cell in cells:
        right, prompts = sums.get((cell.length, cell.depth), (0.0, 0))
        sums[cell.length, cell.depth] = (right + cell.accuracy * cell.prompts, prompts + cell.prompts)
    found: dict[str, dict[str, float]] = {}
    for (length, depth), (right, prompts) in sorted(sums.items()):
        found.setdefault(str(length), {})[f"{depth:g}"] = round(right / prompts, 4) if prompts else 0.0
    return found


def portability_json(readers: Sequence[Portability]) -> dict[str, dict[str, str]]:
    """By program: verdict and why."""
    return {one.consumer: {"verdict": one.verdict, "why": one.why} for one in readers}


def factors_json(plan: ContextPlan) -> dict[str, Any]:
    """Every pair's divisor, those of short sequences where they differ, and m."""
    scaling = plan.scaled.scaling
    return {
        "factor": plan.factor,
        "divisors": list(scaling.divisors),
        "short_divisors": list(scaling.short_divisors) or None,
        "attention_factor": scaling.attention_factor,
    }


def result_json(certificate: Certificate, output: str) -> dict[str, Any]:
    """The object that `extend --json` promises."""
    plan = certificate.plan
    training = certificate.training
    return {
        "source": certificate.source,
        "output": output,
        "method": plan.method,
        "context_before": plan.original,
        "context_after": plan.target,
        "factors": factors_json(plan),
        "training": None if training is None else training,
        "report": report_json(certificate.report),
        "portability": portability_json(certificate.portability),
    }
