"""The card in words: a verdict on each score that says what it means, and the files with their sizes.

Owns wording and thresholds of the verdicts. Must not know widgets or how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from textual.content import Content

from engine.jobs import result_words
from engine.jobs.card import Card, PredictedMeasured
from engine.jobs.layout import CARD_PAGE
from engine.jobs.mix_report import MixReport
from engine.units import format_bytes, format_count, format_duration, format_range, format_usd
from scaler_tui.abilities_text import lost_words
from scaler_tui.widgets import length_words
from scaler_tui.widgets.run_figures import Promise, labelled, promise_lines, range_verdict
from scaler_tui.widgets.status_line import toned

CLEAR_LOSS_CHANGE = 0.03
"""A held-out loss that moved less than this share is called unchanged."""

SCALED_UNITS = {"bytes": format_bytes, "seconds": format_duration, "s": format_duration}


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score, before and after, and what to make of it."""

    name: str
    before: str
    after: str
    change: str
    verdict: str
    tone: str


def loss_row(before: float, after: float) -> ScoreRow:
    """Held-out loss of the task; lower is better."""
    share = (after - before) / before if before > 0 else 0.0
    if not math.isfinite(after):
        verdict, tone = "broken: not a number", "bad"
    elif abs(share) < CLEAR_LOSS_CHANGE:
        verdict, tone = "no real change", "warn"
    elif share < 0:
        verdict, tone = ("much better" if share < -0.25 else "better"), "good"
    else:
        verdict, tone = "worse than before", "bad"
    return ScoreRow("task loss", f"{before:.4f}", f"{after:.4f}", f"{share * 100:+.0f} %", verdict, tone)


def exact_row(before: float, after: float, rows: int) -> ScoreRow:
    """Share of rows answered exactly; few rows cannot show small changes."""
    points = (after - before) * 100
    noise = 100 / math.sqrt(rows) if rows else 100.0
    if abs(points) < noise and abs(points) < 99.5:
        verdict, tone = f"no clear change ({rows} rows)", "warn"
    else:
        verdict, tone = ("clearly better", "good") if points > 0 else ("clearly worse", "bad")
    change = f"{points:+.0f} points"
    return ScoreRow("exact answers", f"{before * 100:.0f} %", f"{after * 100:.0f} %", change, verdict, tone)


def forgetting_row(before: float, after: float) -> ScoreRow:
    """Perplexity on base text; a rise is forgetting."""
    ratio = after / before if before > 0 else 1.0
    if not math.isfinite(ratio):
        verdict, tone = "broken: not a number", "bad"
    elif ratio <= 1.02:
        verdict, tone = "nothing forgotten", "good"
    elif ratio <= 1.1:
        verdict, tone = "little forgotten", "good"
    elif ratio <= 1.3:
        verdict, tone = "some forgotten", "warn"
    else:
        verdict, tone = "much forgotten", "bad"
    change = f"{(ratio - 1) * 100:+.0f} %" if math.isfinite(ratio) else "-"
    return ScoreRow("base perplexity", f"{before:.2f}", f"{after:.2f}", change, verdict, tone)


def score_rows(card: Card) -> list[ScoreRow]:
    """The scores that were measured both before and after."""
    before, after = card.before, card.after
    if before is None or after is None:
        return []
    rows = [loss_row(before.task_loss, after.task_loss)] if after.has_task_loss else []
    if before.exact_match is not None and after.exact_match is not None:
        rows.append(exact_row(before.exact_match, after.exact_match, after.exact_match_rows))
    if before.base_perplexity is not None and after.base_perplexity is not None:
        rows.append(forgetting_row(before.base_perplexity, after.base_perplexity))
    return rows


def _growth_headline(card: Card, *, unicode: bool) -> Content:
    """A job that only grew: to what, and whether that was proven."""
    last = card.growths[-1] if card.growths else None
    if last is None:
        return toned("Nothing was trained.", "quiet")
    size = f"Grown from {format_count(last.parameters_before)} to {format_count(last.parameters_after)} parameters"
    proven = last.proof is not None and last.proof.passed
    claim = "its function is proven unchanged" if last.exact else "its function is another, measured in the proof"
    tone = "good" if proven and last.exact else "warn"
    sign = {"good": "✓" if unicode else "+", "warn": "!"}[tone]
    text = f"{size}; {claim if proven else 'nothing was proven'}."
    return Content.assemble(toned(f"{sign} ", tone), toned(text, "strong"))


def mix_headline(report: MixReport, *, unicode: bool) -> Content:
    """A job that made one adapter of several: from how many, and whether that helped."""
    text = f"{len(report.adapters)} adapters became one."
    tone = "good"
    if report.score is not None:
        text = f"{text[:-1]}: {result_words.score_words(report.score_before, report.score)}."
        tone = "warn" if report.score_before is not None and not report.score < report.score_before else "good"
    sign = {"good": "✓" if unicode else "+", "warn": "!"}[tone]
    return Content.assemble(toned(f"{sign} ", tone), toned(text, "strong"))


def headline(card: Card, *, unicode: bool) -> Content:
    """One or two sentences: did it learn, did it forget."""
    if card.mix is not None:
        return mix_headline(card.mix, unicode=unicode)
    rows = {row.name: row for row in score_rows(card)}
    if card.after is None:
        if card.lengths_after is not None and not card.growths:
            return toned("Nothing was trained; the window was made longer and measured.", "strong")
        return _growth_headline(card, unicode=unicode)
    dash = "–" if unicode else "-"
    text, tone = _learned(card, rows)
    forgetting = rows.get("base perplexity")
    if forgetting is not None:
        text += f" Of what it knew, {forgetting.verdict}."
        tone = "warn" if tone == "good" and forgetting.tone != "good" else tone
    lost = lost_words(card.retention)
    if lost or card.held:
        text += f" Against the parent model, {lost}." if lost else ""
        text += " It was not promoted." if card.held else ""
        tone = "bad" if card.held else "warn" if tone == "good" else tone
    sign = {"good": "✓" if unicode else "+", "warn": "!", "bad": "✗" if unicode else "x"}[tone]
    return Content.assemble(toned(f"{sign} ", tone), toned(text.replace("–", dash), "strong"))


def _learned(card: Card, rows: Mapping[str, ScoreRow]) -> tuple[str, str]:
    """Whether it learned what it was trained on, in a sentence, and the tone of that."""
    loss = rows.get("task loss")
    if loss is None:
        return "Whether it learned is unknown: no text was set aside to measure it.", "warn"
    learned = rows.get("exact answers") or loss
    first = {
        "good": "It learned the task",
        "warn": "It did not clearly learn the task",
        "bad": "It got worse at the task",
    }[loss.tone]
    text = f"{first}: {learned.name} {learned.before} before, {learned.after} after."
    if any(figures.domains for figures in card.stage_figures):  # it streamed: there is no task, only text
        text = text.replace("the task", "the text").replace("task loss", "held-out loss")
    return text, loss.tone


def length_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """Verdict, perplexity and needles by length, readers; nothing where lengths were not measured."""
    if card.lengths_after is None:
        return Content("")
    return length_words.length_content(card.lengths_after, card.lengths_before, card.readers, width, unicode=unicode)


def score_lines(card: Card, width: int, *, unicode: bool) -> Content:
    """The scores as a table; below 56 cells the verdict stands on its own line."""
    rows = score_rows(card)
    if not rows:
        return Content("")
    names = max(len(row.name) for row in rows)
    lines: list[Content] = [toned(f"{'':<{names}}  {'before':>8}  {'after':>8}  {'change':>10}", "quiet")]
    signs = {"good": "✓" if unicode else "+", "warn": "!", "bad": "✗" if unicode else "x"}
    for row in rows:
        figures = Content.assemble(
            toned(f"{row.name:<{names}}", "quiet"), f"  {row.before:>8}  ", toned(f"{row.after:>8}", "strong"),
            f"  {row.change:>10}",
        )  # fmt: skip
        verdict = toned(f"{signs[row.tone]} {row.verdict}", row.tone)
        if figures.cell_length + 3 + verdict.cell_length <= width:
            lines.append(Content.assemble(figures, "   ", verdict))
        else:
            lines += [figures, Content.assemble(" " * (names + 2), verdict)]
    return Content("\n").join(lines)


def _printed(figure: PredictedMeasured, value: float) -> str:
    printer = SCALED_UNITS.get(figure.unit)
    return printer(value) if printer else f"{value:,.0f} {figure.unit}".rstrip()


def promise_table(card: Card, width: int, *, unicode: bool) -> Content:
    """Predicted against measured."""
    rows = []
    for figure in card.predicted:
        likely, low, high = (_printed(figure, value) for value in (figure.likely, figure.low, figure.high))
        higher_is_better = figure.name == "speed"
        verdict, tone = range_verdict(figure.measured, figure.low, figure.high, higher_is_better=higher_is_better)
        if figure.unit not in SCALED_UNITS:
            low, high = f"{figure.low:,.0f}", f"{figure.high:,.0f}"
        predicted = f"{likely} ({format_range(low, high)})"
        rows.append(Promise(figure.name, predicted, _printed(figure, figure.measured), verdict, tone))
    return promise_lines(rows, width, unicode=unicode)


def file_lines(card: Card, run_dir: Path, *, merging: bool) -> Content:
    """Where everything is, and the check of the merged model."""
    adapter = f"{format_bytes(card.adapter.size_bytes)}, {format_count(card.adapter.parameters)} parameters"
    rows = [(card.adapter.kind, f"{run_dir / card.adapter.path}"), ("", adapter)]
    merged = card.merged
    if merged is not None:
        same, loss = merged.same_top_token * 100, merged.merged_task_loss
        mean, largest = merged.mean_logit_difference, merged.max_logit_difference
        rows += [
            ("merged", f"{run_dir / merged.path}"),
            ("", f"{format_bytes(merged.size_bytes)}; same next token at {same:.1f} % of positions"),
            ("", f"task loss {loss:.4f} merged, {merged.adapter_task_loss:.4f} adapter on {merged.base_dtype}"),
            ("", f"logits differ by {mean:.3g} on average, {largest:.3g} at most"),
        ]
        if merged.stored_base_difference is not None:
            rows.append(("", f"on the unquantised base by {merged.stored_base_difference:.1e} of their range, at most"))
    elif card.adapter.kind == "adapter":
        rows.append(("merged", "being written now" if merging else "not yet; m writes it"))
    rows.append(("page", f"{run_dir / CARD_PAGE}"))
    return labelled(rows, 10_000)


def fact_lines(card: Card) -> Content:
    """How the run went."""
    tokens, trained = format_count(card.tokens), format_count(card.trained_tokens)
    steps = f"{card.steps:,} steps, {tokens} tokens, {trained} of them trained"
    took = f"{format_duration(card.training_seconds)} training, {format_duration(card.working_seconds)} in all"
    if card.attempts > 1:
        took += f", {card.attempts} attempts"
    rows = [("model", f"{card.model}, {card.task}"), ("work", steps), ("time", took)]
    if card.cost_usd > 0:
        rows.append(("cost", format_usd(card.cost_usd)))
    rows.append(("device", card.device or "-"))
    rows += [("note", note) for note in card.notes]
    return labelled(rows, 10_000)
