"""`adapters list`, `inspect` and `test`; and which command a verb of `adapters` means.

Owns the words and the JSON. Must not compute: that is `engine.adapters`. torch is imported in a process of its own
(`adapters test --peft`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.jobs.named_adapter import LEFT_BY_RUNS, adapter_folder, adapter_name
from engine.units import format_bytes, format_count
from scaler_tui import output

if TYPE_CHECKING:
    from engine.adapters.identity import IdentityReport
    from engine.adapters.inspection import AdapterReport, MatrixReport
    from engine.adapters.recipe import Share
    from engine.jobs.function_report import FunctionReport

COMPARED_TOKENS = "512"
PEFT_TOLERANCE = 1e-4
"""Of logits: two orders of summation in float32."""


def adapters(arguments: argparse.Namespace) -> int:
    """Carry out the verb."""
    from scaler_tui.commands import adapters_merge, adapters_mix, adapters_sweep

    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": list_adapters,
        "inspect": inspect,
        "test": test,
        "mix": adapters_mix.mix,
        "merge": adapters_merge.merge_adapters,
        "sweep": adapters_sweep.sweep,
        "score": adapters_sweep.score,
    }
    return verbs[arguments.verb](arguments)


# ── words on the command line ────────────────────────────────────────────────────────────────────────────────────
def base_folder(word: str) -> Path | None:
    """The model that --base names; None where it names none."""
    from engine.models.resolve import require_weights, resolve_model

    return require_weights(resolve_model(word)) if word else None


# ── list ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Listed:
    """One line."""

    name: str
    path: str
    kind: str = ""
    rank: int = 0
    matrices: int = 0
    size_bytes: int = 0
    base: str = ""
    problem: str = ""


def list_adapters(arguments: argparse.Namespace) -> int:
    """Adapters of runs, then those in the folders given."""
    from engine.adapters.inspection import find_adapters
    from engine.jobs.store import list_runs

    missing = [folder for folder in arguments.folders if not folder.expanduser().is_dir()]
    if missing:
        raise EngineError("adapter.unknown", f"There is no folder {missing[0]}.", next_step="Check the path.")
    of_runs = [run.directory / left for run in list_runs() for left in LEFT_BY_RUNS if (run.directory / left).is_dir()]
    given = find_adapters(folder.expanduser().absolute() for folder in arguments.folders)
    found = [_listed(folder) for folder in dict.fromkeys((*of_runs, *given))]
    if arguments.json:
        output.emit_json({"adapters": found})
        return int(ExitCode.DONE)
    if not found:
        output.say("No adapters. Runs that train one leave it in output/adapter; name folders to look into others.")
        return int(ExitCode.DONE)
    rows = [
        (one.name, one.problem or one.kind, f"{one.rank}", f"{one.matrices}", format_bytes(one.size_bytes), one.base)
        for one in found
    ]
    output.table(("adapter", "kind", "rank", "matrices", "size", "base"), rows, right=(2, 3, 4))
    return int(ExitCode.DONE)


def _listed(folder: Path) -> Listed:
    from engine.adapters.folder import read_adapter

    try:
        found = read_adapter(folder)
    except EngineError as error:
        return Listed(adapter_name(folder), str(folder), problem=f"unreadable ({error.code})")
    return Listed(
        name=adapter_name(folder),
        path=str(folder),
        kind=found.config.kind,
        rank=max((one.rank for one in found.adapted), default=0),
        matrices=len(found.adapted),
        size_bytes=found.size_bytes,
        base=found.config.base,
    )


# ── inspect ──────────────────────────────────────────────────────────────────────────────────────────────────────
def inspect(arguments: argparse.Namespace) -> int:
    """One adapter in figures."""
    from engine.adapters.folder import read_adapter
    from engine.adapters.inspection import inspect_adapter

    folder = adapter_folder(arguments.adapter)
    report = inspect_adapter(read_adapter(folder), base_folder(arguments.base))
    if arguments.json:
        output.emit_json(report)
        return int(ExitCode.DONE)
    for line in inspect_lines(report):
        output.say(line)
    _say_norms(report.per_matrix, every=arguments.matrices)
    return int(ExitCode.DONE)


def inspect_lines(report: AdapterReport) -> list[str]:
    """What it is, in lines."""
    few = f"rank{'s' if len(report.ranks) > 1 else ''} {', '.join(map(str, report.ranks))}"
    ranks = few if len(report.ranks) <= 3 else f"ranks up to {report.rank}"
    layers = f" in {report.layers} layers" if report.layers else ""
    lines = [
        f"Adapter   {report.path}",
        f"          {report.kind}, {ranks}, alpha {report.alpha:g}; {report.matrices} matrices{layers}: "
        f"{', '.join(report.modules)}",
        f"          {format_count(report.parameters)} numbers ({', '.join(report.dtypes)}), "
        f"{format_bytes(report.size_bytes)}",
    ]
    revision = f", revision {report.revision[:12]}" if report.revision else ""
    weights = f", weights {report.fingerprint[:12]}" if report.fingerprint else ""
    lines.append(f"Base      {report.base or 'not named'}{revision}{weights}")
    if report.belongs is None:
        lines.append("          not on this machine; --base names it")
    elif report.belongs:
        lines.append(f"          found in {report.base_folder}")
    else:
        lines.append(f"          {report.base_folder} is another one: {report.why_not}")
    if report.whole:
        lines.append(f"Replaces  {', '.join(report.whole[:4])}{_more(report.whole)}")
    if report.token_rows:
        lines.append(f"Replaces  {report.token_rows} rows of embeddings")
    if report.biases != "none":
        lines.append(f"Biases    {report.biases.replace('_', ' ')}")
    return lines + [f"! {note}" for note in report.notes]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 4} more" if len(names) > 4 else ""


def _say_norms(matrices: Sequence[MatrixReport], *, every: bool) -> None:
    known = [(one.module, one.update_norm, one.relative_norm) for one in matrices if one.update_norm is not None]
    if not known:
        return
    output.say()
    if every:
        rows = [(name, f"{norm:.4g}", _share(share)) for name, norm, share in known]
        output.table(("matrix", "update", "of the weight"), rows, right=(1, 2))
        return
    layers: dict[str, float] = {}
    for name, norm, _ in known:
        place = layer_of(name)
        layers[place] = layers.get(place, 0.0) + norm * norm
    output.table(("layer", "update"), [(name, f"{square**0.5:.4g}") for name, square in layers.items()], right=(1,))


def layer_of(module: str) -> str:
    """ "12" for what is in a layer, else the module's name."""
    return next((part for part in module.split(".") if part.isdigit()), module)


def _share(value: float | None) -> str:
    return f"{value:.2%}" if value is not None else "-"


# ── test ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test(arguments: argparse.Namespace) -> int:
    """The self-test of every adapter; exit code 5 where one fails."""
    from engine.adapters.folder import read_adapter
    from engine.adapters.mix import find_base
    from engine.adapters.recipe import Share

    given = base_folder(arguments.base)
    tested: list[dict[str, Any]] = []
    passed = True
    for word in arguments.adapters:
        folder = adapter_folder(word)
        share = Share(read_adapter(folder), name=adapter_name(folder))
        base = find_base([share], given)
        report, logits = _tested(share, base.folder if base is not None else None, arguments)
        good = report.passed and (logits is None or logits.logits.max_rel_logit_diff <= PEFT_TOLERANCE)
        passed = passed and good
        tested.append({**_plain(report), "passed": good, "logits": logits})
        if not arguments.json:
            _say_test(report, logits, good)
    if arguments.json:
        output.emit_json({"passed": passed, "adapters": tested})
    return int(ExitCode.DONE if passed else ExitCode.RUN_FAILED)


def _tested(
    share: Share, base: Path | None, arguments: argparse.Namespace
) -> tuple[IdentityReport, FunctionReport | None]:
    from engine.adapters.base import read_base
    from engine.adapters.identity import identity_report
    from engine.adapters.mix import MixRequest, write_mix

    found = read_base(base) if base is not None else None
    report = identity_report(share, found)
    if not arguments.peft:
        return report, None
    if base is None:
        raise EngineError(
            "adapter.no_base",
            f"The base of {share.label} is not here, and logits need it.",
            next_step="Give its folder with --base.",
        )
    with tempfile.TemporaryDirectory(prefix="scaler-wizard-test-") as folder:
        out = Path(folder) / "alone"
        write_mix(MixRequest((share,), out, test=False), found)
        return report, _logits(share.adapter.path, out, base, Path(folder), quiet=arguments.json)


def _logits(first: Path, second: Path, base: Path, folder: Path, *, quiet: bool) -> FunctionReport:
    """Both on the base, loaded with peft, in a process of its own."""
    import msgspec

    from engine.jobs.function_report import FunctionReport
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    report = folder / "report.json"
    words = ["--first", str(first), "--second", str(second), "--base", str(base), "--out", str(report)]
    words += ["--tokens", COMPARED_TOKENS]
    failing = Failing("verify.failed", "Compare them again: scaler-wizard verify.", own_exit_code=True)
    with ends_when_told(), growth_view(quiet=quiet) as view:
        run_module("engine.proof.verify", words, folder / "verify.log", "comparing", shown_by(view), failing=failing)
    return msgspec.json.decode(report.read_bytes(), type=FunctionReport)


def _say_test(report: IdentityReport, logits: FunctionReport | None, good: bool) -> None:
    verdict = "gives itself back" if good else "does NOT give itself back"
    output.say(
        f"{report.adapter}: {report.kind}, {report.tensors} tensors: {verdict} (relative error "
        f"{report.relative_error:.1e}, worst {report.worst_error:.1e} in {report.worst_tensor})"
    )
    if logits is not None:
        drift = logits.logits
        output.say(
            f"  with peft: logits differ by at most {drift.max_rel_logit_diff:.1e} of their range; same next token at "
            f"{drift.top1_agreement:.1%} of {logits.tokens} positions"
        )


def _plain(report: IdentityReport) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(report)
    return found
