"""Prompts for retrieval: exact in tokens, the same on every machine, the asked note where it should be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.haystack import Haystack, HaystackOrder, build, even_depths, shortest_length
from engine.evaluation.haystack_frame import NOTES, PASSKEY, STYLES, Writer
from engine.evaluation.haystack_tasks import HOPS, KEY_VALUE, MULTI, NEEDLE, TASKS, VARIABLES
from engine.resources import demo_model_dir
from tests.support.odd_tokenizers import by_bytes, spaced

LONGEST_SENTENCE = 16
"""Tokens of the demo's tokenizer; a note cannot stand nearer to its depth than half of one."""


@cache
def demo(style: str, text: str = "") -> Writer:
    return Writer(ChatTokenizer.load(demo_model_dir()), style, text)


def stacks(writer: Writer, task: str, length: int, depths: int = 5, seed: int = 0) -> tuple[Haystack, ...]:
    return build(writer, HaystackOrder(task, length, even_depths(depths), seed))


@given(
    task=st.sampled_from(TASKS),
    style=st.sampled_from(STYLES),
    length=st.integers(140, 1500),
    depths=st.integers(1, 11),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60)
def test_every_prompt_with_its_answer_has_exactly_the_length_asked_for(
    task: str, style: str, length: int, depths: int, seed: int
) -> None:
    found = stacks(demo(style), task, length, depths, seed)
    asked = [(stack, number) for stack in found for number in range(len(stack.questions))]
    assert [stack.questions[number].depth for stack, number in asked] == list(even_depths(depths))
    for stack, number in asked:
        assert len(stack.prompt(number)) == length
        assert len({len(question.ids) for question in stack.questions}) == 1


@given(length=st.integers(300, 2000), depths=st.integers(2, 9), seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_a_note_stands_at_its_depth_counted_in_tokens(length: int, depths: int, seed: int) -> None:
    for stack in stacks(demo(NOTES), NEEDLE, length, depths, seed):
        body = len(stack.shared) - stack.head_tokens
        note = len(demo(NOTES).after(" The key of amber is falcon."))
        for question in stack.questions:
            at = (question.place - stack.head_tokens) / (body - note)
            assert abs(at - question.depth) <= (LONGEST_SENTENCE + 4 * note) / body
            if question.depth == 0:
                assert question.place == stack.head_tokens
            if question.depth == 1:
                assert question.place == len(stack.shared) - note


@pytest.mark.parametrize("task", [NEEDLE, MULTI])
@pytest.mark.parametrize("depths", [1, 2, 5])
def test_naming_any_value_present_is_right_one_time_in_four_at_most(task: str, depths: int) -> None:
    writer = demo(NOTES)
    tokenizer = ChatTokenizer.load(demo_model_dir())
    for stack in stacks(writer, task, 256, depths):
        text = tokenizer.decode(stack.shared)
        said = [sentence for sentence in text.split(". ") if "The key of" in sentence]
        assert len(said) >= 4
        assert len({sentence.split(" is ")[1].rstrip(".") for sentence in said}) == len(said)


def test_only_what_must_be_found_is_scored() -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    for task, values in ((NEEDLE, 1), (MULTI, 3), (VARIABLES, HOPS + 1)):
        stack = stacks(demo(NOTES), task, 400)[0]
        for question in stack.questions:
            scored = [tokenizer.decode([question.ids[index]]).strip() for index in question.scored]
            assert len(scored) == values
            assert all(word in tokenizer.decode(stack.shared) for word in scored)
            assert question.scored[-1] == len(question.ids) - 1


def test_the_question_about_a_record_names_the_one_at_its_depth() -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    for stack in stacks(demo(PASSKEY), KEY_VALUE, 600):
        for question in stack.questions:
            note = tokenizer.decode(stack.shared[question.place :]).split(".")[0].strip()
            assert tokenizer.decode(question.ids).endswith(note)


def test_a_chain_of_assignments_stands_in_order() -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    for depth in (0.0, 0.5, 1.0):
        stack = build(demo(NOTES), HaystackOrder(VARIABLES, 400, (depth,)))[0]
        names = tokenizer.decode(stack.questions[0].ids).split(" are ")[1].split(", ")
        text = tokenizer.decode(stack.shared)
        places = [text.index(f"Set {name} to") for name in names]
        assert places == sorted(places)


def test_one_order_gives_the_same_tokens_in_another_process() -> None:
    code = (
        "from engine.evaluation.haystack import *; from engine.evaluation.haystack_frame import Writer;"
        "from engine.data.tokenizer import ChatTokenizer; from engine.resources import demo_model_dir;"
        "w = Writer(ChatTokenizer.load(demo_model_dir()), 'notes');"
        "print([s.prompt(0) for s in build(w, HaystackOrder('needle', 300, (0.0, 1.0), 7, 3))]);"
        "import sys; assert 'torch' not in sys.modules"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    order = HaystackOrder(NEEDLE, 300, (0.0, 1.0), 7, 3)
    assert again.strip() == str([stack.prompt(0) for stack in build(demo(NOTES), order)])
    other = HaystackOrder(NEEDLE, 300, (0.0, 1.0), 7, 4)
    assert build(demo(NOTES), order) != build(demo(NOTES), other)


@pytest.mark.parametrize("make", [spaced, by_bytes])
@pytest.mark.parametrize("task", TASKS)
def test_other_tokenizers_get_exact_lengths_too(make: Callable[[Path], Path], task: str, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(make(tmp_path))
    for style in STYLES:
        writer = Writer(tokenizer, style)
        least = shortest_length(writer, task)
        for length in (least, least + 37, 1500):
            for stack in stacks(writer, task, length, 3):
                assert all(len(stack.prompt(number)) == length for number in range(len(stack.questions)))


def test_sentences_do_not_begin_as_if_each_were_a_text_of_its_own(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(spaced(tmp_path))
    stack = stacks(Writer(tokenizer, PASSKEY), NEEDLE, 400)[0]
    text = tokenizer.decode(stack.shared, skip_special_tokens=True)
    assert "  " not in text
    assert stack.shared[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in stack.shared[1:]


def test_hay_may_be_the_users_own_text() -> None:
    text = "Ships left the port at noon. " * 40 + "Nobody saw them return. " * 40
    tokenizer = ChatTokenizer.load(demo_model_dir())
    stack = stacks(demo(PASSKEY, text), NEEDLE, 500)[0]
    assert "Ships left the port at noon." in tokenizer.decode(stack.shared)
    assert "miller" not in tokenizer.decode(stack.shared)


def test_a_length_without_room_for_the_question_is_refused_with_the_least_that_works() -> None:
    least = shortest_length(demo(NOTES), NEEDLE)
    assert stacks(demo(NOTES), NEEDLE, least, 1)
    with pytest.raises(EngineError, match="too few") as refused:
        stacks(demo(NOTES), NEEDLE, least - 1, 1)
    assert refused.value.code == "evaluation.too_short"
    assert str(least) in refused.value.next_step


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as refused:
        Writer(ChatTokenizer.load(tmp_path), NOTES)
    assert refused.value.code == "model.no_tokenizer"
