"""A model folder measured, and the folder before it: both as they are served, one after the other in memory.

Owns the order of loading and what the base is asked. Must not know how either was made.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from engine.context.certificate import read_certificate
from engine.evaluation.calibration import Calibration, calibrate
from engine.evaluation.length_log import CellLog
from engine.evaluation.length_measure import (
    LengthRequest,
    check_request,
    measure_lengths,
    request_key,
    short_length,
)
from engine.evaluation.length_memory import room_for
from engine.evaluation.length_text import load_text
from engine.evaluation.loading import loaded
from engine.evaluation.model import LoadedModel
from engine.evaluation.progress import Report, silent
from engine.evaluation.short_text import ShortScore, short_score
from engine.jobs.length_report import LengthReport


class _OfBase(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the base."""

    short: ShortScore
    calibration: Calibration | None


def measure_folder(
    folder: Path,
    request: LengthRequest,
    *,
    base: Path | None = None,
    log: Path | None = None,
    report: Report = silent,
    dtype: str = "auto",
    quantization: str = "none",
) -> LengthReport:
    """The report of the model in `folder`; `base` is another folder to compare short text with.

    The base also decides how needles are asked: it is the one that must understand the question. The window before the
    extension comes from the folder's certificate where the request does not name it. Raises EngineError.
    """
    began = time.monotonic()
    request = msgspec.structs.replace(request, identity=_identity(folder))
    certificate = _certified(folder)
    if certificate is not None:
        original, method = certificate
        request = msgspec.structs.replace(
            request, original=request.original or original, method=request.method or method
        )
    if base is not None:
        with loaded(base, dtype, quantization) as model:
            request = _with_base(model, base, folder, request, log, report)
    with loaded(folder, dtype, quantization) as model:
        found = measure_lengths(model, request, log, report)
    return msgspec.structs.replace(found, seconds=max(found.seconds, time.monotonic() - began))


def _certified(folder: Path) -> tuple[int, str] | None:
    """(window before, method) of an extended folder; a damaged certificate counts as none."""
    try:
        certificate = read_certificate(folder)
    except msgspec.MsgspecError:
        return None
    return None if certificate is None else (certificate.plan.original, certificate.plan.method)


def _identity(folder: Path) -> str:
    """Path, sizes and times of the weights: another model in the same place is another model."""
    files = sorted(folder.glob("*.safetensors"))
    return "|".join([str(folder.resolve()), *(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)])


def _with_base(
    model: LoadedModel, base: Path, folder: Path, request: LengthRequest, log: Path | None, report: Report
) -> LengthRequest:
    """The request with the base's short score, and the way of asking that the base understands."""
    from engine.models.folder import check_folder

    original = request.original or model.context_length
    window = int(check_folder(folder).get("max_position_embeddings") or original)
    asked = check_request(model, msgspec.structs.replace(request, original=original, window=request.window or window))
    text = load_text(model.tokenizer, asked.text, max(asked.lengths), asked.documents)
    length = short_length(original, text)
    room = room_for(model, length)
    cells = CellLog(log, request_key(model, msgspec.structs.replace(asked, identity=_identity(base)), text))
    try:
        found = cells.find("base", _OfBase)
        if found is None:
            report("the base on short text", 0, 0, None)
            began = time.monotonic()
            short = short_score(model, text, length, room)
            wanted = bool(asked.tasks) and not asked.style
            found = _OfBase(short=short, calibration=calibrate(model, original, room, asked.seed) if wanted else None)
            cells.add("base", found, time.monotonic() - began)
    finally:
        cells.close()
    asked = msgspec.structs.replace(asked, before=found.short)
    if found.calibration is not None:
        asked = msgspec.structs.replace(asked, style=found.calibration.style, informative=found.calibration.informative)
    return asked
