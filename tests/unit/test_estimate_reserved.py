"""The replayed allocator: torch's rules for segments, and published reserved bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import LLAMA_3B

from engine.estimate.allocator import Block, CachingAllocator
from engine.estimate.process import slack_of
from engine.estimate.reserved import replayed
from engine.estimate.stacks import HF
from engine.estimate.workload import Method, Packing4Bit, Workload
from tests.score.rows import read_rows
from tests.score.workloads import mapped

MIB = 1 << 20
SAMPLE = Path(__file__).parents[1] / "data" / "score_rows.csv"


@pytest.mark.parametrize(
    ("size", "segment"),
    [(1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB),
     (11 * MIB + 5, 12 * MIB)],
)  # fmt: skip
def test_segments_have_torchs_sizes(size: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.request(size)
    assert allocator.reserved == segment


def test_what_was_given_back_is_used_again() -> None:
    allocator = CachingAllocator()
    for _ in range(5):
        allocator.release(allocator.request(64 * MIB))
    assert allocator.reserved == 64 * MIB
    assert allocator.allocated == 0


def test_a_hole_that_is_too_small_does_not_help() -> None:
    allocator = CachingAllocator()
    hole, wall = allocator.request(30 * MIB), allocator.request(30 * MIB)
    allocator.release(hole)
    allocator.request(40 * MIB)
    assert allocator.reserved == 100 * MIB
    assert wall.used


def test_emptying_the_cache_gives_back_whole_segments_only() -> None:
    allocator = CachingAllocator()
    whole, part = allocator.request(64 * MIB), allocator.request(2 * MIB)
    allocator.release(whole)
    allocator.empty_cache()
    assert part.used
    assert allocator.reserved == 20 * MIB
    assert allocator.peak_reserved == 84 * MIB


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_reserved_never_falls_below_what_is_in_use_and_books_balance(requests: list[tuple[int, bool]]) -> None:
    allocator = CachingAllocator()
    held: list[Block] = []
    for size, give_back in requests:
        held.append(allocator.request(size))
        if give_back:
            allocator.release(held.pop(len(held) // 2))
        assert allocator.reserved >= allocator.allocated == sum(block.size for block in held)
    for block in held:
        allocator.release(block)
    assert allocator.allocated == 0


@pytest.mark.parametrize("row", ["m003", "m004"])
def test_published_reserved_bytes_are_met(row: str) -> None:
    found = next(one for one in read_rows(SAMPLE) if one.id == row)
    assert found.reserved_bytes is not None
    assert found.allocated_bytes is not None
    ratio = found.reserved_bytes / found.allocated_bytes
    assert replayed(mapped(found).work).ratio == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("method", [Method.ADAPTER, Method.FULL, Method.NEW_BLOCKS])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_every_method_can_be_replayed(method: Method, checkpointing: bool) -> None:
    work = Workload(
        LLAMA_3B, method=method, trained_layers=4, sequence=512, checkpointing=checkpointing,
        expandable_segments=False, stack=HF,
    )  # fmt: skip
    found = replayed(work)
    assert 1.0 <= found.ratio < 1.6
    assert 0.0 < found.token_share < 1.0
    slack = slack_of(work)
    assert slack.low <= slack.likely <= slack.high


def test_packed_weights_leave_more_holes() -> None:
    plain = Workload(LLAMA_3B, sequence=512, expandable_segments=False, stack=HF)
    packed = replace(plain, packing=Packing4Bit.NF4)
    assert replayed(packed).ratio > replayed(plain).ratio
