"""What each step of a job computes, where that is more than drawing sequences of one length: the spec's windows,
lengths and token counts turned into pools and a plan.

Owns which rows go into which pool. Must not know the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.rows import EncodedRow
from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from engine.train.batches import SequenceDataset, make_dataset
from engine.train.cutting import Cut, cut_rows
from engine.train.step_batches import Lessons, Skips
from engine.train.step_plan import Pool, Rhythm, Step, plan_mixed_steps, plan_steps
from engine.train.window import Window


@dataclass(frozen=True, slots=True)
class Planned:
    """Lessons, and what has to be said of the data."""

    lessons: Lessons
    words: tuple[str, ...] = ()


def wants_plan(spec: JobSpec) -> bool:
    """Whether steps are made up by a plan; else the Trainer draws sequences by itself. Going back after a leap of the
    loss passes over steps, which only a plan can."""
    planned = spec.training.tokens_per_step or spec.context.curriculum or spec.context.window != "full"
    return bool(planned or spec.stop.spike_factor)


def plan_lessons(spec: JobSpec, rows: Sequence[EncodedRow], window: Window | None) -> Planned:
    """All steps of the job. Raises EngineError `train.no_long_rows`, `train.no_rows`."""
    match spec.context.window:
        case "pose":
            assert window is not None
            return _pose(spec, rows, window)
        case "mixed":
            assert window is not None
            return _mixed(spec, rows, window)
        case _:
            return _by_length(spec, rows)


def _rhythm(spec: JobSpec) -> Rhythm:
    training = spec.training
    return Rhythm(
        tokens_per_step=training.tokens_per_step,
        accumulation=training.gradient_accumulation,
        max_steps=training.max_steps,
        epochs=training.epochs,
        seed=training.seed,
        short_share=spec.context.short_share,
    )


def _by_length(spec: JobSpec, rows: Sequence[EncodedRow]) -> Planned:
    """One pool, or one per length of the curriculum; shorter sequences come more to a batch, so that it stays full."""
    longest = spec.data.max_length
    cuts = [cut_rows(rows, length) for length in spec.context.curriculum or (longest,)]
    sequences = [_packed(spec, cut) for cut in cuts]
    pools = [
        _pool(f"{cut.length}", own, spec.training.batch_size * longest // cut.length)
        for cut, own in zip(cuts, sequences, strict=True)
    ]
    return _planned(pools, sequences, plan_steps(pools, _rhythm(spec)), cuts)


def _pose(spec: JobSpec, rows: Sequence[EncodedRow], window: Window) -> Planned:
    """Short sequences, never packed: a row's positions are spread, and no border may lie inside it."""
    length = short_length(spec, window)
    cut = cut_rows(rows, length)
    sequences = make_dataset(cut.rows, length, packing=False)
    pools = [_pool("pose", sequences, spec.training.batch_size)]
    skips = Skips(window.target, spec.context.pose_chunks, spec.training.seed)
    return _planned(pools, [sequences], plan_steps(pools, _rhythm(spec)), [cut], skips)


def short_length(spec: JobSpec, window: Window) -> int:
    """Tokens of PoSE's sequences, and of the short ones of mixed windows."""
    return min(spec.context.train_length or window.original, spec.data.max_length)


def _mixed(spec: JobSpec, rows: Sequence[EncodedRow], window: Window) -> Planned:
    """Rows longer than the short length train the new window, the others the old one."""
    length, longest = short_length(spec, window), spec.data.max_length
    long = [row for row in rows if len(row.input_ids) > length]
    short = [row for row in rows if len(row.input_ids) <= length]
    if not long:
        raise EngineError(
            "train.no_long_rows",
            f'context.window = "mixed" needs rows of more than {length:,} tokens; the longest has '
            f"{max((len(row.input_ids) for row in rows), default=0):,}.",
            next_step="Put long documents into data.train (scaler-wizard mix makes such a file), or set "
            'context.window = "pose".',
            exit_code=ExitCode.RUN_FAILED,
        )
    cut = cut_rows(short or long, length)
    words = [] if short else ["No row is short: the short sequences are pieces of the long ones."]
    sequences = [_packed(spec, Cut(longest, tuple(long))), _packed(spec, cut)]
    batch = spec.training.batch_size
    pools = [
        _pool("long", sequences[0], batch),
        _pool("short", sequences[1], max(batch * longest // length, 1), original_positions=True),
    ]
    steps = plan_mixed_steps(pools[0], pools[1], _rhythm(spec))
    return _planned(pools, sequences, steps, [cut], words=words)


def _packed(spec: JobSpec, cut: Cut) -> SequenceDataset:
    return make_dataset(cut.rows, cut.length, packing=spec.data.packing)


def _pool(name: str, sequences: SequenceDataset, per_batch: int, *, original_positions: bool = False) -> Pool:
    tokens = tuple(len(sequence.input_ids) for sequence in sequences.sequences)
    if not tokens:
        raise EngineError(
            "train.no_rows",
            "Nothing is left to train on after rows were cut to their length.",
            next_step="Raise data.max_length or context.train_length, or use longer answers.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return Pool(name, tokens, per_batch, original_positions)


def _planned(
    pools: Sequence[Pool],
    sequences: Sequence[SequenceDataset],
    steps: tuple[Step, ...],
    cuts: Sequence[Cut],
    skips: Skips | None = None,
    words: Sequence[str] = (),
) -> Planned:
    said = tuple(text for cut in cuts if (text := cut.words()))
    return Planned(Lessons(tuple(pools), tuple(sequences), steps, skips), (*words, *said))
