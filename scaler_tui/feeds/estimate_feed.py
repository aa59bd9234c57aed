"""Refines an estimate through the headless twin, `scaler-wizard estimate SPEC --dry-run` or `--probe`.

Owns the process and the message that brings its answer: both take a while, and no key may wait.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.spec_file import temporary_spec

if TYPE_CHECKING:
    from engine.advise.figures import Refined
    from engine.jobs.spec import JobSpec

TIERS = {"dry-run": "Dry run", "probe": "Probe"}
"""Flag of the subcommand -> word for people."""


class EstimateRefined(Message):
    """The process has answered: better figures, or an error."""

    def __init__(self, tier: str, spec_hash: str, figures: Refined | None, error: EngineError | None) -> None:
        super().__init__()
        self.tier = tier
        self.spec_hash = spec_hash
        self.figures = figures
        self.error = error


def refine(tier: str, spec: JobSpec, card: str, folder: Path) -> Refined:
    """The twin's answer for `spec` on `card` ("" is this machine). Raises EngineError."""
    from engine.advise.figures import refined_from_json

    with temporary_spec(spec, folder) as path:
        where = ("--gpu", card) if card else ()
        return refined_from_json(ask_twin("estimate", f"--{tier}", "--json", *where, str(path)))


def refine_in_thread(target: MessagePump, tier: str, spec: JobSpec, card: str) -> None:
    """Ask off the interface thread and post EstimateRefined to `target`."""
    from engine.jobs.spec_toml import spec_hash

    folder, key = Path.cwd(), spec_hash(spec)

    def work() -> None:
        try:
            target.post_message(EstimateRefined(tier, key, refine(tier, spec, card, folder), None))
        except EngineError as error:
            target.post_message(EstimateRefined(tier, key, None, error))

    threading.Thread(target=work, name=tier, daemon=True).start()
