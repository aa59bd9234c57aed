"""Which sequences a step holds, and what becomes of rows that are too long: exact, seeded, nothing lost silently."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.data.rows import EncodedRow, RowKind
from engine.train.cutting import cut_rows
from engine.train.step_plan import Pool, Rhythm, Step, plan_mixed_steps, plan_steps

LENGTHS = tuple(20 + (7 * number) % 45 for number in range(37))
POOL = Pool("all", LENGTHS, per_batch=3)


def rhythm(**changes: float) -> Rhythm:
    fields = {"tokens_per_step": 0, "accumulation": 1, "max_steps": 0, "epochs": 2.0, "seed": 5, "short_share": 0.0}
    return Rhythm(**{**fields, **changes})  # type: ignore[arg-type]


def tokens_of(step: Step, *pools: Pool) -> int:
    return sum(pools[batch.pool].tokens[index] for batch in step for index in batch.indices)


def test_every_sequence_is_read_once_per_epoch_in_an_order_of_its_own() -> None:
    steps = plan_steps([POOL], rhythm())
    by_epoch = [[i for step in steps for b in step if b.epoch == epoch for i in b.indices] for epoch in (0, 1)]
    assert [sorted(order) for order in by_epoch] == [list(range(37))] * 2
    assert by_epoch[0] != by_epoch[1]


def test_a_step_is_complete_when_it_holds_its_tokens_and_not_later() -> None:
    steps = plan_steps([POOL], rhythm(tokens_per_step=400, max_steps=30))
    assert len(steps) == 30
    for step in steps:
        assert tokens_of(step, POOL) >= 400
        assert tokens_of(step[:-1], POOL) < 400


def test_the_steps_of_a_longer_job_begin_with_those_of_a_shorter_one() -> None:
    short = plan_steps([POOL], rhythm(tokens_per_step=400, max_steps=10))
    assert plan_steps([POOL], rhythm(tokens_per_step=400, max_steps=25))[:10] == short
    assert plan_steps([POOL], rhythm(tokens_per_step=400, max_steps=10, seed=6)) != short


def test_epochs_end_a_job_exactly_where_the_data_does() -> None:
    steps = plan_steps([POOL], rhythm(accumulation=4, epochs=1.5))
    read = sum(len(batch.indices) for step in steps for batch in step)
    assert 1.5 * 37 <= read < 1.5 * 37 + POOL.per_batch


def test_a_curriculum_gives_every_length_the_same_number_of_steps() -> None:
    pools = [Pool(str(length), (length,) * (4000 // length), per_batch=800 // length) for length in (100, 200, 400)]
    steps = plan_steps(pools, rhythm(max_steps=10))
    order = [step[0].pool for step in steps]
    assert order == sorted(order)
    assert [order.count(number) for number in range(3)] == [3, 4, 3]
    assert all({batch.pool for batch in step} == {number} for step, number in zip(steps, order, strict=True))


def test_a_curriculum_by_epochs_reads_as_much_as_one_length_would() -> None:
    pools = [Pool(str(length), (length,) * (8000 // length), per_batch=1) for length in (100, 400)]
    steps = plan_steps(pools, rhythm(epochs=3.0))
    assert sum(tokens_of(step, *pools) for step in steps) == pytest.approx(3 * 8000, rel=0.02)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.75])
def test_mixed_windows_keep_to_their_share_at_any_time(share: float) -> None:
    long, short = Pool("long", (512,) * 9, per_batch=2), Pool("short", (100, 128, 90, 128), 8, original_positions=True)
    steps = plan_mixed_steps(long, short, rhythm(max_steps=40, accumulation=2, short_share=share))
    given = [0, 0]
    for batch in (batch for step in steps for batch in step):
        given[batch.pool] += tokens_of((batch,), long, short)
        assert abs(given[1] - share * sum(given)) <= 1024
    assert given[1] / sum(given) == pytest.approx(share, abs=0.03)


def test_mixed_windows_by_epochs_end_with_the_long_ones() -> None:
    long, short = Pool("long", (512,) * 9, per_batch=2), Pool("short", (128,) * 4, 8, original_positions=True)
    steps = plan_mixed_steps(long, short, rhythm(epochs=2.0, short_share=0.4))
    assert sum(len(batch.indices) for step in steps for batch in step if batch.pool == 0) == 18


# ── rows cut once more ────────────────────────────────────────────────────────────────────────────────────────────
def row(length: int, kind: RowKind, trained_from: int = 1) -> EncodedRow:
    trained = tuple(index >= trained_from for index in range(length))
    return EncodedRow(tuple(range(length)), trained, 1, kind, full_length=length)


def test_long_text_goes_on_in_pieces_that_train_every_token_once() -> None:
    whole = row(1000, RowKind.TEXT)
    cut = cut_rows([whole, row(30, RowKind.TEXT)], 128)
    assert all(len(piece.input_ids) <= 128 for piece in cut.rows)
    trained = [t for piece in cut.rows[:-1] for t, yes in zip(piece.input_ids, piece.trained, strict=True) if yes]
    assert trained == list(range(1, 1000))
    assert all(later.input_ids[0] == earlier.input_ids[-1] for earlier, later in pairwise(cut.rows[:-1]))
    assert (cut.split, cut.pieces) == (1, 8)
    assert "1 continued in further sequences (8 in all, nothing lost)" in cut.words()


def test_a_conversation_loses_its_end_or_is_left_out_and_is_counted() -> None:
    rows = [row(200, RowKind.CHAT, 50), row(200, RowKind.CHAT, 150), row(90, RowKind.CHAT, 50)]
    cut = cut_rows(rows, 100)
    assert [len(kept.input_ids) for kept in cut.rows] == [100, 90]
    assert (cut.truncated, cut.dropped) == (1, 1)
    assert "1 cut at the end; 1 left out" in cut.words()


def test_nothing_is_said_where_nothing_was_cut() -> None:
    assert cut_rows([row(90, RowKind.CHAT)], 100).words() == ""
