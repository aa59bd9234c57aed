"""The questions and one walk through them."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning import DEMO, LAPTOP

from engine.advise.answers import answers_of
from engine.advise.option_state import OptionContext
from engine.advise.questions import QuestionKind, flag_name, format_answer, load_graph, parse_answer
from engine.advise.session import Session, default_progress_path
from engine.errors import EngineError


def fresh(**answers: str | int) -> Session:
    return Session(load_graph(), answers)


def walk(session: Session) -> list[str]:
    """Answer everything with its default; the ids in the order they were asked."""
    asked = []
    while not session.finished:
        asked.append(session.current.id)
        session.answer(session.value(session.current.id))
    return asked


def test_the_default_path_has_nine_steps_and_starts_with_the_demo_model() -> None:
    session = fresh()
    assert session.position() == (1, 9)
    assert (session.current.id, session.value("model")) == ("model", "demo")
    asked = walk(session)
    assert len(asked) == 9
    assert {"goal", "hardware", "use_case", "timeline", "budget_usd", "data", "context"} <= set(asked)


def test_every_question_says_why_and_has_a_valid_default() -> None:
    graph = load_graph()
    for question in graph.questions:
        assert question.why.endswith((".", "?"))
        assert question.affects
        value = graph.with_defaults({})[question.id]
        assert parse_answer(question, str(value)) == value


def test_the_step_count_follows_the_branch() -> None:
    session = fresh()
    session.set_answer("hardware", "rented")
    assert session.position_text() == "Step 1 of 10"
    session.set_answer("goal", "research")
    assert session.position_text() == "Step 1 of 11"


def test_back_keeps_later_answers() -> None:
    session = fresh()
    for value in ("demo", "style", "production"):
        session.answer(value)
    assert session.back().id == "use_case"
    session.back()
    assert session.current.id == "goal"
    assert session.value("use_case") == "production"
    session.answer("style")
    assert (session.current.id, session.value("use_case")) == ("use_case", "production")


def test_a_changed_answer_recomputes_only_its_dependants_and_says_so() -> None:
    session = fresh(use_case="production", timeline="weeks")
    report = session.set_answer("model", "Qwen/Qwen3-8B")
    assert set(report.recomputed) == {"data", "data_tokens", "context"}
    assert any("256" in sentence and "2,048" in sentence for sentence in report.sentences)
    assert session.value("use_case") == "production"


def test_an_own_answer_survives_a_change_it_depends_on() -> None:
    session = fresh(context=512)
    report = session.set_answer("model", "Qwen/Qwen3-8B")
    assert session.value("context") == 512
    assert "context" not in report.recomputed


def test_the_same_answer_again_recomputes_nothing() -> None:
    session = fresh(model="Qwen/Qwen3-8B")
    assert session.set_answer("model", "Qwen/Qwen3-8B").recomputed == ()


def test_a_question_that_leaves_the_branch_is_reported() -> None:
    session = fresh(hardware="rented", card="A100 80GB")
    report = session.set_answer("hardware", "this")
    assert "card" in report.recomputed
    assert any("no longer asked" in sentence for sentence in report.sentences)
    with pytest.raises(EngineError, match="not asked"):
        session.go_to("card")


def test_an_impossible_answer_keeps_the_step() -> None:
    session = fresh()
    session.answer("demo")
    with pytest.raises(EngineError) as caught:
        session.answer("fly to the moon")
    assert "specialise" in caught.value.next_step
    assert session.current.id == "goal"


def test_progress_is_saved_after_every_step_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.json"
    session = Session(load_graph(), save_to=path)
    session.answer("demo")
    session.answer("style")
    again = Session(load_graph(), save_to=path)
    assert again.load()
    assert (again.current.id, again.value("goal")) == ("use_case", "style")
    assert not [item for item in path.parent.iterdir() if item != path]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 99, "answers": {}, "current": ""}', "\udcff"])
def test_damaged_progress_is_set_aside_with_a_message(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(damage.encode("utf-8", "surrogateescape"))
    session = Session(load_graph(), save_to=path)
    assert not session.load()
    assert "set aside" in session.message
    assert path.with_name("answers.json.damaged").exists()
    session.answer("demo")


def test_saved_answers_that_no_longer_apply_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text('{"version": 1, "answers": {"goal": "style", "gone": 1, "context": -3}, "current": "gone"}')
    session = Session(load_graph(), save_to=path)
    assert session.load()
    assert session.value("goal") == "style"
    assert "gone" in session.message
    assert "context" in session.message


def test_progress_lives_in_the_home_of_the_user(own_home: Path) -> None:
    assert default_progress_path().is_relative_to(own_home)


def test_an_unwritable_home_does_not_stop_the_questions(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    session = Session(load_graph(), save_to=blocker / "answers.json")
    session.answer("demo")
    assert session.current.id == "goal"
    assert session.message


def test_flags_and_typed_answers_are_read_alike() -> None:
    graph = load_graph()
    assert flag_name(graph.question("budget_usd")) == "--budget-usd"
    assert parse_answer(graph.question("context"), "32k") == 32_768
    assert parse_answer(graph.question("budget_usd"), "$12.50") == 12.5
    assert parse_answer(graph.question("data_tokens"), "20M") == 20_000_000
    assert parse_answer(graph.question("target_parameters"), "7B") == 7_000_000_000
    assert format_answer(graph.question("context"), 4096) == "4,096 tokens"
    for bad in ("", "abc", "-4", "1e400", "inf", "nan", "9" * 40):
        with pytest.raises(EngineError):
            parse_answer(graph.question("context"), bad)


def test_unknown_answers_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match="colour"):
        answers_of({"colour": "red"})


def test_impossible_options_stay_with_their_reason() -> None:
    session = fresh()
    context = OptionContext(LAPTOP, DEMO, None)
    states = session.options(load_graph().question("context"), context)
    assert len(states) == len(load_graph().question("context").options)
    off = [state for state in states if not state.enabled]
    assert off
    assert all("256 tokens" in state.reason for state in off)
    assert sum(state.recommended for state in states) == 1


def test_goals_say_which_approach_they_lead_to() -> None:
    session = fresh()
    effects = {s.option.value: s.effect for s in session.options(load_graph().question("goal"), OptionContext())}
    assert effects["reasoning"] == "leads to Larger model + QLoRA"
    assert effects["long-documents"] == "leads to Context scaling"


def test_every_choice_offers_its_default() -> None:
    for question in load_graph().questions:
        if question.kind is QuestionKind.CHOICE:
            assert question.default in [option.value for option in question.options]


def test_a_question_that_a_change_hides_is_not_left_in_hand() -> None:
    session = Session(load_graph(), {"hardware": "rented"})
    session.go_to("card")
    session.set_answer("hardware", "this")
    assert session.current.id == "timeline"
    assert session.position()[0] <= session.position()[1]
