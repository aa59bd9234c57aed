"""The figures of a comparison and what counts as failed, on answers made by hand; the questions that are asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.errors import EngineError
from engine.evaluation.asked import Asked
from engine.export.questions import asked_of
from engine.export.verify import Spoken, Verifier, agreement, faults, reference_name
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
    assert found.perplexity_tokens == 2, "of the held-out text, not of prompts and answers"
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


@pytest.mark.parametrize(
    ("ends", "words"), [([0, 7], ""), ([0, 2, 7], "ends answers at tokens 2, where"), ([0], "stop tokens 7")]
)
def test_a_file_ends_where_the_model_ends(ends: list[int], words: str) -> None:
    """Token 0 is not in the reference's answer: whether the file ends there makes no difference."""
    wrong = faults(agreement(ASKED, said(), said(ends=np.array(ends)), 1.0), "q4_k_m")
    assert words in " ".join(wrong)
    assert bool(wrong) is bool(words)


def test_a_stop_token_that_a_file_has_no_key_for_is_told_when_it_is_written_and_no_fault() -> None:
    asked = msgspec.structs.replace(ASKED, stops=(7, 9), unnamed_stops=(9,))
    assert faults(agreement(asked, said(), said(ends=np.array([7])), 1.0), "f16") == ()


def test_answers_that_ended_are_counted() -> None:
    asked = msgspec.structs.replace(ASKED, chats=ASKED.chats * 3, rendered=("a",) * 3)

    def three(*ended: bool) -> dict[str, Any]:
        plain = said()
        more = {f"{name}/{n}": plain[f"{name}/0"] for n in (1, 2) for name in ("prompt", "answer", "top", "logits")}
        return plain | more | {f"ended/{n}": np.array(one) for n, one in enumerate(ended)}

    found = agreement(asked, three(True, True, False), three(True, False, True), 1.0)
    assert (found.prompts, found.reference_ended, found.ended, found.stops) == (3, 2, 1, False)
    assert found.ended_words == "1 of the 2 answers that ended in transformers did not end here"
    none = agreement(asked, three(False, False, False), three(False, False, False), 1.0)
    assert none.ended_words.startswith("no answer of the 3 ended")


def test_nothing_to_compare_is_no_proof(tmp_path: Path) -> None:
    nothing = msgspec.structs.replace(ASKED, chats=(), rendered=())
    with pytest.raises(EngineError) as caught:
        Verifier.of(Spoken(demo_model_dir()), nothing, tmp_path / "verify", lambda *_: None)
    assert caught.value.code == "verify.failed"


def test_answers_to_other_questions_are_not_taken_for_these(tmp_path: Path) -> None:
    """What an interrupted attempt left is taken without transformers, whose folder is not there."""
    nowhere = Spoken(tmp_path / "nowhere")
    with pytest.raises(EngineError):
        Verifier.of(nowhere, ASKED, tmp_path, lambda *_: None)
    name = reference_name(ASKED)
    np.savez(tmp_path / name, **said())
    assert Verifier.of(nowhere, ASKED, tmp_path, lambda *_: None).reference["text/0"].tolist() == [1, 2]
    with pytest.raises(EngineError):
        Verifier.of(nowhere, msgspec.structs.replace(ASKED, stops=(7, 8)), tmp_path, lambda *_: None)


def test_the_language_part_of_a_config_with_images_is_asked_about(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(demo_model_dir(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    assert asked_of(folder, None) == asked_of(demo_model_dir(), None)


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
