"""What a run screen says in sentences: banners for states that need attention, legend, marks, newest answer, log tail.

Owns the wording. Must not know widgets, files or threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from textual.content import Content

from engine.jobs.events import Sample
from engine.jobs.heat_grid import short_length
from engine.jobs.result_words import export_title
from engine.jobs.spec import JobSpec, Task
from engine.jobs.state import RunPhase, RunState
from engine.units import format_count
from scaler_tui.abilities_text import recovery_words
from scaler_tui.feeds.journal_feed import RunSnapshot
from scaler_tui.spec_context_text import TITLES
from scaler_tui.widgets import evaluation_words
from scaler_tui.widgets.before_after import Pair, answer, verdict
from scaler_tui.widgets.progress_line import DETAILED
from scaler_tui.widgets.run_figures import format_loss, spent_text
from scaler_tui.widgets.status_line import clip, toned

ASKED = {
    "pause": "Pause requested: waits for the step to finish, then saves and frees memory.",
    "stop": "Stop requested: waits for the step to finish, then saves the adapter.",
    "checkpoint": "Checkpoint requested: it is written when the step is finished.",
    "resume": "Resuming: its runner is being started.",
}


MEASURED_PANES = ("evaluation", "retention")
"""Only of runs that measure such things."""
_SHORT_NAMES = {"overview": "Run", "details": "More", "evaluation": "Eval", "retention": "Kept"}
"""Of tabs, where the line is too narrow for their names."""


@dataclass(frozen=True, slots=True)
class Banner:
    """A few lines under the progress line."""

    content: Content
    tone: str


def banner(snapshot: RunSnapshot, asked: str) -> Banner | None:
    """What must be seen before anything else; None when all is well."""
    state = snapshot.state
    request = asked or state.pending_control
    if request:
        words = ASKED.get(request, f"{request.capitalize()} requested.")
        if state.state is RunPhase.GROWING:
            words = words.replace("for the step to finish", "for the file being written")
        return Banner(Content(words.replace("adapter", "model") if trains_model(snapshot) else words), "busy")
    if state.state in (RunPhase.FAILED, RunPhase.LOST):
        what = state.what or f"The run {'failed' if state.state is RunPhase.FAILED else 'was lost'}."
        return Banner(_trouble(what, state.cause, _resume_line(state)), "bad")
    if state.state is RunPhase.PAUSED:
        what = state.what or f"Paused at step {state.step:,}; its memory is free and nothing is lost."
        return Banner(_trouble(what, state.cause, _resume_line(state)), "warn")
    if state.state is RunPhase.STOPPED:
        saved = "model" if trains_model(snapshot) else "adapter"
        what = state.what or f"Stopped at step {state.step:,}; the {saved} is saved."
        card = "o shows the card. " if state.card_path else ""
        return Banner(_trouble(what, state.cause, card + _resume_line(state)), "warn")
    if state.state is RunPhase.STALLED:
        what = state.warning or "No sign of life from the worker."
        return Banner(_trouble(what, "", "2 shows its log; s stops it."), "warn")
    if state.state is RunPhase.FINISHED:
        parts = ["o shows what it changed: the before/after card."] if state.card_path else []
        parts += ["v shows the proof of the grown model."] if state.proof is not None else []
        exported = [export_title(report) for report in state.findings.exports]
        parts += [f"Written too: {', '.join(dict.fromkeys(exported))}."] if exported else []
        gate = state.findings.retention.gate if state.findings.retention is not None else ""
        if gate:
            return Banner(
                Content("\n").join([toned(gate, "strong"), Content(f"Finished. {' '.join(parts)}".strip())]), "warn"
            )
        return Banner(Content(f"Finished. {' '.join(parts)}"), "good") if parts else None
    if state.warning or snapshot.spec_problem:
        return Banner(Content(state.warning or snapshot.spec_problem), "warn")
    return _found_banner(state)


def _found_banner(state: RunState) -> Banner | None:
    """Trouble that was survived a moment ago, or a limit on what may be lost that is broken."""
    recovery = evaluation_words.fresh_recovery(state)
    if recovery is not None:
        title = toned(f"Recovered from {recovery.trouble} at step {recovery.step:,}. ", "strong")
        return Banner(Content.assemble(title, recovery_words(recovery)), "warn")
    retention = state.findings.retention
    if retention is not None and retention.gate:
        return Banner(Content(retention.gate), "bad")
    return None


def tabs(snapshot: RunSnapshot | None, panes: Sequence[str], current: str, width: int) -> Content:
    """The line of panes: their digits and names, and how many warnings or losses wait there."""
    counts: dict[str, int] = {}
    measures = snapshot is not None and evaluation_words.measures(snapshot)
    if snapshot is not None:
        counts["log"] = sum(level != "info" for _, level, _ in snapshot.state.log)
        counts["retention"] = evaluation_words.lost(snapshot.state.findings.retention)
    line = Content("")
    for names, gap in (({}, " "), (_SHORT_NAMES, " "), (_SHORT_NAMES, "")):
        parts: list[Content] = [Content(gap)]
        for number, name in enumerate(panes, 1):
            if name in MEASURED_PANES and not measures:
                continue
            text = f" {number} {names.get(name, name.capitalize())}"
            text += f" !{counts[name]} " if counts.get(name) else " "
            parts += [Content.styled(text, "reverse bold") if name == current else Content(text), Content(gap)]
        line = Content.assemble(*parts)
        if line.cell_length <= width:
            break
    return line


def no_curve(snapshot: RunSnapshot) -> str:
    """What stands where the curve will be."""
    if snapshot.spec is not None and snapshot.spec.task is Task.EXTEND:
        return "This run trains nothing: it writes and measures."
    if snapshot.spec is not None and snapshot.spec.task is Task.MIX:
        return "This run trains nothing: it mixes adapters and measures."
    return "The curve appears after the first step."


def trains_model(snapshot: RunSnapshot) -> bool:
    """Whether the run's result is a whole model instead of an adapter."""
    task = snapshot.spec.task if snapshot.spec is not None else None
    return task is not None and task is not Task.MIX and not task.trains_adapter


def _trouble(what: str, cause: str, next_step: str) -> Content:
    parts: list[Content] = [toned(what, "strong")]
    if cause:
        parts.append(Content(f"Cause: {cause}"))
    if next_step:
        parts.append(Content(f"Next: {next_step}"))
    return Content("\n").join(parts)


def _resume_line(state: RunState) -> str:
    step = state.checkpoints[-1].step if state.checkpoints else 0
    resume = f"r resumes from step {step:,}." if step else "r starts it again."
    if not state.next_step or "Press r" in state.next_step:
        return resume
    return f"{state.next_step} {resume}"


def marks(snapshot: RunSnapshot, *, skipped: int) -> tuple[tuple[str, str], ...]:
    """Money, simulation and slow-link marks for the status line."""
    found: list[tuple[str, str]] = []
    spent = spent_text(snapshot.spec, snapshot.state)
    if spent:
        found.append((spent, "warn"))
    if (teacher := snapshot.state.findings.lessons.teacher) is not None:
        found.append((f"teacher {teacher.held}", "quiet"))
    if snapshot.spec is not None and snapshot.spec.context.extends:
        found.append((window_mark(snapshot.spec), "quiet"))
    if snapshot.state.stage_count > 1:
        found.append((stage_words(snapshot.state), "quiet"))
    if snapshot.state.findings.ranks is not None:
        found.append((f"{snapshot.state.findings.ranks.world} ranks", "quiet"))
    recoveries = len(snapshot.state.findings.recoveries)
    if recoveries and evaluation_words.fresh_recovery(snapshot.state) is None:  # the banner tells a fresh one
        found.append((f"{recoveries} {'recovery' if recoveries == 1 else 'recoveries'}", "warn"))
    if snapshot.state.attempt > 1:
        found.append((f"attempt {snapshot.state.attempt}", "quiet"))
    if skipped:
        found.append(("slow link", "warn"))
    return tuple(found)


def window_mark(spec: JobSpec) -> str:
    """ "to 32k, PoSE": the longer window and how it is trained."""
    how = TITLES["none" if spec.task is Task.EXTEND else spec.context.window]
    return f"to {short_length(spec.context.length)}, {how}"


def stage_words(state: RunState) -> str:
    """ "stage 2 of 3"."""
    return f"stage {state.stage_index} of {state.stage_count}"


def growth_words(state: RunState) -> str:
    """What the surgery is at, or what came of it; "" in a run that grows nothing."""
    if state.proof is not None:
        verdict = "kept the function" if state.proof.exact else "changed the function, as its operators do"
        if not state.proof.proof.passed:
            verdict = f"was refused: {state.proof.proof.reason}"
        grown = f"{format_count(state.proof.parameters_before)} to {format_count(state.proof.parameters_after)}"
        return f"grown from {grown} parameters; it {verdict} (v)"
    growth = state.growth
    if growth is None:
        return ""
    grown = ""
    if growth.parameters_after:
        grown = f" {format_count(growth.parameters_before)} to {format_count(growth.parameters_after)} parameters"
    return f"growing{grown}: {growth.words or growth.phase}"


def measuring_words(state: RunState) -> str:
    """What is measured while nothing is trained yet; "" at other times."""
    return f"{state.phase}: {state.phase_detail}" if state.phase in DETAILED and state.phase_detail else ""


def legend(state: RunState, width: int, *, unicode: bool) -> Content:
    """Which mark is which, with the newest values; parts that do not fit are left out whole."""
    line, mark = ("━━", "◆") if unicode else ("**", "o")
    if state.loss is None and (words := growth_words(state) or measuring_words(state)):
        return toned(clip(f" {words}", width, unicode=unicode), "quiet")
    parts = [Content.assemble(toned(f" {line} ", "busy"), "loss ", toned(format_loss(state.loss), "strong"))]
    if state.eval_loss is not None:
        parts.append(
            Content.assemble(toned(f"   {mark} ", "warn"), "held-out ", toned(format_loss(state.eval_loss), "strong"))
        )
        if state.best_eval_loss is not None:
            parts.append(toned(f"  best {format_loss(state.best_eval_loss)}", "quiet"))
    line_content = Content("")
    for part in parts:
        if line_content.cell_length + part.cell_length > width:
            break
        line_content = Content.assemble(line_content, part)
    return line_content


def pairs(state: RunState) -> list[Pair]:
    """Before and newest answer per prompt; first what the student wrote last to learn on."""
    before = {sample.prompt: sample for sample in state.samples if sample.step == 0}
    newest = {sample.prompt: sample for sample in state.samples if sample.step > 0}
    found: list[Pair] = list(_own_answer(state))
    for prompt in dict.fromkeys(sample.prompt for sample in state.samples):
        first, last = before.get(prompt), newest.get(prompt)
        expected = (last or first or Sample(t=0, step=0, prompt="", text="")).expected
        label = f"now, step {last.step:,}" if last else "now"
        found.append(Pair(prompt, first.text if first else None, last.text if last else None, expected, label))
    return found


def _own_answer(state: RunState) -> Iterator[Pair]:
    """The newest answer that a step learned on."""
    rollout = state.findings.lessons.rollout
    if rollout is not None and rollout.text:
        label = f"the student's own answer, learned on at step {rollout.step:,}"
        yield Pair(rollout.prompt, None, rollout.text, after_label=label, alone=True)


def latest_answers(state: RunState, *, unicode: bool) -> Content:
    """The newest answers in short."""
    lines: list[Content] = []
    for pair in pairs(state):
        ok = verdict(pair, unicode=unicode, short=True)
        lines.append(Content.assemble(toned(f"{'›' if unicode else '>'} ", "busy"), toned(pair.prompt, "strong")))
        if not pair.alone:
            lines.append(Content.assemble(toned("  before  ", "quiet"), answer(pair.before)))
        lines.append(
            Content.assemble(toned("  own     " if pair.alone else "  now     ", "quiet"), answer(pair.after), ok)
        )
    return Content("\n").join(lines) if lines else toned("Answers to the fixed prompts appear here.", "quiet")


def log_tail(state: RunState, width: int, rows: int, *, unicode: bool) -> Content:
    """The newest log lines, one row each; the log pane has them whole."""
    lines = []
    for when, level, message in state.log[-rows:]:
        stamp = time.strftime("%H:%M:%S", time.localtime(when))
        tone = {"error": "bad", "warning": "warn"}.get(level, "")
        text = clip(message.replace("\n", " "), width - 10, unicode=unicode)
        lines.append(Content.assemble(toned(f"{stamp}  ", "quiet"), toned(text, tone)))
    return Content("\n").join(lines)
