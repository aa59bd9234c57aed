"""`extend --resume` with other flags beside it: what was asked for at first is kept, and nothing is ignored.

Owns the comparison of flags with the order of the interrupted attempt. Must not change either.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.extension.staging import Order


def check_same(arguments: argparse.Namespace) -> None:
    """Raises EngineError `usage` for a flag that asks for something else than the first attempt did, and
    `extension.nothing_to_resume`."""
    from engine.extension.extend import read_order

    for flag, asked, kept in _given(arguments, read_order(arguments.out.expanduser())):
        if asked != kept:
            raise EngineError(
                "usage",
                f"{flag} differs from what the interrupted attempt was asked for.",
                cause="--resume goes on with the first attempt's settings; only losses can be accepted anew.",
                next_step=f"Leave out {flag}; or remove the unfinished folder and start again.",
            )


def _given(arguments: argparse.Namespace, order: Order) -> Iterator[tuple[str, Any, Any]]:
    """(flag, what it asks for, what the order has) of every flag that was given."""
    from engine.extension.losses import consumers_named
    from engine.extension.training import check_data
    from scaler_tui.commands.extend_plans import known_method, search_shape, text_named

    if arguments.context:
        yield "--context", _target(arguments), order.target
    if arguments.method != "auto":
        yield "--method", known_method(arguments.method), order.method
    if arguments.among:
        named = tuple(dict.fromkeys(known_method(name) for name in arguments.among.replace(",", " ").split()))
        among = tuple(name for name in named if name in order.among) if order.consumers else named
        yield "--among", among, order.among
    options = order.options
    for name in ("theta", "factor", "attention_factor", "critical_pair"):
        if getattr(arguments, name) is not None:
            yield f"--{name.replace('_', '-')}", getattr(arguments, name), getattr(options, name)
    if arguments.factors is not None:
        yield "--factors", str(arguments.factors.expanduser().absolute()), str(Path(order.factors or ".").absolute())
    usual = {"seed": 17, "dtype": "auto", "quantization": "none"}
    for name in search_shape(arguments):
        yield f"--{name.replace('_', '-')}", getattr(arguments, name), getattr(order, name)
    for name in ("search_minutes", "evaluations", "steps", "prompts", "quick", "seed", "dtype", "quantization"):
        asked = getattr(arguments, name)
        if asked != usual.get(name, 0):
            yield f"--{name.replace('_', '-')}", asked, getattr(order, name)
    if arguments.text:
        yield "--text", text_named(arguments.text), order.text
    if arguments.train:
        yield "--train", check_data(tuple(map(str, arguments.train))), order.train
    if arguments.consumers:
        yield "--for", consumers_named(arguments.consumers), order.consumers
    if arguments.no_report:
        yield "--no-report", False, order.report
    if arguments.copy:
        yield "--copy", "copy", order.links


def _target(arguments: argparse.Namespace) -> int:
    from engine.context.planner import read_window
    from engine.models.resolve import resolve_model
    from scaler_tui.commands.extend_plans import target_length

    return target_length(arguments.context, read_window(resolve_model(arguments.model).config))
