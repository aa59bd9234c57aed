"""The wizard as numbered questions, one line at a time: for screen readers, dumb terminals and scripts with a pipe.

Owns the order of prompts and their words. The same questions, matrix and spec as the full-screen wizard.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_duration, format_hours, format_usd
from scaler_tui.limit_choices import card_figures, count_rows
from scaler_tui.places import PLACES
from scaler_tui.plain_context import choose_window
from scaler_tui.plain_elsewhere import go_elsewhere
from scaler_tui.plain_growth import choose_growth
from scaler_tui.plain_text import choose_text
from scaler_tui.prompts import Back, Left, choose, prepare, read, say
from scaler_tui.spec_context_text import context_lines
from scaler_tui.spec_growth_text import growth_lines
from scaler_tui.spec_results_text import result_lines
from scaler_tui.spec_stream_text import stream_lines
from scaler_tui.window import APPROACH as LONGER
from scaler_tui.wizard import Wizard

if TYPE_CHECKING:
    from engine.advise.matrix import ApproachRow, Matrix
    from engine.advise.option_state import OptionState
    from engine.advise.questions import AnswerValue, Question
    from engine.jobs.spec import JobSpec

_GREETING = (
    "Scaler Wizard. Type a number from the list, or a value, and Enter.",
    "Empty takes the suggestion, b goes back, m shows the comparison, q leaves. =5 means the value 5, not option 5.",
)


def run_plain(*, model: str = "", gpu: str = "") -> int:
    """Ask every question, show the matrix, start or write what is chosen. Returns the exit code."""
    prepare()
    wizard = Wizard()
    for line in _GREETING:
        say(line)
    try:
        _look(wizard, gpu)
        _begin(wizard, model)
        while True:
            _ask_all(wizard)
            try:
                return _decide(wizard)
            except Back:
                wizard.session.back()
                wizard.session.go_to(wizard.session.visible[-1].id)
    except Left:
        say("Nothing was started." + ("" if model else " Your answers are kept."))
        return int(ExitCode.DECLINED)


def _look(wizard: Wizard, gpu: str) -> None:
    """Find out about this machine, or take the card it is asked to be."""
    from engine.hardware.detect import detect

    say("Looking at this machine.")
    wizard.set_detected(detect())
    if gpu:
        wizard.plan_for_card(gpu)


def _begin(wizard: Wizard, model: str) -> None:
    """Answers: for a model named on the command line, from the last time, or none."""
    if model:
        wizard.restart(save=False)
        wizard.session.set_answer("model", model)
        wizard.session.go_to(wizard.session.visible[1].id)
    else:
        _offer_saved(wizard)
    machine = wizard.machine
    assert machine is not None
    say(f"Machine: {machine.label}." + (" This is a simulation, SIM." if machine.simulated else ""))


def _offer_saved(wizard: Wizard) -> None:
    from engine.advise.session import default_progress_path

    found = default_progress_path().exists()
    if message := wizard.load_saved():
        say(message)
    session = wizard.session
    if session.current not in session.visible:  # another card was asked for than the saved answers lead to
        session.go_to("hardware")
    answered = [question for question in session.visible if session.is_answered(question.id)]
    if not found or not answered:
        return
    say(f"You have {len(answered)} saved answers; the next is {session.position_text().lower()}.")
    try:
        chosen = choose("Which", ["Go on with them", "Start afresh"], suggested=1)
    except Back:
        chosen = 1
    if chosen == 2:
        wizard.restart()


def _ask_all(wizard: Wizard) -> None:
    """Walk the graph to its end. Raises Left."""
    session = wizard.session
    while not session.finished:
        question = session.current
        try:
            if question.id != "model":
                _read_model(wizard)
        except EngineError as error:
            _say_error(error)
            question = session.go_to("model")
        states = _pose(wizard, question)
        try:
            line = read(f"  Answer [{_suggestion(wizard, question)}]: ")
            if line.lower() == "m":
                _show(wizard.matrix)
                continue
            _take(wizard, question, states, line)
        except Back:
            session.back()
        except EngineError as error:
            _say_error(error)
            session.go_to(question.id)


def _pose(wizard: Wizard, question: Question) -> tuple[OptionState, ...]:
    say()
    say(f"{wizard.session.position_text()}. {question.text}")
    say(f"  Why: {question.why}")
    states = wizard.option_states(question)
    for number, state in enumerate(states, start=1):
        say(f"  {number}. {_option_words(state)}")
    return states


def _option_words(state: OptionState) -> str:
    words = [state.option.label]
    if state.option.hint:
        words.append(state.option.hint)
    if not state.enabled:
        words.append(f"not possible: {state.reason}")
    elif state.recommended:
        words.append("recommended")
    return ". ".join(word.rstrip(".") for word in words) + "."


def _take(wizard: Wizard, question: Question, states: tuple[OptionState, ...], line: str) -> None:
    """Answer with what was typed. Raises EngineError when that is impossible."""
    from engine.models.analyze import analyze

    before, value = wizard.data_key, _value(wizard, question, states, line)
    architecture = analyze(str(value)) if question.id == "model" else None  # refused before it is an answer
    report = wizard.answer(value)
    for sentence in report.sentences:
        say(f"  {sentence}")
    if architecture is not None:
        wizard.set_model(wizard.model_source, architecture, None)
    if question.id == "data" or wizard.data_key[:2] != before[:2]:
        _check_data(wizard)
    matrix = wizard.matrix
    if matrix is not None:
        row = matrix.row(matrix.recommended)
        say(
            f"  So far: {row.title} is recommended; it {_verdict_words(row)}, takes about "
            f"{format_hours(row.hours.likely)} and costs {_money(row.cost_usd.likely)}."
        )


def _value(wizard: Wizard, question: Question, states: tuple[OptionState, ...], line: str) -> AnswerValue:
    from engine.advise.questions import parse_answer

    if line.startswith("="):
        return parse_answer(question, line[1:])
    number = line or _suggestion(wizard, question)
    if number.isdecimal() and 1 <= int(number) <= len(states):
        state = states[int(number) - 1]
        if not state.enabled:
            raise EngineError("answer.impossible", f"Not possible: {state.reason}.")
        return state.option.value
    return parse_answer(question, line) if line else wizard.session.value(question.id)


def _suggestion(wizard: Wizard, question: Question) -> str:
    """The number of the option an empty line takes, a possible one; or the value when no option has it."""
    value, states = wizard.session.value(question.id), wizard.option_states(question)
    possible = [str(number) for number, state in enumerate(states, start=1) if state.enabled]
    for number, state in enumerate(states, start=1):
        if state.option.value == value:
            return str(number) if state.enabled or not possible else possible[0]
    return str(value)


def _read_model(wizard: Wizard) -> None:
    """Analyse the answered model unless it was. Raises EngineError."""
    from engine.models.analyze import analyze

    if wizard.architecture is None:
        source = wizard.model_source
        wizard.set_model(source, analyze(source), None)


def _check_data(wizard: Wizard) -> None:
    """Count the rows of the answered file, where the model's tokenizer is here. Raises EngineError for bad data."""
    from engine.data.report import check
    from engine.jobs.spec import DataSection
    from engine.models.resolve import resolve_model

    key = wizard.data_key
    file, model, length = key
    folder = resolve_model(model).path if file else None
    if folder is None:
        return
    report = check(file, folder, DataSection(train=file, heldout="", max_length=max(length, 8)))
    wizard.set_data_report(key, report.as_json(), None)
    train = report.train
    say(
        f"  Data: {train.rows_kept:,} rows to learn from, {report.heldout_rows:,} held out, "
        f"{train.rows_dropped:,} dropped, {train.rows_truncated:,} cut; "
        f"{train.tokens:,} tokens, {train.trained_tokens:,} of them trained."
    )
    for warning in report.warnings:
        say(f"  Data warning: {warning}")


def _say_error(error: EngineError) -> None:
    say("  " + " ".join(text for text in (error.what, error.cause, error.next_step) if text))


def _verdict_words(row: ApproachRow) -> str:
    return {"fits": "fits", "tight": "fits tightly", "no": "does not fit"}[row.verdict.value]


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _money(usd: float) -> str:
    return format_usd(usd).replace("<", "less than ")


def _show(matrix: Matrix | None) -> None:
    say()
    if matrix is None:
        say("The comparison comes with the model.")
        return
    say(f"Approaches for {matrix.model} on {matrix.machine}" + (", simulated." if matrix.simulated else "."))
    for number, row in enumerate(matrix.rows, start=1):
        if row.obstacle:
            say(f"  {number}. {row.title}: {row.obstacle}. {row.impediment}")
            continue
        say(
            f"  {number}. {row.title} {_verdict_words(row)}: {row.verdict_reason}. "
            f"Memory {format_bytes(row.vram.likely or row.ram.likely)}. "
            f"Time {_span(format_hours(row.hours.low), format_hours(row.hours.high))}. "
            f"Cost {_span(_money(row.cost_usd.low), _money(row.cost_usd.high))}."
        )
    say(f"  Recommended: {matrix.row(matrix.recommended).title}. {matrix.recommendation}")
    for warning in matrix.warnings:
        say(f"  Note: {warning}")


def _decide(wizard: Wizard) -> int:
    """Show the matrix, have an approach chosen, start it or write its spec. Raises Back or Left."""
    from engine.advise.growth import grows

    matrix = wizard.matrix
    assert matrix is not None
    _show(matrix)
    ids = [row.id for row in matrix.rows]
    suggested = ids.index(matrix.recommended) + 1
    while True:
        line = read(f"Which approach [{suggested}]: ") or str(suggested)
        if not line.isdecimal() or not 1 <= int(line) <= len(ids):
            say(f"  Type a number from 1 to {len(ids)}, b to go back, or q to leave.")
            continue
        approach = ids[int(line) - 1]
        try:
            if matrix.row(approach).runnable and grows(approach):
                choose_growth(wizard, approach)
            elif matrix.row(approach).runnable and approach == LONGER:
                choose_window(wizard)
            if matrix.row(approach).runnable and wizard.trains_on_text:
                choose_text(wizard, approach)
            return _finish(wizard, approach, wizard.spec_for(approach))
        except Back:
            _show(matrix)
        except EngineError as error:
            _say_error(error)


def _finish(wizard: Wizard, approach: str, spec: JobSpec) -> int:
    """Start it, or write or show the spec. Raises Back, Left, and EngineError when it is refused."""
    from engine.advise.sharded import words_of
    from engine.jobs.spec_toml import dump_spec
    from scaler_tui.commands.work import start_and_follow
    from scaler_tui.spec_file import write_spec

    p = spec.prediction
    say()
    for label, words in (*growth_lines(spec), *context_lines(spec), *stream_lines(spec), *result_lines(spec)):
        say(f"{label}: {words.rstrip('.')}." if label else f"  {words}.")
    if p.origin:
        say(
            f"Memory {_span(format_bytes(p.memory_bytes_low), format_bytes(p.memory_bytes_high))}, "
            f"time {_span(format_duration(p.seconds_low), format_duration(p.seconds_high))}, by {p.origin}."
        )
    for count in count_rows(wizard.run_row(approach)) if spec.needs_data else ():
        say(f"{words_of(count)}. {card_figures(count)}.")
    machine = wizard.machine
    labels = ["Write the spec to a file", "Show the spec"]
    if machine is not None and machine.simulated:
        say("This plan is for another machine: write the spec, and run it there.")
    else:
        labels.append("Start it now, here")
    places = {len(labels) + number: place for number, place in enumerate(PLACES, start=1)}
    labels += [place.label for place in PLACES]
    while True:
        chosen = choose("What now", labels)
        if chosen in places:
            try:
                return go_elsewhere(places[chosen], spec, card=wizard.card)
            except EngineError as error:
                _say_error(error)
            continue
        if chosen == 3:
            return start_and_follow(spec, as_json=False)
        if chosen == 2:
            say(dump_spec(spec))
            continue
        target = Path(read("  File name [spec.toml]: ") or "spec.toml").expanduser()
        try:
            write_spec(spec, target)
        except EngineError as error:
            _say_error(error)
            continue
        say(f"Wrote {target}. Run it: scaler-wizard run {shlex.quote(str(target))}")
        return int(ExitCode.DONE)
