"""The guided part's state: machine, model, answers and the matrix they lead to. No widgets here.

Owns which machine is planned for and when the matrix is computed anew. The arithmetic is the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.advise.matrix import Matrix
    from engine.advise.option_state import OptionState
    from engine.advise.questions import AnswerValue, Question
    from engine.advise.session import ChangeReport, Session
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture


class Wizard:
    """Everything the question, matrix and review screens share."""

    def __init__(self) -> None:
        self.detected: Machine | None = None
        self.architecture: Architecture | None = None
        self.machine: Machine | None = None
        """The machine that is planned for: this one, or the card that was answered."""
        self._session: Session | None = None

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def session(self) -> Session:
        """The questions and answers; loaded when first asked for, saved after every step."""
        if self._session is None:
            from engine.advise.questions import load_graph
            from engine.advise.session import Session, default_progress_path

            self._session = Session(load_graph(), save_to=default_progress_path())
        return self._session

    def restart(self) -> None:
        """Begin with no answers; the saved ones go when the first new one is given."""
        self._session = None
        self.architecture = None
        self.plan_for_answers()

    def load_saved(self) -> str:
        """Go on from the saved answers; returns what happened on the way, "" when nothing did."""
        self._session = None
        self.architecture = None
        self.session.load()
        self.plan_for_answers()
        return self.session.message

    @property
    def has_unfinished_answers(self) -> bool:
        """Whether leaving now leaves a half-done plan (which is saved)."""
        session = self._session
        return session is not None and any(session.is_answered(question.id) for question in session.visible)

    def answer(self, value: AnswerValue) -> ChangeReport:
        """Answer the question in hand. Raises EngineError and changes nothing when the answer is impossible."""
        session = self.session
        question = session.current
        if question.id == "card" and self.detected is not None:
            _simulate(str(value), self.detected, rented=session.answers().rented)
        report = session.answer(value)
        self.plan_for_answers()
        return report

    # ── machine and model ────────────────────────────────────────────────────────────────────────────────────────
    def set_detected(self, machine: Machine) -> None:
        """This machine was looked at."""
        self.detected = machine
        self.plan_for_answers()

    def set_architecture(self, source: str, architecture: Architecture) -> None:
        """A model was analysed; an answer that came too late is dropped."""
        if source == self.model_source:
            self.architecture = architecture

    def plan_for_card(self, text: str) -> None:
        """Answer the hardware questions with another card. Raises EngineError when nobody knows it."""
        if self.detected is None:
            raise EngineError(
                "hardware.pending", "This machine is still being looked at.", next_step="Try again in a second."
            )
        _simulate(text, self.detected, rented=False)
        if self.session.answers().text("hardware") == "this":
            self.session.set_answer("hardware", "own")
        self.session.set_answer("card", text)
        self.plan_for_answers()

    def plan_for_this(self) -> None:
        """Answer the hardware question with this machine."""
        self.session.set_answer("hardware", "this")
        self.plan_for_answers()

    def plan_for_answers(self) -> None:
        """Work out which machine the answers mean."""
        self.machine = self.detected
        if self.detected is None or self._session is None:
            return
        answers = self._session.answers()
        if answers.text("hardware") != "this":
            self.machine = _simulate(answers.text("card"), self.detected, rented=answers.rented)

    @property
    def model_source(self) -> str:
        """What the user called the model."""
        return self.session.answers().model

    @property
    def data_file(self) -> str:
        """The data file that was answered; "" when there is none yet."""
        return self.session.answers().text("data")

    # ── what they lead to ────────────────────────────────────────────────────────────────────────────────────────
    @property
    def matrix(self) -> Matrix | None:
        """The matrix under the answers; None until machine and model are known."""
        return self.matrix_for(self.session.answers())

    def matrix_for(self, answers: Answers) -> Matrix | None:
        """The matrix under other answers, for a preview."""
        from engine.advise.compare import build_matrix

        if self.machine is None or self.architecture is None:
            return None
        return build_matrix(self.architecture, self.machine, answers)

    def preview(self, question: Question, value: AnswerValue) -> Matrix | None:
        """The matrix as if `question` were answered with `value`, its dependants recomputed."""
        from engine.advise.session import Session

        session = self.session
        given = {q.id: session.value(q.id) for q in session.graph.questions if session.is_answered(q.id)}
        return self.matrix_for(Session(session.graph, {**given, question.id: value}).answers())

    def option_states(self, question: Question) -> tuple[OptionState, ...]:
        """The options of `question` with what they would change; all enabled until machine and model are known."""
        from engine.advise.option_state import OptionContext

        return self.session.options(question, OptionContext(self.machine, self.architecture, self.matrix))

    def spec_for(self, approach: str) -> JobSpec:
        """The spec of an approach. Raises EngineError when nothing fits."""
        from engine.advise.plan import build_spec

        assert self.machine is not None
        assert self.architecture is not None
        return build_spec(self.architecture, self.machine, self.session.answers(), approach=approach)


def _simulate(card: str, detected: Machine, *, rented: bool) -> Machine:
    from engine.hardware.simulate import simulate
    from scaler_tui.machines import with_price

    machine = simulate(card, detected)
    return with_price(machine) if rented else machine
