"""`scaler-wizard estimate`: what one job needs and whether it fits, by formula, dry run or probe; starts nothing.

Owns the flags' meaning and the text. Must not compute: every figure comes from the engine. It answers a question, so
its exit code is 0 whatever the verdict is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output
from scaler_tui.commands.look import answered_session
from scaler_tui.data_file import note_missing_rows
from scaler_tui.machines import machine_for

if TYPE_CHECKING:
    from engine.advise.answers import Answers
    from engine.advise.appraisal import Appraisal
    from engine.advise.grown import Grown
    from engine.advise.inverse import Largest
    from engine.advise.overrides import Settings
    from engine.advise.rented import Offer
    from engine.advise.sharded import CardCount
    from engine.advise.spec_growth import SpecGrowth
    from engine.advise.spec_stages import JobEstimate
    from engine.estimate.data_shape import DataShape
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.source import ModelRef

COUNTED_BYTES = 64 * 1024**2
"""A larger data file is not counted for an estimate; its tokens are guessed from its size."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked about."""

    found: Appraisal
    spec: JobSpec | None
    """None for an approach that is planned but not carried out."""
    ref: ModelRef
    trained_share: float = 1.0
    growth: SpecGrowth | None = None
    """What becomes of the model before it is trained; None for an adapter."""
    stages: JobEstimate | None = None
    """Of a spec that streams text or has stages."""


def estimate(arguments: argparse.Namespace) -> int:
    """One job held against one machine."""
    from engine.advise.inverse import Question, cheapest_card, fastest_card, largest, parse_deadline

    limit = parse_deadline(arguments.finish_in) if arguments.finish_in else 0.0
    job = _refined(_job(arguments), arguments)
    found = job.found
    asked = [largest(found.plan, Question(name)) for name in arguments.largest or ()]
    offer = cheapest_card(found, limit) if limit else None
    if limit and offer is None:
        raise _too_late(found, arguments.finish_in, fastest_card(found))
    counts = _card_counts(found) if arguments.cards else None
    if arguments.json:
        from engine.advise.figures import to_json

        document = to_json(found, asked=asked, offer=offer, counts=counts)
        if job.stages is not None:
            from engine.advise.schedule_figures import stages_to_json

            document["stages"] = stages_to_json(job.stages)
        output.emit_json(document)
    else:
        if job.stages is not None:
            from scaler_tui.schedule_text import stage_lines

            for line in (*stage_lines(job.stages), ""):
                output.say(line)
        _print(found, asked, offer, arguments.finish_in)
        if counts:
            from scaler_tui.estimate_text import card_count_lines

            for line in card_count_lines(counts):
                output.say(line)
    return int(ExitCode.DONE)


def _card_counts(found: Appraisal) -> tuple[CardCount, ...]:
    """Raises EngineError where the job has no card."""
    from engine.advise.sharded import card_counts

    counts = card_counts(found.plan, found.machine, found.load)
    if not counts:
        raise EngineError(
            "usage",
            "--cards compares cards, and this job runs on none.",
            next_step='Name one with --gpu, such as --gpu "RTX 4090".',
        )
    return counts


def _job(arguments: argparse.Namespace) -> Job:
    from engine.advise.overrides import Settings, parse_setting

    settings = Settings(
        parse_setting("sequence", arguments.sequence),
        parse_setting("batch", arguments.batch),
        parse_setting("rank", arguments.rank),
        arguments.quantization,
    )
    path = Path(arguments.model)
    if path.suffix == ".toml" or path.is_file():
        _refuse_answers(arguments)
        return job_of_spec(path, arguments.gpu, settings)
    return _job_of_answers(arguments, settings)


def _refuse_answers(arguments: argparse.Namespace) -> None:
    answered = [name for name, value in vars(arguments).items() if name.startswith("answer_") and value is not None]
    if arguments.approach or answered:
        flag = "approach" if arguments.approach else answered[0].removeprefix("answer_").replace("_", "-")
        raise EngineError(
            "usage", f"--{flag} goes with a model; a spec says itself what it does.", next_step=f"Leave --{flag} out."
        )


def job_of_spec(path: Path, gpu: str, settings: Settings) -> Job:
    """A spec held against this machine, or the one `gpu` names. Raises EngineError."""
    from engine.advise.overrides import spec_with
    from engine.advise.spec_growth import growth_of
    from engine.advise.spec_plan import appraise_spec, load_of_spec
    from engine.jobs.spec_toml import load_spec, naming_lines, with_absolute_paths
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model

    spec = with_absolute_paths(spec_with(load_spec(path), settings), path.parent.absolute())
    machine = machine_for(gpu)
    ref = resolve_model(spec.model.source, revision=spec.model.revision)
    architecture = analyze_model(ref)
    if spec.needs_data and (spec.streams or spec.stages):
        from scaler_tui.commands.schedule import estimate_of

        with naming_lines(path):
            stages = estimate_of(spec, gpu)
        return Job(stages.whole, spec, ref, growth=growth_of(spec, ref, architecture), stages=stages)
    shape = _data_shape(spec, ref)
    counted = shape if shape.heldout_tokens or shape.width else None
    load = load_of_spec(spec, architecture, machine, shape.tokens, base_on_disk=ref.has_weights, data=counted)
    share, growth = shape.trained_share, growth_of(spec, ref, architecture)
    found = appraise_spec(spec, architecture, machine, load, trained_share=share, growth=growth)
    return Job(found, spec, ref, share, growth)


def _data_shape(spec: JobSpec, ref: ModelRef) -> DataShape:
    """One pass over the data: counted where tokenizer and rows are here, else tokens guessed from the file's size."""
    from engine.advise.amounts import tokens_of_file
    from engine.data.load import resolve_file, survey
    from engine.data.shape import data_shape
    from engine.estimate.data_shape import DataShape

    file = resolve_file(spec.data.train, "train")
    if not file.is_file():
        raise EngineError("data.not_found", f"There is no file {file}.", next_step="Correct [data] train, or use demo.")
    if ref.path is not None and (ref.path / "tokenizer.json").is_file() and file.stat().st_size <= COUNTED_BYTES:
        return data_shape(
            survey(spec.data, ref.path), batch_size=spec.training.batch_size, base_text=spec.data.base_text
        )
    output.note(f"The tokens of {file} are guessed from its size.")
    return DataShape(tokens_of_file(file.stat().st_size))


def _job_of_answers(arguments: argparse.Namespace, settings: Settings) -> Job:
    from engine.advise.amounts import load_of
    from engine.advise.appraisal import appraise
    from engine.advise.approaches import find_approach
    from engine.advise.compare import build_matrix
    from engine.advise.fit import calibration_for, plan_of
    from engine.advise.growth import Setting, recommended_growth
    from engine.advise.overrides import plan_with
    from engine.advise.spec_growth import growth_of
    from engine.models.analyze import analyze_model
    from engine.models.resolve import resolve_model
    from scaler_tui.teacher_flag import check_teacher_flag

    answers = answered_session(arguments).answers()
    note_missing_rows(answers.text("data"))
    machine = machine_for(arguments.gpu, answers)
    ref = resolve_model(arguments.model)
    architecture = analyze_model(ref)
    wanted = arguments.approach or build_matrix(architecture, machine, answers).recommended
    check_teacher_flag(arguments, wanted, answers, architecture)
    grown = recommended_growth(Setting(wanted, architecture, machine, answers), ref)
    plan = plan_of(find_approach(wanted), architecture, machine, answers, calibration_for(machine), grown)
    plan = plan_with(plan, settings)
    found = appraise(plan, machine, load_of(plan, answers, machine))
    if not plan.approach.runs:
        return Job(found, None, ref)
    spec = _spec_of(found, answers, machine, grown)
    return Job(found, spec, ref, growth=growth_of(spec, ref, architecture))


def _spec_of(found: Appraisal, answers: Answers, machine: Machine, grown: Grown | None) -> JobSpec:
    from engine.advise.plan import draft_spec, grown_spec
    from engine.advise.taught_spec import taught_spec

    spec = draft_spec(found.plan, answers, machine, train=answers.text("data") or "demo")
    if found.plan.approach.teacher:
        spec = taught_spec(spec, found.plan, answers)
    return spec if grown is None else grown_spec(spec, found.plan, grown)


def _refined(job: Job, arguments: argparse.Namespace) -> Job:
    """The job with its figures replaced by those of the dry run or the probe, where one was asked for."""
    from engine.advise.refined import by_dry_run, by_probe

    if not (arguments.dry_run or arguments.probe):
        return job
    if job.spec is None:
        raise EngineError(
            "estimate.not_runnable",
            f"There is no {'dry run' if arguments.dry_run else 'probe'} of {job.found.plan.approach.title}.",
            cause=job.found.plan.approach.not_runnable_reason,
            next_step="Leave the flag out: the formula covers it.",
        )
    if arguments.dry_run:
        found = by_dry_run(job.found, job.spec, job.growth)
    else:
        found = by_probe(job.found, job.spec, job.ref, force=arguments.again, progress=output.note)
    if job.stages is not None:
        from engine.advise.spec_stages import refined_whole

        found = refined_whole(job.stages, found)
    return replace(job, found=found)


def _too_late(found: Appraisal, text: str, fastest: Offer | None) -> EngineError:
    from engine.units import format_hours

    if fastest is None:
        cause = "This job fits no rented machine of the catalogue."
    else:
        cause = f"The fastest, {fastest.name}, takes about {format_hours(fastest.hours.likely)}."
    return EngineError(
        "inverse.too_late",
        f"No machine of the catalogue finishes this job within {text}.",
        cause=cause,
        next_step="Give it more time, less data or a smaller model.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _print(found: Appraisal, asked: list[Largest], offer: Offer | None, limit: str) -> None:
    from scaler_tui.estimate_text import estimate_lines, offer_line

    for line in estimate_lines(found):
        output.say(line)
    for answer in asked:
        output.say(f"{answer.sentence[:1].upper()}{answer.sentence[1:]}")
    if offer is not None:
        output.say(offer_line(offer, limit))
