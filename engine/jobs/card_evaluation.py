"""What the page says about abilities: retention in words with intervals, texts, benchmarks, stages, recoveries.

Owns the sections' words. Must not judge: verdicts come with the reports. Everything that came from a file or a model
goes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from engine.jobs.card import BenchmarkResult, Card, FollowedCurve, Scores, StageRetention, SuiteResult
from engine.jobs.card_plots import delta_bar, lines_plot
from engine.jobs.events import Recovery, RetentionReport
from engine.jobs.stage_figures import StageFigures
from engine.units import format_count, format_duration

STYLE = """
.line.s2 { stroke:var(--held) } .line.s3 { stroke:var(--good) } .line.s4 { stroke:#8a5bc7 }
.line.s5 { stroke:var(--bad) } .line.s6 { stroke:var(--quiet) }
circle.s1 { fill:var(--accent) } circle.s2 { fill:var(--held) } circle.s3 { fill:var(--good) }
circle.s4 { fill:#8a5bc7 } circle.s5 { fill:var(--bad) } circle.s6 { fill:var(--quiet) } .tick.name { fill:var(--ink) }
.held-note { border-left:4px solid var(--bad) } .words { font-weight:600 } .words.lost { color:var(--bad) }
.words.gained { color:var(--good) } .words.unclear { color:var(--held) } h3.part { font-size:15px; margin:18px 0 6px }
"""
ORDER = ("lost", "unclear", "gained", "kept")
SHARES = ("acc", "exact_match", "em")
"""Metrics that begin so are shares of right answers."""
BITS = "bits per byte"


def evaluation_sections(card: Card) -> str:
    """HTML of all of it; empty for a card without any."""
    parts = [_held(card), _retention(card), _texts(card), _benchmarks(card), _stages(card), _recoveries(card)]
    return "\n".join(part for part in parts if part)


def _held(card: Card) -> str:
    if not card.held:
        return ""
    where = f" It lies in <code>{escape(card.adapter.path)}</code>."
    return f'<section><div class="panel held-note"><b>Not promoted.</b> {escape(card.held)}{where}</div></section>'


# ── retention ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _retention(card: Card) -> str:
    if not card.retention:
        return ""
    table = retention_table(card.retention)
    return f'<section><h2>Against the parent model</h2><div class="panel">{table}</div></section>'


def retention_table(reports: Sequence[RetentionReport]) -> str:
    """A row per ability, what was lost first: its sentence, before, after, the change with its interval."""
    known = {name: place for place, name in enumerate(ORDER)}
    rows = "".join(
        _report(report, _scale(report.unit, reports))
        for report in sorted(reports, key=lambda report: known.get(report.verdict, len(known)))
    )
    head = "<tr><th></th><th>before</th><th>after</th><th>change</th><th></th><th>pairs</th></tr>"
    note = "Intervals of 95 % by paired bootstrap over the same questions or documents."
    return f'<div class="wide"><table>{head}{rows}</table></div><p class="quiet">{note}</p>'


def _scale(unit: str, reports: Sequence[RetentionReport]) -> float:
    """The end of the scale for a unit: the farthest end of any of its intervals."""
    ends = [end for one in reports if one.unit == unit for end in (one.low, one.high) if math.isfinite(end)]
    return max((abs(end) for end in ends), default=0.0) * 1.1


def _report(report: RetentionReport, most: float) -> str:
    before, after = (_amount(value, report.unit) for value in (report.before, report.after))
    bar = delta_bar(report.low, report.delta, report.high, most, f"{report.on}: change with its interval")
    verdict = escape(report.verdict, quote=True)
    return (
        f'<tr><td class="words {verdict}">{escape(_sentence(report.words))}</td><td>{before}</td><td>{after}</td>'
        f"<td>{_change(report)}</td><td>{bar}</td><td>{report.pairs:,}</td></tr>"
    )


def _change(report: RetentionReport) -> str:
    if report.unit == "accuracy":
        delta, low, high = (f"{value * 100:+.1f}" for value in (report.delta, report.low, report.high))
        return f"{delta} points [{low}, {high}]"
    return f"{report.delta:+.4f} [{report.low:+.4f}, {report.high:+.4f}]"


def _amount(value: float, unit: str) -> str:
    return f"{value * 100:.1f} %" if unit == "accuracy" else f"{value:.4f}"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


# ── texts and benchmarks ──────────────────────────────────────────────────────────────────────────────────────────
def _texts(card: Card) -> str:
    after = card.after.suites if card.after is not None else ()
    before = card.before.suites if card.before is not None else ()
    curves = [curve for curve in card.curves if curve.unit == BITS]
    if not after and not before and not curves:
        return ""
    plot = _plot(curves, "Bits per byte of each text over the steps")
    return f'<section><h2>Texts</h2><div class="panel">{plot}{suites_table(before, after)}</div></section>'


def suites_table(before: Sequence[SuiteResult], after: Sequence[SuiteResult]) -> str:
    """A row per text: bits per byte before and after, perplexity per token, and how much was read."""
    was, now = ({suite.name: suite for suite in suites} for suites in (before, after))
    rows = []
    for name in dict.fromkeys([*was, *now]):
        first, last = was.get(name), now.get(name)
        known = last or first
        assert known is not None
        change = ""
        if first is not None and last is not None and first.bits_per_byte > 0:
            share = last.bits_per_byte / first.bits_per_byte - 1
            change = f'<span class="{"bad" if share > 0 else "good"}">{share:+.1%}</span>'
        cells = [f"{suite.bits_per_byte:.4f}" if suite else "" for suite in (first, last)]
        perplexity = f"{math.exp(min(known.nats_per_token, 700.0)):.2f}"
        read = f"{format_count(known.tokens)} tokens, {known.documents:,} documents"
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{cells[0]}</td><td>{cells[1]}</td><td>{change}</td>"
            f'<td>{perplexity}</td><td class="quiet">{read}</td></tr>'
        )
    if not rows:
        return ""
    head = "<tr><th>bits per byte</th><th>before</th><th>after</th><th></th><th>perplexity</th><th>on</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _benchmarks(card: Card) -> str:
    table = benchmarks_table(_of(card.before), _of(card.after))
    curves = [curve for curve in card.curves if curve.unit != BITS]
    if not table and not curves:
        return ""
    plots = "".join(
        _plot([curve for curve in curves if curve.unit == unit], f"{unit} over the steps, on a part of the questions")
        for unit in dict.fromkeys(curve.unit for curve in curves)
    )
    return f'<section><h2>Benchmarks</h2><div class="panel">{plots}{table}</div></section>'


def _of(scores: Scores | None) -> tuple[BenchmarkResult, ...]:
    return scores.benchmarks if scores is not None else ()


def benchmarks_table(before: Sequence[BenchmarkResult], after: Sequence[BenchmarkResult]) -> str:
    """A row per metric of each task, with standard errors."""
    was, now = ({(one.task, one.metric): one for one in scores} for scores in (before, after))
    rows = []
    for key in dict.fromkeys([*was, *now]):
        first, last = was.get(key), now.get(key)
        known = last or first
        assert known is not None
        task = f"<b>{escape(key[0])}</b>" if known.group else escape(key[0])
        questions = f"{known.questions:,} questions" if known.questions else ""
        rows.append(
            f'<tr><td>{task}</td><td class="quiet">{escape(key[1])}</td><td>{_score(first)}</td>'
            f'<td>{_score(last)}</td><td class="quiet">{questions}</td></tr>'
        )
    if not rows:
        return ""
    head = "<tr><th>task</th><th></th><th>before</th><th>after</th><th></th></tr>"
    note = '<p class="quiet">Measured with lm-eval; ± is the standard error.</p>'
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>{note}'


def _score(score: BenchmarkResult | None) -> str:
    if score is None:
        return ""
    error = score.standard_error
    if score.metric.startswith(SHARES):
        return f"{score.value * 100:.1f}{'' if error is None else f' ± {error * 100:.1f}'} %"
    return f"{score.value:.3f}{'' if error is None else f' ± {error:.3f}'}"


def _plot(curves: Sequence[FollowedCurve], label: str) -> str:
    drawn = lines_plot(curves, label)
    return f'<p class="quiet">{escape(label)}</p><div class="wide plot">{drawn}</div>' if drawn else ""


# ── stages and recoveries ─────────────────────────────────────────────────────────────────────────────────────────
def _stages(card: Card) -> str:
    if not card.stage_figures or (len(card.stage_figures) == 1 and not card.stage_figures[0].domains):
        return ""
    found = {one.stage: one for one in card.stages}
    rows = "".join(_stage(figures, found.get(figures.stage)) for figures in card.stage_figures)
    head = (
        "<tr><th>stage</th><th>steps</th><th>tokens</th><th>mix</th><th>time</th><th>data wait</th><th>loss</th>"
        "<th>held-out</th><th>against the parent</th></tr>"
    )
    ranks = ""
    if card.ranks is not None:
        hosts = ", ".join(dict.fromkeys(card.ranks.hosts))
        words = f"{card.ranks.world} processes, {card.ranks.strategy} over {card.ranks.backend}, on {hosts}"
        ranks = f'<p class="quiet">{escape(words)}</p>'
    title = "Stages" if len(card.stage_figures) > 1 else "Tokens"
    table = f'<div class="wide"><table>{head}{rows}</table></div>'
    return f'<section><h2>{title}</h2><div class="panel">{table}{ranks}</div></section>'


def _stage(figures: StageFigures, kept: StageRetention | None) -> str:
    name = f"{figures.stage} {figures.name}".strip() if figures.stage else "all"
    cells = [
        escape(name),
        f"{figures.steps:,}" if figures.steps else "none: it grows only",
        format_count(figures.tokens) if figures.tokens else "",
        escape(mix_words(figures.domains)),
        format_duration(figures.training_seconds) if figures.steps else "",
        f"{figures.wait_share:.1%}" if figures.steps else "",
        _from_to(figures.loss_first, figures.loss_last),
        _from_to(figures.eval_first, figures.eval_last),
        _kept_words(kept),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def mix_words(domains: dict[str, int]) -> str:
    """ "web 70 %, code 30 %"."""
    total = sum(domains.values())
    return (
        ", ".join(f"{name} {count / total:.0%}".replace("%", " %") for name, count in domains.items()) if total else ""
    )


def _from_to(first: float | None, last: float | None) -> str:
    known = [f"{value:.3f}" for value in (first, last) if value is not None]
    return " → ".join(known)


def _kept_words(kept: StageRetention | None) -> str:
    if kept is None:
        return ""
    told = [report.words for report in kept.reports if report.verdict == "lost"] + ([kept.gate] if kept.gate else [])
    bad = [f'<span class="bad">{escape("; ".join(told))}</span>'] if told else []
    nothing = ["nothing lost"] if kept.reports and not told else []
    return "; ".join([*bad, *nothing, *map(escape, not_compared_words(kept))])


def not_compared_words(kept: StageRetention) -> tuple[str, ...]:
    """ "not compared: my_ppl", or nothing where everything was."""
    return (f"not compared: {', '.join(kept.not_compared)}",) if kept.not_compared else ()


def _recoveries(card: Card) -> str:
    if not card.recoveries:
        return ""
    rows = "".join(_recovery(one) for one in card.recoveries)
    return f'<section><h2>Trouble it went through</h2><div class="panel"><table>{rows}</table></div></section>'


def _recovery(recovery: Recovery) -> str:
    back = f" Back to step {recovery.back_to_step:,}." if recovery.back_to_step < recovery.step else ""
    words = escape(f"{recovery.what}{back} {recovery.remedy}".strip())
    return f"<tr><td>step {recovery.step:,}</td><td>{escape(recovery.trouble)}</td><td>{words}</td></tr>"
