"""`adapters merge`: a model folder made of a base and adapters, and how far it is from the adapter on its base.

Owns the flags, the text and the JSON. Must not import torch: the merge is `engine.adapters.merge`'s, the comparison a
process of its own.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_duration
from scaler_tui import output
from scaler_tui.cli_flags import json_flag

if TYPE_CHECKING:
    from engine.adapters.folder import AdapterFolder
    from engine.adapters.merge import MergeRequest
    from engine.adapters.merge_record import MergeRecord
    from engine.jobs.function_report import FunctionReport
    from engine.surgery.helpers import Progress
    from scaler_tui.growth_progress import Silent

PHASES = {"checks": "checking", "weights": "merging"}
PACKINGS = ("nf4", "fp4")
_MORE = (
    "float32 arithmetic, tensor by tensor: memory holds a few matrices, whatever the base's size. Several adapters "
    "with weights add up to the exact sum of their updates. Repeating the command after an interruption goes on with "
    "the files that were finished. A base in 4 or 8 bits is refused: an adapter trained on one fits the 16-bit model."
)


def add_merge(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar; `add(name, help, more)` makes a subcommand."""
    command = add("merge", "write a model folder with adapters folded into their base", _MORE)
    command.add_argument(
        "adapters", nargs="+", metavar="ADAPTER[=WEIGHT]", help="an adapter's folder or a run; weight 1 when left out"
    )
    command.add_argument("--base", default="", metavar="MODEL", help="the unquantised base, where it is not as named")
    command.add_argument(
        "--out", "-o", type=Path, metavar="FOLDER", help="a new folder (the adapter's name and -merged)"
    )
    command.add_argument(
        "--dtype", choices=("stored", "float32", "bfloat16", "float16"), default="stored",
        help="of the merged weights; stored keeps every tensor's type",
    )  # fmt: skip
    command.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest weight file (5GB)")
    command.add_argument("--force", action="store_true", help="replace what a mix or a merge wrote there")
    command.add_argument("--no-verify", action="store_true", help="do not compare with the adapter on its base")
    command.add_argument(
        "--trained-on", choices=PACKINGS, default="", help="also compare with the adapter on its base packed so (QLoRA)"
    )
    json_flag(command)


def merge_adapters(arguments: argparse.Namespace) -> int:
    """Merge, compare, say it. Raises EngineError."""
    from engine.adapters.merge import merge
    from scaler_tui.growth_progress import growth_view

    request = _request(arguments)
    if not arguments.json:
        output.note(f"Merging into {request.base} ...")
    try:
        with growth_view(quiet=arguments.json) as view:
            record = merge(request, drawn_by(view))
    except KeyboardInterrupt:
        raise _interrupted(request) from None
    checks, why = _compared(arguments, request)
    if arguments.json:
        output.emit_json(_json(request, record, checks, why))
    else:
        _print(request, record, checks, why)
    return int(ExitCode.DONE)


# ── what is merged ───────────────────────────────────────────────────────────────────────────────────────────────
def _request(arguments: argparse.Namespace) -> MergeRequest:
    from engine.adapters.merge import MergeRequest
    from engine.adapters.merge_plan import Weighed
    from engine.units import parse_bytes
    from scaler_tui.commands.adapters_mix import shares_of

    shares = shares_of(arguments.adapters)
    mix = tuple(Weighed(share.adapter, share.weight) for share in shares)
    out = arguments.out.expanduser() if arguments.out is not None else Path(f"{shares[0].name}-merged")
    return MergeRequest(
        base=_base(arguments.base, mix[0].adapter),
        mix=mix,
        out=out.absolute(),
        dtype=arguments.dtype,
        shard_bytes=parse_bytes(arguments.shard_size),
        force=arguments.force,
    )


def _base(named: str, adapter: AdapterFolder) -> Path:
    """The base's folder, with its weights. Raises EngineError `adapter.no_base`, `merge.quantised_base`, `model.*`."""
    from engine.adapters.merge_refusals import plain_name, quantised_base
    from engine.models.adapter import base_of_adapter
    from engine.models.resolve import require_weights, resolve_model

    if named:
        return require_weights(resolve_model(named))
    try:
        return base_of_adapter(adapter.path)
    except EngineError:
        if plain_name(adapter.config.base):
            raise quantised_base(adapter.config.base, "The adapter was trained on it, and names it.") from None
        raise


def _interrupted(request: MergeRequest) -> EngineError:
    from engine.surgery.staging import staging_folder

    kept = staging_folder(request.out)
    return EngineError(
        "interrupted",
        f"Interrupted; finished files are kept in {kept}." if kept.exists() else "Interrupted; nothing was written.",
        next_step="Repeat the command to go on.",
        exit_code=ExitCode.INTERRUPTED,
    )


def drawn_by(view: Silent) -> Callable[[Progress], None]:
    """What draws a merge's progress."""

    def report(progress: Progress) -> None:
        if progress.phase != "done":
            phase = PHASES.get(progress.phase, progress.phase)
            view.show(phase, progress.done_bytes, progress.total_bytes)

    return report


def _compared(arguments: argparse.Namespace, request: MergeRequest) -> tuple[dict[str, FunctionReport], str]:
    from scaler_tui.commands.merged_comparison import NOT_ASKED, compare_merged

    if arguments.no_verify:
        return {}, NOT_ASKED
    packings = ("none", *((arguments.trained_on,) if arguments.trained_on else ()))
    return compare_merged(request, packings, quiet=arguments.json)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _print(request: MergeRequest, record: MergeRecord, checks: dict[str, FunctionReport], why: str) -> None:
    from scaler_tui.commands.merged_comparison import say_compared

    kept = f", {format_bytes(record.kept_bytes)} of it kept from an earlier attempt" if record.kept_bytes else ""
    output.say(f"Merged    {request.out}")
    output.say(
        f"          {format_bytes(record.size_bytes)}{kept}; {record.changed} of {record.tensors} tensors changed; "
        f"{format_duration(record.seconds)}, at most {format_bytes(record.peak_rss_bytes)} of memory"
    )
    say_compared(request, checks, why)
    for note in record.notes:
        output.say(f"! {note}")
    output.say(f"Next      scaler-wizard export gguf {shlex.quote(str(request.out))}")


def _json(request: MergeRequest, record: MergeRecord, checks: dict[str, FunctionReport], why: str) -> dict[str, Any]:
    return {
        "out": str(request.out),
        "size_bytes": record.size_bytes,
        "merge": record,
        "checks": checks,
        "not_compared": why,
    }
