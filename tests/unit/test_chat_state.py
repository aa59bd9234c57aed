"""A chat as a fold: what each side is told next, what is saved, and that a model's words do not steer the terminal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.jobs.chat_lines import (
    AllAnswered,
    Answered,
    Ask,
    Failed,
    Piece,
    Problem,
    Ready,
    Sampling,
    Sent,
    SideFacts,
    SideOrder,
    SideReady,
    SideRefused,
    Turn,
    decode_news,
    decode_request,
    encode,
)
from engine.jobs.chat_log import ChatLog, Exchange, SavedAnswer, earlier_prompts, read_chats
from scaler_tui.chat_state import ChatState, Phase, SideState, as_typed, changed, harmless
from scaler_tui.chat_words import answer_content, sent_content

SEED_WORDS = f"A seed is a whole number from 0 to {2**63 - 1:,}."
FACTS = SideFacts(
    template="t", template_origin="f", template_is_default=False, window=64, stop_tokens=("<e>",), weights="float32"
)


def two_sides() -> ChatState:
    state = ChatState(
        [SideState(SideOrder(name="base", folder="/b")), SideState(SideOrder(name="tuned", folder="/r/o"))]
    )
    state.clock = lambda: 1_795_731_961.0
    for number in (0, 1):
        state.take(SideReady(side=number, facts=FACTS))
    state.take(Ready(device="cpu", seconds=1))
    return state


def answered(state: ChatState, request: Ask, *texts: str) -> None:
    for side, text in enumerate(texts):
        state.take(Sent(ask=request.ask, side=side, text=f"<s>{text}", tokens=3, special=("<s>",)))
        state.take(Piece(ask=request.ask, side=side, text=text[:2], tokens=1))
        done = Answered(ask=request.ask, side=side, text=text, tokens=2, prompt_tokens=3, ended="end", seconds=0.5)
        state.take(done)
    assert state.take(AllAnswered(ask=request.ask))


def test_every_side_keeps_its_own_conversation() -> None:
    state = two_sides()
    state.system = "Be brief."
    answered(state, state.ask("one"), "A", "B")
    request = state.ask("two")
    assert request.turns[0] == (
        Turn("system", "Be brief."), Turn("user", "one"), Turn("assistant", "A"), Turn("user", "two")
    )  # fmt: skip
    assert request.turns[1][2] == Turn("assistant", "B")
    assert decode_request(encode(request)) == request


def test_asking_again_replaces_the_newest_answers_only() -> None:
    state = two_sides()
    answered(state, state.ask("one"), "A", "B")
    answered(state, state.ask("two"), "C", "D")
    request = state.again()
    assert [turn.content for turn in request.turns[0]] == ["one", "A", "two"]
    answered(state, request, "E", "F")
    assert [answer.text for answer in state.sides[0].answers] == ["A", "E"]
    exchange = state.exchange(Path("/r"))
    assert (exchange.again, exchange.turn, exchange.prompt) == (True, 2, "two")
    assert [(one.side, one.folder, one.text, one.sent) for one in exchange.answers] == [
        ("base", "/b", "E", "E"), ("tuned", "o", "F", "F")
    ]  # fmt: skip


def test_a_failed_answer_is_shown_and_is_no_part_of_what_is_told_later() -> None:
    state = two_sides()
    request = state.ask("too long")
    problem = Problem(code="chat.window", what="The conversation fills the window.", next_step="Clear it.")
    state.take(Failed(ask=request.ask, side=0, problem=problem))
    state.take(Failed(ask=request.ask, side=1, problem=problem))
    state.take(AllAnswered(ask=request.ask))
    assert "Clear it." in answer_content(state.sides[0].answers[0], unicode=True).plain
    assert state.exchange(None).answers[0].problem == "The conversation fills the window."
    assert [turn.content for turn in state.ask("short").turns[0]] == ["short"]


def test_a_refused_side_is_not_asked_and_the_others_are() -> None:
    state = ChatState([SideState(SideOrder(name="a", folder="/a")), SideState(SideOrder(name="b", folder="/b"))])
    state.take(SideRefused(side=0, problem=Problem(code="x", what="No room.")))
    state.take(SideReady(side=1, facts=FACTS))
    request = state.ask("hello")
    assert request.turns[0] == ()
    assert request.turns[1] == (Turn("user", "hello"),)
    assert not state.sides[0].answers


def test_when_the_process_is_gone_answers_end_where_they_are() -> None:
    state = two_sides()
    request = state.ask("one")
    state.take(Piece(ask=request.ask, side=0, text="half an", tokens=2))
    state.over(None)
    assert state.phase is Phase.OVER
    saved = state.exchange(None)
    assert [(one.text, one.ended) for one in saved.answers] == [("half an", "stopped"), ("", "stopped")]


def test_a_cleared_conversation_is_told_to_nobody() -> None:
    state = two_sides()
    answered(state, state.ask("one"), "A", "B")
    state.clear()
    assert [turn.content for turn in state.ask("new").turns[0]] == ["new"]


def test_lines_of_other_programs_and_of_later_versions_are_passed_over() -> None:
    assert decode_news(b"Loading weights: 10%\n") is None
    assert decode_news(b'{"kind": "later", "x": 1}') is None
    assert decode_news(b'{"error": {"code": "x"}}') is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("seed", "5", Sampling(seed=5)),
        ("seed", "12345678901", Sampling(seed=12345678901)),
        ("seed", str(2**63 - 1), Sampling(seed=2**63 - 1)),
        ("seed", str(2**63), SEED_WORDS),
        ("seed", "9" * 5000, SEED_WORDS),
        ("seed", "1.5", SEED_WORDS),
        ("seed", "-1", SEED_WORDS),
        ("temperature", "0,3", Sampling(temperature=0.3)),
        ("temperature", "hot", "'hot' is no number."),
        ("temperature", "nan", "A temperature is a number from 0 to 100; 0 is always the likeliest token."),
    ],
)
def test_a_setting_is_taken_or_refused_in_words(name: str, text: str, expected: Sampling | str) -> None:
    assert changed(Sampling(), name, text) == expected


def test_a_setting_typed_again_unchanged_is_the_same() -> None:
    for sampling in (Sampling(seed=12345678901, temperature=0.123456789), Sampling(seed=2**63 - 1, temperature=0)):
        for name in ("seed", "temperature"):
            assert changed(sampling, name, as_typed(sampling, name)) == sampling


def test_what_is_saved_are_the_settings_the_answer_was_asked_with() -> None:
    state = two_sides()
    request = state.ask("one")
    state.sampling, state.system = msgspec.structs.replace(state.sampling, seed=99), "Later."
    answered(state, request, "A", "B")
    assert (state.exchange(None).sampling.seed, state.exchange(None).system) == (17, "")


def test_of_the_text_that_was_sent_only_what_is_new_is_saved_with_each_turn() -> None:
    state, told, lines = two_sides(), "", []
    for turn in range(20):
        told += f"question {turn}, "
        request = state.ask(f"question {turn}")
        answered(state, request, told, told)
        lines.append(state.exchange(None))
    whole = ""
    for line in lines:
        assert line.began == lines[0].began > 0
        whole = whole[: line.answers[0].sent_shared] + line.answers[0].sent
    assert whole == f"<s>{told}"
    assert len(lines[-1].answers[0].sent) < 20


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    state = two_sides()
    answered(state, state.ask("one"), "red \x1b[31m\x07 \x9b2J", "B")
    shown = answer_content(state.sides[0].answers[0], unicode=True).plain
    assert not any(ord(character) < 32 and character != "\n" for character in shown)
    assert "\x9b" not in shown
    assert "^[[31m" in shown
    assert harmless("plain\ttext\nof two lines") == "plain\ttext\nof two lines"


def test_the_text_that_was_sent_shows_line_ends_and_special_tokens() -> None:
    state = two_sides()
    state.take(Sent(ask=1, side=0, text="<s>user\nhello<e>\n", tokens=5, special=("<s>", "<e>")))
    plain = sent_content(state.sides[0], unicode=True).plain
    assert "5 tokens sent" in plain
    assert "<s>user↵\nhello<e>↵" in plain
    assert sent_content(state.sides[0], unicode=False).plain.isascii()


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────
def exchange(prompt: str, t: float) -> Exchange:
    return Exchange(t=t, prompt=prompt, answers=(SavedAnswer(side="base", folder="/b", text="yes"),))


def test_exchanges_are_appended_by_day_and_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    log = ChatLog(tmp_path / "chats")
    first = log.add(exchange("one", 1_795_731_961.0))
    assert first.name == "2026-11-26.jsonl"
    assert first.stat().st_mode & 0o777 == 0o600
    with first.open("ab") as file:
        file.write(b'{"t": 1, "prompt": "torn')
    log.add(exchange("two", 1_795_731_962.0))
    later = log.add(exchange("one", 1_795_900_000.0))
    assert later != first
    assert [found.prompt for found in read_chats(tmp_path / "chats")] == ["one", "two", "one"]
    assert earlier_prompts(tmp_path / "chats") == ["two", "one"]
