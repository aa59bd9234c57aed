"""What an output may take the place of: nothing, or what a mix or a merge wrote and nobody has added to.

Owns these refusals. Must not know how outputs are made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.adapters.folder import WEIGHTS
from engine.adapters.merge_record import RECORD, read_record
from engine.adapters.origin import ORIGIN
from engine.errors import EngineError
from engine.jobs.mix_report import MixReport
from engine.models.adapter import ADAPTER_CONFIG
from engine.models.config import CONFIG_NAME
from engine.models.folder import TOKENIZER_FILES

REPORT = "mix.json"
_OF_MIX = frozenset({ADAPTER_CONFIG, WEIGHTS, REPORT, ORIGIN, CONFIG_NAME, *TOKENIZER_FILES})
_NAMED = 3


def check_apart(out: Path, sources: Iterable[tuple[str, Path]], code: str) -> None:
    """`sources`: ("adapter", its folder). Raises EngineError `code` where `out` is one of them, within one, or around
    one."""
    target = out.resolve()
    for what, source in sources:
        real = source.resolve()
        if target == real or real in target.parents or target in real.parents:
            raise EngineError(
                code,
                f"The output {out} and the {what} {source} lie in each other.",
                cause=f"The {what} is never touched.",
                next_step="Choose a folder beside it.",
            )


def check_free(out: Path, code: str, *, force: bool) -> None:
    """Raises EngineError `code` where something has the name, with `force` only where more than a mix or a merge would
    be lost."""
    if not os.path.lexists(out):
        return
    why = _why_kept(out) if force else "Nothing is overwritten."
    if why:
        raise EngineError(
            code,
            f"{out} exists.",
            cause=why,
            next_step="Choose another name, or remove it first." if force else "Choose another name, or use --force.",
        )


def _why_kept(out: Path) -> str:
    if out.is_symlink():
        return "It is a link, and --force replaces only folders."
    known = _known(out)
    if known is None:
        return "--force replaces only what a mix or a merge wrote, and this is neither."
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    more = sorted(found - known)
    if not more:
        return ""
    names = ", ".join(more[:_NAMED]) + (f" and {len(more) - _NAMED} more" if len(more) > _NAMED else "")
    return f"It holds what no mix or merge wrote, and that would be lost: {names}."


def _known(out: Path) -> frozenset[str] | None:
    """Every file that a mix or a merge may have put there; None for any other folder."""
    merged = read_record(out)
    if merged is not None:
        return frozenset({RECORD, *(file.name for file in merged.files)})
    try:
        msgspec.json.decode((out / REPORT).read_bytes(), type=MixReport)
    except (OSError, msgspec.MsgspecError):
        return None
    return _OF_MIX
