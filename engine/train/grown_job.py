"""Jobs on whole weights: growth, training, and both by turns, from the spec to a complete model folder and the card.

Owns the order of stages and what is kept between them. Must not know how growth or a training step works
(`engine.train.growing`, `engine.train.grown_stage`).

    stages/01/growth.json expansion.json   its growth: where to, and the certificate once it is done
    stages/01/model/                       the grown model it trains from
    stages/01/trained/ moments/            what it ends with, while a later stage needs it
    output/model/                          the job's result; [expansion] out names another place
"""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.expansion.certificate import CERTIFICATE_NAME, Certificate, encode_certificate, read_certificate
from engine.jobs import card, layout
from engine.jobs import events as ev
from engine.jobs.card_io import write_card
from engine.jobs.spec import JobSpec
from engine.models.source import ModelRef
from engine.train import report
from engine.train.attempt import Attempt, Outcome, find_model
from engine.train.documents_log import DocumentsLog
from engine.train.growing import GrowthStep, grow, require_free, shown_path
from engine.train.job_data import JobData, prepare_job
from engine.train.output import folder_bytes
from engine.train.tally import Tally

if TYPE_CHECKING:
    from engine.evaluation.retention import Watch
    from engine.train.grown_stage import StageOrder
    from engine.train.stage_result import StageResult
    from engine.train.watching import Followed

STAGES = "stages"
MODEL = "model"
TRAINED = "trained"
MOMENTS = "moments"
_CLAIMED = "claimed"


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested, or whatever a library raises."""
    with attempt.leader_first():
        ref = find_model(attempt)
    if attempt.company is not None:
        from engine.train.ranked import settle

        settle(attempt, ref)
    data = prepare_job(attempt, ref) if attempt.spec.needs_data else None
    job = _GrownJob(attempt, ref, data)
    return job.follow() if attempt.follows else job.run()


@dataclass(frozen=True, slots=True)
class StageFolders:
    """The paths of one stage."""

    own: Path

    @property
    def model(self) -> Path:
        return self.own / MODEL

    @property
    def trained(self) -> Path:
        return self.own / TRAINED

    @property
    def moments(self) -> Path:
        return self.own / MOMENTS

    @property
    def certificate(self) -> Path:
        return self.own / CERTIFICATE_NAME


class _GrownJob:
    """One attempt; each method is a part of it."""

    def __init__(self, attempt: Attempt, ref: ModelRef, data: JobData | None) -> None:
        assert ref.path is not None
        self.attempt, self.data = attempt, data
        self.ref, self.source = ref, ref.path
        self.stages = attempt.spec.staged()
        out = attempt.spec.expansion.out
        self.final = Path(out) if out else attempt.run_dir / layout.OUTPUT / MODEL
        self.notes: list[str] = []
        self.tally = Tally.of(attempt.resume.progress) if attempt.resume is not None else Tally()
        self.watch: Watch | None = None
        self.documents: DocumentsLog | None = None

    def folders(self, index: int) -> StageFolders:
        return StageFolders(self.attempt.run_dir / STAGES / f"{index + 1:02}")

    def run(self) -> Outcome:
        self._claim_output()
        if self.attempt.spec.stream.record_documents:
            self.documents = DocumentsLog(self.attempt.run_dir, self.tally.step)
        resume = self.attempt.resume
        first = resume.progress.stage if resume is not None else 0
        result: StageResult | None = None
        for index, spec in enumerate(self.stages):
            if index < first or self._is_behind(index):
                result = self._kept(index) or result
                continue
            resumed = resume.progress if resume is not None and resume.progress.stage == index else None
            self._tell_stage(index, spec, "begin", resumed.stage_first_step if resumed else self.tally.step)
            if spec.expansion.grows:
                self._grow(index, spec)
            if spec.task.trains:
                result = self._train(index, spec)
                if result.outcome is not None:
                    return result.outcome
            self._tell_stage(index, spec, "end", self.tally.step)
        return Outcome("finished", self.tally.step, self._finish(result))

    def follow(self) -> Outcome:
        """A rank that does not lead: no growth and no results, its part of every training. It leaves with the leader,
        never by itself."""
        from engine.distributed.company import Answers
        from engine.train.grown_stage import follow_stage

        company, answers = self.attempt.company, Answers()
        assert company is not None
        while True:
            company.follow(answers)
            index, self.tally = company.tell((0, self.tally))
            answers = follow_stage(self._order(index, self.stages[index])).answers()

    def _claim_output(self) -> None:
        """The first attempt makes sure that nothing is in the way; later ones know the place as theirs."""
        claim = self.attempt.run_dir / STAGES / _CLAIMED
        if not claim.is_file():
            if self.attempt.spec.expansion.out:
                require_free(self.final)
            claim.parent.mkdir(parents=True, exist_ok=True)
            layout.write_atomic(claim, str(self.final).encode())

    def _is_behind(self, index: int) -> bool:
        """A stage whose result is there, or was taken over by a later one already."""
        if self.folders(index).trained.is_dir():
            return True
        later = range(index + 1, len(self.stages))
        return any(self.stages[one].expansion.grows and self.folders(one).certificate.is_file() for one in later)

    def _tell_stage(self, index: int, spec: JobSpec, state: str, first_step: int) -> None:
        if not self.attempt.spec.stages:
            return
        stage = self.attempt.spec.stages[index]
        self.attempt.journal.write(
            ev.Stage(
                t=time.time(),
                index=index + 1,
                count=len(self.stages),
                name=stage.name,
                task=spec.task.value,
                state=state,
                first_step=first_step,
                model=shown_path(self.folders(index).model, self.attempt.run_dir) if spec.expansion.grows else "",
            )
        )

    # ── growth ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _grow(self, index: int, spec: JobSpec) -> None:
        """The stage's model, unless an earlier attempt made it; what it was made from is no longer needed then."""
        folders = self.folders(index)
        step = GrowthStep(
            self.attempt.run_dir,
            self.attempt.journal,
            folders.own,
            self._model_before(index),
            self._grown_folder(index, spec),
            spec.expansion,
        )
        if not folders.certificate.is_file():
            certificate = grow(step)
            self._grow_moments(index, step, certificate)
            layout.write_atomic(folders.certificate, encode_certificate(certificate))
        for earlier in range(index):
            shutil.rmtree(self.folders(earlier).trained, ignore_errors=True)
            shutil.rmtree(self.folders(earlier).model, ignore_errors=True)
            shutil.rmtree(self.folders(earlier).moments, ignore_errors=True)

    def _grow_moments(self, index: int, step: GrowthStep, certificate: Certificate) -> None:
        """The optimizer's moments of the stage before, for the grown model."""
        stage = self.attempt.spec.stages[index] if self.attempt.spec.stages else None
        before = self.folders(index - 1).moments if index else None
        if stage is None or not stage.carry_moments or before is None or not before.is_dir():
            return
        from engine.train.carried_moments import grow_moments

        grow_moments(before, self.folders(index).moments, step.source, certificate)

    def _grown_folder(self, index: int, spec: JobSpec) -> Path:
        """A growth that ends the job makes the result itself."""
        last = index == len(self.stages) - 1
        return self.final if last and not spec.task.trains else self.folders(index).model

    def _model_before(self, index: int) -> Path:
        """What stage `index` starts from, before its own growth."""
        if index == 0:
            return self.source
        before, spec = self.folders(index - 1), self.stages[index - 1]
        return before.trained if spec.task.trains else before.model

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _train(self, index: int, spec: JobSpec) -> StageResult:
        from engine.train.grown_stage import train_stage

        if (company := self.attempt.company) is not None:
            company.go()
            company.tell((index, self.tally))
            company.alone()
        result = train_stage(self._order(index, spec))
        gc.collect()
        return result

    def _order(self, index: int, spec: JobSpec) -> StageOrder:
        from engine.train.grown_stage import StageOrder

        assert self.data is not None
        last = index == len(self.stages) - 1
        folders = self.folders(index)
        watch = None if self.attempt.follows else self._watched(index, spec)
        return StageOrder(
            attempt=self.attempt,
            spec=spec,
            index=index,
            later=self.stages[index + 1 :],
            data=self.data,
            documents=self.documents,
            watch=watch,
            folder=folders.model if spec.expansion.grows else self._model_before(index),
            certificate=self._certificate(index),
            moments=self._moments(index),
            target=self.final if last else folders.trained,
            moments_target=None if last else folders.moments,
            final=self._place_when_stopped(),
            notes=self.notes,
            tally=self.tally,
        )

    def _watched(self, index: int, spec: JobSpec) -> Watch:
        """The job's watch. Where growth has changed the model before any training, the parent is measured from its own
        folder; else what is about to be trained computes the same."""
        from engine.train.limits import Limits
        from engine.train.watching import open_watch, parent_model

        assert self.data is not None
        watch = self.watch = self.watch or open_watch(self.attempt, self.ref, self.data)
        grown = [
            read_certificate(self.folders(one).own) for one in range(index + 1) if self.stages[one].expansion.grows
        ]
        if all(one is None or one.exact for one in grown):
            return watch
        if not watch.is_empty and not watch.knows_before():
            self.attempt.phase("loading model", "the parent")
            with parent_model(self.attempt, spec, self.source, self.data) as parent:
                watch.before(parent)
        if not Limits(self.attempt.run_dir, (), index).good_step:
            watch.starts_elsewhere()
        return watch

    def _followed(self, result: StageResult) -> Followed | None:
        """What the card gets; None where nothing was compared."""
        from engine.train.watching import Followed, open_watch

        assert self.data is not None
        watch = self.watch = self.watch or open_watch(self.attempt, self.ref, self.data)
        compared = result.compared or watch.recall(self.tally.step)
        return None if compared is None else Followed(watch.parent, compared, watch.stages())

    def _place_when_stopped(self) -> Path:
        """The job's output, unless its last stage is growth, which needs that place free."""
        ends_in_training = self.stages[-1].task.trains
        return self.final if ends_in_training else self.attempt.run_dir / layout.OUTPUT / "stopped"

    def _moments(self, index: int) -> Path | None:
        """Moments to begin with: grown with the model, or those of the stage before where nothing grew."""
        if not self.attempt.spec.stages or not self.attempt.spec.stages[index].carry_moments:
            return None
        own = self.folders(index).moments if self.stages[index].expansion.grows else None
        found = own or (self.folders(index - 1).moments if index else None)
        return found if found is not None and found.is_dir() else None

    def _certificate(self, index: int) -> Certificate | None:
        """Of the newest growth up to this stage; else that of the source, where it was grown before the job."""
        for earlier in range(index, -1, -1):
            if self.stages[earlier].expansion.grows:
                return read_certificate(self.folders(earlier).own)
        return read_certificate(self.source)

    def _kept(self, index: int) -> StageResult | None:
        """What an earlier attempt found out in this stage, where it trained."""
        if not self.stages[index].task.trains or self.data is None:
            return None
        from engine.train.stage_result import kept_result

        return kept_result(self.folders(index).own, self.stages[index], self.data.rows)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _finish(self, result: StageResult | None) -> str:
        """The card; returns what is to be said at the end."""
        attempt = self.attempt
        followed = self._followed(result) if result is not None else None
        held = followed.after.held if followed is not None else ""
        place = self._result_place(held)
        attempt.phase("writing card")
        growths = self._growths()
        parameters = growths[-1].parameters_after if growths else 0
        tally = self.tally
        facts = report.Facts(
            run_dir=attempt.run_dir,
            spec=attempt.spec,
            spec_hash=attempt.spec_hash,
            data_sha256=result.data_sha256 if result is not None else "",
            created=attempt.created,
            device=attempt.device.name if result is not None else "",
            versions=attempt.versions,
            steps=tally.step,
            tokens=tally.tokens,
            trained_tokens=tally.trained_tokens,
            training_seconds=tally.training_seconds,
            before=result.before if result is not None else None,
            after=result.after if result is not None else None,
            questions=result.questions if result is not None else (),
            adapter=card.Adapter(
                path=shown_path(place, attempt.run_dir),
                size_bytes=folder_bytes(place),
                parameters=result.trained_parameters if result is not None else parameters,
                kind="model",
            ),
            merged=None,
            notes=tuple(self.notes),
            growths=growths,
        )
        found = report.build_card(facts)
        write_card(attempt.run_dir, found if followed is None else followed.on(found))
        attempt.journal.write(ev.CardReady(t=time.time()))
        for index in range(len(self.stages)):
            folders = self.folders(index)
            for path in (folders.model, folders.trained, folders.moments):
                shutil.rmtree(path, ignore_errors=True)
        return f"Not promoted: {held}. It lies in {shown_path(place, attempt.run_dir)}." if held else ""

    def _result_place(self, held: str) -> Path:
        """Where the result is; one that a growth ended is taken out of its place when it is held."""
        from engine.train.watching import held_place, hold

        if not held:
            return self.final
        place = held_place(self.attempt.run_dir, self.final.name)
        return place if place.is_dir() and not self.final.is_dir() else hold(self.attempt.run_dir, self.final)

    def _growths(self) -> tuple[card.GrowthResult, ...]:
        found = []
        for index in range(len(self.stages)):
            certificate = read_certificate(self.folders(index).own)
            if certificate is not None:
                proof = certificate.proof
                found.append(
                    card.GrowthResult(
                        stage=index + 1,
                        operators=certificate.operators,
                        parameters_before=certificate.parameters_before,
                        parameters_after=certificate.parameters_after,
                        exact=certificate.exact,
                        proof=None if proof is None else msgspec.convert(msgspec.to_builtins(proof), ev.ProofReport),
                        seconds=certificate.seconds,
                        bytes_written=certificate.bytes_written,
                        peak_rss_bytes=certificate.peak_rss_bytes,
                    )
                )
        return tuple(found)
