"""Jobs with task "mix": several adapters become one, and what that is worth is measured against the base alone.

Owns the phases from the spec to `output/adapter` and the card. Must not know how updates are computed
(`engine.adapters`), nor the loop. Killed at any moment, the next attempt goes on: the base's measurement, the searched
weights and a finished mix are kept.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.adapters.mix import MixRequest, mix_adapters
from engine.adapters.preflight import check_adapters_of, check_mergeable, heldout_of
from engine.adapters.recipe import Recipe, Share
from engine.adapters.replacing import REPORT
from engine.data.load import PreparedData
from engine.jobs import card, layout
from engine.jobs import events as ev
from engine.jobs.card_io import write_card
from engine.jobs.mix_lines import SweepReport, Tried
from engine.jobs.mix_report import MixReport
from engine.jobs.named_adapter import adapter_name
from engine.models.source import ModelRef
from engine.train import report
from engine.train.attempt import Attempt, Outcome, find_model
from engine.train.data_hash import rows_sha256
from engine.train.job_data import JobData
from engine.train.measuring import measured_after, measured_before, yardstick_of
from engine.train.output import ADAPTER, folder_bytes
from engine.train.watching import Followed, hold, open_watch

if TYPE_CHECKING:
    from engine.evaluation.measure import Measurement, Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.evaluation.retention import Watch

SWEEP = "sweep.jsonl"
AFTER = 1
"""What measurements call the mix; the base alone is step 0."""


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested."""
    ref = find_model(attempt)
    assert ref.path is not None
    adapters = check_adapters_of(attempt.spec, ref)
    check_mergeable(attempt.spec, ref, adapters)
    named = zip(attempt.spec.adapters, adapters, strict=True)
    shares = tuple(Share(adapter, one.weight, one.name or adapter_name(adapter.path)) for one, adapter in named)
    attempt.phase("preparing data")
    data = heldout_of(attempt.spec, ref.path, datetime.fromtimestamp(attempt.created))
    for warning in data.report.warnings:
        attempt.warn(warning)
    attempt.obey_before_training()
    return _MixJob(attempt, ref, data, shares).run()


@dataclass(frozen=True, slots=True)
class _Sides:
    """What both models are measured with, and what came of the base."""

    yardstick: Yardstick
    before: Measurement
    watch: Watch


class _MixJob:
    """The phases after the data is known."""

    def __init__(self, attempt: Attempt, ref: ModelRef, data: PreparedData, shares: tuple[Share, ...]) -> None:
        self.attempt, self.spec = attempt, attempt.spec
        self.ref, self.data, self.shares = ref, data, shares
        self.data_sha256 = rows_sha256((data.heldout, data.base_text))
        self.out = attempt.run_dir / layout.OUTPUT / ADAPTER
        self.sweep: SweepReport | None = None

    def run(self) -> Outcome:
        from engine.train import model as models
        from engine.train.environment import quiet_libraries

        attempt = self.attempt
        watch = open_watch(attempt, self.ref, JobData(self.data, None, self.data_sha256))
        attempt.phase("loading model", "importing libraries")
        quiet_libraries()
        assert self.ref.path is not None
        base = models.load_base(models.base_request(self.spec, self.ref.path, attempt.device))
        loaded = models.ready(base, base, self.data.tokenizer, attempt.device)
        yardstick = yardstick_of(self.spec, self.data)
        before = measured_before(attempt, loaded, yardstick)
        watch.before(loaded)
        attempt.obey_before_training()
        mixed = self._mix(loaded)
        attempt.obey_before_training()
        return self._results(loaded, mixed, _Sides(yardstick, before, watch))

    # ── phases ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _mix(self, loaded: LoadedModel) -> MixReport:
        """`output/adapter`, made or found finished."""
        attempt, section = self.attempt, self.spec.mix
        found = _finished(self.out)
        if found is not None and bool(found.swept) == bool(section.sweep):  # else killed before that was noted
            return found
        shares = self._swept(loaded) if section.sweep else self.shares
        attempt.phase("mixing", section.method.value)
        self.out.parent.mkdir(exist_ok=True)
        last = 0.0

        def tell(done: int, total: int, name: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                attempt.phase("mixing", name, done, total)

        recipe = Recipe(section.method, section.density, section.signs, section.rank, self.spec.training.seed)
        shutil.rmtree(self.out, ignore_errors=True)  # without its report it is none of a finished mix
        mixed = mix_adapters(MixRequest(shares, self.out, recipe, self.ref.path), tell)
        if (sweep := self.sweep) is not None:
            checks = {"check_before": sweep.base.check_loss, "check_score": sweep.best.check_loss}
            mixed = msgspec.structs.replace(mixed, swept=sweep.tries, **checks)
        layout.write_atomic(self.out / REPORT, msgspec.json.format(msgspec.json.encode(mixed), indent=2) + b"\n")
        return mixed

    def _swept(self, loaded: LoadedModel) -> tuple[Share, ...]:
        """The adapters with the best weights that were measured on one half of the held-out rows."""
        from engine.adapters.base import read_base
        from engine.evaluation.mix_rows import chosen_rows, token_budget
        from engine.evaluation.mix_score import Ready, sweep
        from engine.evaluation.mixed_model import MixedModel

        attempt, section = self.attempt, self.spec.mix
        assert self.ref.path is not None
        attempt.phase("mixing", "searching weights", 0, section.sweep)
        mixed = MixedModel(loaded, [share.adapter for share in self.shares], read_base(self.ref.path))
        rows = chosen_rows(
            self.data.heldout,
            self.spec.data.heldout or self.spec.data.train,
            token_budget(loaded.model.num_parameters(), loaded.device),
        )
        names = tuple(share.label for share in self.shares)
        ready = Ready(mixed, names, rows, f"{attempt.spec_hash} {self.data_sha256}", 0.0)

        def say(tried: Tried) -> None:
            weights = ", ".join(f"{weight:g}" for weight in tried.weights)
            attempt.phase("mixing", f"weights {weights}: loss {tried.loss:.4f}", tried.number, tried.total)
            attempt.obey_before_training()

        found = sweep(ready, section, section.sweep, self.spec.training.seed, attempt.run_dir / SWEEP, say)
        mixed.take([0.0] * len(self.shares))
        self.sweep = found
        best = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, found.best.weights, strict=True))
        attempt.say(f"Of {found.tries} sets of weights the best is {best}: loss {found.best.loss:.4f}.")
        if not found.helps:
            attempt.warn(
                "On rows that were not searched on, these weights are no better than the base or one adapter alone.",
                "Give more held-out rows, or take the single adapter.",
            )
        return tuple(
            replace(share, weight=weight) for share, weight in zip(self.shares, found.best.weights, strict=True)
        )

    def _results(self, loaded: LoadedModel, mixed: MixReport, sides: _Sides) -> Outcome:
        from peft import PeftModel

        from engine.train import model as models

        attempt = self.attempt
        wrapped = PeftModel.from_pretrained(loaded.model, str(self.out))
        result = models.ready(wrapped, loaded.model, self.data.tokenizer, attempt.device)
        after = measured_after(attempt, result, sides.yardstick, AFTER)
        followed = Followed(sides.watch.parent, sides.watch.after(result, AFTER))
        held = followed.after.held
        merged = self._merge(result) if self.spec.output.merge and not held else None
        path = hold(attempt.run_dir, self.out) if held else self.out
        attempt.phase("writing card")
        before = sides.before.scores
        figures = msgspec.structs.replace(
            mixed,
            out=path.relative_to(attempt.run_dir).as_posix(),
            score_before=before.task_loss if before.has_task_loss else None,
            score=after.scores.task_loss if after.scores.has_task_loss else None,
        )
        facts = self._facts(path, sides, after, merged)
        found = msgspec.structs.replace(followed.on(report.build_card(facts)), mix=figures)
        write_card(attempt.run_dir, found)
        attempt.journal.write(ev.CardReady(t=time.time()))
        return Outcome("finished", 0, f"Not promoted: {held}. It lies in {path}." if held else "")

    def _merge(self, loaded: LoadedModel) -> card.MergeCheck:
        from engine.train.merge import MergeJob, Told, compared_rows, merge, take_reference

        attempt = self.attempt
        attempt.phase("merging")
        rows = compared_rows(self.data, loaded.vocab_size)
        job = MergeJob(attempt.run_dir, self.spec, self.ref, rows, attempt.device)
        return merge(job, take_reference(loaded, rows), self.data.tokenizer, Told(attempt))

    def _facts(self, path: Path, sides: _Sides, after: Measurement, merged: card.MergeCheck | None) -> report.Facts:
        from engine.adapters.folder import read_adapter

        attempt = self.attempt
        return report.Facts(
            run_dir=attempt.run_dir,
            spec=self.spec,
            spec_hash=attempt.spec_hash,
            data_sha256=self.data_sha256,
            created=attempt.created,
            device=attempt.device.name,
            versions=attempt.versions,
            steps=0,
            tokens=0,
            trained_tokens=0,
            training_seconds=0.0,
            before=sides.before,
            after=after,
            questions=tuple(sides.yardstick.questions),
            adapter=card.Adapter(
                path=path.relative_to(attempt.run_dir).as_posix(),
                size_bytes=folder_bytes(path),
                parameters=read_adapter(path).parameters,
            ),
            merged=merged,
            notes=tuple(self.data.report.warnings),
        )


def _finished(out: Path) -> MixReport | None:
    """What an earlier attempt of this run finished; a folder is renamed to its name when it is complete."""
    try:
        return msgspec.json.decode((out / REPORT).read_bytes(), type=MixReport)
    except (OSError, msgspec.MsgspecError):
        return None
