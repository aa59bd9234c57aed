"""The expansion part of the plain wizard: the plans as sentences, operators, what learns, and the warnings.

Owns those prompts. The same plans, figures and words as the full-screen wizard; everything can be spoken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.units import format_bytes, format_count, format_hours
from scaler_tui import growth_text
from scaler_tui.frank import agree, must_agree
from scaler_tui.prompts import Left, choose, read, say
from scaler_tui.spec_growth_text import LEARNS

if TYPE_CHECKING:
    from engine.advise.growth import GrowthOption, Setting
    from engine.expansion.planner import Source
    from scaler_tui.wizard import Wizard


def choose_growth(wizard: Wizard, approach: str) -> None:
    """Have a plan chosen and the warnings agreed to; the wizard keeps the plan. Raises Back, Left, EngineError."""
    from engine.advise.growth import growth_options
    from engine.expansion.asked import source_of
    from engine.models.resolve import resolve_model

    setting = wizard.growth_setting(approach)
    assert setting is not None
    source = source_of(resolve_model(wizard.model_source), setting.architecture)
    options = growth_options(setting, source)
    say()
    say(f"Ways to grow {wizard.model_source} from {format_count(source.parameters)} parameters.")
    picked = next((index for index, option in enumerate(options) if option.choice.recommended), 0)
    chosen = options[choose("Which plan", [_plan_words(option) for option in options], suggested=picked + 1) - 1]
    chosen = _adjusted(setting, source, chosen)
    wizard.grown[approach] = chosen.grown
    _warn(wizard, approach)


def _plan_words(option: GrowthOption) -> str:
    choice, after = option.choice, option.choice.plan.after
    width, cache = after.ffn or after.expert_ffn, format_bytes(choice.kv_cache_bytes_per_token)
    words = [
        f"{choice.title}{', recommended' if choice.recommended else ''}: {format_count(choice.parameters)} parameters",
        f"{after.layers} layers, hidden {after.hidden:,}, FFN {width:,}",
        f"{after.heads} heads, {after.kv_heads} KV heads, {cache} KV cache per token",
        f"{format_bytes(choice.disk_bytes)} of disk",
        f"training takes {format_bytes(option.found.memory.likely)} and {format_hours(option.found.hours.likely)} for "
        f"{growth_text.short_count(option.found.load.tokens[1])} tokens",
        "the function is kept exactly" if choice.exact else "the function changes",
    ]
    reason = choice.reason.removeprefix(f"{choice.title}: ")
    return f"{'; '.join(words)}. {reason[:1].upper()}{reason[1:]}"


def _adjusted(setting: Setting, source: Source, option: GrowthOption) -> GrowthOption:
    """The plan with other operators or another way of training, as often as is wished."""
    from engine.advise.grown import tasks_for
    from engine.advise.growth import option_of

    while True:
        say(f"  It grows {growth_text.operators_words(option.choice.plan.operators)}.")
        say(f"  Then learns {LEARNS[option.grown.task]}.")
        for warning in option.choice.checked.warnings:
            say(f"  Note: {warning}")
        number = choose("Next", ["Go on", "Choose operators", "Choose what learns"], suggested=1)
        if number == 1:
            return option
        if number == 3:
            tasks = tasks_for(option.choice.plan)
            labels = [f"{LEARNS[task][:1].upper()}{LEARNS[task][1:]}" for task in tasks]
            task = tasks[choose("What learns", labels, suggested=tasks.index(option.grown.task) + 1) - 1]
            option = option_of(setting, option.choice, task)
            continue
        try:
            option = _with_operators(setting, source, option)
        except EngineError as error:
            say("  " + " ".join(text for text in (error.what, error.cause, error.next_step) if text))


def _with_operators(setting: Setting, source: Source, option: GrowthOption) -> GrowthOption:
    from engine.advise.growth import rechosen
    from engine.advise.operator_options import AXIS_WORDS, operator_options

    taken: dict[str, str] = {}
    tried = operator_options(source.layout, source.config, option.choice.plan)
    for axis in option.choice.plan.operators:
        own = [one for one in tried if one.axis == axis]
        if not own:
            continue
        labels = []
        for one in own:
            kept = f"not possible: {one.reason}" if one.reason else "exact" if one.exact else f"changes. {one.loses}"
            labels.append(f"{one.title}, {kept}".rstrip(".") + ".")
        suggested = next((index for index, one in enumerate(own) if one.chosen), 0) + 1
        taken[axis] = own[choose(f"For {AXIS_WORDS.get(axis, axis)}", labels, suggested=suggested) - 1].name
    return rechosen(setting, source, option, taken)


def _warn(wizard: Wizard, approach: str) -> None:
    """The frank words; agreed to once. Raises Left when they are not."""
    words = wizard.frank_words(approach)
    if not words:
        return
    say()
    if not must_agree(approach):
        from engine.advise.approaches import frank_line

        say(frank_line())
        return
    say("Before you start:")
    for word in words:
        say(f"  {word.label}. {word.text}")
    if read("Type yes when you have read this; you are asked only once: ").lower() not in ("yes", "y"):
        raise Left
    agree()
