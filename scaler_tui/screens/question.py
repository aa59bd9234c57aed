"""One question at a time, with why it is asked, and the comparison matrix moving beside it.

Owns drawing and keys of any question of the graph. Must not know a particular question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from engine.advise.questions import QuestionKind
from engine.errors import EngineError
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen
from scaler_tui.widgets.matrix_table import MatrixTable

if TYPE_CHECKING:
    from engine.advise.option_state import OptionState
    from engine.advise.questions import AnswerValue, Question

_PLACEHOLDERS = {
    QuestionKind.NUMBER: "or type a number (t), for example 32k or 1.5M",
    QuestionKind.TEXT: "or type it (t)",
    QuestionKind.PATH: "or type the path of a file (t)",
    QuestionKind.MODEL: "or type a folder, a hub id or a known name (t)",
}


class QuestionScreen(FramedScreen):
    """The same screen for every step: the next question replaces the text, so a step costs few bytes."""

    place = "questions"
    BINDINGS: ClassVar[list[BindingType]] = [
        *[Binding(str(n), f"pick({n})", show=False) for n in range(1, 10)],
        Binding("j", "cursor(1)", show=False),
        Binding("k", "cursor(-1)", show=False),
        Binding("enter", "accept", "Next"),
        Binding("b,backspace,left", "back", "Back", key_display="b"),
        Binding("escape", "back", show=False),
        Binding("r", "recommended", "Recommended"),
        Binding("m", "matrix", "Matrix"),
        Binding("w", "hardware", "Other card"),
        Binding("t", "type", "Type it"),
    ]

    def body(self) -> Iterable[Widget]:
        """Question on one side (or above), matrix on the other (or below)."""
        with Container(id="question"):
            with Vertical(id="ask"):
                yield Static(id="text")
                yield Static(id="why")
                yield Static(id="changed")
                yield OptionList(id="options", compact=True)
                yield Static(id="hint")
                yield Input(id="field", compact=True)
            with Vertical(id="compare"):
                yield MatrixTable(id="matrix")
                yield Static(id="recommendation")

    def on_mount(self) -> None:
        """Show the current question."""
        self._states: tuple[OptionState, ...] = ()
        self.show_question()

    def on_screen_resume(self) -> None:
        """Machine or matrix may have changed while another screen was in front."""
        super().on_screen_resume()
        self._fill_options(keep=True)
        self.show_matrix()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived: figures can be shown now."""
        if news.machine is not None or news.architecture is not None:
            self._fill_options(keep=True)
            self.refresh_title()
            self.show_matrix()

    @property
    def question(self) -> Question:
        """The question on screen."""
        return self.scaler.wizard.session.current

    def title_text(self) -> str:
        """ "step 3 of 9"."""
        step, of = self.scaler.wizard.session.position()
        return f"step {step} of {of}"

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_question(self, changed: str = "") -> None:
        """Put the current question on the screen."""
        question = self.question
        self.query_one("#text", Static).update(question.text)
        self.query_one("#why", Static).update(f"Why: {question.why}")
        line = self.query_one("#changed", Static)
        line.update(f"Changed: {changed}")
        line.display = bool(changed)
        self.query_one("#why").display = not changed
        options, field = self.query_one("#options", OptionList), self.query_one("#field", Input)
        typing = question.kind is not QuestionKind.CHOICE
        options.display = bool(question.options)
        field.display = typing
        if typing:
            value = self.scaler.wizard.session.value(question.id)
            field.value = "" if self._is_option(value) else str(value)
            field.placeholder = _PLACEHOLDERS[question.kind]
        self._fill_options(keep=False)
        (options if question.options else field).focus()
        self.refresh_bindings()
        self.refresh_title()
        self.show_matrix()

    def _is_option(self, value: AnswerValue) -> bool:
        return any(option.value == value for option in self.question.options)

    def _fill_options(self, *, keep: bool) -> None:
        question, wizard = self.question, self.scaler.wizard
        options = self.query_one("#options", OptionList)
        highlighted = options.highlighted if keep else None
        self._states = wizard.option_states(question)
        options.clear_options()
        for number, state in enumerate(self._states, start=1):
            options.add_option(Option(self._option_text(number, state), disabled=not state.enabled))
        if not self._states:
            return
        if highlighted is None:
            values = [state.option.value for state in self._states]
            answer = wizard.session.value(question.id)
            highlighted = values.index(answer) if answer in values else 0
        options.highlighted = highlighted

    def _option_text(self, number: int, state: OptionState) -> Text:
        line = Text()
        line.append(f"{number} ", "bold")
        line.append(state.option.label)
        if state.recommended:
            line.append(f"  {self.signs.star} recommended", "bold")
        if not state.enabled:
            line.append(f"  {self.signs.no} not possible: {state.reason}", "dim")
        elif state.option.hint:
            line.append(f"  {state.option.hint}", "dim")
        return line

    def _show_hint(self) -> None:
        """The option under the pointer in full: hint, what it would change, or why it is not possible."""
        options = self.query_one("#options", OptionList)
        text = self.question.affects and f"Changes {self.question.affects}."
        if options.highlighted is not None and options.highlighted < len(self._states):
            state = self._states[options.highlighted]
            parts = [state.reason] if not state.enabled else [state.option.hint, state.effect]
            told = "; ".join(part for part in parts if part)
            text = f"{state.option.label}: {told}. {text}" if told else text
        self.query_one("#hint", Static).update(text)

    def show_matrix(self) -> None:
        """The matrix under the answers so far, with the option under the pointer taken as given."""
        wizard = self.scaler.wizard
        table = self.query_one(MatrixTable)
        options = self.query_one("#options", OptionList)
        preview = None
        if options.display and options.highlighted is not None and options.highlighted < len(self._states):
            state = self._states[options.highlighted]
            preview = state.option.value if state.enabled else None
        self._show_hint()
        matrix = wizard.preview(self.question, preview) if preview is not None else wizard.matrix
        table.matrix = matrix
        line = self.query_one("#recommendation", Static)
        if matrix is None:
            line.update("The matrix appears when machine and model are known.")
        else:
            row = matrix.row(matrix.recommended)
            line.update(Text.assemble((f"{self.signs.star} {row.title}: ", "bold"), matrix.recommendation))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Moving the pointer shows what that answer would do."""
        event.stop()
        self.show_matrix()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter on an option."""
        event.stop()
        self._answer(self._states[event.option_index].option.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the field."""
        event.stop()
        from engine.advise.questions import parse_answer

        try:
            self._answer(parse_answer(self.question, event.value))
        except EngineError as error:
            self._refuse(error)

    def action_accept(self) -> None:
        """Enter when neither list nor field took it."""
        if self.query_one("#options").display:
            self.query_one("#options", OptionList).action_select()

    def action_cursor(self, by: int) -> None:
        """vi keys."""
        options = self.query_one("#options", OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_pick(self, number: int) -> None:
        """A digit answers directly."""
        if 1 <= number <= len(self._states):
            state = self._states[number - 1]
            if state.enabled:
                self._answer(state.option.value)
            else:
                self.notify(state.reason, title=state.option.label, severity="warning")

    def action_recommended(self) -> None:
        """Pointer to the recommended option."""
        for index, state in enumerate(self._states):
            if state.recommended:
                self.query_one("#options", OptionList).highlighted = index

    def action_back(self) -> None:
        """One question back, keeping every answer; from the first one out of the questions."""
        field = self.query_one("#field", Input)
        if field.has_focus and self._states:
            self.query_one("#options").focus()
            return
        session = self.scaler.wizard.session
        if session.position()[0] == 1:
            self.app.pop_screen()
            return
        session.back()
        self.show_question()

    def action_type(self) -> None:
        """Into the field, where the question has one."""
        if self.query_one("#field").display:
            self.query_one("#field", Input).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The footer offers only what this question can do."""
        if action == "type":
            return self.is_mounted and self.question.kind is not QuestionKind.CHOICE
        return True

    def action_matrix(self) -> None:
        """The full matrix."""
        self.scaler.open_matrix()

    def action_hardware(self) -> None:
        """Plan for another card."""
        self.scaler.open_hardware()

    def _refuse(self, error: EngineError) -> None:
        self.notify(f"{error.what} {error.next_step}".strip(), title="Not accepted", severity="warning", timeout=8)

    def _answer(self, value: AnswerValue) -> None:
        """Take the answer, say what it changed, go on."""
        wizard = self.scaler.wizard
        asked = self.question.id
        try:
            report = wizard.answer(value)
        except EngineError as error:
            self._refuse(error)
            return
        if asked == "model":
            self.scaler.read_model(wizard.model_source)
        if wizard.session.finished:
            self.scaler.open_matrix()
        else:
            self.show_question(" ".join(report.sentences))
