"""`verify`: whether two folders compute the same function.

Owns reading the flags, the words and the exit code. Must not import torch: the comparison is a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.events import DriftReport
    from engine.jobs.function_report import FunctionReport

DIFFER = 1
"""As `cmp` and `diff` say it."""
LAYERS_SHOWN = 8


def verify(arguments: argparse.Namespace) -> int:
    """Compare, print, and say it by the exit code. Raises EngineError."""
    from scaler_tui.commands.evaluate import require_new

    require_new(arguments.out)
    report = _measured(arguments)
    if arguments.out is not None:
        _write(arguments.out.expanduser(), report)
    if arguments.json:
        output.emit_json({"agrees": report.agrees, "report": report})
    else:
        _print(report)
    return int(ExitCode.DONE) if report.agrees else DIFFER


def _measured(arguments: argparse.Namespace) -> FunctionReport:
    import tempfile

    import msgspec

    from engine.jobs.function_report import FunctionReport
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    words = _words(arguments)
    failing = Failing("verify.failed", "Try it again.", own_exit_code=True, patience_seconds=2.0)
    with tempfile.TemporaryDirectory(prefix="scaler-wizard-verify-") as folder:
        path, log = Path(folder) / "report.json", Path(folder) / "verify.log"
        try:
            with ends_when_told(), growth_view(quiet=arguments.json) as view:
                run_module(
                    "engine.proof.verify", [*words, "--out", str(path)], log, "comparing", shown_by(view),
                    failing=failing,
                )  # fmt: skip
        except KeyboardInterrupt:
            raise EngineError("interrupted", "Interrupted.", exit_code=ExitCode.INTERRUPTED) from None
        return msgspec.json.decode(path.read_bytes(), type=FunctionReport)


def _words(arguments: argparse.Namespace) -> list[str]:
    """The flags of the comparing process."""
    from scaler_tui.commands.folders import named_folder

    first, second = (named_folder(word, arguments.base) for word in (arguments.first, arguments.second))
    words = ["--first", str(first.folder.absolute()), "--second", str(second.folder.absolute())]
    base = (named_folder(arguments.base).folder if arguments.base else None) or first.base or second.base
    words += ["--base", str(base.absolute())] if base is not None else []
    words += ["--text", str(arguments.text.expanduser().absolute())] if arguments.text is not None else []
    words += ["--tokens", str(arguments.tokens)] if arguments.tokens else []
    words += ["--tolerance", str(arguments.tolerance)] if arguments.tolerance is not None else []
    return [*words, "--quantization", arguments.quantization]


def _write(path: Path, report: FunctionReport) -> None:
    import msgspec

    from scaler_tui.commands.evaluate import write_file

    write_file(path, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _print(report: FunctionReport) -> None:
    output.say(report.words)
    output.say()
    rows = [
        ["A", f"{report.first} ({report.first_kind})"],
        ["B", f"{report.second} ({report.second_kind})"],
        ["on", f"{report.text}, {report.method}"],
        ["logits", _drift(report.logits) + (", equal bit for bit" if report.identical else "")],
    ]
    if report.own_rounding is not None:
        rows.append(["A in 16 bits", f"{_drift(report.own_rounding)}: what rounding alone does"])
    rows += [
        ["generation", _generation(report)],
        ["loaded again", {True: "the same logits", False: "other logits", None: "not tried"}[report.reloaded]],
        ["perplexity", f"{report.perplexity_first:.4f} and {report.perplexity_second:.4f}"],
    ]
    for name, words in rows:
        output.say(f"{name:<13} {words}")
    _print_layers(report)
    for note in report.notes:
        output.say(f"! {note}")


def _drift(drift: DriftReport) -> str:
    return (
        f"differ by at most {drift.max_rel_logit_diff:.1e} of their range, {drift.mean_kl:.1e} nats per token, "
        f"same first choice in {drift.top1_agreement:.1%}"
    )


def _generation(report: FunctionReport) -> str:
    if report.generation_identical is None:
        return "not tried"
    if report.generation_identical:
        return f"{report.generation_tokens} tokens with a cache, all the same"
    tie = ", where two tokens are equally good" if report.generation_tie else ""
    return f"parts at token {report.parted_at} of {report.generation_tokens}{tie}"


def _print_layers(report: FunctionReport) -> None:
    if report.layers_note:
        output.say(f"{'layers':<13} {report.layers_note}")
        return
    every = max(1, -(-len(report.layers) // LAYERS_SHOWN))
    shown = [layer for layer in report.layers if layer.layer % every == 0 or layer is report.layers[-1]]
    output.say(f"{'layers':<13} largest and mean difference of what they hold after each")
    for layer in shown:
        output.say(f"  {layer.layer:>9}   {layer.largest:.1e}  {layer.mean:.1e}")
