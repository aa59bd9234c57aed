"""The phase "exporting" at the end of a job: its result written for other programs, as [export] asks.

Owns the order of exports and what is done about one that fails: the run is finished all the same, and its card says
why. Must not know formats: each export is a process of its own (`engine.export.work`), which goes on where a killed one
was. What one export made the next does not make again: a folder is merged once, a GGUF file written and compared once.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.export.finished import read_record
from engine.export.ollama_create import create_from
from engine.export.order import EXPORTS, ExportOrder, check_order, file_name, largest_first
from engine.export.staging import identity_of
from engine.export.work import told
from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.card import Card
from engine.jobs.card_exports import add_exports, inside
from engine.jobs.card_io import read_card
from engine.jobs.export_report import ExportReport
from engine.jobs.spec_export import Destination
from engine.models.adapter import base_of_adapter
from engine.models.resolve import download_weights, resolve_model
from engine.surgery.helpers import Failing, Progress, run_module
from engine.train.attempt import Attempt, Outcome
from engine.train.output import MERGED

_FAILING = Failing("export.failed", "Export it by hand.", own_exit_code=True)
_HELD = "output/held"
_ORDER = (Destination.HF, Destination.OLLAMA, Destination.GGUF)
"""The first makes a folder that the others read; the second files that the last only has to link."""


def is_only_left(attempt: Attempt) -> bool:
    """Whether the job itself is done, with its card, and an attempt was ended while it exported."""
    alone = attempt.company is None  # several processes find together that nothing is left to train
    return alone and bool(attempt.spec.export.to) and (attempt.run_dir / layout.CARD).is_file()


def go_on(attempt: Attempt) -> Outcome:
    """The exports of a job that was done already."""
    card = read_card(attempt.run_dir)
    return after(attempt, Outcome("finished", card.steps))


def after(attempt: Attempt, outcome: Outcome) -> Outcome:
    """`outcome`, with the exports made where the job is finished. Raises PauseRequested; a failed export is a note."""
    if not attempt.spec.export.to or attempt.follows or outcome.outcome != "finished":
        return outcome
    if not (attempt.run_dir / layout.CARD).is_file():
        return outcome
    card = read_card(attempt.run_dir)
    if card.adapter.path.startswith(_HELD):
        _note(attempt, "Nothing was exported: the result was not promoted.", f"scaler-wizard card {card.run_id}")
    else:
        targets = [target for target in _ORDER if target in attempt.spec.export.to]
        for number, target in enumerate(targets, 1):
            attempt.obey_before_training()
            attempt.phase("exporting", target.value, number, len(targets))
            _export(attempt, read_card(attempt.run_dir), target)
    attempt.journal.write(ev.CardReady(t=time.time()))
    return outcome


def _export(attempt: Attempt, card: Card, target: Destination) -> None:
    try:
        order = _order(attempt, card, target)
        if _is_done(card, order, attempt.run_dir):
            return
        report = inside(_finished(order) or _exported(attempt, order), attempt.run_dir)
        add_exports(attempt.run_dir, (report,))
    except EngineError as error:
        _failed(attempt, target, error)
        return
    except OSError as error:  # a full or read-only disk, where no step said so in words
        cause = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        _failed(attempt, target, EngineError("export.write", "Its files cannot be written.", cause=cause))
        return
    attempt.journal.write(ev.Exported(t=time.time(), report=report))
    if target is Destination.OLLAMA:
        _create(attempt, report)


def _failed(attempt: Attempt, target: Destination, error: EngineError) -> None:
    """The run is finished all the same. That somebody else is at the same export is no fault to be kept."""
    again = f"scaler-wizard export {target.value} {attempt.run_dir.name}"
    what = f"The export to {target.value} failed: {error.what} {error.cause}".strip()
    next_step = f"{error.next_step} Then: {again}".strip()
    if error.code == "export.busy":
        attempt.warn(what, next_step)
    else:
        _note(attempt, what, next_step)


def _finished(order: ExportOrder) -> ExportReport | None:
    """What a killed attempt had finished and not noted: the folder has its name, and is of the same order."""
    found = read_record(order.out_path) if order.force else None
    return told(order, found.report) if found is not None and found.order == identity_of(order) else None


def _create(attempt: Attempt, report: ExportReport) -> None:
    try:
        names = create_from(report)
    except EngineError as error:
        _note(attempt, f"{error.what} {error.cause}", error.next_step)
    else:
        for name in names:
            attempt.say(f"Ollama has it: ollama run {name}")
        if not names:
            attempt.say(f"For Ollama: {report.next_step}")


def _is_done(card: Card, order: ExportOrder, run_dir: Path) -> bool:
    """Whether an earlier attempt finished it: the files are there, and the card knows them."""
    told = [report for report in card.exports if report.destination == order.destination.value]
    return any(all((run_dir / file.path).exists() for file in report.files) for report in told)


def _order(attempt: Attempt, card: Card, target: Destination) -> ExportOrder:
    section, run_dir = attempt.spec.export, attempt.run_dir
    adapter = section.adapter and target is not Destination.HF
    source, base = _source(attempt, card, target, adapter=adapter)
    order = ExportOrder(
        destination=target,
        source=str(source),
        out=str(run_dir / EXPORTS / target.value),
        name=file_name(attempt.spec.name or run_dir.name),
        base=str(base) if base is not None else "",
        run_dir=str(run_dir),
        types=largest_first(section.gguf_types),
        adapter=adapter,
        verify=section.verify,
        force=(run_dir / EXPORTS / target.value).exists(),  # of an earlier attempt, but not on the card
        made=tuple(report for report in card.exports if report.destination != target.value),
    )
    check_order(order)
    return order


def _source(attempt: Attempt, card: Card, target: Destination, *, adapter: bool) -> tuple[Path, Path | None]:
    """The folder of the result, and its base where it is an adapter. An earlier export stands in for it, but not for
    its own."""
    result = attempt.run_dir / card.adapter.path  # absolute where the spec names a place outside
    if card.adapter.kind == "model":
        return result, None
    exported = attempt.run_dir / EXPORTS / Destination.HF.value
    for whole in (attempt.run_dir / layout.OUTPUT / MERGED, exported):
        if not adapter and whole.is_dir() and not (whole == exported and target is Destination.HF):
            return whole, None
    try:
        return result, base_of_adapter(result)
    except EngineError:
        ref = download_weights(resolve_model(attempt.spec.model.source, revision=attempt.spec.model.revision))
        assert ref.path is not None
        return result, ref.path


def _exported(attempt: Attempt, order: ExportOrder) -> ExportReport:
    place = attempt.run_dir / EXPORTS
    place.mkdir(parents=True, exist_ok=True)
    orders, reports = (place / f".{order.destination.value}.{name}.json" for name in ("order", "report"))
    layout.write_atomic(orders, msgspec.json.encode(order))
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            words = f"{order.destination.value}: {progress.words}"
            attempt.phase("exporting", words, progress.done_bytes, progress.total_bytes)

    try:
        run_module(
            "engine.export.work", [str(orders), str(reports)], attempt.run_dir / layout.WORKER_LOG, "exporting", report,
            failing=_FAILING,
        )  # fmt: skip
        return msgspec.json.decode(reports.read_bytes(), type=ExportReport)
    finally:
        for path in (orders, reports):
            path.unlink(missing_ok=True)


def _note(attempt: Attempt, message: str, next_step: str) -> None:
    """Into the journal and onto the card, where that can be written."""
    attempt.warn(message, next_step)
    with suppress(EngineError, OSError):
        add_exports(attempt.run_dir, (), (f"{message} {next_step}".strip(),))
