"""A merged model against its adapters on their base: a process of its own, and what was found in words.

Owns what the merged model is held against. Must not import torch, nor know how models are compared
(`engine.proof.verify`). One adapter at weight 1 is loaded as it is; others become one adapter first, which adds up to
the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.adapters.merge import MergeRequest
    from engine.jobs.function_report import FunctionReport

NOT_ASKED = "not asked for"


def compare_merged(
    request: MergeRequest, packings: Sequence[str] = ("none",), *, quiet: bool
) -> tuple[dict[str, FunctionReport], str]:
    """By what the base is packed to ("none"); and why something was not compared. Raises EngineError `interrupted`."""
    if not request.mixing.is_sum:
        return {}, f"no adapter of low rank computes what {request.mixing.method.value} makes of several"
    found: dict[str, FunctionReport] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="scaler-wizard-merge-") as folder:
            adapter = _one_adapter(request, Path(folder) / "adapter")
            for packing in packings:
                found[packing] = _compared(request, adapter, packing, Path(folder), quiet=quiet)
    except KeyboardInterrupt:
        raise EngineError(
            "interrupted", f"Interrupted; {request.out} is complete.", exit_code=ExitCode.INTERRUPTED
        ) from None
    except EngineError as error:
        return found, " ".join(filter(None, (error.what, error.cause)))
    return found, ""


def _one_adapter(request: MergeRequest, out: Path) -> Path:
    """The folder of the only adapter at weight 1, else of their exact sum, which is written to `out`."""
    from engine.adapters.base import read_base
    from engine.adapters.mix import MixRequest, write_mix
    from engine.adapters.recipe import Share

    used = [one for one in request.mix if one.weight != 0]
    if len(used) == 1 and used[0].weight == 1.0:
        return used[0].adapter.path
    shares = tuple(Share(one.adapter, one.weight) for one in used)
    write_mix(MixRequest(shares, out, test=False), read_base(request.base))
    return out


def _compared(request: MergeRequest, adapter: Path, packing: str, folder: Path, *, quiet: bool) -> FunctionReport:
    import msgspec

    from engine.jobs.function_report import FunctionReport
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.commands.extend import shown_by
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    path = folder / "report.json"
    words = ["--first", str(request.out), "--second", str(adapter), "--base", str(request.base), "--out", str(path)]
    words += ["--quantization", packing]
    failing = Failing("verify.failed", "Compare it again: scaler-wizard verify.", own_exit_code=True)
    with ends_when_told(), growth_view(quiet=quiet) as view:
        run_module("engine.proof.verify", words, folder / "verify.log", "comparing", shown_by(view), failing=failing)
    return msgspec.json.decode(path.read_bytes(), type=FunctionReport)


def say_compared(request: MergeRequest, checks: dict[str, FunctionReport], why: str) -> None:
    """Lines for people."""
    several = len(request.mix) > 1
    for packing, report in checks.items():
        base = "base" if packing == "none" else f"base in 4 bits ({packing})"
        whose = f"the adapters on their {base}" if several else f"the adapter on its {base}"
        drift = report.logits
        output.say(
            f"Compared  with {whose}: logits differ by at most {drift.max_rel_logit_diff:.1e} of their "
            f"range, {drift.mean_kl:.1e} nats per token; same next token at {drift.top1_agreement:.1%} of "
            f"{report.tokens} positions"
        )
    if why and not checks:
        output.say(f"Compared  not: {why.rstrip('.')}.")
    elif why:
        output.say(f"! {why}")
