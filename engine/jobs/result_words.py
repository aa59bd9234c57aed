"""What a teacher, a mix of adapters and an export came to, in words, for cards, pages and commands alike.

Owns wording and the order of figures. Must not judge beyond naming a difference, nor know HTML or terminals.
"""

from __future__ import annotations

import math
from pathlib import Path

from engine.jobs.card import TeacherFigures
from engine.jobs.export_report import Agreement, ExportedFile, ExportReport
from engine.jobs.mix_report import LayerError, MixReport
from engine.units import format_bytes, format_count, format_duration

HELD = {
    "self": "the model as it was before; no memory of its own",
    "resident": "in memory beside the student",
    "nf4": "in memory, in 4 bits",
    "offloaded": "its weights in host memory",
    "cached": "its logits, on disk",
}
DESTINATIONS = {"hf": "Folder for transformers", "gguf": "GGUF file", "ollama": "Ollama"}
EXACT = 1e-6
"""A relative error below this is rounding."""
SAME_PERPLEXITY = 5e-4
"""A change below this share is called none."""
WORST_SHOWN = 3

Rows = list[tuple[str, str]]


# ── teacher ───────────────────────────────────────────────────────────────────────────────────────────────────────
def teacher_rows(teacher: TeacherFigures, student_loss: float | None = None) -> Rows:
    """(label, words); the student's held-out loss stands beside the teacher's where both are known."""
    size = f", {format_count(teacher.parameters)} parameters" if teacher.parameters else ""
    rows = [("teacher", f"{teacher.name}{size}")]
    rows.append(("held", f"{teacher.held}: {HELD[teacher.held]}" if teacher.held in HELD else teacher.held))
    rows.append(("loss", teacher.loss))
    if teacher.task_loss is not None:
        beside = f"; the student's {student_loss:.4f}" if student_loss is not None else ""
        exact = f", {teacher.exact_match * 100:.0f} % exact" if teacher.exact_match is not None else ""
        rows.append(("held-out", f"the teacher's loss {teacher.task_loss:.4f}{exact}{beside}"))
    if teacher.cached_tokens:
        rows.append(("cache", f"{teacher.cached_tokens:,} tokens in {format_bytes(teacher.cached_bytes)}"))
    if teacher.rollout_tokens:
        rows.append(("answers", rollout_words(teacher.rollout_tokens, teacher.rollout_seconds)))
    return rows


def rollout_words(tokens: int, seconds: float) -> str:
    """ "12,400 tokens written by the student in 40 s, 310 tokens/s"."""
    speed = f", {tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
    return f"{tokens:,} tokens written by the student in {format_duration(seconds)}{speed}"


# ── mix ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def mix_rows(report: MixReport) -> Rows:
    """(label, words) of a mix and of how exact it is."""
    mixed = zip(report.adapters, report.weights, strict=False)
    density = f", density {report.density:g}" if report.density < 1 else ""
    rows = [
        ("mixed", ", ".join(f"{weight:g} x {name}" for name, weight in mixed)),
        ("method", f"{report.method}{density}, " + (f"rank {report.rank}" if report.rank else "kept whole")),
        ("error", error_words(report)),
    ]
    if report.cut_error is not None:
        rows.append(("cut", f"{cut_words(report)}; merged into the base all is kept"))
    if report.identity_error is not None:
        rows.append(("self-test", f"an adapter alone at weight 1 gives itself back to {report.identity_error:.1e}"))
    if report.score is not None:
        rows.append(("score", score_words(report.score_before, report.score)))
    if report.swept:
        rows.append(("sweep", f"{report.swept} sets of weights measured on half the rows; the best there"))
    if report.check_score is not None:
        rows.append(("other half", score_words(report.check_before, report.check_score)))
    memory = f", {format_bytes(report.peak_rss_bytes)} of memory at most" if report.peak_rss_bytes else ""
    rows.append(("took", f"{format_duration(report.seconds)}{memory}"))
    return rows


def error_words(report: MixReport) -> str:
    """How far the result is from the weighted sum of the updates."""
    if report.relative_error < EXACT:
        return f"no more than rounding: {report.relative_error:.1e} of the weighted sum"
    worst = "; ".join(layer_words(layer) for layer in worst_layers(report))
    return f"{report.relative_error * 100:.2g} % against the weighted sum; most in {worst}"


def cut_words(report: MixReport) -> str:
    """ "38 % of what ties gives is lost at rank 8", of a report that knows."""
    lost = report.cut_error or 0.0
    share = f"{lost * 100:.2g} %" if lost >= EXACT else "nothing"
    return f"{share} of what {report.method} gives is lost at rank {report.rank}"


def worst_layers(report: MixReport) -> list[LayerError]:
    """The few matrices that are farthest off, worst first."""
    off = [layer for layer in report.layers if layer.relative_error >= EXACT]
    return sorted(off, key=lambda layer: -layer.relative_error)[:WORST_SHOWN]


def layer_words(layer: LayerError) -> str:
    """ "layers.3.mlp.up_proj 4.1 %"."""
    return f"{layer.module.removeprefix('model.')} {layer.relative_error * 100:.2g} %"


def score_words(before: float | None, after: float) -> str:
    """ "held-out loss 1.204, 23 % below the base's 1.561"."""
    if before is None or not before > 0 or not math.isfinite(after):
        return f"held-out loss {after:.4f}"
    share = after / before - 1
    where = "below" if share < 0 else "above"
    return f"held-out loss {after:.4f}, {abs(share) * 100:.1f} % {where} the base's {before:.4f}"


# ── exports ───────────────────────────────────────────────────────────────────────────────────────────────────────
def export_title(report: ExportReport) -> str:
    """What it was written for."""
    return DESTINATIONS.get(report.destination, report.destination)


def file_words(file: ExportedFile) -> str:
    """ "q4_k_m, 12.1 MiB, perplexity +1.2 %"; the change only where it was measured."""
    parts = [file.kind, *([format_bytes(file.size_bytes)] if file.size_bytes else [])]
    if file.agreement is not None:
        parts.append(f"perplexity {change_words(file.agreement)}")
    return ", ".join(parts)


def change_words(agreement: Agreement) -> str:
    """Of the perplexity against transformers': "+1.2 %", "unchanged"."""
    change = agreement.perplexity_change
    return "unchanged" if abs(change) < SAME_PERPLEXITY else f"{change * 100:+.2g} %"


def agreement_words(agreement: Agreement) -> str:
    """How alike the file and transformers answer, in a sentence."""
    same = f"same next token at {agreement.same_top_token * 100:.1f} % of {agreement.tokens_compared:,} positions"
    over = [f"perplexity over {agreement.perplexity_tokens:,} tokens"] if agreement.perplexity_tokens else []
    texts = "answers are the same" if agreement.first_difference < 0 else (
        f"answers part at token {agreement.first_difference + 1}"
    )  # fmt: skip
    wrong = [
        words
        for fine, words in (
            (agreement.same_tokens, "text is cut into other tokens"),
            (agreement.same_prompt, "the chat template gives other prompts"),
            (agreement.stops, "it does not stop by itself"),
        )
        if not fine
    ]
    return "; ".join([f"{agreement.runtime}: {same}", *over, texts, *wrong])


def is_sound(agreement: Agreement) -> bool:
    """Whether nothing but rounding is different in how it is used: tokens, prompts, stop tokens."""
    return agreement.same_tokens and agreement.same_prompt and agreement.stops


def file_name(file: ExportedFile) -> str:
    """Without its folder."""
    return Path(file.path).name
