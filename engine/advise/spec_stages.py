"""A spec held against one machine, stage by stage and as a whole: memory, hours, money and disk, of text that is read
as a stream and of models that grow between stages.

Owns the joining of schedule, growth and appraisals. Must not know files: how much text there is is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.advise.amounts import Load, cost_with, device_of
from engine.advise.appraisal import Appraisal
from engine.advise.spec_growth import SpecGrowth, growths_of
from engine.advise.spec_plan import appraise_spec, devices_of, load_of_spec, measuring_of
from engine.advise.trainable import key_of, trained_share, with_share
from engine.advise.verdict import judge
from engine.errors import EngineError
from engine.estimate.cards import cpu_speed, gpu_speed
from engine.estimate.data_shape import NO_PADDING, DataShape
from engine.estimate.estimate import Estimate, Origin, Part, Range, Verdict
from engine.estimate.speed import DISK_BYTES_PER_SECOND
from engine.hardware.machine import Machine
from engine.jobs.spec import JobSpec
from engine.jobs.spec_suites import SuiteSection
from engine.models.architecture import Architecture
from engine.models.source import ModelRef
from engine.schedule.amounts import AmountOrigin, SourceAmount
from engine.schedule.layout import JobSchedule, ModelFacts, StageLayout, TextFacts, lay_out
from engine.schedule.steps import needed_tokens

TOKENISING = Range(0.6e6, 1.8e6, 4e6)
"""Bytes of text per second and core, read, tokenised, compared and written. Own estimate; `bench/corpus.py` measures
it."""
BYTES_PER_TOKEN = 4.2
"""Of text; for hours of tokenising only."""
SPARE = Range(1.0, 1.03, 1.25)
"""Read beyond what is trained on: held out, duplicates, the last shard."""
DOCUMENT_BYTES, DOCUMENT_TOKENS = 44, 500
"""A cached document's record, and a usual document."""
STATE_BYTES, MOMENT_BYTES = 12.0, 8.0
"""Per parameter, between stages: weights and two moments in fp32; the moments alone."""
QUESTIONS, QUESTION_TOKENS = 1000, 400.0
"""Of a benchmark, where nobody says how many; all its answers together."""
_WORST_FIRST = (Verdict.NO, Verdict.TIGHT, Verdict.FITS)


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage."""

    layout: StageLayout
    found: Appraisal | None
    """None for a stage that only grows."""
    hours: Estimate
    cost_usd: Estimate
    disk: Estimate
    """While it runs: what earlier stages left for it included."""


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """All stages, and the job as one appraisal."""

    schedule: JobSchedule
    stages: tuple[StageEstimate, ...]
    amounts: tuple[SourceAmount, ...]
    whole: Appraisal
    """Memory and RAM of the stage that decides; hours and money of all together; disk where most is there at once."""
    warnings: tuple[str, ...]
    """Of growth and of the schedule."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is trained on, as far as it is known."""

    amounts: tuple[SourceAmount, ...] = ()
    """Of the sources."""
    rows: DataShape | None = None
    """Of one epoch, in jobs without sources."""
    row_sequences: int = 0
    longest_row: int = 0
    """Tokens that the longest row has at least, before it is cut; 0 where rows were not counted."""

    def facts(self) -> TextFacts:
        """For the schedule."""
        known = {one.name: one.likely for one in self.amounts if one.likely}
        return TextFacts(known, self.rows.tokens[1] if self.rows is not None else 0.0, self.row_sequences)


def schedule_of(
    spec: JobSpec, growths: Sequence[SpecGrowth | None], architecture: Architecture, text: Text
) -> JobSchedule:
    """Raises EngineError `schedule.unknown_size`, `schedule.no_tokens`."""
    _require_known(spec, text)
    models, before = [], architecture.parameters
    for growth in growths:
        final = growth.architecture if growth is not None else architecture
        operators = growth.operators if growth is not None and final.parameters > before else ()
        window = spec.context.length or final.context_length or 0
        models.append(ModelFacts(final.parameters, operators, window))
        before = final.parameters
    return lay_out(spec, models, text.facts())


def estimate_job(
    spec: JobSpec, ref: ModelRef, architecture: Architecture, machine: Machine, text: Text, *, base_on_disk: bool = True
) -> JobEstimate:
    """A job that trains in one stage at least. Raises EngineError `expansion.*`, `schedule.*`, `estimate.value`, each
    with the key of the spec."""
    growths = growths_of(spec, ref, architecture)
    schedule = schedule_of(spec, growths, architecture, text)
    job = _Job(spec, ref, growths, schedule, architecture, machine, text, base_on_disk)
    stages = tuple(job.stage(index, stage) for index, stage in enumerate(spec.staged()))
    words = growths[-1].warnings if growths[-1] is not None else ()
    warnings = (*(f"Growth: {one}" for one in words), *schedule.warnings)
    return JobEstimate(schedule, stages, text.amounts, _whole(stages, machine), warnings)


def _require_known(spec: JobSpec, text: Text) -> None:
    """Passes over text of which nobody knows how much there is have no end that could be planned."""
    if not spec.streams or all(
        stage.training.max_tokens or stage.training.max_steps for stage in spec.staged() if stage.task.trains
    ):
        return
    unknown = next((one for one in text.amounts if not one.likely), None)
    if unknown is not None:
        raise EngineError(
            "schedule.unknown_size",
            f"How many tokens source '{unknown.name}' holds is not known, and nothing else says when to end.",
            cause=unknown.unreadable,
            next_step="Set training.max_tokens (or max_steps); in a job with [[stages]], in every stage.",
            key="training.epochs",
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What every stage is reckoned with."""

    spec: JobSpec
    ref: ModelRef
    growths: tuple[SpecGrowth | None, ...]
    schedule: JobSchedule
    architecture: Architecture
    machine: Machine
    text: Text
    base_on_disk: bool

    def stage(self, index: int, spec: JobSpec) -> StageEstimate:
        return self._trained(index, spec) if spec.task.trains else self._only_grown(index, spec)

    def _trained(self, index: int, spec: JobSpec) -> StageEstimate:
        layout = self.schedule.stages[index]
        load = self._load(index, spec, layout)
        share = self.text.rows.trained_share if self.text.rows is not None else 1.0
        growth = self.growths[index]
        found = appraise_spec(spec, self.architecture, self.machine, load, trained_share=share, growth=growth)
        found = replace(found, memory=with_share(found.memory, self._learning(index, spec)))
        hours, disk = found.hours, _added(found.disk, self._beside(index))
        if self.spec.streams and layout is self.schedule.trained[0]:
            hours = _added(hours, self._tokenising())
        cost = cost_with(load, hours, device_of(found.plan, self.machine))
        judgement = found.judgement
        if found.verdict is not Verdict.NO:  # else what is missing has been said
            judgement = judge(found.plan.devices, self.machine, found.memory, found.ram, disk, hours)
        found = replace(found, hours=hours, cost_usd=cost, disk=disk, judgement=judgement)
        return StageEstimate(layout, found, hours, cost, disk)

    def _learning(self, index: int, spec: JobSpec) -> float:
        """Which share of the model learns in a stage, by the names that it has by then."""
        growth = self.growths[index]
        grows = growth is not None and any(stage.expansion.grows for stage in self.spec.staged()[: index + 1])
        grown = growth.config if growth is not None and grows else None
        return trained_share(spec.training.trainable, self.ref, key=key_of(self.spec, index + 1), grown=grown)

    def _only_grown(self, index: int, spec: JobSpec) -> StageEstimate:
        """Reading and writing: the surgery is bound by the disk."""
        growth, before = self.growths[index], self._parameters(index - 1)
        assert growth is not None
        moved = 2.0 * (before + growth.architecture.parameters)
        rate = DISK_BYTES_PER_SECOND
        part = Part("growth", moved / rate.likely / 3600, f"{moved / 1e9:.1f} GB at 500 MB/s", "own estimate")
        hours = Estimate(
            moved / rate.high / 3600, part.amount, moved / rate.low / 3600, "hours", Origin.FORMULA, (part,)
        )
        load = load_of_spec(spec, self.architecture, self.machine, 0.0, base_on_disk=self.base_on_disk)
        devices = devices_of(spec, self.machine)
        device = cpu_speed(self.machine) if devices.on_cpu else gpu_speed(devices.gpus[0])
        made = 2.0 * growth.architecture.parameters
        model = Part("grown model", made, "2 B x N", "one file set, as the base")
        disk = _added(Estimate(made, made, 2 * made, "bytes", Origin.FORMULA, (model,)), self._beside(index))
        return StageEstimate(self.schedule.stages[index], None, hours, cost_with(load, hours, device), disk)

    def _load(self, index: int, spec: JobSpec, layout: StageLayout) -> Load:
        later = layout is not self.schedule.trained[0]
        here = self.base_on_disk or later
        if not spec.streams:
            tokens = self.text.rows.tokens if self.text.rows is not None else (0.0, 0.0, 0.0)
            load = load_of_spec(
                spec, self.architecture, self.machine, tokens, base_on_disk=here, data=self._counted_rows()
            )
            return load
        load = load_of_spec(spec, self.architecture, self.machine, 0.0, base_on_disk=here)
        return replace(
            load,
            tokens=self._tokens(spec, layout),
            steps=0,
            epochs=1.0,
            fill=NO_PADDING,
            measuring=measuring_of(spec, self._evaluated(spec)),
        )

    def _counted_rows(self) -> DataShape | None:
        rows = self.text.rows
        return rows if rows is not None and (rows.heldout_tokens or rows.width) else None

    def _tokens(self, spec: JobSpec, layout: StageLayout) -> tuple[float, float, float]:
        """As many as were asked for; passes over text that was only sampled are as uncertain as its amount."""
        training, likely = spec.training, layout.tokens
        known = {one.name: one for one in self.text.amounts}
        read = [known[source.name] for source in spec.sources if source.weight and source.name in known]
        total = sum(one.likely for one in read)
        if training.max_tokens or training.max_steps or not total:
            return likely, likely, likely
        return (
            likely * sum(one.low for one in read) / total,
            likely,
            likely * sum(one.high for one in read) / total,
        )

    def _evaluated(self, spec: JobSpec) -> DataShape:
        """Tokens of one evaluation, and of what is measured only before and after."""
        stream, section = spec.stream, spec.evaluation
        held = sum(
            min(stream.heldout_share * (one.likely or stream.heldout_tokens / 0.005), stream.heldout_tokens)
            for one in self.text.amounts
        )
        suites = sum(suite.max_tokens for suite in spec.suites)
        questions = sum(section.tasks_limit or QUESTIONS for _ in section.tasks)
        base = float(SuiteSection(name="b", path="b").max_tokens) if spec.data.base_text else 0.0
        beside = base + questions * QUESTION_TOKENS
        return DataShape((0.0, 0.0, 0.0), heldout_tokens=held + suites, base_tokens=beside)

    # ── beside the training itself ────────────────────────────────────────────────────────────────────────────────
    def _to_read(self) -> float:
        """Tokens that are tokenised for this job and not in the cache yet."""
        needed = needed_tokens(self.spec, self.text.facts().sources)
        cached = {one.name for one in self.text.amounts if one.origin is AmountOrigin.COUNTED}
        most = {one.name: one.high or float("inf") for one in self.text.amounts}
        return sum(min(float(tokens), most.get(name, 0.0)) for name, tokens in needed.items() if name not in cached)

    def _tokenising(self) -> Estimate:
        text_bytes, cores = self._to_read() * BYTES_PER_TOKEN, max(self.machine.cpu.cores, 1)
        hours = [text_bytes * spare / rate / cores / 3600 for spare, rate in _pairs(SPARE, TOKENISING)]
        words = f"{text_bytes / 1e6:,.0f} MB of text at {TOKENISING.likely / 1e6:g} MB/s on each of {cores} cores"
        part = Part("reading text", hours[1], words, "own estimate")
        return Estimate(hours[0], hours[1], hours[2], "hours", Origin.FORMULA, (part,) if hours[1] else ())

    def _beside(self, index: int) -> Estimate:
        """On the disk beside the stage's own files: tokenised text, and what stages leave each other."""
        width = 2 if self.architecture.vocab_size <= 1 << 16 else 4
        shards = self._to_read() * (width + DOCUMENT_BYTES / DOCUMENT_TOKENS) if self.spec.streams else 0.0
        specs = self.spec.staged()
        left = STATE_BYTES * self._parameters(index - 1) if index and specs[index - 1].task.trains else 0.0
        leaves = MOMENT_BYTES * self._parameters(index) if index < len(specs) - 1 and specs[index].task.trains else 0.0
        carried = STATE_BYTES * self._parameters(index) if left and specs[index].expansion.grows else 0.0
        parts = (
            Part("tokenised text", shards * SPARE.likely, f"{width} B x tokens, kept for later runs", "engine.corpus"),
            Part("between stages", left + leaves + carried, "12 B x N: weights and moments", "engine.train.grown_job"),
        )
        fixed = left + leaves + carried
        return Estimate(
            shards * SPARE.low + fixed,
            shards * SPARE.likely + fixed,
            shards * SPARE.high + fixed,
            "bytes",
            Origin.FORMULA,
            tuple(part for part in parts if part.amount),
        )

    def _parameters(self, index: int) -> int:
        growth = self.growths[index] if index >= 0 else None
        return growth.architecture.parameters if growth is not None else self.architecture.parameters


def _pairs(first: Range, second: Range) -> tuple[tuple[float, float], ...]:
    """Low with fast, high with slow."""
    return (first.low, second.high), (first.likely, second.likely), (first.high, second.low)


def _added(one: Estimate, *others: Estimate) -> Estimate:
    """The sum; parts of one name become one."""
    whole = (one, *others)
    parts: dict[str, Part] = {}
    for estimate in whole:
        for part in estimate.breakdown:
            before = parts.get(part.name)
            parts[part.name] = (
                part if before is None else Part(part.name, before.amount + part.amount, "all together", part.source)
            )
    return Estimate(
        sum(each.low for each in whole),
        sum(each.likely for each in whole),
        sum(each.high for each in whole),
        one.unit,
        one.origin,
        tuple(parts.values()),
    )


def _whole(stages: Sequence[StageEstimate], machine: Machine) -> Appraisal:
    """One appraisal for all: the stage that decides, with the hours and money of all and the fullest disk."""
    deciding = _deciding(stages)
    found = deciding.found
    assert found is not None
    if len(stages) == 1:
        return found
    hours = _added(stages[0].hours, *(stage.hours for stage in stages[1:]))
    cost = _added(stages[0].cost_usd, *(stage.cost_usd for stage in stages[1:]))
    disk = max((stage.disk for stage in stages), key=lambda one: one.likely)
    judgement = found.judgement
    if judgement.verdict is not Verdict.NO:
        judgement = judge(found.plan.devices, machine, found.memory, found.ram, disk, hours)
    if judgement.verdict is not Verdict.FITS:
        judgement = replace(judgement, reason=f"stage {deciding.layout.number}: {judgement.reason}")
    return replace(found, hours=hours, cost_usd=cost, disk=disk, judgement=judgement)


def refined_whole(job: JobEstimate, better: Appraisal) -> Appraisal:
    """The job with better figures (dry run, probe) of the stage that decides: its memory as it was found, hours and
    money of all stages in the proportion in which those of this one changed."""
    deciding = _deciding(job.stages)
    share = better.hours.likely / deciding.hours.likely if deciding.hours.likely else 1.0
    hours = replace(job.whole.hours.scaled(share), origin=better.hours.origin)
    cost = replace(job.whole.cost_usd.scaled(share), origin=better.cost_usd.origin)
    return replace(better, hours=hours, cost_usd=cost, disk=job.whole.disk)


def _deciding(stages: Sequence[StageEstimate]) -> StageEstimate:
    return min((one for one in stages if one.found is not None), key=lambda stage: (_rank(stage), -_memory(stage)))


def _rank(stage: StageEstimate) -> int:
    assert stage.found is not None
    return _WORST_FIRST.index(stage.found.verdict)


def _memory(stage: StageEstimate) -> float:
    assert stage.found is not None
    return stage.found.memory.likely
