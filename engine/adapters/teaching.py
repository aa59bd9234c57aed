"""Whether an adapter on its base can teach: refusals from headers alone.

Owns these judgements. Must not know losses or vocabularies. The base is loaded by transformers and the adapter put on
it by peft, so the adapter must fit the base as it is stored.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from engine.adapters.base import check_base, read_base, resized
from engine.adapters.folder import read_adapter
from engine.errors import EngineError


def check_teaching(folder: Path, base: Path) -> None:
    """Raises EngineError `adapter.*` for an adapter that is damaged, pickled or another base's, and `adapter.resized`
    for one whose vocabulary is not the base's."""
    adapter = read_adapter(folder)
    check_base(adapter, base)
    for _, own, theirs in resized(adapter, read_base(base)):
        raise EngineError(
            "adapter.resized",
            f"The adapter in {folder} was trained with a vocabulary of {own:,} tokens; its base has {theirs:,}.",
            cause="Its tokens are others than the base's, so it cannot teach as it lies on it.",
            next_step=f"Make one model of both first: scaler-wizard adapters merge {shlex.quote(str(folder))}",
        )
