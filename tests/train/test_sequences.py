"""Packed sequences, padded batches and the selective head compute what one row at a time computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.data.load import PreparedData, prepare
from engine.data.packing import pack, pad, unpacked
from engine.evaluation.answers import Question, answer_all, row_question
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import answer_span, score_rows
from engine.jobs.spec import DataSection, Dtype
from engine.train.batches import Collator, SequenceDataset, make_dataset
from engine.train.environment import Device, seed_everything
from engine.train.model import BaseRequest, add_adapter, load_base, ready
from engine.train.trainer import TokenTrainer, training_arguments
from tests.train.conftest import SpecMaker

DEVICE = Device("cpu", "test", torch.float32)


@pytest.fixture(scope="module")
def data(tiny_model: Path, tiny_data: Path) -> PreparedData:
    files = {name: str(tiny_data / f"{name}.jsonl") for name in ("train", "heldout")}
    return prepare(DataSection(**files, base_text="", max_length=96), tiny_model)


def load(folder: Path, data: PreparedData, quantization: str = "none") -> LoadedModel:
    base = load_base(BaseRequest(folder, quantization, True, torch.float32, "cpu"))
    return ready(base, base, data.tokenizer, DEVICE)


@pytest.fixture(scope="module", params=["none", "nf4"])
def loaded(request: pytest.FixtureRequest, tiny_model: Path, data: PreparedData) -> LoadedModel:
    return load(tiny_model, data, request.param)


def plain_logits(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """(T, V) of one row alone, through the model's own forward."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def test_packed_logits_equal_the_logits_of_rows_alone(loaded: LoadedModel, data: PreparedData) -> None:
    rows = data.train[:12]
    sequences = pack(rows, 96)
    assert len(sequences) < len(rows)
    alone = {row.line: plain_logits(loaded.model, row.input_ids) for row in rows}
    batch = Collator(loaded.pad_id)(SequenceDataset(sequences).sequences)
    every = torch.arange(batch["input_ids"].numel())
    with loaded.inference():
        logits = loaded.logits_at(batch["input_ids"], batch["position_ids"], every)
    logits = logits.view(*batch["input_ids"].shape, -1)  # (B, T, V)
    compared = 0
    for number, sequence in enumerate(sequences):
        start = 0
        for line, length in zip(sequence.lines, sequence.segment_lengths, strict=True):
            torch.testing.assert_close(logits[number, start : start + length], alone[line], atol=1e-4, rtol=1e-4)
            start += length
            compared += 1
    assert compared == len(rows)


def test_the_selective_head_gives_the_rows_of_the_full_logits(loaded: LoadedModel, data: PreparedData) -> None:
    batch = Collator(loaded.pad_id)(make_dataset(data.train[:6], 96, packing=False).sequences)
    with loaded.inference():
        full = loaded.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        some = loaded.logits_at(batch["input_ids"], batch["position_ids"], batch["positions"])
    assert some.shape[0] == batch["trained_tokens"] < batch["tokens"]
    torch.testing.assert_close(some, full.flatten(0, 1)[batch["positions"]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_the_collator_makes_the_batches_of_the_data_layer(data: PreparedData, packing: bool) -> None:
    sequences = (pack(data.train, 96) if packing else unpacked(data.train))[:5]
    expected = pad(sequences, 0)
    batch = Collator(0)(SequenceDataset(sequences).sequences)
    assert batch["input_ids"].tolist() == expected.input_ids
    assert batch["position_ids"].tolist() == expected.position_ids
    labels = torch.tensor(expected.labels).flatten()
    assert batch["targets"].tolist() == labels[labels != -100].tolist()
    assert labels[batch["positions"] + 1].tolist() == batch["targets"].tolist()
    assert batch["tokens"] == sum(len(sequence.input_ids) for sequence in sequences)


def train_losses(make_spec: SpecMaker, tiny_model: Path, data: PreparedData, tmp_path: Path, **training: Any) -> Any:
    """Adapter weights after three steps on unpacked rows in their sampled order."""
    spec = make_spec("lora", adapter={"dropout": 0.0}, training={"max_steps": 3, "learning_rate": 1e-3, **training})
    base = load_base(BaseRequest(tiny_model, "none", True, torch.float32, "cpu"))
    seed_everything(1)
    model = add_adapter(base, spec.adapter, gradient_checkpointing=spec.training.gradient_checkpointing)
    loaded = ready(model, base, data.tokenizer, DEVICE)
    arguments = training_arguments(spec, tmp_path, loaded)
    TokenTrainer(loaded, make_dataset(data.train, 96, packing=False), arguments, spec.training).train()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_accumulated_steps_equal_one_large_batch(
    make_spec: SpecMaker, tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    """Rows have different numbers of trained tokens, so averaging micro-batch means would not be equal."""
    assert len({row.trained_tokens for row in data.train}) > 1
    large = train_losses(make_spec, tiny_model, data, tmp_path, batch_size=8)
    small = train_losses(make_spec, tiny_model, data, tmp_path, batch_size=2, gradient_accumulation=4)
    assert any("lora_B" in name and bool(tensor.abs().sum() > 0) for name, tensor in large.items())
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, atol=2e-5, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(
    make_spec: SpecMaker, tiny_model: Path, data: PreparedData, tmp_path: Path
) -> None:
    plain = train_losses(make_spec, tiny_model, data, tmp_path)
    checkpointed = train_losses(make_spec, tiny_model, data, tmp_path, gradient_checkpointing=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, atol=1e-6, rtol=1e-5)


def test_exact_match_agrees_with_greedy_generation(loaded: LoadedModel, data: PreparedData) -> None:
    """The reference of a row is made to be what the model answers; another row's is one token off."""
    import dataclasses

    rows = []
    for number, row in enumerate(data.heldout[:6]):
        with loaded.inference():
            output = loaded.model.generate(
                input_ids=torch.tensor([row.prompt_ids]), max_new_tokens=6, do_sample=False, use_cache=True
            )
        answer = output[0, len(row.prompt_ids) :].tolist()
        if number % 2:
            answer[2] = (answer[2] + 1) % 300 + 10
        ids = (*row.prompt_ids, *answer)
        trained = tuple(index >= len(row.prompt_ids) for index in range(len(ids)))
        rows.append(dataclasses.replace(row, input_ids=ids, trained=trained, full_length=len(ids)))
    scores = score_rows(loaded, rows)
    assert scores.answered == tuple(number % 2 == 0 for number in range(6))
    assert scores.exact_match == 0.5
    assert scores.tokens == sum(row.trained_tokens for row in rows)


def test_row_loss_is_the_mean_over_trained_tokens(loaded: LoadedModel, data: PreparedData) -> None:
    total, tokens = 0.0, 0
    for row in data.heldout:
        log_probabilities = plain_logits(loaded.model, row.input_ids).log_softmax(-1)
        for index in range(1, len(row.input_ids)):
            if row.trained[index]:
                total -= float(log_probabilities[index - 1, row.input_ids[index]])
                tokens += 1
    scores = score_rows(loaded, data.heldout)
    assert scores.tokens == tokens
    assert scores.loss == pytest.approx(total / tokens, abs=1e-4)
    assert all(len(answer_span(row)) > 1 for row in data.heldout)


def test_answers_do_not_depend_on_the_batch(loaded: LoadedModel, data: PreparedData) -> None:
    found = (row_question(data.tokenizer, row) for row in data.heldout)
    questions = [question for question in found if question is not None]
    assert len({len(question.prompt_ids) for question in questions}) > 1
    together = answer_all(loaded, questions, 6)
    alone = [answer_all(loaded, [question], 6)[0] for question in questions]
    assert together == alone
    assert len(set(together)) > 1
    assert answer_all(loaded, [Question("empty", questions[0].prompt_ids)], 1)


def test_the_compute_type_follows_the_hardware() -> None:
    from engine.train.environment import _dtype

    assert _dtype(Dtype.AUTO, bfloat16_native=True) is torch.bfloat16
    assert _dtype(Dtype.AUTO, bfloat16_native=False) is torch.float32
    assert _dtype(Dtype.BFLOAT16, bfloat16_native=False) is torch.bfloat16
