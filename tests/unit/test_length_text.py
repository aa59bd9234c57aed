"""Documents of one length: from files, folders and what ships; joined with a note, or refused with what is needed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.length_log import CellLog
from engine.evaluation.length_text import default_source, load_text
from engine.resources import demo_model_dir
from tests.support.odd_tokenizers import spaced

WORDS = "The old miller waits by the mill. "


@cache
def demo() -> ChatTokenizer:
    return ChatTokenizer.load(demo_model_dir())


def test_documents_have_exactly_one_length_with_the_start_token_in_it(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(spaced(tmp_path / "model"))
    file = tmp_path / "book.txt"
    file.write_text(WORDS * 200)
    found = load_text(tokenizer, str(file), 300, 4)
    assert found.start == (tokenizer.bos_id,)
    assert [len(row) for row in found.whole()] == [300]
    assert [len(row) for row in found.ends(120)] == [120]
    assert found.ends(120)[0][1:] == found.whole()[0][-119:]
    assert all(len(row) == 50 and row[0] == tokenizer.bos_id for row in found.pieces(50, 5))


def test_rows_long_enough_are_documents_and_shorter_ones_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    rows = [{"text": WORDS * 40}, {"text": "too short"}, {"text": WORDS * 50}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_text(demo(), str(file), 200, 2)
    assert len(found.texts) == 2
    assert not found.notes


def test_short_texts_are_joined_in_order_and_it_is_said(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"Part {number}. " + WORDS * 10)
    found = load_text(demo(), str(tmp_path), 200, 2)
    text = demo().decode(found.texts[0])
    assert text.index("Part 0") < text.index("Part 1")
    assert "joined in their order" in found.notes[0]


def test_too_little_text_is_refused_with_what_would_be_needed(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text(WORDS)
    with pytest.raises(EngineError) as refused:
        load_text(demo(), str(file), 1000, 2)
    assert refused.value.code == "evaluation.text_too_short"
    assert "1,000 tokens" in refused.value.next_step
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(EngineError) as refused:
        load_text(demo(), str(empty), 1000, 2)
    assert refused.value.code == "evaluation.no_text"


def test_chats_are_read_as_the_model_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS * 20}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    assert "<|im_start|>" in demo().decode(load_text(demo(), str(file), 100, 1).texts[0])


def test_the_demos_tokenizer_gets_the_demos_text_and_others_plain_english(tmp_path: Path) -> None:
    assert default_source(demo()) == "demo"
    assert default_source(ChatTokenizer.load(spaced(tmp_path))) == "general"


def test_a_long_window_finds_text_on_every_machine(tmp_path: Path) -> None:
    found = load_text(ChatTokenizer.load(spaced(tmp_path)), "", 5_000, 2)
    assert [len(row) for row in found.whole()] == [5_000] * 2
    assert len(set(found.texts)) == 2
    assert "Python's own library" in found.origin
    assert found.own == ""


def test_a_log_gives_back_what_was_finished_and_passes_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = CellLog(path, "one")
    log.add("a", (1.5, 2), 0.5)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    again = CellLog(path, "one")
    assert again.find("a", tuple[float, int]) == (1.5, 2)
    assert again.seconds == 0.5
    again.add("b", [3], 0.1)
    again.close()
    last = CellLog(path, "one")
    assert last.find("b", list[int]) == [3]
    assert last.find("b", list[str]) is None
    other = CellLog(path, "another request")
    assert other.find("a", tuple[float, int]) is None
    for found in (last, other):
        found.close()
