"""The model folder that an export reads: the source itself, or an adapter merged into its base.

Owns that choice. Must not know formats.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.adapters.folder import read_adapter
from engine.adapters.merge import MergeRequest, is_merged, merge
from engine.adapters.merge_plan import Weighed
from engine.models.config import CONFIG_NAME
from engine.surgery.helpers import Progress

Say = Callable[[str, int, int], None]


def merged_model(adapter: Path, base: Path, place: Path, say: Say) -> Path:
    """`adapter` merged into `base` in the folder `place`, streamed; what an earlier attempt finished is kept. Raises
    EngineError `adapter.*`, `merge.*`, `disk.full`."""
    request = MergeRequest(base, (Weighed(read_adapter(adapter)),), place)
    if place.is_dir() and is_merged(request):
        return place

    def report(progress: Progress) -> None:
        say(f"merging: {progress.words}", progress.done_bytes, progress.total_bytes)

    merge(request, report)
    return place


def has_own_config(adapter: Path) -> bool:
    """Whether the adapter was trained under another config than its base's, so that plain peft cannot load both."""
    return (adapter / CONFIG_NAME).is_file()
