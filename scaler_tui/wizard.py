"""The guided part's state: machine, model, answers and the matrix they lead to. No widgets here.

Owns which machine is planned for and when the matrix is computed anew. The arithmetic is the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from scaler_tui.data_file import TEXT, existing_file, existing_teacher
from scaler_tui.machines import planned, simulated
from scaler_tui.window import APPROACH as LONGER
from scaler_tui.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from engine.advise.answers import Answers
    from engine.advise.context import ContextChoice
    from engine.advise.frank import FrankWord
    from engine.advise.grown import Grown
    from engine.advise.growth import Setting
    from engine.advise.matrix import ApproachRow, Matrix
    from engine.advise.option_state import OptionState
    from engine.advise.questions import AnswerValue, Question
    from engine.advise.session import ChangeReport, Session
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from scaler_tui.text_plan import TextKey, TextPlan


class Wizard:
    """Everything the question, matrix and review screens share."""

    def __init__(self) -> None:
        self.detected: Machine | None = None
        self.architecture: Architecture | None = None
        self.model_problem: EngineError | None = None
        """Why the answered model cannot be planned for; None while it is read or when it was."""
        self.machine: Machine | None = None
        """The machine that is planned for: this one, or the card that was answered."""
        self.data_report: dict[str, Any] | None = None
        """The report on the answered data, when it was checked."""
        self.data_problem: EngineError | None = None
        """Why the answered data cannot be trained on, when the check said so."""
        self.started = False
        """Whether a run was started from these answers."""
        self.grown: dict[str, Grown] = {}
        """Approach -> the plan that was chosen for an expansion."""
        self.window = Window()
        """What was decided about a longer window."""
        self._text: TextPlan | None = None
        self._what_if = ""
        self._checked: tuple[str, str, int] | None = None
        self._session: Session | None = None
        self._saves = True

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def session(self) -> Session:
        """The questions and answers; loaded when first asked for, saved after every step."""
        if self._session is None:
            self._begin(save=True)
        assert self._session is not None
        return self._session

    def _begin(self, *, save: bool) -> None:
        from engine.advise.questions import load_graph
        from engine.advise.session import Session, default_progress_path

        self._session = Session(load_graph(), save_to=default_progress_path() if save else None)
        self.architecture = self.model_problem = None
        self.grown, self.window = {}, Window()
        self._forget_data()
        self.started, self._saves = False, save

    def restart(self, *, save: bool = True) -> None:
        """Begin with no answers. The saved ones go when the first new one is given, or stay with `save=False`."""
        self._begin(save=save)
        self._answer_what_if()
        self.plan_for_answers()

    def load_saved(self) -> str:
        """Go on from the saved answers; returns what happened on the way, "" when nothing did."""
        self._begin(save=True)
        self.session.load()
        self._answer_what_if()
        self.plan_for_answers()
        return self.session.message

    @property
    def has_unfinished_answers(self) -> bool:
        """Whether leaving now leaves a half-done plan (which is saved)."""
        session = self._session
        if session is None or self.started or not self._saves:
            return False
        return any(session.is_answered(question.id) for question in session.visible)

    def answer(self, value: AnswerValue) -> ChangeReport:
        """Answer the question in hand. Raises EngineError and changes nothing when the answer is impossible."""
        session = self.session
        question = session.current
        if question.id == "card" and self.detected is not None:
            simulated(str(value), self.detected, rented=session.answers().rented)
        if question.id == "data" and value not in ("", "demo", TEXT):
            value = str(existing_file(str(value)))
        if question.id == "teacher":
            value = existing_teacher(str(value))
        model = self.model_source
        report = session.answer(value)
        if question.id in ("hardware", "card"):
            self._what_if = ""
        if self.model_source != model:
            self.architecture = self.model_problem = None
        if self.model_source != model or question.id == "target_parameters":
            self.grown = {}
        if self.model_source != model or question.id in ("context", "goal"):
            self.window.choice = Window().choice
        self._forget_stale_data()
        self.plan_for_answers()
        return report

    # ── machine and model ────────────────────────────────────────────────────────────────────────────────────────
    def set_detected(self, machine: Machine) -> None:
        """This machine was looked at."""
        self.detected = machine
        self.plan_for_answers()

    def set_model(self, source: str, architecture: Architecture | None, problem: EngineError | None) -> bool:
        """A model was analysed, or could not be; False when it is no longer the one that is planned for."""
        if self._session is None or source != self.model_source:
            return False
        self.architecture, self.model_problem = architecture, problem
        return True

    def plan_for_card(self, text: str) -> None:
        """Plan for another card from now on. Raises EngineError when nobody knows it."""
        if self.detected is None:
            raise EngineError(
                "hardware.pending", "This machine is still being looked at.", next_step="Try again in a second."
            )
        simulated(text, self.detected, rented=False)
        self._what_if = text
        self._answer_what_if()
        self.plan_for_answers()

    def _answer_what_if(self) -> None:
        """The answers to the hardware questions follow the card that was chosen elsewhere."""
        session = self._session
        if session is None or not self._what_if:
            return
        if session.answers().plans_for_this:
            session.set_answer("hardware", "own")
        session.set_answer("card", self._what_if)

    def plan_for_this(self) -> None:
        """Plan for this machine again."""
        self._what_if = ""
        session = self._session
        if session is not None and not session.answers().plans_for_this:
            session.set_answer("hardware", "this")
            if session.current not in session.visible:
                session.go_to("hardware")
        self.plan_for_answers()

    def plan_for_answers(self) -> None:
        """Work out which machine the answers mean."""
        self.machine = self.detected
        if self.detected is None:
            return
        if self._session is None:
            if self._what_if:
                self.machine = simulated(self._what_if, self.detected, rented=False)
            return
        try:
            self.machine = planned(self._session.answers(), self.detected)
        except EngineError:  # a card in saved answers that the profiles no longer know
            self._session.set_answer("hardware", "this")

    @property
    def model_source(self) -> str:
        """What the user called the model."""
        return self.session.answers().model

    @property
    def model_is_local(self) -> bool:
        """Whether the answered model's tokenizer is on this disk."""
        from engine.advise.amounts import is_on_disk

        return self.architecture is not None and is_on_disk(self.architecture)

    # ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def data_file(self) -> str:
        """The data file that was answered; "" when there is none yet, and for large text."""
        return self.session.answers().text("data").removeprefix(TEXT if self.trains_on_text else "")

    @property
    def trains_on_text(self) -> bool:
        """Whether large text is trained on instead of rows."""
        return self.session.answers().text("data") == TEXT

    @property
    def text(self) -> TextPlan:
        """What was decided about it; as it was the last time."""
        if self._text is None:
            from scaler_tui.text_plan import TextPlan, kept

            self._text = TextPlan(kept())
        self._text.answered_tokens = round(self.session.answers().number("data_tokens"))
        return self._text

    def count_text(self) -> None:
        """The tokens to be trained on take the place of a guess."""
        if self.trains_on_text:
            self.session.measured_tokens = self.text.known_tokens or None

    @property
    def data_key(self) -> tuple[str, str, int]:
        """(file, model, longest row in tokens): what a data check depends on."""
        window = self.architecture.context_length if self.architecture else 0
        context = self.session.answers().context
        return self.data_file, self.model_source, min(context, window) if window else context

    def set_data_report(
        self, key: tuple[str, str, int], report: dict[str, Any] | None, problem: EngineError | None
    ) -> bool:
        """The data was read: its token count replaces the guess. False when the answers have changed meanwhile."""
        if self._session is None or key != self.data_key:
            return False
        self._checked, self.data_report, self.data_problem = key, report, problem
        self.session.measured_tokens = report["train"]["tokens"] if report else None
        return True

    @property
    def waiting_for(self) -> str:
        """What the matrix waits for."""
        if self.model_problem is not None:
            return f"No matrix: {self.model_problem.what}"
        if self.architecture is None:
            return f"Reading the model {self.model_source} ... (go on, or go back: nothing waits)"
        return "Looking at the machine ..." if self.machine is None else ""

    @property
    def data_words(self) -> str:
        """ "410 rows kept, 0 dropped, 18,494 tokens counted", or what is wrong; "" before the check."""
        if not self.data_is_checked:
            return ""
        if self.data_problem is not None:
            return self.data_problem.what
        assert self.data_report is not None
        train = self.data_report["train"]
        dropped, cut = train["rows_dropped"], train["rows_truncated"]
        return (
            f"{train['rows_kept']:,} rows kept, {dropped:,} dropped, {cut:,} cut; "
            f"{train['tokens']:,} tokens counted, {train['trained_tokens']:,} carry loss"
        )

    @property
    def data_is_checked(self) -> bool:
        """Whether the last check was about these very answers."""
        return self._checked is not None and self._checked == self.data_key

    def _forget_stale_data(self) -> None:
        if self._checked is not None and self._checked[:2] != self.data_key[:2]:
            self._forget_data()

    def _forget_data(self) -> None:
        self._checked = self.data_report = self.data_problem = None
        if self._session is not None:
            self._session.measured_tokens = None

    # ── what they lead to ────────────────────────────────────────────────────────────────────────────────────────
    @property
    def matrix(self) -> Matrix | None:
        """The matrix under the answers; None until machine and model are known."""
        return self.matrix_for(self.session.answers(), self.grown)

    def matrix_for(self, answers: Answers, grown: Mapping[str, Grown] | None = None) -> Matrix | None:
        """The matrix under other answers, for a preview; on the machine those answers mean."""
        from engine.advise.compare import build_matrix

        if self.machine is None or self.detected is None or self.architecture is None:
            return None
        try:
            machine = planned(answers, self.detected)
        except EngineError:
            machine = self.machine
        return build_matrix(self.architecture, machine, answers, grown, self.window_choice)

    def preview(self, question: Question, value: AnswerValue) -> Matrix | None:
        """The matrix as if `question` were answered with `value`, its dependants recomputed."""
        from engine.advise.session import Session

        session = self.session
        given = {q.id: session.value(q.id) for q in session.graph.questions if session.is_answered(q.id)}
        trial = Session(session.graph, {**given, question.id: value})
        if question.id not in ("data", "model"):
            trial.measured_tokens = session.measured_tokens
        return self.matrix_for(trial.answers())

    def option_states(self, question: Question) -> tuple[OptionState, ...]:
        """The options of `question` with what they would change; all enabled until machine and model are known."""
        from engine.advise.option_state import OptionContext

        return self.session.options(question, OptionContext(self.machine, self.architecture, self.matrix))

    def spec_for(self, approach: str, *, force: bool = False) -> JobSpec:
        """The spec of an approach. Raises EngineError when nothing fits, unless `force`."""
        from engine.advise.plan import JobWish, build_spec

        assert self.machine is not None
        assert self.architecture is not None
        longer = self.window_choice if approach == LONGER else None
        train = "demo" if self.trains_on_text else ""
        wish = JobWish(train=train, force=force, grown=self.grown.get(approach), context=longer)
        spec = build_spec(self.architecture, self.machine, self.session.answers(), approach=approach, wish=wish)
        return self.text.promised(self.text.applied(spec), self.text_key(approach)) if self.trains_on_text else spec

    def text_key(self, approach: str) -> TextKey:
        """What the estimate of a job on large text depends on."""
        text = self.text
        return text.choice, approach, self.machine, self.grown.get(approach), text.sizes, text.wanted_tokens

    def frank_words(self, approach: str, grown: Grown | None = None) -> tuple[FrankWord, ...]:
        """What must be said before an approach starts, about the plan `grown` (None: the chosen one); empty where
        nothing must."""
        from engine.advise.amounts import data_tokens
        from engine.advise.frank import frank_words, needs_frank_words

        if not needs_frank_words(approach):
            return ()
        plans = {**self.grown, approach: grown} if grown else self.grown
        matrix = self.matrix_for(self.session.answers(), plans)
        if matrix is None:
            return ()
        return frank_words(approach, matrix, data_tokens(self.session.answers())[1])

    def run_row(self, approach: str) -> ApproachRow | None:
        """The row of an approach as a run from here would be: of expansions only the user's data is trained on."""
        from engine.advise.compare import row_of

        if self.machine is None or self.architecture is None:
            return None
        answers, longer = self.session.answers(), self.window_choice
        grown = self.grown.get(approach)
        row = row_of(approach, self.architecture, self.machine, answers, grown, longer, own_data=True)
        return self.text.row(row, self.text_key(approach)) if self.trains_on_text else row

    def growth_setting(self, approach: str) -> Setting | None:
        """For whom expansion plans are made; None until machine and model are known."""
        from engine.advise.growth import Setting

        if self.machine is None or self.architecture is None:
            return None
        return Setting(approach, self.architecture, self.machine, self.session.answers())

    @property
    def window_length(self) -> int:
        """Tokens of the longer window: as chosen, else as answered; 0 until the model is known."""
        from engine.advise.context import completed

        if self.architecture is None:
            return 0
        return completed(self.window.choice, self.architecture, self.session.answers()).length

    @property
    def window_choice(self) -> ContextChoice:
        """What was decided about a longer window, the winner of a finished race in it."""
        return self.window.decided(self.model_source, self.window_length)

    def window_row(self, choice: ContextChoice) -> ApproachRow | None:
        """The row of a longer window under another choice; None until machine and model are known."""
        from engine.advise.compare import row_of

        if self.machine is None or self.architecture is None:
            return None
        answers = self.session.answers()
        return row_of(LONGER, self.architecture, self.machine, answers, None, choice, own_data=True)

    @property
    def gentlest_window(self) -> str:
        """How training that was left open is planned: full length where it fits, else PoSE."""
        row = self.window_row(self.window.choice)
        plan = row.appraisal.plan if row is not None and row.appraisal is not None else None
        return plan.context.window if plan is not None and plan.context is not None else "full"

    @property
    def card(self) -> str:
        """The card that is planned for instead of this machine's, as `--gpu` takes it; "" for this machine."""
        return self.session.answers().text("card") if self.machine is not None and self.machine.simulated else ""
