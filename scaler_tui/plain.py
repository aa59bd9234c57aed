"""The wizard as numbered questions, one line at a time: for screen readers, dumb terminals and scripts with a pipe.

Owns prompts and the reading of lines. The same question graph, matrix and spec as the full-screen wizard.
"""

from __future__ import annotations

import sys

from engine.advise.matrix import Matrix
from engine.advise.questions import Question, QuestionKind, parse_answer
from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_duration, format_hours, format_range, format_usd
from scaler_tui.wizard import Wizard


def run_plain(*, model: str = "", gpu: str = "") -> int:
    """Ask every question, show the matrix, start what is chosen. Returns the exit code."""
    wizard = Wizard()
    _say("Scaler Wizard. Type a number or a value and Enter; empty takes the suggestion; b goes back; q leaves.")
    _look(wizard, gpu)
    if model:
        wizard.session.set_answer("model", model)
        wizard.session.go_to(wizard.session.visible[1].id)
    if not _ask_all(wizard):
        _say("Nothing was started. Your answers are kept.")
        return int(ExitCode.DECLINED)
    _load_model(wizard)
    matrix = wizard.matrix
    assert matrix is not None
    _show(matrix)
    approach = _choose_approach(matrix)
    if not approach:
        _say("Nothing was started. Your answers are kept.")
        return int(ExitCode.DECLINED)
    return _start(wizard, approach)


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _read(prompt: str) -> str | None:
    """One line; None at the end of input."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _look(wizard: Wizard, gpu: str) -> None:
    from engine.hardware.detect import detect

    machine = detect()
    wizard.set_detected(machine)
    if gpu:
        wizard.plan_for_card(gpu)
    planned = wizard.machine
    assert planned is not None
    _say(f"Machine: {planned.label}" + (" (SIM: simulated)" if planned.simulated else ""))


def _load_model(wizard: Wizard) -> None:
    from engine.models.analyze import analyze

    source = wizard.model_source
    wizard.set_architecture(source, analyze(source))


def _ask_all(wizard: Wizard) -> bool:
    """Walk the graph; False when the user leaves."""
    session = wizard.session
    while not session.finished:
        question = session.current
        _say()
        _say(f"{session.position_text()}. {question.text}")
        _say(f"  Why: {question.why}")
        if wizard.architecture is None and question.id != "model":
            _load_model(wizard)
        states = wizard.option_states(question)
        for number, state in enumerate(states, start=1):
            mark = (
                " (recommended)" if state.recommended else "" if state.enabled else f" (not possible: {state.reason})"
            )
            _say(f"  {number}. {state.option.label}{mark}  {state.option.hint}".rstrip())
        suggestion = _suggestion(wizard, question)
        line = _read(f"  Answer [{suggestion}]: ")
        if line is None or line.lower() in ("q", "quit"):
            return False
        if line.lower() in ("b", "back"):
            session.back()
            continue
        try:
            chosen = [s for n, s in enumerate(states, start=1) if line == str(n)]
            if chosen and not chosen[0].enabled:
                _say(f"  Not possible: {chosen[0].reason}")
                continue
            value = (
                chosen[0].option.value
                if chosen
                else (parse_answer(question, line) if line else session.value(question.id))
            )
            report = wizard.answer(value)
            if question.id == "model":
                wizard.architecture = None
                _load_model(wizard)
        except EngineError as error:
            _say(f"  {error.what} {error.next_step}".rstrip())
            session.go_to(question.id)
            continue
        for sentence in report.sentences:
            _say(f"  {sentence}")
        matrix = wizard.matrix
        if matrix is not None:
            row = matrix.row(matrix.recommended)
            _say(
                f"  So far: {row.title}, {row.verdict}, {format_hours(row.hours.likely)}, "
                f"{format_usd(row.cost_usd.likely)}."
            )
    return True


def _suggestion(wizard: Wizard, question: Question) -> str:
    value = wizard.session.value(question.id)
    for number, option in enumerate(question.options, start=1):
        if option.value == value:
            return str(number)
    return str(value) if question.kind is not QuestionKind.CHOICE else "1"


def _show(matrix: Matrix) -> None:
    _say()
    _say(f"Approaches for {matrix.model} on {matrix.machine}" + (" (SIM)" if matrix.simulated else ""))
    for number, row in enumerate(matrix.rows, start=1):
        _say(
            f"  {number}. {row.title}: {row.verdict} ({row.verdict_reason}); "
            f"memory {format_bytes(row.vram.likely or row.ram.likely)}; "
            f"time {format_range(format_hours(row.hours.low), format_hours(row.hours.high))}; "
            f"cost {format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high))}"
        )
    _say(f"  Recommended: {matrix.recommendation}")
    for warning in matrix.warnings:
        _say(f"  Note: {warning}")


def _choose_approach(matrix: Matrix) -> str:
    """The id of the chosen row; "" when the user leaves."""
    ids = [row.id for row in matrix.rows]
    while True:
        line = _read(f"Which one? [{ids.index(matrix.recommended) + 1}, q leaves]: ")
        if line is None or line.lower() in ("q", "quit", "b"):
            return ""
        index = ids.index(matrix.recommended) if not line else int(line) - 1 if line.isdigit() else -1
        if not 0 <= index < len(ids):
            _say(f"  Type a number from 1 to {len(ids)}.")
            continue
        row = matrix.rows[index]
        if not row.runnable:
            _say(f"  {row.not_runnable_reason}")
            continue
        return row.id


def _start(wizard: Wizard, approach: str) -> int:
    from engine.jobs.spec_toml import dump_spec

    spec = wizard.spec_for(approach)
    p = spec.prediction
    _say()
    _say(
        f"Memory {format_range(format_bytes(p.memory_bytes_low), format_bytes(p.memory_bytes_high))}, "
        f"time {format_range(format_duration(p.seconds_low), format_duration(p.seconds_high))} [{p.origin}]."
    )
    machine = wizard.machine
    if machine is not None and machine.simulated:
        _say("This plan is for another machine. Its spec:")
        _say()
        _say(dump_spec(spec))
        return int(ExitCode.DONE)
    line = _read("Start it now? y/n [n]: ")
    if line is None or line.lower() not in ("y", "yes"):
        _say("Nothing was started. The spec:")
        _say()
        _say(dump_spec(spec))
        return int(ExitCode.DECLINED)
    from scaler_tui.commands.work import start_and_follow

    return start_and_follow(spec, as_json=False)
