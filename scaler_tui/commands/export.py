"""`export`: a model in the form of another program, verified, or a job file.

Owns the text, the JSON and where things go by default. Must not import torch or numpy: exporting is a process of its
own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes
from scaler_tui import output

if TYPE_CHECKING:
    from engine.export.order import ExportOrder
    from engine.jobs.export_report import ExportedFile, ExportReport

_PATIENCE_SECONDS = 2.0


def export(arguments: argparse.Namespace) -> int:
    """Write what was asked for. Raises EngineError."""
    from scaler_tui.cli_export import JOB_FILES, check_flags

    check_flags(arguments)
    if arguments.tool in JOB_FILES:
        from scaler_tui.commands.export_job import export_job

        return export_job(arguments)
    if arguments.push:
        from engine.export.push import check_push

        check_push(arguments.push)
    source = _source(arguments)
    if arguments.sizes:
        return _say_sizes(source, as_json=arguments.json)
    return _export(arguments, source)


@dataclass(frozen=True, slots=True)
class _Source:
    """What SOURCE means."""

    folder: Path
    name: str
    base: Path | None
    """Of an adapter."""
    run_dir: Path | None


def _source(arguments: argparse.Namespace) -> _Source:
    """Raises EngineError `run.*`, `model.*`, `adapter.*`."""
    from engine.jobs import elsewhere, layout
    from engine.jobs.store import find_run
    from engine.jobs.summary import read_record
    from scaler_tui.commands.folders import named_folder

    word = str(arguments.spec) if arguments.spec is not None else "latest"
    try:
        run_dir = None if _is_model(Path(word).expanduser()) else find_run(word)
    except EngineError:
        if arguments.spec is None:
            raise
        run_dir = None
    if run_dir is None:
        named = named_folder(word, arguments.base)
        return _Source(named.folder.absolute(), named.name, named.base, None)
    if elsewhere.is_elsewhere(run_dir) and not (run_dir / layout.OUTPUT).is_dir():
        raise EngineError(
            "run.elsewhere",
            f"What run {run_dir.name} made is on another machine.",
            next_step=f"Bring it here first: scaler-wizard remote fetch {run_dir.name}",
        )
    merged = run_dir / layout.OUTPUT / "merged"
    if not arguments.adapter and _is_model(merged):
        return _Source(merged, _run_name(run_dir), None, run_dir)
    read_record(run_dir)
    named = named_folder(str(run_dir), arguments.base)
    return _Source(named.folder.absolute(), _run_name(run_dir), named.base, run_dir)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _run_name(run_dir: Path) -> str:
    from engine.jobs import layout
    from engine.jobs.spec_toml import load_spec

    return load_spec(run_dir / layout.SPEC).name or run_dir.name


# ── exporting ────────────────────────────────────────────────────────────────────────────────────────────────────
def _order(arguments: argparse.Namespace, source: _Source) -> ExportOrder:
    """Raises EngineError `usage` for what cannot be meant."""
    from engine.export.order import ExportOrder, file_name, largest_first
    from engine.jobs.spec_export import Destination

    destination, name = Destination(arguments.tool), file_name(arguments.name or source.name)
    types = largest_first(arguments.type)
    if not types and (destination is Destination.OLLAMA or not arguments.adapter):
        types = ("q8_0",)
    out = arguments.out
    one_file = destination is Destination.GGUF and out is not None and out.suffix == ".gguf"
    if one_file and len(types) + arguments.adapter > 1:
        raise EngineError(
            "usage",
            f"{out} is one file, but {len(types) + arguments.adapter} were asked for.",
            next_step="Name a folder with --out, or ask for one --type.",
        )
    if out is None:
        out = _default_out(source, destination.value, name)
    order = ExportOrder(
        destination=destination,
        source=str(source.folder),
        out=str(out.expanduser().absolute()),
        name=name,
        base=str(source.base.absolute()) if source.base is not None else "",
        run_dir=str(source.run_dir) if source.run_dir is not None else "",
        types=types,
        adapter=arguments.adapter,
        imatrix=str(arguments.imatrix.expanduser().absolute()) if arguments.imatrix is not None else "",
        verify=not arguments.no_verify,
        force=arguments.force,
        keep_failed=arguments.keep_failed,
        one_file=one_file,
    )
    return order


def _default_out(source: _Source, destination: str, name: str) -> Path:
    """A run's own folder, or a new one here."""
    if source.run_dir is None:
        return Path(f"{name}-{destination}")
    from engine.export.order import EXPORTS

    return source.run_dir / EXPORTS / destination


def _export(arguments: argparse.Namespace, source: _Source) -> int:
    import msgspec

    from engine.export.order import check_order

    order = _order(arguments, source)
    report = _finished(order) if arguments.push and not arguments.force else None
    if report is None:
        check_order(order)
        report = _exported(order, quiet=arguments.json)
    # Noted and told first: what may fail now is about a finished export.
    if source.run_dir is not None:
        _note_in_card(source.run_dir, report)
    if not arguments.json:
        _print(report)
    created: tuple[str, ...] = ()
    if order.destination.value == "ollama" and not arguments.no_create:
        from engine.export.ollama_create import create_from

        created = create_from(report)
    url = _pushed(order.out, arguments) if arguments.push else ""
    if arguments.json:
        output.emit_json({**msgspec.to_builtins(report), "created": list(created), "pushed": url})
        return int(ExitCode.DONE)
    for name in created:
        output.say(f"Ollama has it: ollama run {name}")
    if report.next_step and not created:
        output.say(f"Next: {report.next_step}")
    if url:
        output.say(f"Pushed to {url}")
    return int(ExitCode.DONE)


def _finished(order: ExportOrder) -> ExportReport | None:
    """What an earlier attempt at the same order wrote whole: it need only be pushed."""
    import msgspec

    from engine.export.finished import read_record
    from engine.export.staging import identity_of

    found = read_record(order.out_path)
    if found is None or found.order != identity_of(order):
        return None
    return msgspec.structs.replace(found.report, source=order.source)


def _exported(order: ExportOrder, *, quiet: bool) -> ExportReport:
    import tempfile

    import msgspec

    from engine.jobs.export_report import ExportReport

    with tempfile.TemporaryDirectory(prefix="scaler-wizard-export-") as folder:
        place = Path(folder)
        (place / "order.json").write_bytes(msgspec.json.encode(order))
        words = [str(place / "order.json"), str(place / "report.json")]
        _run("engine.export.work", words, place, quiet=quiet)
        return msgspec.json.decode((place / "report.json").read_bytes(), type=ExportReport)


def _run(module: str, words: list[str], place: Path, *, quiet: bool, hear: Any = None) -> None:
    """A process of its own, with its progress shown. Raises its EngineError."""
    from engine.surgery.helpers import Failing, Progress, run_module
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    failing = Failing(
        "export.failed",
        "Run the same command again: it goes on with what is missing.",
        own_exit_code=True,
        patience_seconds=_PATIENCE_SECONDS,
    )
    try:
        with ends_when_told(), growth_view(quiet=quiet) as view:

            def report(progress: Progress) -> None:
                counts_bytes = progress.words.startswith(("writing", "quantising", "merging"))
                view.show(progress.words, progress.done_bytes, progress.total_bytes, counts_bytes=counts_bytes)

            run_module(module, words, place / "export.log", "exporting", report, failing=failing, hear=hear)
    except KeyboardInterrupt:
        raise EngineError(
            "interrupted",
            "Interrupted.",
            next_step="The same command goes on with what is missing.",
            exit_code=ExitCode.INTERRUPTED,
        ) from None


def _pushed(folder: str, arguments: argparse.Namespace) -> str:
    """The address. The token reaches the process through its environment or the keyring, never on its command line."""
    import tempfile

    import msgspec

    lines: list[bytes] = []
    words = [folder, arguments.push, *(["--private"] if arguments.private else [])]
    with tempfile.TemporaryDirectory(prefix="scaler-wizard-push-") as place:
        if not arguments.json:
            output.note(f"Uploading to {arguments.push} ...")
        _run("engine.export.push", words, Path(place), quiet=arguments.json, hear=lines.append)
    told: dict[str, str] = msgspec.json.decode(lines[-1])
    return told["url"]


def _note_in_card(run_dir: Path, report: ExportReport) -> None:
    """Into the run's card, where it has one: a stopped run has none."""
    from engine.jobs.card_exports import add_exports

    add_exports(run_dir, (report,))


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _print(report: ExportReport) -> None:
    from engine.jobs.result_words import agreement_words, change_words

    rows = []
    for file in report.files:
        change = change_words(file.agreement) if file.agreement is not None else ""
        rows.append([_shown(file), file.kind, format_bytes(file.size_bytes), change])
    output.table(["FILE", "KIND", "SIZE", "PERPLEXITY"], rows, right=(2, 3))
    for file in report.files:
        if file.agreement is not None:
            output.say(f"{Path(file.path).name}: {agreement_words(file.agreement)}.")
        elif file.not_verified:
            output.say(f"{Path(file.path).name}: not verified. {file.not_verified}")
    for flag in report.flags:
        output.say(f"! {flag}")


def _shown(file: ExportedFile) -> str:
    here = Path.cwd()
    path = Path(file.path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _say_sizes(source: _Source, *, as_json: bool) -> int:
    """The sizes of every type; an adapter's are those of the merged model."""
    import tempfile

    import msgspec

    lines: list[bytes] = []
    with tempfile.TemporaryDirectory(prefix="scaler-wizard-sizes-") as place:
        folder = str(source.base or source.folder)
        _run("engine.export.sizes", [folder], Path(place), quiet=True, hear=lines.append)
    sizes: dict[str, int] = msgspec.json.decode(lines[-1])["sizes"]
    if as_json:
        output.emit_json({"source": str(source.folder), "sizes": sizes})
    else:
        output.table(["TYPE", "SIZE"], [[kind, format_bytes(size)] for kind, size in sizes.items()], right=(1,))
    return int(ExitCode.DONE)
