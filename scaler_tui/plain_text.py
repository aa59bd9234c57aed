"""The large-text part of the plain wizard: sources with weights, limits, stages, and the schedule as sentences.

Owns those prompts. The same choices, checks and figures as the full-screen wizard; everything can be spoken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.units import format_count, parse_count
from scaler_tui import limit_choices, schedule_curves, stage_edits
from scaler_tui.prompts import Back, choose, read, say
from scaler_tui.text_plan import TextPlan, keep

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate
    from engine.jobs.spec_stream import SourceSection
    from scaler_tui.window_choices import Option
    from scaler_tui.wizard import Wizard

MENU = [
    "Go on",
    "Add a source",
    "Change a weight",
    "Remove a source",
    "Tokens to train on",
    "Benchmarks and limits",
    "Stages",
]


def choose_text(wizard: Wizard, approach: str) -> None:
    """Have sources, limits and stages chosen; the wizard keeps them. Raises Back, Left."""
    plan = wizard.text
    plan.forget_checks(wizard.model_source)
    while True:
        _tell_sources(plan)
        number = choose("Text", MENU, suggested=1 if plan.sources else 2)
        try:
            if number == 1 and not plan.obstacle:
                wizard.count_text()
                _tell_schedule(wizard, approach)
                break
            if number == 1:
                say(f"  {plan.obstacle}")
            elif number == 6:
                _choose_limits(wizard, approach)
            elif number == 7:
                _choose_stages(wizard, approach)
            else:
                _change(wizard, plan, number)
        except Back:
            continue
        except EngineError as error:
            _say_error(error)
    keep(plan.choice)


def _tell_sources(plan: TextPlan) -> None:
    say()
    say("Text to train on." if plan.sources else "Text to train on: there is no source yet.")
    for place, source in enumerate(plan.sources):
        tokens = plan.tokens_of(source)
        known = f", {format_count(tokens)} tokens" if tokens else ""
        say(f"  {source.name}: weight {source.weight:g}, {plan.share(place) * 100:.0f} percent{known}. {source.path}.")
    if plan.sources:
        wanted = plan.known_tokens
        say(f"  It trains on {format_count(wanted)} tokens." if wanted else "  Its tokens are not counted yet.")


def _change(wizard: Wizard, plan: TextPlan, number: int) -> None:
    if number == 2:
        place = plan.add(read("  A file, a folder, a pattern, or hub:owner/name: "))
        _check(wizard, plan, plan.sources[place])
        return
    if number == 5:
        text = read("  Tokens to train on, such as 20M; empty for every token once: ")
        plan.decide(tokens=parse_count(text) if text else 0)
        return
    if not plan.sources:
        say("  There is no source yet.")
        return
    place = choose("  Which", [source.name for source in plan.sources], suggested=1) - 1
    if number == 4:
        plan.remove(place)
        return
    text = read(f"  Weight of {plan.sources[place].name} [{plan.sources[place].weight:g}]: ")
    if text:
        try:
            plan.change(place, weight=float(text))
        except ValueError:
            say(f"  {text} is no number.")


def _check(wizard: Wizard, plan: TextPlan, source: SourceSection) -> None:
    """Read it as the `corpus` command does, and say what was found."""
    from scaler_tui.feeds.corpus_check import run_check

    if not wizard.model_is_local:
        say("  Tokens are counted once the model's tokenizer is on this disk.")
        return
    say(f"  Reading {source.path}.")
    found = run_check(wizard.model_source, source)
    plan.end_check(source, found)
    if found.problem is not None:
        _say_error(found.problem)
    elif found.report is not None:
        report = found.report
        dropped = report.duplicates.documents + report.near_duplicates.documents
        say(
            f"  {report.documents:,} documents read, {format_count(report.kept.tokens)} tokens to train on; "
            f"{dropped:,} duplicates dropped, {report.contaminated.documents:,} that share text with the evaluation, "
            f"{report.faults.documents:,} unreadable."
        )
        for fault in report.faults.examples[:3]:
            say(f"  Unreadable: {fault.words}.")


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _choose_limits(wizard: Wizard, approach: str) -> None:
    plan, counts = wizard.text, limit_choices.count_rows(wizard.run_row(approach))
    for field in limit_choices.FIELDS:
        possible = limit_choices.options(plan, field, counts)
        if all(option.why_not for option in possible):
            continue
        now = limit_choices.value_of(plan, field)
        values = [option.value for option in possible]
        say()
        suggested = values.index(now) + 1 if now in values else 1
        while True:
            option = possible[
                choose(limit_choices.TITLES[field], [_spoken(one) for one in possible], suggested=suggested) - 1
            ]
            if not option.why_not:
                break
            say(f"  {option.title} is not possible: {option.why_not}.")
        limit_choices.choose(plan, field, option.value)


def _spoken(option: Option) -> str:
    said = [option.title, option.words, f"not possible: {option.why_not}" if option.why_not else option.figures]
    return ". ".join(part.rstrip(".") for part in said if part) + "."


# ── stages and schedule ───────────────────────────────────────────────────────────────────────────────────────────
def _choose_stages(wizard: Wizard, approach: str) -> None:
    plan = wizard.text
    while True:
        stages = plan.choice.stages
        say()
        say(f"{len(stages)} stages." if stages else "One stretch of training, no stages.")
        for number, stage in enumerate(stages, 1):
            own = [f"{what} {text}" for what in stage_edits.FIELDS[1:] if (text := stage_edits.typed(stage, what))]
            say(f"  {number}. {stage.name}: {'; '.join(own)}.")
        number = choose("Stages", ["Done", "Add a stage", "Change a stage", "Remove a stage"], suggested=1)
        if number == 1:
            return
        if number == 2:
            plan.decide(stages=stage_edits.with_added(stages, len(stages) - 1, plan.wanted_tokens))
            continue
        if not stages:
            say("  There is no stage yet.")
            continue
        place = choose("  Which", [stage.name or "no name" for stage in stages], suggested=1) - 1
        if number == 4:
            plan.decide(stages=stage_edits.with_removed(stages, place))
        else:
            _change_stage(wizard, approach, place)


def _change_stage(wizard: Wizard, approach: str, place: int) -> None:
    plan = wizard.text
    before = plan.choice
    what = stage_edits.FIELDS[choose("  What", list(stage_edits.FIELDS), suggested=2) - 1]
    text = read(f"  {stage_edits.PLACEHOLDERS[what]} [{stage_edits.typed(before.stages[place], what)}]: ")
    try:
        plan.decide(stages=stage_edits.with_typed(before.stages, place, what, text))
        _laid_out(wizard, approach)
    except EngineError as error:
        plan.decide(stages=before.stages)
        _say_error(error)


def _laid_out(wizard: Wizard, approach: str) -> JobEstimate:
    """The job as it is chosen now. Raises EngineError where it cannot be."""
    from scaler_tui.feeds.schedule_feed import ScheduleAsked, amounts_of, plan_schedule

    assert wizard.machine is not None
    assert wizard.architecture is not None
    key = wizard.text_key(approach)
    spec = wizard.spec_for(approach, force=True)
    job = plan_schedule(ScheduleAsked(key, spec, wizard.architecture, wizard.machine, amounts_of(wizard.text)))
    wizard.text.laid_out = (key, job)
    return job


def _tell_schedule(wizard: Wizard, approach: str) -> None:
    """Every stage in sentences, with what it takes. Raises EngineError where it cannot be."""
    job = _laid_out(wizard, approach)
    say()
    say("The schedule.")
    for stage in job.stages:
        layout = stage.layout
        name = f" {layout.name}" if layout.name else ""
        say(
            f"  Stage {layout.number}{name}: {format_count(layout.tokens)} tokens in {layout.steps:,} steps of "
            f"{layout.ramp.full} sequences, {layout.length:,} tokens each; the rate rises to {layout.peak:g} in "
            f"{layout.rate.warmup_steps:,} steps and ends at {layout.rate_at(max(layout.steps - 1, 0)):.2g}."
        )
        for sentence in schedule_curves.stage_words(stage):
            say(f"    {sentence}".replace("–", " to "))
    for warning in job.warnings:
        say(f"  Note: {warning}")


def _say_error(error: EngineError) -> None:
    say("  " + " ".join(text for text in (error.what, error.cause, error.next_step) if text))
