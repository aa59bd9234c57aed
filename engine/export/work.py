"""`python -m engine.export.work ORDER.json REPORT.json`: one export in a process of its own.

Owns the order of steps. Prints {"done", "total", "words"} lines as it works, {"error": {...}} when it gives up. Must
not know torch: what needs it are processes of their own again. Repeating an order after a kill goes on with what is
missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.export.beforehand import check_source
from engine.export.finished import RECORD, write_record
from engine.export.gguf_files import NOT_ASKED, GgufWork, check_quantiser, differs
from engine.export.hf import write_card, write_folder
from engine.export.merged import has_own_config, merged_model
from engine.export.modelcard import ModelFacts, model_card
from engine.export.ollama_files import create_commands, write_modelfiles
from engine.export.order import ExportOrder, check_order, read_order
from engine.export.origin import Origin, origin_of, spec_of
from engine.export.questions import asked_of
from engine.export.staging import Staging, explained, finish, require_room, staging_of, written_bytes
from engine.export.verify import Spoken, Verifier, faults
from engine.jobs.export_report import Agreement, ExportedFile, ExportReport
from engine.jobs.spec_export import Destination
from engine.models.config import CONFIG_NAME, read_json_object, text_part
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.shape import read_shape

Say = Callable[[str, int, int], None]
_SAY_SECONDS = 0.1


def export(order: ExportOrder, say: Say) -> ExportReport:
    """Write what the order says; `order.out` is there then, and not before. Raises EngineError `export.*`, `model.*`,
    `adapter.*`, `merge.*`, `disk.full`, before anything is written where that can be known; `export.differs` and
    `verify.load` (exit code 5) for a result that is wrong."""
    began = time.monotonic()
    check_order(order)
    check_quantiser(order)
    needed_bytes = check_source(order)
    with staging_of(order) as staging, explained(staging.folder, needed_bytes):
        require_room(staging.folder, needed_bytes - written_bytes(staging.folder), "The export")
        model = _model(order, staging, say)
        writer = _hf if order.destination is Destination.HF else _gguf
        files, flags = writer(order, staging, model, say)
        report = ExportReport(
            destination=order.destination.value,
            source=order.source,
            files=files,
            flags=flags,
            seconds=time.monotonic() - began,
        )
        if not order.one_file:
            write_record(staging.result, order.out_path, staging.identity, report)
        finish(staging)
    return told(order, report)


def told(order: ExportOrder, report: ExportReport) -> ExportReport:
    """`report` with its source and a command that uses what it is about."""
    return msgspec.structs.replace(report, source=order.source, next_step=_next_step(order, report))


def _model(order: ExportOrder, staging: Staging, say: Say) -> Path:
    """The folder with the weights."""
    if not order.is_adapter:
        check_folder(Path(order.source))
        return Path(order.source)
    if order.adapter:
        return Path(order.base)
    if not order.needs_model:
        return Path(order.source)
    return merged_model(Path(order.source), Path(order.base), staging.work / "merged", say)


def _next_step(order: ExportOrder, report: ExportReport) -> str:
    """A command that uses it."""
    if order.destination is Destination.OLLAMA:
        return " && ".join(shlex.join(command) for command in create_commands(order))
    if order.destination is Destination.HF:
        return shlex.join(("scaler-wizard", "chat", order.out))
    base = next((file.path for file in report.files if file.kind != "adapter"), "BASE.gguf")
    adapter = next((file.path for file in report.files if file.kind == "adapter"), "")
    return shlex.join(("llama-cli", "-m", base, *(("--lora", adapter) if adapter else ())))


# ── gguf, ollama ─────────────────────────────────────────────────────────────────────────────────────────────────
def _gguf(
    order: ExportOrder, staging: Staging, model: Path, say: Say
) -> tuple[tuple[ExportedFile, ...], tuple[str, ...]]:
    work = GgufWork(order, staging, model, spec_of(order), say)
    work.make()
    files = list(work.files)
    if order.destination is Destination.OLLAMA:
        files = [*write_modelfiles(work, origin_of(order).licence), *files]
    return tuple(files), tuple(work.flags)


# ── hf ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _hf(
    order: ExportOrder, staging: Staging, model: Path, say: Say
) -> tuple[tuple[ExportedFile, ...], tuple[str, ...]]:
    say("writing the folder", 0, 0)
    write_folder(model, staging.result)
    origin, flags = origin_of(order), []
    found, why = _loads(order, staging, model, say) if order.verify else (None, NOT_ASKED)
    if not origin.licence.is_known:
        flags.append(f"The licence of {origin.base} is unknown: find out before you publish the model.")
    if why and order.verify:
        flags.append(f"Not verified: {why}")
    write_card(staging.result, model_card(_facts(order, staging.result, origin, found)), origin.licence.files)
    written = (path for path in staging.result.rglob("*") if path.is_file() and path.name != RECORD)
    size = sum(path.stat().st_size for path in written)
    file = ExportedFile(path=order.out, size_bytes=size, kind="hf", agreement=found, not_verified=why)
    return (file,), tuple(flags)


def _loads(order: ExportOrder, staging: Staging, model: Path, say: Say) -> tuple[Agreement | None, str]:
    """The folder in stock transformers against what it was made of: an adapter on its base, or the model's folder.
    Raises EngineError `verify.load`, `export.differs`."""
    began = time.monotonic()
    source = Spoken(model)
    if order.is_adapter and not has_own_config(Path(order.source)):
        source = Spoken(Path(order.base), Path(order.source))
    try:
        asked = asked_of(staging.result, spec_of(order))
        verifier = Verifier.of(source, asked, staging.work / "verify", say, staging.result)
    except EngineError as error:
        if error.code == "verify.load" and not order.keep_failed:
            raise
        return None, " ".join(part for part in (error.what, error.cause) if part)
    found = verifier.in_transformers(time.monotonic() - began)
    wrong = faults(found, "hf")
    if wrong and not order.keep_failed:
        raise differs(order.out_path.name, wrong)
    return found, ""


def _facts(order: ExportOrder, folder: Path, origin: Origin, found: Agreement | None) -> ModelFacts:
    config = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    names = ("transformers", "scaler-wizard")
    return ModelFacts(
        name=order.name,
        base=origin.base,
        licence=origin.licence,
        base_on_hub=origin.on_hub,
        adapter=order.is_adapter,
        card=origin.card,
        spec=origin.spec,
        parameters=sum(tensor.elements for tensor in read_headers(folder).tensors),
        context=read_shape(text_part(config)[0], CONFIG_NAME).context_length,
        check=found,
        versions={name: importlib.metadata.version(name) for name in names},
    )


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    helper_process.leave_with_the_asker()
    os.environ.setdefault("HF_HUB_OFFLINE", "0")  # the licence of a base may be known there only
    order, out = read_order(Path(arguments[0])), Path(arguments[1])
    lines, last = helper_process.LineOut(), ("", 0.0)

    def say(words: str, done: int, total: int) -> None:
        nonlocal last
        if words == last[0] and done < total and time.monotonic() - last[1] < _SAY_SECONDS:
            return
        last = (words, time.monotonic())
        lines.write(json.dumps({"done": done, "total": total, "words": words}).encode() + b"\n")

    return helper_process.run(lambda: helper_process.write_json(out, export(order, say)), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "export.memory",
        "The export ran out of memory.",
        cause=cause,
        next_step="Close other programs and run the same command again: it goes on with what is missing.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
