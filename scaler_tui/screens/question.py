"""One question at a time, with why it is asked, and the comparison matrix moving under it.

Owns drawing and keys of any question of the graph. Must not know a particular question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Input, OptionList

from engine.advise.questions import QuestionKind
from engine.errors import EngineError
from scaler_tui.feeds.data_check import DataChecked
from scaler_tui.feeds.startup import StartupNews
from scaler_tui.screens.base import FramedScreen
from scaler_tui.widgets.choice_list import ChoiceList, option_line
from scaler_tui.widgets.fitted_text import FittedText
from scaler_tui.widgets.matrix_table import MatrixTable
from scaler_tui.widgets.question_lines import TEXTS, share_lines

if TYPE_CHECKING:
    from engine.advise.questions import AnswerValue, Question

_PLACEHOLDERS = {
    QuestionKind.NUMBER: "or type a number (t): 32k, 1.5M",
    QuestionKind.TEXT: "or type it (t)",
    QuestionKind.PATH: "or type the path of a file (t)",
    QuestionKind.MODEL: "or type a folder, hub id or known name (t)",
}
QUIET, BAD, NEWS = "$foreground 80%", "$text-error", "$text-accent"


class QuestionScreen(FramedScreen):
    """The same screen for every step: the next question replaces the text, so a step costs few bytes."""

    place = "questions"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "accept", "Next"),
        Binding("b,backspace,left,escape", "back", "Back", key_display="b"),
        Binding("t", "type", "Type it", priority=True),  # taken at once, so that the next letter finds the field
        Binding("r", "recommended", "Recommended", tooltip="Pointer to the recommended option"),
        Binding("m", "matrix", "Matrix", tooltip="The whole comparison, with every figure explained"),
        Binding("w", "hardware", "Other card", tooltip="What if: plan for another card"),
        Binding("d", "data", "Data", tooltip="The report on the training rows"),
        *[Binding(str(n), f"pick({n})", "Answer directly", show=False) for n in range(1, 10)],
        Binding("j", "cursor(1)", "Move", show=False),
        Binding("k", "cursor(-1)", "Move", show=False),
    ]

    def body(self) -> Iterable[Widget]:
        """Question above, matrix below."""
        with Vertical(id="ask"):
            yield FittedText(id="text", tone="bold")
            yield FittedText(id="why", tone=QUIET)
            yield FittedText(id="notice")
            yield ChoiceList(id="options", compact=True)
            yield FittedText(id="hint", tone=QUIET)
            yield Input(id="field", compact=True)
        with Vertical(id="compare"):
            yield MatrixTable(id="matrix")
            yield FittedText(id="recommendation")

    def on_mount(self) -> None:
        """Show the current question."""
        self._drawn: object = None
        self.show_question(news=self.scaler.wizard.session.message)

    def on_screen_resume(self) -> None:
        """Machine, answers or matrix may have changed while another screen was in front."""
        super().on_screen_resume()
        if self._asked != self.question.id:
            self.show_question()
        else:
            self.show_news()

    def on_startup_news(self, news: StartupNews) -> None:
        """Machine or model arrived (or the model could not be read): figures can be shown now."""
        if news.machine is not None or news.model:
            self.show_news()

    def on_data_news(self, message: DataChecked) -> None:
        """The rows were counted."""
        if message.error is not None:
            self._say(f"Data: {message.error.what} {message.error.next_step}", BAD)
        self.show_news()

    def on_resize(self, event: Resize) -> None:
        """Share the lines anew."""
        self.call_after_refresh(self.fit)

    @property
    def question(self) -> Question:
        """The question in hand."""
        return self.scaler.wizard.session.current

    @property
    def options(self) -> ChoiceList:
        """The list."""
        return self.query_one("#options", ChoiceList)

    @property
    def field(self) -> Input:
        """The field for typed answers."""
        return self.query_one("#field", Input)

    def title_text(self) -> str:
        """ "step 3 of 9"."""
        step, of = self.scaler.wizard.session.position()
        return f"step {step} of {of}"

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_question(self, news: str = "") -> None:
        """Put the current question on the screen."""
        question, wizard = self.question, self.scaler.wizard
        self._asked = question.id
        self._text("text").say(question.text)
        self._text("why").say(f"Why: {question.why}")
        self._say(news, NEWS)
        self.field.display = question.kind is not QuestionKind.CHOICE
        value = wizard.session.value(question.id)
        values = [option.value for option in question.options]
        typed = value not in values
        if self.field.display:
            self.field.value = str(value) if typed else ""
            self.field.placeholder = _PLACEHOLDERS[question.kind]
        states = wizard.option_states(question)
        pointer = values.index(value) if value in values else 0
        if states and not states[pointer].enabled:  # the pointer stands on what Enter can take
            pointer = next((place for place, state in enumerate(states) if state.enabled), pointer)
        self.options.show(states, self.signs, pointer=pointer)
        self.set_focus(self.field if typed and self.field.display else self.options, scroll_visible=False)
        self.refresh_bindings()
        self.refresh_title()
        self.show_matrix()

    def show_news(self) -> None:
        """Something outside the question changed: options, title and matrix follow."""
        self.options.show(self.scaler.wizard.option_states(self.question), self.signs, pointer=self.options.highlighted)
        self.refresh_title()
        self.refresh_bindings()
        self.show_matrix()

    def _text(self, name: str) -> FittedText:
        return self.query_one(f"#{name}", FittedText)

    def _say(self, text: str, tone: str) -> None:
        """The line for what happened: it stays until the next step."""
        self._text("notice").say(text, tone=tone)

    def _preview(self) -> AnswerValue | None:
        state = self.options.state
        if state is None or not state.enabled or self.field.has_focus:
            return None
        return state.option.value

    def show_matrix(self) -> None:
        """The matrix under the answers so far, with the option under the pointer taken as given."""
        wizard = self.scaler.wizard
        preview = self._preview()
        answers = wizard.session.answers()
        drawn = (self.question.id, preview, wizard.machine, wizard.architecture, answers)
        self.query_one(MatrixTable).waiting = wizard.waiting_for
        if drawn != self._drawn:
            self._drawn = drawn
            table = self.query_one(MatrixTable)
            table.matrix = wizard.matrix if preview is None else wizard.preview(self.question, preview)
        self._show_words()
        self.fit()

    def _show_words(self) -> None:
        wizard, matrix = self.scaler.wizard, self.query_one(MatrixTable).matrix
        problem, notice = wizard.model_problem, self._text("notice")
        if problem is not None and not notice.plain.startswith(self.signs.no):
            text = f"{self.signs.no} {problem.what} {problem.cause} {problem.next_step}".replace("  ", " ")
            self._say(text + ("" if self.question.id == "model" else " Go back (b) to choose another."), BAD)
        self._text("hint").say(self._hint())
        if matrix is None:
            self._text("recommendation").say("")
            return
        row = matrix.row(matrix.recommended)
        data = f" Data: {wizard.data_words}." if wizard.data_is_checked and wizard.data_words else ""
        title = f"{self.signs.star} {row.title}:"
        self._text("recommendation").say(f"{title} {matrix.recommendation}{data}", lead=len(title))

    def _hint(self) -> str:
        """What the option under the pointer would change, or why it is not possible."""
        affects = f"Changes {self.question.affects}." if self.question.affects else ""
        state = self.options.state
        if state is None or self.field.has_focus:
            return affects
        if not state.enabled:
            return f"{self.signs.no} Not possible: {state.reason}."
        line = option_line(1, state, self.signs).cell_length
        parts = [state.option.hint if line > self.size.width - 2 else "", state.effect]
        told = "; ".join(part for part in parts if part)
        return f"This: {told}. {affects}" if told else affects

    def fit(self) -> None:
        """Give every part its lines."""
        width, rows = self.size.width - 2, self.size.height - 2
        table = self.query_one(MatrixTable)
        shares = share_lines(
            rows,
            {name: self._text(name).need(width) for name in TEXTS},
            options=self.options.option_count,
            field=self.field.display,
            matrix=1 + len(table.matrix.rows) if table.matrix else 1,
        )
        for name, count in shares.texts.items():
            self._text(name).fit(width, count)
        table.display = bool(shares.matrix)
        table.limit = shares.matrix - 1
        self.query_one("#compare").display = bool(shares.matrix or shares.texts["recommendation"])
        self.options.styles.max_height = max(shares.options, 2)
        self.set_class(shares.roomy, "-roomy")

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Moving the pointer shows what that answer would do."""
        event.stop()
        self.show_matrix()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter on an option."""
        event.stop()
        self.action_pick(event.option_index + 1)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the field."""
        event.stop()
        from engine.advise.questions import parse_answer

        try:
            self._answer(parse_answer(self.question, event.value))
        except EngineError as error:
            self._refuse(f"{error.what} {error.next_step}")

    def action_accept(self) -> None:
        """Enter when neither list nor field took it."""
        self.options.action_select()

    def action_cursor(self, by: int) -> None:
        """vi keys."""
        (self.options.action_cursor_down if by > 0 else self.options.action_cursor_up)()

    def action_pick(self, number: int) -> None:
        """A digit answers directly; an impossible option says why not."""
        states = self.options.states
        if not 1 <= number <= len(states):
            return
        state = states[number - 1]
        if state.enabled:
            self._answer(state.option.value)
        else:
            self._refuse(f"{state.option.label} is not possible: {state.reason}.")

    def action_recommended(self) -> None:
        """Pointer to the recommended option."""
        for index, state in enumerate(self.options.states):
            if state.recommended:
                self.set_focus(self.options)
                self.options.highlighted = index

    def action_back(self) -> None:
        """One question back, keeping every answer; from the first one out of the questions."""
        if self.field.has_focus and self.options.option_count:
            self.set_focus(self.options)
            self.show_matrix()
            return
        session = self.scaler.wizard.session
        if session.position()[0] == 1:
            self.app.pop_screen()
            return
        session.back()
        self.show_question()

    def action_type(self) -> None:
        """Into the field, where the question has one."""
        if self.field.display:
            self.set_focus(self.field)  # at once: the next letter belongs into the field
            self.show_matrix()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what this question can do."""
        if action == "type":
            typed = self.is_mounted and self.question.kind is not QuestionKind.CHOICE
            return typed and not self.field.has_focus
        if action == "data":
            return self.is_mounted and bool(self.scaler.wizard.data_file)
        return True

    def action_matrix(self) -> None:
        """The full matrix."""
        self.scaler.open_matrix()

    def action_hardware(self) -> None:
        """Plan for another card."""
        self.scaler.open_hardware()

    def action_data(self) -> None:
        """The report on the rows."""
        self.scaler.open_data()

    def _refuse(self, sentence: str) -> None:
        """Say what is wrong beside the question; it stays to be answered."""
        self._say(f"{self.signs.no} {sentence}".strip(), BAD)
        self.fit()

    def _answer(self, value: AnswerValue) -> None:
        """Take the answer, say what it changed, go on."""
        wizard = self.scaler.wizard
        asked, model = self.question.id, wizard.model_source
        try:
            report = wizard.answer(value)
        except EngineError as error:
            self._refuse(f"{error.what} {error.next_step}")
            return
        if asked == "model" and (wizard.model_source != model or wizard.architecture is None):
            self.scaler.read_model(wizard.model_source)
        if asked == "data":
            self.scaler.check_data(only_local=True)
        if wizard.session.finished:
            self.scaler.open_matrix()
        else:
            self.show_question(f"Changed: {' '.join(report.sentences)}" if report.sentences else "")
