"""Training steps and measurements of a probe, timed: the worker's Trainer, its batches, its evaluation.

Owns what is done in which order and for how long. Must not know where the model came from, nor what follows from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import TrainerCallback

from engine.data.rows import EncodedRow
from engine.evaluation.answers import answer_all
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import TOKENS_PER_BATCH, score_rows
from engine.jobs.spec import JobSpec
from engine.rehearsal.probe_job import Rows
from engine.train.batches import SequenceDataset, TensorSequence, make_dataset
from engine.train.taught_steps import TaughtSteps
from engine.train.trainer import TokenTrainer, training_arguments

WARM_UP_STEPS = 2
"""The first makes the optimizer's states; from the third on a step repeats itself."""
FEWEST_STEPS = 2
MOST_ACCUMULATED = 2
"""A step of more micro-batches repeats the same memory and time."""
MEASURED_TOKENS = 24 * TOKENS_PER_BATCH


@dataclass(slots=True)
class Timing:
    """What the clock said of each timed step."""

    tokens: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> tuple[float, float, float]:
        """Slow quarter, all tokens over all seconds, fast quarter; zeros without a step."""
        if not self.seconds:
            return 0.0, 0.0, 0.0
        rates = [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]
        whole = sum(self.tokens) / sum(self.seconds)
        if len(rates) < 4:
            return min(rates), whole, max(rates)
        low, _, high = statistics.quantiles(rates, n=4)
        return min(low, whole), whole, max(high, whole)

    @property
    def tokens_per_cpu_second(self) -> float:
        """Of this process, all threads."""
        return sum(self.tokens) / sum(self.cpu_seconds) if sum(self.cpu_seconds) > 0 else 0.0


class Stopwatch(TrainerCallback):
    """Times each step as the worker does, and ends training at the deadline."""

    def __init__(self, trainer: TokenTrainer, deadline: float, most: int, halfway: Callable[[], None] | None) -> None:
        self.trainer, self.deadline, self.most, self.halfway = trainer, deadline, most, halfway
        self.began_at = time.perf_counter()
        self.timing = Timing()
        self._mark = self._cpu_mark = 0.0
        self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock of the first step starts here."""
        self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Have the loss of this step worked out, which waits for the device; `on_log` follows at once."""
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """A step is complete."""
        if logs is None or "loss" not in logs:
            return control
        now, cpu = time.perf_counter(), time.process_time()
        state.log_history.clear()
        self._steps += 1
        timing, trainer = self.timing, self.trainer
        if self._steps > WARM_UP_STEPS:
            timing.tokens.append(trainer.step_tokens)
            timing.trained.append(trainer.step_trained_tokens)
            timing.seconds.append(now - self._mark)
            timing.cpu_seconds.append(cpu - self._cpu_mark)
        done = len(timing.seconds)
        late = now >= self.began_at + (self.deadline - self.began_at) / 2
        if self.halfway is not None and done >= FEWEST_STEPS and (late or done >= self.most // 2):
            self.halfway()
            self.halfway = None
        control.should_training_stop = done >= self.most or (
            done >= FEWEST_STEPS and self.halfway is None and time.perf_counter() >= self.deadline
        )
        self._start()
        return control

    def _start(self) -> None:
        self._mark, self._cpu_mark = time.perf_counter(), time.process_time()


Teacher = Callable[[JobSpec], TaughtSteps]
"""Makes what a trainer asks a teacher that is in memory."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A data set, the settings it is trained with and, perhaps, who teaches."""

    spec: JobSpec
    dataset: SequenceDataset
    teacher: Teacher | None = None

    @property
    def micro_batches(self) -> int:
        """Per step."""
        return self.spec.training.gradient_accumulation

    @property
    def width(self) -> int:
        """Mean width of a micro-batch, padding included."""
        lengths = [len(sequence.input_ids) for sequence in self.dataset.sequences]
        if self.spec.data.packing or self.spec.training.batch_size == 1:
            return max(lengths) if self.spec.data.packing else round(statistics.fmean(lengths))
        size = self.spec.training.batch_size
        groups = [max(lengths[start : start + size]) for start in range(0, len(lengths), size)]
        return round(statistics.fmean(groups))


def lesson(spec: JobSpec, rows: Sequence[EncodedRow], length: int, teacher: Teacher | None = None) -> Lesson:
    """The rows at `length`, the longest sequence first: it decides the peak, so it must be among the first steps."""
    accumulation = min(spec.training.gradient_accumulation, MOST_ACCUMULATED)
    training = msgspec.structs.replace(
        spec.training, gradient_accumulation=accumulation, max_steps=1_000_000, warmup_ratio=0.0
    )
    data = msgspec.structs.replace(spec.data, max_length=length)
    dataset = make_dataset(rows, length, packing=spec.data.packing)
    return Lesson(msgspec.structs.replace(spec, training=training, data=data), dataset, teacher)


def train(
    loaded: LoadedModel,
    lesson: Lesson,
    folder: Path,
    *,
    seconds: float,
    most: int = 200,
    halfway: Callable[[], None] | None = None,
) -> tuple[Timing, TokenTrainer]:
    """Steps until `seconds` are over, some at least; the trainer is returned since it holds the optimizer's states."""
    arguments = training_arguments(lesson.spec, folder, loaded)
    trainer = TokenTrainer(loaded, lesson.dataset, arguments, lesson.spec.training)
    if (teacher := lesson.teacher) is not None:
        trainer.teacher = lambda: teacher(lesson.spec)
    watch = Stopwatch(trainer, time.perf_counter() + seconds, most, halfway)
    trainer.add_callback(watch)
    trainer.train()
    return watch.timing, trainer


def worst_step(loaded: LoadedModel, lesson: Lesson) -> None:
    """One micro-batch with the longest and most trained sequence in it, forward and backward, gradients dropped."""
    ordered = sorted(lesson.dataset.sequences, key=_weight, reverse=True)
    size = lesson.spec.training.batch_size
    others = lesson.dataset.sequences[: max(size - 1, 0)]
    one_step(loaded, lesson)([ordered[0], *others])


def _weight(sequence: TensorSequence) -> tuple[int, int]:
    return len(sequence.input_ids), len(sequence.targets)


def one_step(loaded: LoadedModel, lesson: Lesson) -> Callable[[Sequence[TensorSequence]], None]:
    """The loss of one micro-batch as the Trainer computes it, and its gradients, which are dropped."""
    taught = lesson.teacher(lesson.spec) if lesson.teacher is not None else None
    return partial(forward_backward, loaded, lesson.spec.training.loss_chunk_tokens, taught)


def forward_backward(
    loaded: LoadedModel, loss_chunk_tokens: int, taught: TaughtSteps | None, sequences: Sequence[TensorSequence]
) -> None:
    """See `one_step`."""
    from engine.evaluation.head import Wanted
    from engine.train.batches import Collator

    batch = Collator(loaded.pad_id)(sequences)
    inputs = {name: batch[name].to(loaded.device) for name in ("input_ids", "position_ids", "positions", "targets")}
    loaded.model.train()
    if taught is not None:
        taught.objective.begin_step()
        summed = taught.loss(loaded.model, inputs)
    else:
        wanted = Wanted(inputs["input_ids"], inputs["position_ids"], inputs["positions"])
        with loaded.autocast():
            summed = loaded.head.loss_at(loaded.model, wanted, inputs["targets"], loss_chunk_tokens)
    loss = summed / max(len(inputs["targets"]), 1)
    loss.backward()  # type: ignore[no-untyped-call]
    del summed, loss
    loaded.model.zero_grad(set_to_none=True)
    if loaded.device.startswith("cuda"):
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class Asked:
    """Speed of measuring and answering; 0 where there was nothing to measure."""

    evaluation_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0


def measure(loaded: LoadedModel, rows: Rows, max_new_tokens: int, *, seconds: float) -> Asked:
    """Held-out rows, base text and answers as before training, in part when they take longer than `seconds`."""
    deadline = time.perf_counter() + seconds
    with loaded.base_only():
        first = _longest(rows.heldout, TOKENS_PER_BATCH)
        rate, spent = _scored(loaded, first)
        answered = _answered(loaded, rows, max_new_tokens)
        rest = min(rate * max(deadline - time.perf_counter(), 0.0) * 0.8, MEASURED_TOKENS) if spent else 0.0
        for part in (rows.heldout, rows.base_text):
            again, _ = _scored(loaded, _longest(part, rest / 2))
            rate = again or rate
    return Asked(rate, answered)


def measure_between(loaded: LoadedModel, rows: Rows, max_new_tokens: int) -> None:
    """Held-out loss and samples as between two steps of a run, with the optimizer's states alive."""
    _scored(loaded, _longest(rows.heldout, 2 * TOKENS_PER_BATCH))
    _answered(loaded, rows, max_new_tokens)


def _scored(loaded: LoadedModel, rows: Sequence[EncodedRow]) -> tuple[float, float]:
    """(tokens per second, seconds)."""
    if not rows:
        return 0.0, 0.0
    began = time.perf_counter()
    score_rows(loaded, rows)
    spent = time.perf_counter() - began
    return sum(len(row.input_ids) for row in rows) / spent, spent


def _answered(loaded: LoadedModel, rows: Rows, max_new_tokens: int) -> float:
    """New tokens per second, at most: answers may end early."""
    if not rows.questions:
        return 0.0
    began = time.perf_counter()
    answers = answer_all(loaded, rows.questions, max_new_tokens)
    spent = time.perf_counter() - began
    if rows.real:
        written = sum(len(rows.tokenizer.encode(answer)) + 1 for answer in answers)
    else:
        written = len(answers) * max_new_tokens
    return written / spent


def _longest(rows: Sequence[EncodedRow], tokens: float) -> list[EncodedRow]:
    """The longest rows up to so many tokens: the last batches of a measurement, and its largest."""
    chosen: list[EncodedRow] = []
    left = tokens
    for row in sorted(rows, key=lambda row: len(row.input_ids), reverse=True):
        if left <= 0:
            break
        chosen.append(row)
        left -= len(row.input_ids)
    return chosen
