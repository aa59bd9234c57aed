"""Two tokenizers are the same when their ids mean the same and texts are cut alike, whatever the sizes say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.vocabulary_map import check_ids, fingerprint, match_vocabularies
from engine.errors import EngineError
from engine.resources import demo_model_dir

Change = Callable[[dict[str, Any]], None]
Make = Callable[[Change], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Make:
    """The demo's tokenizer with a change, in a folder of its own."""

    def make(change: Change) -> Path:
        content = json.loads((demo_model_dir() / "tokenizer.json").read_text())
        change(content)
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def _added(content: dict[str, Any]) -> None:
    token = dict(content["added_tokens"][0], id=1216, content="<think>")
    content["added_tokens"].append(token)


def _moved(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = (next(token for token, number in vocabulary.items() if number == wanted) for wanted in (500, 501))
    vocabulary[one], vocabulary[other] = 501, 500


def _renamed(content: dict[str, Any]) -> None:
    content["added_tokens"][1]["content"] = "<start>"
    content["model"]["vocab"]["<start>"] = content["model"]["vocab"].pop("<|im_start|>")


def _shorter(content: dict[str, Any]) -> None:
    model = content["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < 1116}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]


def _merged(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[100], merges[101] = merges[101], merges[100]


def _lowered(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def _swallowing(content: dict[str, Any]) -> None:
    content["added_tokens"][1]["rstrip"] = True


def _spelled(content: dict[str, Any]) -> None:
    """The same rules, written down in another way."""
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["normalizer"] = {"type": "Sequence", "normalizers": []}


def test_the_same_rules_in_another_spelling_are_the_same(changed: Make) -> None:
    other = changed(_spelled)
    assert fingerprint(other) != fingerprint(demo_model_dir())
    match = match_vocabularies(demo_model_dir(), other)
    assert (match.same, match.reason, match.shared, match.notes) == (True, "", 1216, ())


def test_tokens_added_behind_the_others_are_a_tail_on_either_side(changed: Make) -> None:
    longer = changed(_added)
    for pair, who in (((demo_model_dir(), longer), "teacher"), ((longer, demo_model_dir()), "student")):
        match = match_vocabularies(*pair)
        assert (match.same, match.shared) == (True, 1216)
        assert match.notes == (f'only the {who} has 1 token at the end of its vocabulary: "<think>"',)


def test_a_token_in_the_data_that_only_the_student_has_is_refused(changed: Make) -> None:
    match = match_vocabularies(changed(_added), demo_model_dir())
    check_ids(1215, match)
    with pytest.raises(EngineError) as caught:
        check_ids(1216, match)
    assert caught.value.code == "distillation.token_unknown"
    assert "uld" in caught.value.next_step


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_moved, "2 tokens have other ids"),
        (_renamed, 'does not have 1 token of the student: "<|im_start|>" (1)'),
        (_shorter, "does not have 100 tokens of the student"),
        (_merged, "their merges part at number 101"),
        (_lowered, "they cut the same text in different ways (their normalizer differs)"),
        (_swallowing, "they cut the same text in different ways"),
    ],
)
def test_another_tokenizer_is_named_with_where_it_parts(changed: Make, change: Change, words: str) -> None:
    match = match_vocabularies(demo_model_dir(), changed(change))
    assert not match.same
    assert words in match.reason


def test_texts_of_the_data_are_cut_too(changed: Make) -> None:
    def snowed(content: dict[str, Any]) -> None:
        content["normalizer"] = {"type": "Replace", "pattern": {"String": "\u2603"}, "content": "!"}

    other = changed(snowed)
    assert match_vocabularies(demo_model_dir(), other).same
    assert not match_vocabularies(demo_model_dir(), other, texts=["snow \u2603"]).same


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        match_vocabularies(demo_model_dir(), tmp_path)
    assert caught.value.code == "model.no_tokenizer"


def test_a_hole_in_the_ids_is_no_token_less(changed: Make) -> None:
    def with_hole(content: dict[str, Any]) -> None:
        content["added_tokens"].append(dict(content["added_tokens"][0], id=1300, content="<far>"))
        content["model"]["vocab"]["<far>"] = 1300

    match = match_vocabularies(changed(with_hole), changed(with_hole))
    assert match.same
    assert match.shared == 1301
    check_ids(1300, match)
