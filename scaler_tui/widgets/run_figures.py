"""The figures of a run as lines of text: what it is now, and what was promised against what was measured.

Owns wording and alignment. Must not know Textual widgets, files or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from textual.content import Content

from engine.jobs.fold_lessons import PARTS
from engine.jobs.result_words import HELD, export_title, file_words, rollout_words
from engine.jobs.spec import JobSpec, PredictionSection, Task
from engine.jobs.state import RunPhase, RunState
from engine.jobs.summary import cost_usd
from engine.units import format_bytes, format_count, format_duration, format_range, format_usd
from scaler_tui.spec_context_text import context_lines
from scaler_tui.spec_growth_text import growth_lines
from scaler_tui.spec_results_text import distillation_lines, export_lines, mix_lines
from scaler_tui.spec_stream_text import stream_lines
from scaler_tui.widgets.evaluation_words import WAIT_BUDGET, ranks_text, wait_text
from scaler_tui.widgets.status_line import toned


def format_loss(value: float | None) -> str:
    """Four digits; a dash while there is none."""
    return "-" if value is None else f"{value:.4f}"


def spent_usd(spec: JobSpec | None, state: RunState) -> float | None:
    """Price per hour (rent, electricity) times hours with a worker alive; None where neither is known."""
    if spec is None or spec.usd_per_hour <= 0:
        return None
    return cost_usd(state.working_seconds, spec.usd_per_hour)


def spent_text(spec: JobSpec | None, state: RunState) -> str:
    """ "$0.12 of $5.00 so far"; "" where no price is known."""
    spent = spent_usd(spec, state)
    if spec is None or spent is None:
        return ""
    budget = f" of {format_usd(spec.cost.budget_usd)}" if spec.cost.budget_usd else ""
    return f"{format_usd(spent)}{budget} so far"


def now_rows(state: RunState, *, streams: bool = False) -> list[tuple[str, str]]:
    """(label, figure) of this moment, most important first; the losses stand in the chart's legend. Of a job that
    streams, how long it waits for data instead of its epoch."""
    waits = wait_text(state) + ("  ! the data is too slow" if state.wait_share > WAIT_BUDGET else "  of the time")
    rows = [
        ("speed", "-" if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f} tokens/s"),
        ("learning rate", "-" if state.learning_rate is None else f"{state.learning_rate:.3g}"),
        ("seen", f"{format_count(state.tokens_total)} tokens"),
        ("data wait", waits) if streams else ("epoch", f"{state.epoch:.2f}"),
    ]
    return rows if not (lessons := lesson_rows(state)) else [*rows[:3], *lessons]


def lesson_rows(state: RunState) -> list[tuple[str, str]]:
    """Parts of the loss of a job with a teacher, and how fast the student writes what it learns on."""
    lessons = state.findings.lessons
    rows = [(f"loss, {part}", format_loss(lessons.losses[part])) for part in PARTS if part in lessons.losses]
    speed = lessons.rollout_tokens_per_second
    if speed is not None:
        rows.append(("own answers", f"{speed:,.0f} tokens/s  {format_count(lessons.rollout_tokens)} written"))
    return rows


def now_line(rows: Sequence[tuple[str, str]], width: int) -> Content:
    """The first of `now_rows` in one line, as many as fit whole."""
    texts: list[str] = []
    for label, figure in rows[:3]:
        text = figure if label == "speed" else f"{label} {figure}"
        if len("  ".join([*texts, text])) <= width:
            texts.append(text)
    return Content("  ".join(texts))


def labelled(rows: Sequence[tuple[str, str]], width: int) -> Content:
    """Rows as aligned lines; a figure too long for `width` loses its remark (after two spaces), never a digit."""
    label_cells = max(len(label) for label, _ in rows)
    lines = []
    for label, figure in rows:
        text = figure if label_cells + 2 + len(figure) <= width else figure.partition("  ")[0]
        lines.append(Content.assemble(toned(f"{label:<{label_cells}}", "quiet"), "  ", text))
    return Content("\n").join(lines)


@dataclass(frozen=True, slots=True)
class Promise:
    """One prediction and what came of it, as text."""

    name: str
    predicted: str
    measured: str
    verdict: str
    tone: str


def range_verdict(measured: float, low: float, high: float, *, higher_is_better: bool = False) -> tuple[str, str]:
    """(words, tone) for a measurement against its predicted range."""
    if high <= 0:
        return "", ""
    if measured > high:
        return f"{(measured / high - 1) * 100:.0f} % above range", "good" if higher_is_better else "warn"
    if low > 0 and measured < low:
        return f"{(1 - measured / low) * 100:.0f} % below range", "warn" if higher_is_better else "good"
    return "as predicted", "good"


def promises(spec: JobSpec | None, state: RunState) -> list[Promise]:
    """Memory, speed and time; a prediction the spec does not have says so."""
    if spec is None:
        return []
    rows: list[Promise] = []
    promised = spec.prediction
    peak = state.peak_bytes
    predicted = "not predicted"
    if promised.memory_bytes_likely:
        span = format_range(format_bytes(promised.memory_bytes_low), format_bytes(promised.memory_bytes_high))
        predicted = f"{format_bytes(promised.memory_bytes_likely)} ({span})"
    verdict, tone = ("", "")
    if peak and promised.memory_bytes_high:
        verdict, tone = range_verdict(peak, promised.memory_bytes_low, promised.memory_bytes_high)
    kind = f" {state.peak_kind.upper()}" if state.peak_kind else ""
    rows.append(Promise("memory", predicted, f"{format_bytes(peak)}{kind}" if peak else "-", verdict, tone))
    rows.append(_speed_promise(promised, state))
    rows.append(_time_promise(promised.seconds_low, promised.seconds_likely, promised.seconds_high, state))
    return rows


def _speed_promise(promised: PredictionSection, state: RunState) -> Promise:
    likely, low, high = promised.tokens_per_second, promised.tokens_per_second_low, promised.tokens_per_second_high
    span = f" ({format_range(f'{low:,.0f}', f'{high:,.0f}')})" if high else ""
    predicted = f"{likely:,.0f} tokens/s{span}" if likely else "not predicted"
    measured = state.tokens_per_second
    if measured is None:
        return Promise("speed", predicted, "-", "", "")
    share = measured / likely if likely else 0.0
    verdict = f"{share * 100:.0f} % of predicted" if share else ""
    slow = measured < low if high else 0 < share < 0.7
    return Promise("speed", predicted, f"{measured:,.0f} tokens/s", verdict, "warn" if slow else "good")


def _time_promise(low: float, likely: float, high: float, state: RunState) -> Promise:
    """Judged for the whole job only: what ended before says nothing of the time that was promised for all of it."""
    predicted = "not predicted"
    if likely:
        predicted = f"{format_duration(likely)} ({format_range(format_duration(low), format_duration(high))})"
    if state.state.is_live:
        if state.eta_seconds is None:
            return Promise("time", predicted, "-", "", "")
        total = state.working_seconds + state.eta_seconds
        measured = f"about {format_duration(total)}"
    else:
        total = state.working_seconds
        measured = format_duration(total) if total else "-"
    whole = state.state.is_live or (state.state is RunPhase.FINISHED and state.step >= state.total_steps)
    verdict, tone = range_verdict(total, low, high) if total and whole else ("", "")
    return Promise("time", predicted, measured, verdict, tone)


def promise_lines(rows: Sequence[Promise], width: int, *, unicode: bool) -> Content:
    """The promises as a small table; each takes two lines where one has not room for all of it."""
    if not rows:
        return Content("")
    if not unicode:
        rows = [replace(row, predicted=row.predicted.replace("–", "-")) for row in rows]
    name = max(len(row.name) for row in rows)
    predicted = max(len(row.predicted) for row in rows)
    measured = max(len(row.measured) for row in rows)
    arrow = "→" if unicode else "->"
    verdicts = [toned(_marked(row, unicode=unicode), row.tone) if row.verdict else Content("") for row in rows]
    one_line = name + 2 + predicted + 4 + len(arrow) + measured + 2 + max(words.cell_length for words in verdicts)
    lines: list[Content] = []
    for row, words in zip(rows, verdicts, strict=True):
        label = toned(f"{row.name:<{name}}  ", "quiet")
        if one_line <= width:
            figures: list[str | Content] = [f"{row.predicted:<{predicted}}  ", toned(arrow, "quiet"), "  "]
            lines.append(
                Content.assemble(label, *figures, toned(f"{row.measured:<{measured}}", "strong"), "  ", words).rstrip()
            )
            continue
        second: list[str | Content] = [" " * (name + 2), toned(f"{arrow} ", "quiet"), toned(row.measured, "strong")]
        lines += [Content.assemble(label, row.predicted), Content.assemble(*second, "  ", words).rstrip()]
    return Content("\n").join(lines)


def _marked(row: Promise, *, unicode: bool) -> str:
    sign = "!" if row.tone == "warn" else "✓" if unicode else "+"
    return f"{sign} {row.verdict}"


def _data_rows(spec: JobSpec) -> list[tuple[str, str]]:
    rows = [(label.lower(), words) for label, words in stream_lines(spec)]
    if spec.streams:
        return [*rows, ("sequences", f"{spec.data.max_length:,} tokens, always full")]
    return [("data", f"{spec.data.train}, up to {spec.data.max_length} tokens a row"), *rows]


def _spec_rows(spec: JobSpec) -> list[tuple[str, str]]:
    base = f", base in {spec.quantization_kind}" if spec.task.trains_adapter else ""
    rows = [
        ("task", f"{spec.task.value}{base}"),
        ("model", spec.model.source + (f" at {spec.model.revision}" if spec.model.revision else "")),
    ]
    window = [(label.lower(), words) for label, words in context_lines(spec)]
    if spec.task is Task.EXTEND:
        return rows + window
    exports = [(label.lower(), words) for label, words in export_lines(spec)]
    if spec.task is Task.MIX:
        return [*rows, *((label.lower(), words) for label, words in mix_lines(spec)), *exports]
    rows += _data_rows(spec)
    if spec.task.trains_adapter:
        targets = ", ".join(spec.adapter.targets)
        rows.append(("adapter", f"rank {spec.adapter.rank}, alpha {spec.adapter.alpha:g}, on {targets}"))
    else:
        rows += growth_lines(spec)
    training = spec.training
    rank_count = spec.distributed.world
    unit = "sequences" if spec.streams else "rows"
    batch = f"{training.batch_size * training.gradient_accumulation * rank_count} {unit}"
    if training.tokens_per_step:
        batch = f"{training.tokens_per_step:,} tokens"
    rows += [(label.lower(), words) for label, words in distillation_lines(spec)]
    return [
        *rows,
        *window,
        *exports,
        ("batch", f"{batch} a step, rate {training.learning_rate:g}, {training.schedule.value}"),
    ]


def _rank_rows(state: RunState) -> list[tuple[str, str]]:
    """The processes of a job on several cards, and where each of them is."""
    ranks = state.findings.ranks
    if ranks is None:
        return []
    places = [f"{number} {host}" for number, host in enumerate(ranks.hosts)]
    devices = ranks.devices if len(ranks.devices) == len(places) else ("",) * len(places)
    told = [f"{place} {device}".rstrip() for place, device in zip(places, devices, strict=True)]
    return [("processes", ranks_text(state)), ("ranks", "; ".join(told))]


def _lesson_details(state: RunState) -> list[tuple[str, str]]:
    """The teacher as it was found, and what the student wrote."""
    lessons = state.findings.lessons
    rows: list[tuple[str, str]] = []
    if (teacher := lessons.teacher) is not None:
        size = f", {format_count(teacher.parameters)} parameters" if teacher.parameters else ""
        cached = (
            f"; {teacher.cached_tokens:,} tokens, {format_bytes(teacher.cached_bytes)}" if teacher.cached_tokens else ""
        )
        rows.append(("taught by", f"{teacher.name}{size}; {HELD.get(teacher.held, teacher.held)}{cached}"))
    if lessons.rollout_tokens:
        rows.append(("written", rollout_words(lessons.rollout_tokens, lessons.rollout_seconds)))
    return rows


def _export_details(state: RunState) -> list[tuple[str, str]]:
    """What was written for other programs."""
    return [
        ("exported", f"{export_title(report)}: {file_words(file)}")
        for report in state.findings.exports
        for file in report.files
    ]


def detail_rows(spec: JobSpec | None, state: RunState, run_dir: str) -> list[tuple[str, str]]:
    """Everything else worth knowing, for the details pane."""
    rows: list[tuple[str, str]] = []
    if spec is not None:
        rows += _spec_rows(spec)
    if state.stage_count:
        rows.append(("stage", f"{state.stage_index} of {state.stage_count} {state.stage_name}".rstrip()))
    if state.parameters:
        share = state.trainable_parameters / state.parameters * 100
        trained = f"{format_count(state.trainable_parameters)} of {format_count(state.parameters)} ({share:.2f} %)"
        rows.append(("trained", f"{trained} parameters"))
    if state.rows:
        rows.append(("rows", f"{state.rows:,}"))
    rows += _lesson_details(state)
    rows += [
        ("device", state.device or "-"),
        *_rank_rows(state),
        ("gradient", "-" if state.grad_norm is None else f"norm {state.grad_norm:.3g}"),
        ("attempt", f"{state.attempt}" + (f", from step {state.resumed_step:,}" if state.resumed_step else "")),
    ]
    if state.checkpoints:
        newest = state.checkpoints[-1]
        rows.append(
            ("saved", f"step {newest.step:,}, {format_bytes(newest.size_bytes)}, {len(state.checkpoints)} written")
        )
    else:
        rows.append(("saved", "no checkpoint yet"))
    rows += _export_details(state)
    if spec is not None and spec.prediction.origin:
        rows.append(("promised", f"by {spec.prediction.origin} for {spec.prediction.machine or 'this machine'}"))
    rows += [("worker", f"pid {state.worker_pid or '-'}, runner pid {state.runner_pid or '-'}"), ("folder", run_dir)]
    return rows
