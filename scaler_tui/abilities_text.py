"""What became of a model's abilities, in words: retention, texts, benchmarks, stages, recoveries, for every front end.

Owns wording and the order of verdicts. Must not judge (verdicts, intervals and sentences are the worker's), nor know
Textual: `card ID` prints these words too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.jobs.card import BenchmarkResult, Card, Scores, StageRetention, SuiteResult
from engine.jobs.card_evaluation import mix_words, not_compared_words
from engine.jobs.events import Recovery, RetentionReport
from engine.jobs.stage_figures import StageFigures
from engine.units import format_count, format_duration

VERDICTS = ("lost", "unclear", "gained", "kept")
"""In the order in which they are shown."""
SHARES = ("acc", "exact_match", "em")
"""Metrics that begin so are shares of right answers."""


def ordered(reports: Sequence[RetentionReport]) -> list[RetentionReport]:
    """What was lost first."""
    known = {name: place for place, name in enumerate(VERDICTS)}
    return sorted(reports, key=lambda report: known.get(report.verdict, len(known)))


def report_figures(report: RetentionReport, *, unicode: bool) -> str:
    """ "91.0 % → 78.0 %, -13.0 points [-18.1, -7.9], 150 pairs"."""
    arrow = "→" if unicode else "->"
    if report.unit == "accuracy":
        before, after = (f"{value * 100:.1f} %" for value in (report.before, report.after))
        delta, low, high = (f"{value * 100:+.1f}" for value in (report.delta, report.low, report.high))
        change = f"{delta} points [{low}, {high}]"
    else:
        before, after = f"{report.before:.4f}", f"{report.after:.4f}"
        change = f"{report.delta:+.4f} [{report.low:+.4f}, {report.high:+.4f}] {report.unit}"
    return f"{before} {arrow} {after}, {change}, {report.pairs:,} pairs"


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    text = f"{words[:1].upper()}{words[1:]}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def lost_words(reports: Sequence[RetentionReport]) -> str:
    """ "2 abilities were lost", or "" where none was."""
    lost = sum(report.verdict == "lost" for report in reports)
    return "" if not lost else f"{lost} {'ability was' if lost == 1 else 'abilities were'} lost"


def gate_words(on: str, most_lost: float, action: str) -> str:
    """A limit of the spec as a sentence."""
    follows = "stops the run" if action == "stop" else "keeps the result from output/"
    return f"Gate: a significant loss of more than {most_lost * 100:g} % on {on} {follows}."


def score_text(metric: str, value: float, error: float | None, *, unicode: bool) -> str:
    """ "91.0 ± 2.3 %" for shares, "3.214 ± 0.012" for anything else."""
    between = " ± " if unicode else " +- "
    if metric.startswith(SHARES):
        return f"{value * 100:.1f}{'' if error is None else f'{between}{error * 100:.1f}'} %"
    return f"{value:.3f}{'' if error is None else f'{between}{error:.3f}'}"


def recovery_words(recovery: Recovery) -> str:
    """What happened, where it went on, and what is different."""
    back = f" Back to step {recovery.back_to_step:,}." if recovery.back_to_step < recovery.step else ""
    return f"{recovery.what}{back} {recovery.remedy}".strip()


# ── a card ────────────────────────────────────────────────────────────────────────────────────────────────────────
def text_rows(card: Card) -> list[tuple[str, str, str, str]]:
    """(text, bits per byte before, after, change)."""
    before, after = (_suites(scores) for scores in (card.before, card.after))
    rows = []
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name), after.get(name)
        was, now = (f"{one.bits_per_byte:.4f}" if one is not None else "-" for one in (first, last))
        change = ""
        if first is not None and last is not None and first.bits_per_byte > 0:
            change = f"{(last.bits_per_byte / first.bits_per_byte - 1) * 100:+.1f} %"
        rows.append((name, was, now, change))
    return rows


def _suites(scores: Scores | None) -> dict[str, SuiteResult]:
    return {} if scores is None else {suite.name: suite for suite in scores.suites}


def benchmark_rows(card: Card, *, unicode: bool) -> list[tuple[str, str, str, str]]:
    """(task and metric, before, after, questions)."""
    before, after = (_benchmarks(scores) for scores in (card.before, card.after))
    rows = []
    for key in dict.fromkeys([*before, *after]):
        known = after.get(key) or before[key]
        was, now = (_scored(side.get(key), unicode=unicode) for side in (before, after))
        asked = f"{known.questions:,} questions" if known.questions else ""
        rows.append((f"{key[0]} {key[1]}" + (" (mean)" if known.group else ""), was, now, asked))
    return rows


def _benchmarks(scores: Scores | None) -> dict[tuple[str, str], BenchmarkResult]:
    return {} if scores is None else {(one.task, one.metric): one for one in scores.benchmarks}


def _scored(score: BenchmarkResult | None, *, unicode: bool) -> str:
    return "-" if score is None else score_text(score.metric, score.value, score.standard_error, unicode=unicode)


def told_stages(card: Card) -> tuple[StageFigures, ...]:
    """Stages worth telling: all of a staged job, and those of a job that streamed."""
    figures = card.stage_figures
    return figures if len(figures) > 1 or any(one.domains for one in figures) else ()


def stage_words(figures: StageFigures, kept: StageRetention | None, *, unicode: bool) -> list[str]:
    """A title, then what it did and what was lost by it."""
    title = f"{figures.stage} {figures.name}".strip() if figures.stage else "all steps"
    if not figures.steps:
        return [title, "it grows only", *_kept(kept)]
    wait = f"{format_duration(figures.training_seconds)}, {figures.wait_share * 100:.1f} % of it waiting for data"
    arrow = "→" if unicode else "->"
    parts = [mix_words(figures.domains)]
    for name, first, last in (
        ("loss", figures.loss_first, figures.loss_last),
        ("held-out", figures.eval_first, figures.eval_last),
    ):
        if first is not None and last is not None:
            parts.append(f"{name} {first:.3f} {arrow} {last:.3f}")
    if figures.recoveries:
        parts.append(f"{figures.recoveries} {'recovery' if figures.recoveries == 1 else 'recoveries'}")
    done = f"{figures.steps:,} steps, {format_count(figures.tokens)} tokens in {wait}"
    return [title, done, "; ".join(part for part in parts if part), *_kept(kept)]


def _kept(kept: StageRetention | None) -> Iterator[str]:
    if kept is None:
        return
    lost = [report.words for report in kept.reports if report.verdict == "lost"]
    told = [*(lost or ["nothing lost"] if kept.reports else ()), *not_compared_words(kept)]
    if told:
        yield f"against the parent: {'; '.join(told)}"
    if kept.gate:
        yield f"gate: {kept.gate}"


def sections(card: Card) -> Iterator[tuple[str, list[str]]]:
    """(heading, lines) of what was measured, for plain text."""
    if card.held:
        yield f"Not promoted: {card.held}", []
    if card.retention:
        lines = []
        for report in ordered(card.retention):
            lines += [f"{report.verdict}: {sentence(report.words)}", f"  {report_figures(report, unicode=False)}"]
        yield "Against the parent model (intervals of 95 %, paired bootstrap)", lines
    if rows := text_rows(card):
        yield "Bits per byte", list(_columns([("", "BEFORE", "AFTER", "CHANGE"), *rows]))
    if rows := benchmark_rows(card, unicode=False):
        yield "Benchmarks, with standard errors", list(_columns([("", "BEFORE", "AFTER", ""), *rows]))
    found = {one.stage: one for one in card.stages}
    if told := told_stages(card):
        lines = []
        for figures in told:
            title, *parts = stage_words(figures, found.get(figures.stage), unicode=False)
            lines += [title, *(f"  {part}" for part in parts if part)]
        if card.ranks is not None:
            lines.append(f"{card.ranks.world} processes, {card.ranks.strategy} over {card.ranks.backend}")
        yield "Stages" if len(told) > 1 else "Tokens", lines
    if card.recoveries:
        lines = [f"step {one.step:,}, {one.trouble}: {recovery_words(one)}" for one in card.recoveries]
        yield "Trouble it went through", lines


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Aligned; the first column to the left, figures to the right, a remark at the end to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) if 0 < index < 3 else cell.ljust(width)
                 for index, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        yield "  ".join(cells).rstrip()
