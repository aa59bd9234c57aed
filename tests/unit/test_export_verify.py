"""The figures of a comparison and what counts as failed, on answers made by hand; the questions that are asked."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from engine.evaluation.asked import Asked
from engine.export.questions import asked_of
from engine.export.verify import agreement, faults
from engine.jobs.export_report import Agreement
from engine.jobs.spec import DataSection, JobSpec
from engine.resources import demo_model_dir

ASKED = Asked(
    chats=(({"role": "user", "content": "a"},),),
    rendered=("a",),
    has_template=True,
    texts=("x",),
    passages=((1, 2, 3),),
    stops=(7,),
    new_tokens=4,
    vocabulary=4,
)
LOGITS = np.array([[4.0, 3.0, 0.0, 0.0], [0.0, 5.0, 1.0, 0.0], [0.0, 0.0, 2.0, 1.9999]])


def said(**changed: Any) -> dict[str, Any]:
    """Answers of one program; two tokens of prompt and two of answer, of which the last three have logits."""
    plain = {
        "runtime": np.array("llama.cpp"),
        "prompt/0": np.array([3, 1]),
        "answer/0": np.array([2, 7]),
        "ended/0": np.array(True),
        "top/0": np.array([3, 0, 1, 2]),
        "logits/0": LOGITS,
        "nll/0": np.log(np.array([2.0, 8.0])),
        "text/0": np.array([1, 2]),
    }
    return plain | {name.replace("_", "/"): value for name, value in changed.items()}


def test_equal_answers_agree_in_everything() -> None:
    found = agreement(ASKED, said(), said(), 1.0)
    assert found.same_top_token == 1
    assert found.first_difference == -1
    assert found.largest_logit_difference == 0
    assert found.perplexity == found.reference_perplexity == pytest.approx(4)  # the geometric mean of 2 and 8
    assert (found.same_tokens, found.same_prompt, found.stops) == (True, True, True)
    assert found.tokens_compared == 4
    assert faults(found, "f16") == ()


def test_each_difference_shows_in_its_own_figure() -> None:
    other = said(
        answer_0=np.array([2, 3, 7]), top_0=np.array([3, 1, 1, 2]), logits_0=LOGITS + 0.5,
        nll_0=np.log(np.array([2.0, 8.0]) * 1.03), ended_0=np.array(False),
    )  # fmt: skip
    found = agreement(ASKED, said(), other, 1.0)
    assert found.first_difference == 1
    assert found.same_top_token == 0.75
    assert found.largest_logit_difference == pytest.approx(0.5)
    assert found.perplexity_change == pytest.approx(0.03)
    assert not found.stops
    wrong = " ".join(faults(found, "f16"))
    assert "75.0% of positions, below 95%" in wrong
    assert "perplexity is 3.0% above" in wrong
    assert "below 90%" in " ".join(faults(found, "q8_0"))
    assert faults(found, "q4_k_m") == (), "of small types the user sees the figures and chooses"


def test_two_nearly_equal_tokens_count_as_the_same() -> None:
    other = said(top_0=np.array([3, 0, 1, 3]), logits_0=LOGITS + np.array([0, 0, 0, 2e-4]))
    assert agreement(ASKED, said(), other, 1.0).same_top_token == 1
    far = said(top_0=np.array([3, 1, 1, 2]), logits_0=LOGITS + np.array([0, 2.0, 0, 0]))
    assert agreement(ASKED, said(), far, 1.0).same_top_token == 0.75


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text_0": np.array([1, 3])}, "cuts texts into other tokens"),
        ({"prompt_0": np.array([3, 1, 1])}, "chat template gives other tokens"),
        ({"nll_0": np.array([np.nan, 1.0])}, "not numbers"),
        ({"logits_0": LOGITS * np.nan}, "not numbers"),
    ],
)
def test_what_makes_a_file_useless_fails_in_every_type(kind: str, changed: dict[str, Any], words: str) -> None:
    assert words in " ".join(faults(agreement(ASKED, said(), said(**changed), 1.0), kind))


def test_stop_tokens_are_not_proven_where_no_answer_ended() -> None:
    never = said(ended_0=np.array(False))
    assert not agreement(ASKED, never, never, 1.0).stops


def test_a_smaller_perplexity_is_no_fault() -> None:
    plain = agreement(ASKED, said(), said(), 1.0)
    better = msgspec.structs.replace(plain, perplexity=plain.reference_perplexity * 0.5)
    assert isinstance(better, Agreement)
    assert faults(better, "f16") == ()


def test_a_runs_own_held_out_rows_are_asked_before_what_ships() -> None:
    own = asked_of(demo_model_dir(), JobSpec(data=DataSection(train="demo", heldout="demo")))
    shipped = asked_of(demo_model_dir(), None)
    assert own.passages_from == "the run's own held-out rows"
    assert own.chats[0][0]["content"] == "Ledger: Askel: river?"
    assert shipped.passages_from == "the demo's held-out text"
    for asked in (own, shipped):
        assert asked.stops == (2,)
        assert asked.chats
        assert max(map(len, asked.passages)) <= 256, "the demo's window"
        assert all(turns[-1]["role"] == "user" for turns in asked.chats)


def test_rows_that_are_gone_are_no_reason_to_stop() -> None:
    spec = JobSpec(data=DataSection(train="/nowhere/rows.jsonl", heldout="/nowhere/more.jsonl"))
    assert asked_of(demo_model_dir(), spec).passages_from == "the demo's held-out text"
