"""Packing: every token once, nothing across rows, and the same logits as row by row."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.packing import IGNORED_LABEL, MODEL_ARGUMENTS, fill_ratio, pack, pad, plan_packing, unpacked
from engine.data.rows import EncodedRow, RowKind
from engine.errors import EngineError

MAX_LENGTH = 16


def row(ids: list[int], trained: list[bool], line: int = 1) -> EncodedRow:
    return EncodedRow(tuple(ids), (False, *trained[1:]), line, RowKind.TEXT, full_length=len(ids))


@st.composite
def rows(draw: st.DrawFn) -> list[EncodedRow]:
    """Rows whose tokens are numbered through, so that each can be recognised."""
    lengths = draw(st.lists(st.integers(1, MAX_LENGTH), max_size=40))
    made, first = [], 0
    for line, length in enumerate(lengths, start=1):
        trained = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        made.append(row(list(range(first, first + length)), trained, line))
        first += length
    return made


@given(rows())
def test_every_token_and_every_trained_token_appears_exactly_once(given_rows: list[EncodedRow]) -> None:
    packed = pack(given_rows, MAX_LENGTH)
    tokens = sorted(token for sequence in packed for token in sequence.input_ids)
    assert tokens == list(range(sum(len(r.input_ids) for r in given_rows)))
    labels = sorted(label for sequence in packed for label in sequence.labels if label != IGNORED_LABEL)
    expected = sorted(t for r in given_rows for t, m in zip(r.input_ids, r.trained, strict=True) if m)
    assert labels == expected


@given(rows())
def test_segments_restart_positions_and_never_ask_for_their_first_token(given_rows: list[EncodedRow]) -> None:
    for sequence in pack(given_rows, MAX_LENGTH):
        assert len(sequence.input_ids) == len(sequence.labels) == len(sequence.position_ids) <= MAX_LENGTH
        assert sum(sequence.segment_lengths) == len(sequence.input_ids)
        start = 0
        for length, line in zip(sequence.segment_lengths, sequence.lines, strict=True):
            assert sequence.position_ids[start : start + length] == tuple(range(length))
            assert sequence.labels[start] == IGNORED_LABEL
            assert sequence.input_ids[start : start + length] == given_rows[line - 1].input_ids
            start += length


@given(st.lists(st.integers(1, MAX_LENGTH), max_size=60))
def test_no_two_sequences_could_have_been_one_and_the_plan_repeats(lengths: list[int]) -> None:
    plan = plan_packing(lengths, MAX_LENGTH)
    assert plan == plan_packing(lengths, MAX_LENGTH)
    used = sorted(sum(lengths[index] for index in members) for members in plan)
    assert len(used) < 2 or used[0] + used[1] > MAX_LENGTH


def test_realistic_lengths_fill_at_least_99_percent() -> None:
    generator = random.Random(7)
    lengths = [min(2048, max(12, int(generator.lognormvariate(5, 0.8)))) for _ in range(20_000)]
    plan = plan_packing(lengths, 2048)
    assert fill_ratio(lengths, len(plan), 2048) > 0.99


def test_a_row_longer_than_the_sequence_is_refused() -> None:
    with pytest.raises(EngineError, match="17 tokens"):
        pack([row([1] * 17, [True] * 17)], 16)


def test_padding_is_a_segment_of_its_own_without_loss() -> None:
    batch = pad(unpacked([row([5, 6, 7], [True] * 3), row([8], [True])]), pad_id=0, length=4)
    assert batch.input_ids == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch.labels == [[-100, 6, 7, -100], [-100] * 4]
    assert batch.position_ids == [[0, 1, 2, 0], [0, 0, 1, 2]]


@pytest.fixture(scope="module")
def llama() -> Any:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def random_rows(count: int, longest: int = 20) -> list[EncodedRow]:
    generator = random.Random(count)
    made = []
    for line in range(1, count + 1):
        length = generator.randint(1, longest)
        ids = [generator.randrange(97) for _ in range(length)]
        made.append(row(ids, [generator.random() < 0.5 for _ in ids], line))
    return made


def largest_difference(model: Any, given_rows: list[EncodedRow], batch_size: int, **arguments: Any) -> float:
    """Between the logits of packed batches and those of each row alone."""
    import torch

    sequences = pack(given_rows, 48)
    worst = 0.0
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        batch = pad(chunk, pad_id=0)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor(batch.input_ids), position_ids=torch.tensor(batch.position_ids), **arguments
            ).logits
        assert torch.isfinite(logits).all()
        for index, sequence in enumerate(chunk):
            at = 0
            for length, line in zip(sequence.segment_lengths, sequence.lines, strict=True):
                with torch.no_grad():
                    alone = model(torch.tensor([given_rows[line - 1].input_ids])).logits[0]
                worst = max(worst, (alone - logits[index, at : at + length]).abs().max().item())
                at += length
    return worst


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_packed_logits_equal_those_of_each_row_alone(llama: Any, attention: str, mode: str, batch_size: int) -> None:
    llama.set_attn_implementation(attention)
    getattr(llama, mode)()
    assert largest_difference(llama, random_rows(17), batch_size, **MODEL_ARGUMENTS) < 1e-5


def test_with_a_cache_transformers_lets_rows_see_each_other(llama: Any) -> None:
    """The reason for MODEL_ARGUMENTS; when this fails, transformers has changed and they may go."""
    llama.set_attn_implementation("sdpa")
    assert largest_difference(llama, random_rows(17), 1) > 1e-2


def test_packed_loss_is_the_token_weighted_loss_of_the_rows(llama: Any) -> None:
    import torch

    llama.set_attn_implementation("sdpa")
    given_rows = random_rows(12)
    total, count = 0.0, 0
    for sequence in unpacked(given_rows):
        if sequence.trained_tokens:
            with torch.no_grad():
                loss = llama(torch.tensor([sequence.input_ids]), labels=torch.tensor([sequence.labels])).loss
            total += loss.item() * sequence.trained_tokens
            count += sequence.trained_tokens
    batch = {name: torch.tensor(rows) for name, rows in pad(pack(given_rows, 48), pad_id=0).as_dict.items()}
    with torch.no_grad():
        packed = llama(**batch, **MODEL_ARGUMENTS).loss.item()
    assert packed == pytest.approx(total / count, abs=1e-5)
