"""How a job follows suites, benchmarks and retention: its watch, its limits, what the card gets, where a result that
lost too much goes.

Owns the joint between `engine.evaluation.retention` and the jobs. Must not know what is measured, nor the loop.

    evaluation.jsonl     every figure, as it was measured
    good/                the newest checkpoint that kept every limit
    output/held/         a result that was not promoted
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.evaluation.findings import Found, card_benchmarks, card_suites
from engine.evaluation.model import LoadedModel
from engine.evaluation.retention import Comparison, Watch, WatchOrder
from engine.jobs import card, layout
from engine.jobs.spec import JobSpec
from engine.models.folder import check_folder
from engine.models.source import ModelRef
from engine.train.attempt import Attempt
from engine.train.job_data import JobData

HELD = "held"


@dataclass(frozen=True, slots=True)
class Followed:
    """What a job's watch says at its end."""

    before: Found
    after: Comparison
    stages: tuple[card.StageRetention, ...] = ()

    def on(self, found: card.Card) -> card.Card:
        """The card with what the watch found."""
        return msgspec.structs.replace(
            found,
            before=_with_scores(found.before, self.before),
            after=_with_scores(found.after, self.after.found),
            retention=self.after.reports,
            held=self.after.held,
            stages=self.stages,
        )


def _with_scores(given: card.Scores | None, found: Found) -> card.Scores | None:
    if given is None:
        return None
    return msgspec.structs.replace(given, suites=card_suites(found), benchmarks=card_benchmarks(found))


def open_watch(attempt: Attempt, ref: ModelRef, data: JobData) -> Watch:
    """The job's watch; `ref` is the parent model. Raises EngineError `suite.*`, `benchmarks.*`, `retention.*`."""
    assert ref.path is not None
    attempt.phase("preparing data", "what is followed")
    watch = Watch(
        WatchOrder(
            run_dir=attempt.run_dir,
            spec=attempt.spec,
            spec_hash=attempt.spec_hash,
            folder=ref.path,
            tokenizer=data.rows.tokenizer,
            window=_window_of(ref.path),
            tell=attempt.journal.write,
            phase=attempt.phase,
            heldout=data.heldout_texts(),
            resumed_step=attempt.resume.progress.step if attempt.resume is not None else 0,
        )
    )
    if watch.may_stop and attempt.company is not None and attempt.company.shards:
        raise EngineError(
            "retention.shards",
            'A limit with action = "stop" goes back to an earlier checkpoint, which jobs in shards cannot.',
            next_step='Set action = "hold" in [[retention]], or distributed.strategy = "ddp".',
            exit_code=ExitCode.RUN_FAILED,
        )
    return watch


def _window_of(folder: Path) -> int:
    config: dict[str, Any] = dict(check_folder(folder))
    nested = config.get("text_config")
    config |= nested if isinstance(nested, dict) else {}
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 0)


@contextmanager
def parent_model(attempt: Attempt, spec: JobSpec, folder: Path, data: JobData) -> Iterator[LoadedModel]:
    """The parent as training would load it, alone in memory."""
    import gc

    import torch

    from engine.train import model as models

    base = models.load_base(models.base_request(spec, folder, attempt.device))
    try:
        yield models.ready(base, base, data.rows.tokenizer, attempt.device)
    finally:
        del base
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def hold(run_dir: Path, path: Path) -> Path:
    """Take a result out of output/: it is not what the job promised. Returns where it is."""
    target = held_place(run_dir, path.name)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return target


def held_place(run_dir: Path, name: str) -> Path:
    """Of a result of that name: "adapter" or "model"."""
    return run_dir / layout.OUTPUT / HELD / name
