"""What is done about a program that cannot read the extended folder: said, asked, or refused.

Owns the rule. Must not know what is lost (`engine.context.portability`) nor how a question is put.

Where the user said where the model will run, every loss there is refused unless confirmed; where not, only silent ones
are: a program that computes something else without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from engine.context.method import Options
from engine.context.plan import ContextPlan
from engine.context.planner import applicable, plan_context, read_rotaries
from engine.context.portability import CONSUMERS, LOST, TRANSFORMERS_4, TRANSFORMERS_5, Portability, portability
from engine.context.reading import SCALED_LAYERS
from engine.errors import EngineError

ALL = "all"
_NAMES = {"transformers": TRANSFORMERS_5, "transformers-5": TRANSFORMERS_5, "transformers-4": TRANSFORMERS_4}


def consumer_named(word: str) -> str:
    """ "llama.cpp", "vllm", "transformers", "transformers-4" as `CONSUMERS` call them. Raises EngineError
    `context.consumer`."""
    names = {name.lower(): name for name in CONSUMERS} | _NAMES
    text = word.strip().lower()
    if text in names:
        return names[text]
    near = get_close_matches(text, names, n=1, cutoff=0.5)
    raise EngineError(
        "context.consumer",
        f"'{word.strip()[:40]}' is no program known here.",
        next_step=(f"Did you mean {near[0]}? " if near else "")
        + "Known are transformers, transformers-4, vllm and llama.cpp.",
    )


def consumers_named(words: str) -> tuple[str, ...]:
    """A comma-separated list of them; empty stays empty. Raises EngineError `context.consumer`."""
    return tuple(dict.fromkeys(consumer_named(word) for word in words.split(",") if word.strip()))


def losses_that_matter(found: tuple[Portability, ...], consumers: tuple[str, ...]) -> tuple[Portability, ...]:
    """Those that have to be confirmed."""
    if consumers:
        return tuple(one for one in found if one.verdict == LOST and one.consumer in consumers)
    return tuple(one for one in found if one.silent)


def refuse_losses(
    plan: ContextPlan,
    found: tuple[Portability, ...],
    consumers: tuple[str, ...],
    allowed: tuple[str, ...],
    confirm: Callable[[ContextPlan, tuple[Portability, ...]], bool] | None = None,
) -> tuple[str, ...]:
    """The consumers whose loss was accepted. Raises EngineError `context.loss` for one that nobody confirmed."""
    matter = losses_that_matter(found, consumers)
    told = tuple(one for one in matter if one.consumer not in allowed and ALL not in allowed)
    if told and (confirm is None or not confirm(plan, told)):
        raise loss_error(plan, told)
    return tuple(one.consumer for one in matter)


def travelling(
    config: Mapping[str, Any], target: int, among: tuple[str, ...], consumers: tuple[str, ...]
) -> tuple[str, ...]:
    """The methods that none of `consumers` loses, of `among` or of all that need no search. Raises EngineError
    `context.loss` where there is none, `context.*` where no method can be planned at all."""
    lost_by = _losses(config, target, among, consumers)
    reached = tuple(method for method, lost in lost_by.items() if not lost)
    losses = [one for lost in lost_by.values() for one in lost]
    if losses and not reached:
        names = " and ".join(dict.fromkeys(one.consumer for one in losses))
        raise EngineError(
            "context.loss",
            f"No method of those reaches {names} with this model.",
            cause=losses[0].why,
            next_step="Leave it out of --for, name other methods, or accept the loss with --allow-loss.",
        )
    return reached


def _losses(
    config: Mapping[str, Any], target: int, among: tuple[str, ...], consumers: tuple[str, ...]
) -> dict[str, tuple[Portability, ...]]:
    """What would have to be confirmed, for each method that can be written without a search."""
    return {
        method.id: losses_that_matter(portability(config, plan_context(config, target, method.id)), consumers)
        for method, obstacle in applicable(config, target)
        if not (obstacle or method.needs_search) and method.exported and (not among or method.id in among)
    }


def unasked_choice(config: Mapping[str, Any], target: int) -> tuple[tuple[str, ...], str]:
    """The methods that a choice is among where nobody can be asked, and what is to be said of it.

    Those that no program loses without an error; () stands for all: where none is lost so, and where each is. Raises
    EngineError `context.*` where no method can be planned at all.
    """
    lost_by = _losses(config, target, (), ())
    losses = [one for lost in lost_by.values() for one in lost]
    if not losses:
        return (), ""
    names = " and ".join(dict.fromkeys(one.consumer for one in losses))
    left_out = [method for method, lost in lost_by.items() if lost]
    if len(left_out) == len(lost_by):
        return (), f"Whichever method measures best, it is lost without an error in {names}. {losses[0].why}"
    methods = ", ".join(left_out)
    words = f"Not measured, unless named as the method: {methods}, which {names} would lose without an error."
    return tuple(method for method in lost_by if method not in left_out), words


def lost_words(found: tuple[Portability, ...]) -> tuple[str, ...]:
    """Sentences for a run's warnings."""
    return tuple(f"{one.consumer} does not read this: {one.why}" for one in found if one.verdict == LOST)


def require_travels(
    config: Mapping[str, Any], target: int, method: str, options: Options, consumers: tuple[str, ...]
) -> None:
    """Before a method's factors are searched or raced: whether any of them would reach `consumers`. Raises EngineError
    `context.loss`, `context.*`."""
    if not options.long_divisors:  # which ones they are changes nothing
        pairs = next(one.pairs for one in read_rotaries(config) if one.layer_type in SCALED_LAYERS)
        options = Options(long_divisors=(1.0,) * pairs)
    plan = plan_context(config, target, method, options)
    lost = losses_that_matter(portability(config, plan), consumers)
    if lost:
        raise loss_error(plan, lost)


def loss_error(plan: ContextPlan, losses: tuple[Portability, ...]) -> EngineError:
    """The refusal, with both ways out."""
    names = " and ".join(one.consumer for one in losses)
    flags = flags_of(losses)
    others = [_flag(name) for name in CONSUMERS if name not in {one.consumer for one in losses}]
    return EngineError(
        "context.loss",
        f"{names} would not read what {plan.method} writes into this model's config.",
        cause=" ".join(one.why for one in losses),
        next_step=f"Take a method that travels (--dry-run shows each; ntk, abf and yarn do in most programs), "
        f"or accept it with --allow-loss {flags}, or say where the model will run: --for {','.join(others)}.",
    )


def flags_of(losses: tuple[Portability, ...]) -> str:
    """The programs as `--allow-loss` takes them."""
    return ",".join(_flag(one.consumer) for one in losses)


def _flag(consumer: str) -> str:
    """As it is typed."""
    return {TRANSFORMERS_5: "transformers", TRANSFORMERS_4: "transformers-4"}.get(consumer, consumer.lower())
