"""What `extend` works from: the model, the length, the method and its options, and what measuring takes.

Owns reading the flags and the refusals that need no measuring. Must not measure or write anything.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.jobs.spec_context import AUTO, SEARCHED
from engine.units import parse_length
from scaler_tui.machines import machine_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.context.method import Options
    from engine.estimate.estimate import Range
    from engine.extension.needs import Needs
    from engine.extension.staging import Order
    from engine.hardware.machine import Machine
    from engine.models.architecture import Architecture

LONGROPE2 = "longrope2"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "spiece.model")
_PASSES_PER_REPORT, _PASSES_PER_METHOD = 90.0, 20.0
"""Sequences of the target's length that a report, and one method of a race, read; shorter ones counted in parts."""
_QUICK_SHARE = 0.25
_START_SECONDS = 8.0
"""A process that imports torch and loads a small model."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, read and held against the model."""

    name: str
    folder: Path
    """Empty path when only the model's shape is known (a dry run)."""
    config: Mapping[str, Any]
    architecture: Architecture
    machine: Machine
    window: int
    order: Order
    needs: Needs
    measuring_seconds: Range | None
    """The whole of what is measured; None where nothing is."""


def wanted(arguments: argparse.Namespace) -> Wanted:
    """Raises EngineError `model.*`, `context.*`, `usage`."""
    from engine.context.planner import read_window
    from engine.extension.needs import needs_of
    from engine.models.analyze import analyze_model
    from engine.models.resolve import require_weights, resolve_model

    ref = resolve_model(arguments.model)
    folder = Path() if arguments.dry_run and not ref.has_weights else require_weights(ref)
    config = ref.config
    window = read_window(config)
    target = target_length(arguments.context, window)
    method = known_method(arguments.method)
    options = options_of(arguments, method)
    _require_possible(config, target, method, options, ref.name)
    architecture, machine = analyze_model(ref), machine_for(arguments.gpu)
    held = {"dtype": arguments.dtype, "quantization": arguments.quantization}
    needs = needs_of(architecture, machine, target, **held)
    checkable = needs_of(architecture, machine, min(2 * window, target), **held).fits
    more = {"target": target, "method": method, "options": options, "check": checkable, **held}
    among = _among(arguments, config, target, method, options)
    order = _order(arguments, folder, ref.name, **more, among=among)
    return Wanted(ref.name, folder, config, architecture, machine, window, order, needs, _seconds(order, needs, config))


def target_length(text: str, window: int) -> int:
    """ "32k", "32768", or "4x" of the present window. Raises EngineError `units.length`."""
    multiple = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*[xX]\s*", text)
    return round(float(multiple[1]) * window) if multiple else parse_length(text)


def known_method(name: str) -> str:
    """A method's id, or "auto". Raises EngineError `context.method` with the likely meaning."""
    from difflib import get_close_matches

    from engine.context.methods import METHODS

    text = name.strip().lower()
    if text == AUTO or text in METHODS:
        return text
    near = get_close_matches(text, [AUTO, *METHODS], n=2, cutoff=0.4)
    raise EngineError(
        "context.method",
        f"There is no scaling method '{name[:40]}'.",
        next_step=(f"Did you mean {' or '.join(near)}? " if near else "")
        + f"Take auto, or one of {', '.join(METHODS)}.",
    )


def _among(
    arguments: argparse.Namespace, config: Mapping[str, Any], target: int, method: str, options: Options
) -> tuple[str, ...]:
    """The methods that "auto" chooses from: those that were named, and of them those that reach the named programs.
    Empty for all. Raises EngineError `usage`, `context.method`, `context.loss`."""
    from engine.context.methods import METHODS
    from engine.extension.losses import consumers_named, require_travels, travelling

    if arguments.among and method != AUTO:
        raise EngineError("usage", "--among belongs to --method auto.", next_step="Leave out --method, or --among.")
    named = tuple(dict.fromkeys(known_method(name) for name in arguments.among.replace(",", " ").split()))
    searches = bool(arguments.search_minutes or arguments.evaluations or options.long_divisors)
    unready = [name for name in named if METHODS[name].needs_search and not (searches and name == LONGROPE2)]
    if unready:
        raise EngineError(
            "usage",
            f"{unready[0]} cannot be measured beside others as it is.",
            cause="Its factors are searched first." if not searches else f"auto searches for {LONGROPE2} only.",
            next_step=f"Add --search-minutes, --evaluations or --factors, which let {LONGROPE2} take part; or leave it "
            "out of --among.",
        )
    consumers = set(consumers_named(arguments.consumers)) - set(consumers_named(arguments.allow_loss))
    if method != AUTO or not consumers or arguments.yes:
        return named
    if searches:
        require_travels(config, target, LONGROPE2, options, tuple(consumers))
    if searches and set(named) == {LONGROPE2}:
        return named
    return travelling(config, target, named, tuple(consumers))


def options_of(arguments: argparse.Namespace, method: str) -> Options:
    """The flags that belong to a method. Raises EngineError `usage`, `context.factors`."""
    from engine.context.factors import read_factors
    from engine.context.method import Options
    from engine.context.methods import METHODS

    if arguments.theta is not None and method != "abf":
        raise EngineError(
            "usage", "--theta belongs to --method abf.", next_step="Add --method abf, or leave out --theta."
        )
    searched = [name for name, one in METHODS.items() if one.needs_search]
    given = [flag for flag in ("factors", "search_minutes", "evaluations") if getattr(arguments, flag)]
    for flag in (*given, *search_shape(arguments)):
        if method not in (AUTO, *searched):
            raise EngineError(
                "usage",
                f"--{flag.replace('_', '-')} belongs to a method that takes searched factors; {method} has a formula.",
                next_step="Add --method longrope2 (or longrope, or auto), or leave it out.",
            )
    _check_own(arguments, method)
    options = Options(
        theta=arguments.theta,
        factor=arguments.factor,
        attention_factor=arguments.attention_factor,
        critical_pair=arguments.critical_pair,
    )
    if arguments.factors is None:
        return options
    return read_factors(arguments.factors.expanduser()).applied(options)


def search_shape(arguments: argparse.Namespace) -> list[str]:
    """The flags that were given of those that say how a search measures; 0 is a weight like others."""
    return [name for name in ("search_documents", "search_text_weight") if getattr(arguments, name) is not None]


def _check_own(arguments: argparse.Namespace, method: str) -> None:
    """Settings of some methods. Raises EngineError `usage` where the method does not read them."""
    from engine.context.methods import METHODS

    searched = tuple(name for name, one in METHODS.items() if one.needs_search) if arguments.factors is not None else ()
    takers = {
        "factor": tuple(name for name, one in METHODS.items() if one.free_factor and one.exported),
        "attention_factor": ("yarn", "by-parts", *searched),
        "critical_pair": ("ntk-critical", *(name for name in searched if name == LONGROPE2)),
    }
    for name, methods in takers.items():
        if getattr(arguments, name) is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if method not in methods:
            raise EngineError(
                "usage",
                f"{flag} belongs to --method {' or '.join(methods)}"
                f"{', or to longrope2 with --factors' if name != 'factor' and not searched else ''}.",
                next_step=f"Name such a method, or leave out {flag}.",
            )
        if arguments.train:
            raise EngineError(
                "usage",
                f"{flag} and --train exclude each other: a run plans by its spec, which has no such key.",
                next_step="Leave one of them out; or extend without training, then train the folder.",
            )
    if arguments.factor is not None and arguments.theta is not None:
        raise EngineError("usage", "--theta and --factor both set the base.", next_step="Give one of them.")


def _require_possible(config: Mapping[str, Any], target: int, method: str, options: Options, name: str) -> None:
    """The refusals that need no measuring: model, target, method, options. Raises EngineError `context.*`."""
    from engine.context.export import config_after
    from engine.context.methods import METHODS
    from engine.context.planner import applicable, plan_context

    reasons = {one.id: why for one, why in applicable(config, target)}
    if method == AUTO:
        if options.long_divisors:
            plan_context(config, target, LONGROPE2, options, name)
        return
    if METHODS[method].needs_search and not options.long_divisors:
        if reasons[method]:
            plan_context(config, target, "ntk", name=name)  # its own words where no method can start from there
            raise EngineError("context.already_scaled", reasons[method], next_step="See --dry-run for those that can.")
        return
    config_after(config, plan_context(config, target, method, options, name))


def _order(arguments: argparse.Namespace, folder: Path, name: str, **more: Any) -> Order:
    from engine.extension.extend import new_order
    from engine.extension.losses import consumers_named
    from engine.extension.staging import Order
    from engine.extension.training import check_data

    text = text_named(arguments.text)
    fields: dict[str, Any] = {
        **more,
        "factors": str(arguments.factors.expanduser().absolute()) if arguments.factors else "",
        "text": text,
        "seed": arguments.seed,
        "prompts": arguments.prompts,
        "quick": arguments.quick,
        "report": not arguments.no_report,
        "links": "copy" if arguments.copy else "hard",
        "consumers": consumers_named(arguments.consumers),
        "train": check_data(tuple(map(str, arguments.train))),
        "steps": arguments.steps,
        "search_minutes": arguments.search_minutes,
        "evaluations": arguments.evaluations,
        "search_documents": arguments.search_documents or 0,
        "search_text_weight": arguments.search_text_weight,
    }
    if folder == Path():
        return Order(program="", source=name, name=name, files=(), **fields)
    return new_order(folder, name, **fields)


def text_named(text: str) -> str:
    """ "demo" and "general" as they are, a file's absolute name, "" for none. Raises EngineError `context.text`."""
    if text in ("", "demo", "general"):
        return text
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise EngineError("context.text", f"There is no file {text}.", next_step="Name a text file, demo, or general.")
    return str(path)


def require_measurable(found: Wanted) -> None:
    """What measuring needs: a tokenizer, and room for the target's length. Raises EngineError."""
    from engine.extension.needs import longest_that_fits, require_room

    if not found.order.report and found.order.method != AUTO:
        return
    require_tokenizer(found.folder, "; or write the folder unmeasured: --method yarn --no-report")
    longest = 0
    if not found.needs.fits:
        longest = longest_that_fits(found.architecture, found.machine, found.window, found.order.target)
    require_room(found.needs, found.name, longest)


def require_tokenizer(folder: Path, otherwise: str = "") -> None:
    """Raises EngineError `model.no_tokenizer`; `otherwise` is what can be done without one."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise EngineError(
            "model.no_tokenizer",
            f"{folder} has no tokenizer, so that nothing can be measured.",
            cause=f"Expected one of {', '.join(_TOKENIZERS[:3])}.",
            next_step=f"Put the tokenizer's files beside config.json{otherwise}.",
        )


def _seconds(order: Order, needs: Needs, config: Mapping[str, Any]) -> Range | None:
    """How long all measuring takes here, from the estimator's time for one pass."""
    from engine.context.planner import applicable
    from engine.context.search_budget import USUAL_DOCUMENTS, USUAL_EVALUATIONS
    from engine.estimate.estimate import Range

    passes, starts, searches, budget = 0.0, 0, order.searches, Range(0.0, 0.0, 0.0)
    share = _QUICK_SHARE if order.quick else 1.0
    if order.method == AUTO:
        running = sum(1 for method, why in applicable(config, order.target) if not why and not method.needs_search)
        running = len(order.among) or running
        running += searches or bool(order.options.long_divisors)
        passes, starts = passes + share * _PASSES_PER_METHOD * (running + 1), starts + 1
    elif order.method in SEARCHED and not order.options.long_divisors:
        searches = True
    if searches and order.search_minutes:
        budget = Range(*(order.search_minutes * 60 * part for part in (0.5, 1.0, 1.2)))
        starts += 1
    elif searches:
        documents = order.search_documents or USUAL_DOCUMENTS
        passes, starts = passes + documents * (order.evaluations or USUAL_EVALUATIONS), starts + 1
    if order.report:
        passes, starts = passes + share * _PASSES_PER_REPORT, starts + 2
    if not passes and not starts:
        return None
    extra = starts * _START_SECONDS
    one = needs.seconds
    return Range(
        budget.low + passes * one.low + extra / 2,
        budget.likely + passes * one.likely + extra,
        budget.high + passes * one.high + 2 * extra,
    )
