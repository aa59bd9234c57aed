"""How many optimizer steps a stage takes, and how many sequences each holds.

Owns the rule: max_tokens, else max_steps, else epochs. Must not know text: how many tokens there are is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.jobs.spec import JobSpec, TrainingSection
from engine.jobs.spec_stream import SourceSection
from engine.schedule.ramp import BatchRamp, ramp_for_sequences, ramp_for_steps


@dataclass(frozen=True, slots=True)
class StageSteps:
    """The steps of one stage on streamed text; every sequence is full."""

    steps: int
    length: int
    """Tokens of a sequence."""
    ramp: BatchRamp

    def sequences_of(self, step: int) -> int:
        """Sequences of a step; steps count from 0, the first of the stage."""
        return self.ramp.sequences_of(step)

    @property
    def sequences(self) -> int:
        return self.ramp.sequences_before(self.steps)

    @property
    def tokens(self) -> int:
        """Of the whole stage: what was asked for, rounded up to a full step."""
        return self.sequences * self.length


def stream_steps(spec: JobSpec, epoch_tokens: float) -> StageSteps:
    """The steps of a stage (one of `JobSpec.staged()`) that trains on [[sources]].

    `epoch_tokens`: of one pass over the sources (see `epoch_tokens`); asked only where neither max_tokens nor max_steps
    says the end. Raises EngineError `schedule.no_tokens`.
    """
    training, length = spec.training, spec.data.max_length
    full = training.batch_size * training.gradient_accumulation
    if training.max_steps and not training.max_tokens:
        ramp = ramp_for_steps(training.ramp_from, full, training.ramp_ratio, training.max_steps)
        return StageSteps(training.max_steps, length, ramp)
    wanted = training.max_tokens or training.epochs * epoch_tokens
    if wanted <= 0:
        raise EngineError(
            "schedule.no_tokens",
            "The sources hold no tokens to train on.",
            next_step="Check [[sources]], or set training.max_tokens.",
        )
    sequences = max(math.ceil(wanted / length), 1)
    ramp = ramp_for_sequences(training.ramp_from, full, training.ramp_ratio, sequences)
    return StageSteps(ramp.steps_for(sequences), length, ramp)


def epoch_tokens(sources: Sequence[SourceSection], tokens: Mapping[str, float]) -> float:
    """Tokens of one pass: all sources that are read at all, each once. `tokens`: what every source holds."""
    return sum(tokens.get(source.name, 0) for source in sources if source.weight > 0)


def shares(sources: Sequence[SourceSection]) -> Mapping[str, float]:
    """Each source's share of the tokens, in the order of the spec; together 1."""
    total = sum(source.weight for source in sources)
    return {source.name: source.weight / total if total else 0.0 for source in sources}


def row_steps(training: TrainingSection, sequences: int) -> int:
    """Optimizer steps on rows, by the Trainer's own rule: an epoch's last step may be smaller."""
    if training.max_steps:
        return training.max_steps
    batches = -(-sequences // training.batch_size)
    steps_per_epoch = max(1, -(-batches // training.gradient_accumulation))
    steps = training.epochs * steps_per_epoch
    return int(steps) + (steps > int(steps))


def needed_tokens(spec: JobSpec, tokens: Mapping[str, float]) -> Mapping[str, int]:
    """How many tokens of each source the whole job takes at the most, over all stages: its share of every stage, a
    sequence more for the rounding, and what leaps of the loss may pass over.

    `tokens`: what every source holds, where that decides how long a stage is (epochs); sources of stages that end by
    max_tokens or max_steps need not be in it.
    """
    needed = dict.fromkeys((source.name for source in spec.sources), 0)
    spare = 0
    for stage in spec.staged():
        if not stage.task.trains:
            continue
        found = stream_steps(stage, epoch_tokens(stage.sources, tokens))
        spare = max(spare, _passed_over(spec, found))
        for name, share in shares(stage.sources).items():
            needed[name] += (math.ceil(share * found.sequences) + 1) * found.length if share else 0
    return {name: count + spare if count else 0 for name, count in needed.items()}


def _passed_over(spec: JobSpec, stage: StageSteps) -> int:
    """The most tokens, maybe all of one source, that leaps of the loss pass over in a stage: the n-th goes back over n
    checkpoints and never before the oldest or the beginning (`engine.train.spikes`). Losses that are no numbers are
    looked for in every job, so this does not depend on stop.spike_factor."""
    checkpoint = spec.checkpoint
    counts = (min(number, checkpoint.keep + 1) for number in range(1, spec.stop.spike_retries + 1))
    steps = sum(min(count * checkpoint.every_steps, stage.steps) for count in counts)
    return steps * stage.sequences_of(stage.steps - 1) * stage.length


def tokens_to_read(spec: JobSpec) -> Mapping[str, int] | None:
    """`needed_tokens` where the spec alone says them; None where a stage goes by epochs and all there is is read."""
    trained = [stage.training for stage in spec.staged() if stage.task.trains]
    if not trained or not all(one.max_tokens or one.max_steps for one in trained):
        return None
    return needed_tokens(spec, {})
