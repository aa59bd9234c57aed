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

AUTO = "auto"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "spiece.model")
_PASSES_PER_REPORT, _PASSES_PER_METHOD = 90.0, 20.0
"""Sequences of the target's length that a report, and one method of a race, read; shorter ones counted in parts."""
_QUICK_SHARE = 0.25
_PASSES_PER_EVALUATION = 3.0
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
    needs = needs_of(architecture, machine, target)
    checkable = needs_of(architecture, machine, min(2 * window, target)).fits
    more = {"target": target, "method": method, "options": options, "check": checkable}
    order = _order(arguments, folder, ref.name, **more, among=_among(arguments, config, target, method))
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


def _among(arguments: argparse.Namespace, config: Mapping[str, Any], target: int, method: str) -> tuple[str, ...]:
    """The methods that "auto" chooses from: those that were named, and of them those that reach the named programs.
    Empty for all. Raises EngineError `usage`, `context.method`, `context.loss`."""
    from engine.extension.losses import consumers_named, travelling

    if arguments.among and method != AUTO:
        raise EngineError("usage", "--among belongs to --method auto.", next_step="Leave out --method, or --among.")
    named = tuple(dict.fromkeys(known_method(name) for name in arguments.among.replace(",", " ").split()))
    consumers = set(consumers_named(arguments.consumers)) - set(consumers_named(arguments.allow_loss))
    if method != AUTO or not consumers or arguments.yes:
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
    options = Options(theta=arguments.theta)
    if arguments.factors is None:
        return options
    if method == AUTO or not METHODS[method].needs_search:
        raise EngineError(
            "usage",
            "--factors belongs to a method that takes searched factors.",
            next_step="Add --method longrope2 (or longrope), or leave out --factors.",
        )
    return read_factors(arguments.factors.expanduser()).applied(options)


def _require_possible(config: Mapping[str, Any], target: int, method: str, options: Options, name: str) -> None:
    """The refusals that need no measuring: model, target, method, options. Raises EngineError `context.*`."""
    from engine.context.export import config_after
    from engine.context.methods import METHODS
    from engine.context.planner import applicable, plan_context

    reasons = {one.id: why for one, why in applicable(config, target)}
    if method == AUTO:
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
        "factors": str(arguments.factors or ""),
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
    from engine.estimate.estimate import Range

    passes, starts = 0.0, 0
    share = _QUICK_SHARE if order.quick else 1.0
    if order.method == AUTO:
        running = sum(1 for method, why in applicable(config, order.target) if not why and not method.needs_search)
        running = len(order.among) or running
        passes, starts = passes + share * _PASSES_PER_METHOD * (running + 1), starts + 1
    elif order.method in ("longrope", "longrope2") and not order.options.long_divisors:
        if order.search_minutes:
            return Range(*(order.search_minutes * 60 * share for share in (0.5, 1.0, 1.2)))
        passes, starts = passes + _PASSES_PER_EVALUATION * (order.evaluations or 110), starts + 1
    if order.report:
        passes, starts = passes + share * _PASSES_PER_REPORT, starts + 2
    if not passes:
        return None
    extra = starts * _START_SECONDS
    one = needs.seconds
    return Range(passes * one.low + extra / 2, passes * one.likely + extra, passes * one.high + 2 * extra)
