"""What is trained on: no document twice, none that an evaluation holds, none that is held out."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus import duplicates, words
from engine.corpus.contamination import EvaluationRuns
from engine.corpus.duplicates import near_duplicates, signatures
from engine.corpus.evaluation_texts import texts_of
from engine.corpus.words import word_runs
from tests.support.corpora import WORDS, document_ids, prepared, stream_of, texts, write_rows


def changed(text: str, count: int, draw: random.Random) -> str:
    """The text with some of its words replaced."""
    found = text.split()
    for _ in range(count):
        found[draw.randrange(len(found))] = f"other{draw.randrange(10**6)}"
    return " ".join(found)


def long_texts(count: int) -> list[str]:
    draw = random.Random(3)
    return [" ".join(f"{draw.choice(WORDS)}{draw.randrange(99)}" for _ in range(200)) for _ in range(count)]


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("at_once", [4_000_000, 16])
def test_exact_duplicates_go_across_sources_and_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    rows = texts(60)
    sources = {
        "one": write_rows(tmp_path / "1.jsonl", [*rows[:40], rows[3]]),
        "two": write_rows(tmp_path / "2.jsonl", [*rows[30:], rows[59]]),
    }
    one, two = prepared(sources, stream_of(tmp_path / "c")).report.sources
    assert (one.documents, one.duplicates.documents, one.kept.documents) == (41, 1, 40)
    assert (two.documents, two.duplicates.documents, two.kept.documents) == (31, 11, 20)
    assert two.duplicates.tokens > 0
    one, two = prepared(sources, stream_of(tmp_path / "c", deduplicate="off")).report.sources
    assert (one.kept.documents, two.kept.documents) == (41, 31)


@pytest.mark.parametrize("at_once", [4_000_000, 16])
def test_minhash_finds_what_differs_little_and_leaves_what_differs_much(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    draw = random.Random(1)
    rows = long_texts(100)
    near = [changed(row, 2, draw) for row in rows]
    far = [changed(row, 40, draw) for row in rows]
    found = signatures([*rows, *near, *far, "too short", "too short also"])
    passed = np.zeros(302, np.bool_)
    passed[150] = True
    told = near_duplicates([found[:70], found[70:]], passed)
    assert not told[:100].any()
    assert told[100:200].sum() >= 95
    assert not told[150]
    assert not told[200:].any()


def test_signatures_estimate_the_jaccard_similarity() -> None:
    draw = random.Random(2)
    row = long_texts(1)[0]
    for count in (1, 5, 15):
        other = changed(row, count, draw)
        one, two = (set(word_runs([text], 5).hashes.tolist()) for text in (row, other))
        wanted = len(one & two) / len(one | two)
        found = signatures([row, other])
        assert abs(float((found[0] == found[1]).mean()) - wanted) < 0.13  # three standard errors of 128 minima


def test_near_duplicates_are_found_from_text_and_from_cached_tokens_alike(tmp_path: Path) -> None:
    draw = random.Random(4)
    rows = long_texts(20)
    source = {"text": write_rows(tmp_path / "rows.jsonl", [*rows, *(changed(row, 1, draw) for row in rows)])}
    fresh = prepared(source, stream_of(tmp_path / "fresh", deduplicate="near"))
    prepared(source, stream_of(tmp_path / "c"))
    cached = prepared(source, stream_of(tmp_path / "c", deduplicate="near"))
    assert fresh.report.sources[0].near_duplicates.documents == 20
    assert cached.report.sources[0].shards_made == 0
    assert cached.fingerprint == fresh.fingerprint


# ── contamination ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_documents_that_share_a_run_with_an_evaluation_are_found_and_located(tmp_path: Path) -> None:
    rows = long_texts(30)
    run = " ".join(rows[11].split()[50:63])
    asked = f"Question: {run.upper()}? Answer: ..."
    source = {"text": write_rows(tmp_path / "rows.jsonl", rows)}
    found = prepared(source, stream_of(tmp_path / "c"), evaluation=[asked, "short"]).report
    assert found.sources[0].contaminated.documents == 1
    assert [(one.file, one.place) for one in found.sources[0].contaminated_examples] == [(str(source["text"]), 12)]
    assert (found.evaluation_texts, found.evaluation_texts_too_short) == (2, 1)
    assert (
        prepared(source, stream_of(tmp_path / "c", ngram_words=14), evaluation=[asked]).tokens
        > found.sources[0].kept.tokens
    )
    off = prepared(source, stream_of(tmp_path / "c", decontaminate=False), evaluation=[asked]).report
    assert off.sources[0].kept.documents == 30


def test_another_evaluation_is_compared_with_cached_tokens(tmp_path: Path) -> None:
    rows = long_texts(30)
    source = {"text": write_rows(tmp_path / "rows.jsonl", rows)}
    prepared(source, stream_of(tmp_path / "c"), evaluation=[rows[2]])
    second = prepared(source, stream_of(tmp_path / "c"), evaluation=[rows[5]])
    assert second.report.sources[0].shards_made == 0
    assert [one.place for one in second.report.sources[0].contaminated_examples] == [6]
    fresh = prepared(source, stream_of(tmp_path / "fresh"), evaluation=[rows[5]])
    assert fresh.fingerprint == second.fingerprint


def test_questions_and_answers_of_rows_are_evaluation_texts(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}\n')
    assert list(texts_of("asked", str(path))) == ["user\none\nassistant\ntwo"]
    assert "harbour" in "".join(texts_of("base", "general"))
    assert list(texts_of("none", "")) == []


def _reference(text: str, count: int) -> list[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.lower())
    return [tuple(found[at : at + count]) for at in range(len(found) - count + 1)]


@given(
    st.lists(st.text(st.sampled_from("aB1 _-.é\nÄz"), max_size=60), max_size=6),
    st.integers(1, 4),
    st.sampled_from([8, 64, 1 << 17]),
)
def test_runs_of_words_are_those_of_a_plain_search(rows: list[str], count: int, block: int) -> None:
    before, words._BLOCK = words._BLOCK, block
    words._powers.cache_clear()
    try:
        found = word_runs(rows, count)
    finally:
        words._BLOCK = before
        words._powers.cache_clear()
    wanted = [(number, run) for number, row in enumerate(rows) for run in _reference(row, count)]
    assert found.texts.tolist() == [number for number, _ in wanted]
    names: dict[int, tuple[str, ...]] = {}
    for value, (_, run) in zip(found.hashes.tolist(), wanted, strict=True):
        assert names.setdefault(value, run) == run
    assert len(names) == len({run for _, run in wanted})


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert len(word_runs(["漢字 kana かな"], 1).hashes) == 5
    asked = "これは評価のための問題です"
    assert EvaluationRuns([asked], 13).found_in([f"前{asked}後", "これは別の文です"]).tolist() == [True, False]


# ── held out ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_held_out_documents_are_never_in_the_stream_and_have_their_text(tmp_path: Path) -> None:
    rows = texts(300)
    source = {"text": write_rows(tmp_path / "rows.jsonl", [*rows, *rows[:50]])}
    corpus = prepared(source, stream_of(tmp_path / "c", heldout_share=0.1))
    domain = corpus.domain("text")
    held = {document.text for document in domain.heldout}
    assert 10 < len(held) < 60
    assert held <= set(rows)
    trained = {document_ids(domain, piece.document).tobytes() for piece in domain.documents_in(0, domain.tokens)}
    assert not trained & {np.array(document.ids, np.uint32).tobytes() for document in domain.heldout}
    assert len(trained) + len(held) == 300


def test_the_same_documents_are_held_out_of_more_text(tmp_path: Path) -> None:
    rows = texts(200)
    few = prepared({"text": write_rows(tmp_path / "1.jsonl", rows[:100])}, stream_of(tmp_path / "c", heldout_share=0.1))
    many = prepared({"text": write_rows(tmp_path / "2.jsonl", rows)}, stream_of(tmp_path / "c", heldout_share=0.1))
    first, second = ([document.text for document in corpus.domains[0].heldout] for corpus in (few, many))
    assert second[: len(first)] == first


def test_held_out_text_ends_at_its_limit_and_of_two_documents_one_is_held_out(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(200))}
    corpus = prepared(source, stream_of(tmp_path / "c", heldout_share=0.4, heldout_tokens=300))
    assert sum(len(document.ids) for document in corpus.domains[0].heldout) == 300
    pair = {"text": write_rows(tmp_path / "pair.jsonl", texts(2))}
    corpus = prepared(pair, stream_of(tmp_path / "c", heldout_share=0.001))
    assert (len(corpus.domains[0].heldout), corpus.domains[0].documents) == (1, 1)


def test_no_more_than_half_of_the_tokens_is_held_out(tmp_path: Path) -> None:
    """Whichever of a long and a short document has the smaller digest, and however large the share is."""
    for seed in range(6):
        short, long = texts(2, seed=seed)
        rows = write_rows(tmp_path / f"{seed}.jsonl", [short, " ".join([long] * 20)])
        for share in (0.001, 0.49):
            corpus = prepared({"text": rows}, stream_of(tmp_path / "c", heldout_share=share))
            domain = corpus.domains[0]
            assert sum(len(document.ids) for document in domain.heldout) <= domain.tokens
            assert (len(domain.heldout), domain.documents) == (1, 1) or share > 0.001


@pytest.mark.parametrize("deduplicate", ["off", "exact", "near"])
def test_no_copy_of_held_out_text_is_trained_on(tmp_path: Path, deduplicate: str) -> None:
    """Whether copies are far or near, few documents or many, and whether duplicates are kept or not."""
    rows = texts(60)
    for share, count in ((0.2, 60), (0.001, 4)):
        sources = {
            "one": write_rows(tmp_path / f"{count}-1.jsonl", [*rows[:count], *rows[:count]]),
            "two": write_rows(tmp_path / f"{count}-2.jsonl", [*texts(20, seed=2), *rows[:count]]),
        }
        stream = stream_of(tmp_path / "c", deduplicate=deduplicate, heldout_share=share, heldout_tokens=300)
        corpus = prepared(sources, stream)
        held = {document.ids for domain in corpus.domains for document in domain.heldout}
        assert held
        trained = [
            tuple(document_ids(domain, piece.document).tolist())
            for domain in corpus.domains
            for piece in domain.documents_in(0, domain.tokens)
        ]
        assert not [ids for ids in trained if any(ids[: len(one)] == one for one in held)]
        assert (len(trained) > len(set(trained))) == (deduplicate == "off")
        for told in corpus.report.sources:
            parts = (told.kept, told.duplicates, told.near_duplicates, told.contaminated, told.heldout)
            assert sum(part.documents for part in parts) == told.documents


def test_of_one_document_and_its_copies_nothing_is_held_out(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(1) * 3)}
    corpus = prepared(source, stream_of(tmp_path / "c", deduplicate="off", heldout_share=0.4))
    assert (len(corpus.domains[0].heldout), corpus.domains[0].documents) == (0, 3)


def test_what_is_dropped_is_made_up_for_by_reading_on(tmp_path: Path) -> None:
    rows = [row for row in texts(400) for _ in range(3)]
    source = {"text": write_rows(tmp_path / "rows.jsonl", rows)}
    corpus = prepared(source, stream_of(tmp_path / "c"), {"text": 5000})
    assert 5000 <= corpus.tokens < 9000
    assert not corpus.report.sources[0].exhausted
