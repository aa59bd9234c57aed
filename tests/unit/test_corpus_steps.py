"""The mix over steps and the order within a domain: nothing twice, nothing skipped, any step at once."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus.corpus import Corpus, Domain
from engine.corpus.shards import DOCUMENT, Shard
from engine.corpus.steps import Position, Slice, StreamPlan
from engine.errors import EngineError
from tests.support.corpora import document_ids, prepared, stream_of, texts, write_rows

Weights = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6)


def plan_of(weights: Iterable[float], start: Position | None = None) -> StreamPlan:
    found = tuple(weights)
    names = tuple(f"d{number}" for number in range(len(found)))
    return StreamPlan(names, found, 8, lambda step: min(1 + step // 3, 7), start)


# ── the mix ───────────────────────────────────────────────────────────────────────────────────────────────────────
@given(Weights, st.integers(0, 400), st.dictionaries(st.sampled_from(["d0", "d1", "d2"]), st.integers(0, 99)))
def test_every_domain_is_read_without_gaps_from_where_the_stage_began(
    weights: list[float], steps: int, begun: dict[str, int]
) -> None:
    plan = plan_of(weights, Position(begun))
    taken = Counter(begun)
    for number in range(min(steps, 60)):
        for piece in plan.step(number):
            assert piece.first_token == taken[piece.domain]
            taken[piece.domain] += piece.tokens
        if number == steps - 1:
            after = plan.position_after(steps).tokens
            assert all(after.get(name, 0) == taken[name] for name in taken)


@given(Weights, st.integers(0, 10**7))
def test_domains_keep_to_their_weights_at_any_step(weights: list[float], step: int) -> None:
    plan = StreamPlan([f"d{number}" for number in range(len(weights))], weights, 1, lambda _: 0)
    counts = plan._counts(step)
    assert sum(counts) == step
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - step * weight / sum(weights)) <= len(weights) / 2 + 0.01


@given(Weights, st.lists(st.integers(0, 100), max_size=12))
def test_any_step_can_be_asked_for_at_once(weights: list[float], numbers: list[int]) -> None:
    in_order = plan_of(weights)
    walked = [in_order.step(number) for number in range(max(numbers, default=0) + 1)]
    asked = plan_of(weights)
    assert [asked.step(number) for number in numbers] == [walked[number] for number in numbers]


def test_a_later_stage_begins_where_the_one_before_ended() -> None:
    first = plan_of((0.7, 0.3))
    second = plan_of((0.1, 0.9), first.position_after(20))
    assert second.step(0)[0].first_token == first.position_after(20).of(second.step(0)[0].domain)
    assert second.tokens_before(2) == 16


def test_a_domain_without_weight_is_not_read_and_no_weight_at_all_is_refused() -> None:
    plan = plan_of((0.0, 1.0))
    assert {piece.domain for number in range(20) for piece in plan.step(number)} == {"d1"}
    for weights in ((0.0, 0.0), (), (1.0, -1.0)):
        with pytest.raises(EngineError) as told:
            plan_of(weights)
        assert told.value.code == "corpus.mix"


def test_the_millionth_step_is_found_without_walking_to_it_twice() -> None:
    asked = []

    def sequences(step: int) -> int:
        asked.append(step)
        return 4

    plan = StreamPlan(("a", "b"), (2.0, 1.0), 100, sequences)
    for _ in range(3):
        assert sum(piece.tokens for piece in plan.step(200_000)) == 400
    assert len(asked) == 200_001


# ── the order ─────────────────────────────────────────────────────────────────────────────────────────────────────
def domain_of(
    lengths: Iterable[int], kept: Iterable[bool] | None = None, *, shuffle: int = 5, shards: int = 3
) -> Domain:
    """Documents whose tokens are all different: 1000 x number + place."""
    found = list(lengths)
    mask = np.array(list(kept) if kept is not None else [True] * len(found), np.bool_)
    parts = []
    for numbers in np.array_split(np.arange(len(found)), shards):
        documents = np.zeros(len(numbers), DOCUMENT)
        documents["end"] = np.cumsum([found[number] for number in numbers])
        ids = [1000 * number + place for number in numbers for place in range(found[number])]
        parts.append(Shard(np.array(ids, np.uint32), documents))
    return Domain("text", parts, mask, (), seed=3, shuffle_documents=shuffle)


Lengths = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@given(Lengths, st.sampled_from([0, 1, 4, 1000]), st.integers(1, 5), st.data())
def test_every_epoch_holds_every_kept_document_once_and_whole(
    lengths: list[int], shuffle: int, shards: int, data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any))
    domain = domain_of(lengths, kept, shuffle=shuffle, shards=shards)
    assert domain.tokens == sum(length for length, used in zip(lengths, kept, strict=True) if used)
    for epoch in range(3):
        pieces = domain.documents_in(epoch * domain.tokens, domain.tokens)
        assert sorted(piece.document for piece in pieces) == [number for number, used in enumerate(kept) if used]
        assert all((piece.from_token, piece.to_token) == (0, lengths[piece.document]) for piece in pieces)
        assert {piece.epoch for piece in pieces} == {epoch}


@given(Lengths, st.sampled_from([0, 3, 1000]), st.integers(0, 500), st.integers(0, 60))
def test_any_stretch_is_that_of_the_whole_stream(lengths: list[int], shuffle: int, first: int, count: int) -> None:
    domain = domain_of(lengths, shuffle=shuffle)
    whole = domain.read(0, first + count).ids
    piece = domain_of(lengths, shuffle=shuffle).read(first, count)
    assert piece.ids.tolist() == whole[first:].tolist()
    told = [
        1000 * one.document + place
        for one in domain.documents_in(first, count)
        for place in range(one.from_token, one.to_token)
    ]
    assert piece.ids.tolist() == told
    assert piece.starts.tolist() == [at for at, token in enumerate(told) if token % 1000 == 0]


@given(Lengths, st.integers(0, 100), st.integers(1, 60))
def test_positions_restart_with_every_document_and_its_first_token_is_not_predicted(
    lengths: list[int], first: int, count: int
) -> None:
    piece = domain_of(lengths).read(first, count)
    at, wanted = -1, []
    for number, token in enumerate(piece.ids.tolist()):
        at = 0 if token % 1000 == 0 or not number else at + 1
        wanted.append(at)
    assert piece.positions().tolist() == wanted
    assert piece.predicted().tolist() == [position > 0 for position in wanted]


def test_epochs_are_shuffled_anew_and_a_stream_that_keeps_its_order_is_not() -> None:
    domain = domain_of([3] * 200, shuffle=50)
    orders = [tuple(p.document for p in domain.documents_in(epoch * 600, 600)) for epoch in range(3)]
    assert len(set(orders)) == 3
    assert all(list(order) != sorted(order) for order in orders)
    kept = domain_of([3] * 200, shuffle=0)
    assert [p.document for p in kept.documents_in(600, 600)] == list(range(200))


def test_the_order_is_the_same_in_every_version_and_on_every_machine() -> None:
    """Written down once: a change would make every paused run see other text."""
    domain = domain_of([1] * 12, shuffle=4)
    assert [piece.document for piece in domain.documents_in(0, 24)] == ORDER


ORDER = [4, 5, 7, 6, 11, 9, 8, 10, 2, 0, 3, 1, 8, 10, 11, 9, 1, 0, 2, 3, 4, 7, 5, 6]


# ── over a resume ─────────────────────────────────────────────────────────────────────────────────────────────────
def corpus_of(tmp_path: Path) -> Corpus:
    sources = {
        "web": write_rows(tmp_path / "web.jsonl", texts(60, seed=1)),
        "code": write_rows(tmp_path / "code.jsonl", texts(25, seed=2)),
    }
    return prepared(sources, stream_of(tmp_path / "c", heldout_share=0.05, shuffle_documents=16))


def plan_over(corpus: Corpus) -> StreamPlan:
    names = tuple(domain.name for domain in corpus.domains)
    return StreamPlan(names, (0.6, 0.4), 64, lambda step: 3 + step % 2)


def test_over_kills_and_resumes_no_document_is_seen_twice_or_skipped_within_an_epoch(tmp_path: Path) -> None:
    seen: defaultdict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
    ids: list[bytes] = []
    steps, at = 0, 0
    while steps < 300:
        corpus = corpus_of(tmp_path)  # a new process finds the cache
        plan = plan_over(corpus)
        checkpoint = steps
        for steps in range(checkpoint, min(checkpoint + 41, 300)):
            for piece in plan.step(steps):
                domain = corpus.domain(piece.domain)
                ids.append(domain.read(piece.first_token, piece.tokens).ids.tobytes())
                for part in domain.documents_in(piece.first_token, piece.tokens):
                    seen[piece.domain, part.epoch, part.document].append((part.from_token, part.to_token))
        steps += 1
        at += 1
    assert at > 5
    whole = corpus_of(tmp_path)
    assert ids == [
        whole.domain(piece.domain).read(piece.first_token, piece.tokens).ids.tobytes()
        for number in range(300)
        for piece in plan_over(whole).step(number)
    ]
    for domain in whole.domains:
        epochs = plan_over(whole).position_after(300).of(domain.name) // domain.tokens
        assert epochs >= 1
        for epoch in range(epochs):
            found = {key[2]: parts for key, parts in seen.items() if key[:2] == (domain.name, epoch)}
            assert len(found) == domain.documents
            for number, parts in found.items():
                assert parts[0][0] == 0
                assert parts[-1][1] == len(document_ids(domain, number))
                assert all(one[1] == other[0] for one, other in pairwise(parts))


def test_another_seed_and_another_shuffle_are_another_corpus(tmp_path: Path) -> None:
    source = {"web": write_rows(tmp_path / "web.jsonl", texts(60))}
    prints = {prepared(source, stream_of(tmp_path / "c", shuffle_documents=count)).fingerprint for count in (0, 16, 32)}
    assert len(prints) == 3


def test_threads_that_share_a_plan_and_a_domain_get_what_one_alone_gets() -> None:
    """A step is read ahead by one thread while another one asks what it was made of."""
    alone, shared = plan_of((0.7, 0.3)), plan_of((0.7, 0.3))
    wanted = [alone.step(number) for number in range(2000)]
    ids = domain_of([3] * 200, shuffle=10).read(0, 20_000).ids
    domain = domain_of([3] * 200, shuffle=10)

    def walked(_: int) -> bool:
        steps = [shared.step(number) for number in range(2000)] == wanted
        return steps and all((domain.read(at, 100).ids == ids[at : at + 100]).all() for at in range(0, 20_000, 100))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(walked, range(4)))
    finally:
        sys.setswitchinterval(before)


def test_a_slice_says_where_it_is() -> None:
    assert plan_of((1.0,)).step(1) == (Slice("d0", 8, 8),)
