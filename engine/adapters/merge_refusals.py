"""Why a merge is not begun, or ends early, in words.

Owns the refusals about folders, quantised bases and room. Must not know tensors.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.adapters.replacing import check_apart, check_free
from engine.errors import EngineError, ExitCode
from engine.expansion.packed import quantisation
from engine.models.headers import Headers
from engine.models.weights import count_weights
from engine.surgery import checks
from engine.units import format_bytes

SPARE_BYTES = 64 << 20
_QUANTISED_NAME = re.compile(
    r"(-unsloth)?[-_](bnb|int|nf|fp)?[-_]?[248]-?bits?$|[-_](gptq|awq|hqq|aqlm|fp8|nf4|int[48]|w[48]a(8|16))([-_].*)?$",
    re.IGNORECASE,
)


def plain_name(name: str) -> str:
    """A quantised model's name without what says so: "unsloth/Qwen3-4B-bnb-4bit" is "unsloth/Qwen3-4B"; "" for a name
    that says nothing of the kind."""
    trimmed = name.rstrip("/")
    plain = _QUANTISED_NAME.sub("", trimmed)
    plain = re.sub(r"[-_](unsloth|bnb)$", "", plain) if plain != trimmed else plain
    return plain if plain != trimmed else ""


def check_not_quantised(config: Mapping[str, Any], headers: Headers, base: str) -> None:
    """Raises EngineError `merge.quantised_base`: rounding to 4 or 8 bits would swallow the update."""
    section = config.get("quantization_config")
    method = quantisation(config)
    if not method:
        method = count_weights(headers, section if isinstance(section, dict) else {}, multimodal=False).quantization
    if method:
        raise quantised_base(base, f"Its weights are packed ({method}).")


def quantised_base(base: str, cause: str) -> EngineError:
    """The refusal, with the model to take instead where the name tells it."""
    plain = plain_name(base)
    wanted = f"--base {plain}" if plain else "--base with the 16-bit model it was made from"
    return EngineError(
        "merge.quantised_base",
        f"An adapter is not merged into a quantised model, and {base} is one.",
        cause=f"{cause} Rounding the sum to so few bits again would lose most of the update.",
        next_step=f"Give the unquantised model: {wanted}. An adapter trained on the quantised one fits it.",
    )


def check_out(base: Path, adapters: Iterable[Path], out: Path, *, force: bool) -> None:
    """Raises EngineError `merge.out_exists`, `surgery.out_*`. See `check_free` for what `force` replaces."""
    check_apart(out, [("adapter", adapter) for adapter in adapters], "surgery.out_inside_source")
    try:
        checks.check_folders(base, out, resume=False)
    except EngineError as error:
        if error.code != "surgery.out_exists":
            raise
        check_free(out, "merge.out_exists", force=force)


def check_room(out: Path, needed_bytes: int) -> None:
    """Raises EngineError `disk.full` before anything is written, with what is missing."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free, needed = shutil.disk_usage(parent).free, needed_bytes + SPARE_BYTES
    if free < needed:
        raise EngineError(
            "disk.full",
            f"The merged model needs {format_bytes(needed)} in {parent}; {format_bytes(needed - free)} are missing.",
            cause=f"{format_bytes(free)} are free. It is written whole beside the base, which stays.",
            next_step=f"Free {format_bytes(needed - free)}, or choose an --out on another disk.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def disk_full(out: Path, folder: Path, left_bytes: int, error: OSError) -> EngineError:
    """The disk filled up on the way; `left_bytes` are to be written still."""
    free = shutil.disk_usage(folder).free
    missing = max(left_bytes + SPARE_BYTES - free, 0)
    told = f"{format_bytes(left_bytes)} are to be written still, {format_bytes(free)} are free"
    told += f": {format_bytes(missing)} are missing" if missing else ""
    return EngineError(
        "disk.full",
        f"There is no room left to write {out}; {told}.",
        cause=error.strerror or str(error),
        next_step=(f"Free {format_bytes(missing)} or more" if missing else "Free some space")
        + ", then repeat the command: finished weight files are kept.",
        exit_code=ExitCode.RUN_FAILED,
    )


def other_order(out: Path, folder: Path, cause: str) -> EngineError:
    """An unfinished folder of something else is in the way."""
    return EngineError(
        "merge.unfinished",
        f"Something else that was to become {out} lies unfinished in {folder}.",
        cause=cause,
        next_step="Repeat that command to finish it, choose another --out, or use --force, which drops it.",
    )
