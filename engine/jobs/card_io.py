"""The before/after card on disk: `card.json` for programs, `card.html` for people.

Owns reading and writing both. Must not know how the card was measured or how the page looks.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import card_html, layout
from engine.jobs.card import Card, CurvePoint
from engine.jobs.journal import restore_nan


def write_card(run_dir: Path, card: Card) -> Path:
    """Write `card.json` and `card.html`, each atomically; returns the path of the former. Raises EngineError."""
    card = msgspec.structs.replace(card, loss_curve=_finite(card.loss_curve), eval_curve=_finite(card.eval_curve))
    layout.write_atomic(run_dir / layout.CARD_PAGE, card_html.render(card).encode())
    layout.write_atomic(run_dir / layout.CARD, msgspec.json.format(msgspec.json.encode(card)) + b"\n")
    return run_dir / layout.CARD


def read_card(run_dir: Path) -> Card:
    """Raises EngineError `card.missing` or `card.damaged`."""
    path = run_dir / layout.CARD
    try:
        return msgspec.convert(restore_nan(msgspec.json.decode(path.read_bytes()), Card), Card)
    except FileNotFoundError as error:
        raise EngineError(
            "card.missing",
            f"Run {run_dir.name} has no card yet.",
            cause="The card is written when training is complete; a stopped run has its adapter only.",
            next_step=f"See how far it is with `scaler-wizard logs {run_dir.name}`.",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError("card.damaged", f"{path} cannot be read.", cause=str(error)) from error


def _finite(curve: tuple[CurvePoint, ...]) -> tuple[CurvePoint, ...]:
    return tuple(point for point in curve if math.isfinite(point.value))
