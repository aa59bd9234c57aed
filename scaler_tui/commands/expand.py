"""`expand`: plans side by side, the growth itself with its progress, its proof in words and as JSON, and the undo.

Owns the text and JSON of the command, and what an interruption says. Plans are `engine.expansion`'s, bytes are
`engine.surgery`'s. Must not import torch: what needs it runs in processes of its own.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_count, format_duration, parse_bytes
from scaler_tui import growth_text, output, proof_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.expansion.certificate import Certificate
    from engine.expansion.plan import ExpansionPlan
    from engine.expansion.planner import PlanChoice
    from engine.surgery.helpers import Progress
    from scaler_tui.commands.expand_plans import Planned
    from scaler_tui.growth_progress import Silent

PHASES = {"checks": "checking", "layers": "making layers", "weights": "writing", "proof": "proving"}
SIZES = ("hidden", "ffn", "layers", "heads", "kv_heads", "experts")
SLOW_DISK, FAST_DISK = 0.2e9, 1.5e9
"""Bytes a second: a hard disk or a shared volume, a good SSD."""


def expand(arguments: argparse.Namespace) -> int:
    """Plan, grow, prove; or recover what was grown."""
    _check_together(arguments)
    if arguments.undo:
        return _undo(arguments)
    if arguments.resume:
        return _resume(arguments)
    from scaler_tui.commands.expand_plans import plan_side_by_side, planned

    sized = bool(arguments.to) or any(getattr(arguments, name) for name in SIZES)
    found = planned(arguments, to=arguments.to if sized else "2x")
    if arguments.dry_run:
        return _dry_run(arguments, found)
    if not sized:
        plan_side_by_side(found)
        choice = _ask(found) if arguments.out is not None and _may_ask(arguments) else None
        if choice is None:
            raise _no_size(found)
    else:
        choice = found.picked
    if not arguments.json:
        _announce(found, choice, research=sized)
    return _grow(arguments, found.folder, choice.plan, parse_bytes(arguments.shard_size))


def _check_together(arguments: argparse.Namespace) -> None:
    """Flags that exclude each other. Raises EngineError `usage`."""
    modes = [name for name in ("dry_run", "resume", "undo") if getattr(arguments, name)]
    if arguments.dry_run and len(modes) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in modes)
        raise EngineError("usage", f"{flags} exclude each other.", next_step="Give one of them.")
    if arguments.out is None and not arguments.dry_run and (arguments.undo or arguments.resume or arguments.json):
        raise EngineError("usage", "OUT is missing.", next_step="Name a new folder: scaler-wizard expand MODEL OUT.")
    if arguments.seed < 0:
        raise EngineError("usage", f"--seed is {arguments.seed}.", next_step="Give a whole number from 0 on.")
    if arguments.no_proof and arguments.proof_text:
        raise EngineError("usage", "--no-proof and --proof-text exclude each other.", next_step="Give one of them.")
    if arguments.proof_text is not None and not arguments.proof_text.expanduser().is_file():
        raise EngineError(
            "proof.text", f"There is no file {arguments.proof_text}.", next_step="Name a file of plain text."
        )


def _may_ask(arguments: argparse.Namespace) -> bool:
    from scaler_tui.terminal import is_interactive

    return not arguments.json and is_interactive()


def _ask(found: Planned) -> PlanChoice | None:
    """A person at the terminal chooses; None when they leave it."""
    from scaler_tui.prompts import Back, Left, choose

    labels = [f"{choice.title}, {format_count(choice.parameters)} parameters" for choice in found.choices]
    output.say()
    try:
        number = choose("Which", labels, suggested=found.choices.index(found.picked) + 1)
    except (Left, Back):
        return None
    return found.choices[number - 1]


def _no_size(found: Planned) -> EngineError:
    from engine.expansion.planner import TITLES

    names = ", ".join(choice.id for choice in found.choices)
    return EngineError(
        "expansion.no_size",
        "It is not said how large the model should be; nothing was written.",
        next_step=f"Add --to 2x (or 7B), with --plan for another than {TITLES[found.picked.id].lower()} ({names}); or "
        "sizes: --hidden, --ffn, --layers, --heads, --kv-heads, --experts.",
    )


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _dry_run(arguments: argparse.Namespace, found: Planned) -> int:
    from scaler_tui.commands.expand_plans import plan_side_by_side, plans_json

    if arguments.json:
        output.emit_json(plans_json(found, str(arguments.out or "")))
        return int(ExitCode.DONE)
    plan_side_by_side(found)
    choice = found.picked
    low, high = choice.disk_bytes / FAST_DISK, choice.disk_bytes / SLOW_DISK
    output.say(
        f"Writing takes {format_bytes(choice.disk_bytes)}: {format_duration(low)} on a good SSD, "
        f"{format_duration(high)} on a slow disk. Nothing was written."
    )
    return int(ExitCode.DONE)


def _announce(found: Planned, choice: PlanChoice, *, research: bool) -> None:
    """What is about to be done; the frank line where it was not said yet."""
    before, after = format_count(found.source.parameters), format_count(choice.parameters)
    output.note(f"Growing {found.name} from {before} to {after} parameters: {choice.title.lower()}.")
    for sentence in growth_text.plan_words(choice):
        output.note(f"  {sentence}")
    if research:
        output.note(f"  {found.research}")


# ── growing ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _grow(
    arguments: argparse.Namespace, source: Path, plan: ExpansionPlan, shard_bytes: int, *, resume: bool = False
) -> int:
    from engine.surgery.expand import ExpandRequest, expand
    from scaler_tui.growth_progress import growth_view

    if arguments.out is None:
        raise EngineError("usage", "OUT is missing.", next_step="Name a new folder: scaler-wizard expand MODEL OUT.")
    request = ExpandRequest(
        source=source,
        out=arguments.out.expanduser(),
        plan=plan,
        shard_bytes=shard_bytes,
        proof=not arguments.no_proof,
        proof_text=arguments.proof_text.expanduser().absolute() if arguments.proof_text else None,
        resume=resume,
    )
    try:
        with growth_view(quiet=arguments.json) as view:
            certificate = expand(request, _shown_by(view))
    except KeyboardInterrupt:
        raise _interrupted(arguments) from None
    if arguments.json:
        output.emit_json(_result_json(certificate, arguments.out))
    else:
        print_result(certificate, arguments.out)
    return int(ExitCode.DONE)


def _shown_by(view: Silent) -> Callable[[Progress], None]:
    """Passes the surgery's words on to a view; what it says when all is done is said by the result."""

    def report(progress: Progress) -> None:
        if progress.phase != "done":
            phase = PHASES.get(progress.phase, progress.phase)
            counts_bytes = progress.phase in ("weights", "checks")
            view.show(phase, progress.done_bytes, progress.total_bytes, counts_bytes=counts_bytes)

    return report


def _interrupted(arguments: argparse.Namespace) -> EngineError:
    from engine.surgery.expand import staging_folder

    kept = staging_folder(arguments.out.expanduser())
    words = ["scaler-wizard", "expand", arguments.model, str(arguments.out), "--resume"]
    words += ["--undo"] if arguments.undo else []
    if not kept.exists():
        return EngineError("interrupted", "Interrupted; nothing was written.", exit_code=ExitCode.INTERRUPTED)
    return EngineError(
        "interrupted",
        f"Interrupted; finished files are kept in {kept}.",
        next_step=f"Go on with: {shlex.join(words)}. Or remove that folder.",
        exit_code=ExitCode.INTERRUPTED,
    )


def _resume(arguments: argparse.Namespace) -> int:
    """The plan and the shard size are those of the interrupted attempt, whatever flags are given now."""
    from scaler_tui.commands.expand_plans import model_folder, unfinished

    plan, shard_bytes = unfinished(arguments.out.expanduser())
    return _grow(arguments, model_folder(arguments.model), plan, shard_bytes, resume=True)


def _undo(arguments: argparse.Namespace) -> int:
    """Recover what a model was grown from."""
    from engine.models.resolve import folder_word
    from engine.surgery.undo import undo
    from scaler_tui.commands.expand_plans import model_folder
    from scaler_tui.growth_progress import growth_view

    folder, out = model_folder(arguments.model), arguments.out.expanduser()
    try:
        with growth_view(quiet=arguments.json) as view:
            result = undo(folder, out, _shown_by(view), resume=arguments.resume)
    except KeyboardInterrupt:
        raise _interrupted(arguments) from None
    if arguments.json:
        output.emit_json(result)
    else:
        output.say(f"Recovered {folder_word(out)} from {folder}: {result.words}")
        output.say(f"{format_count(result.parameters)} parameters, {format_bytes(result.bytes_written)} written.")
    return int(ExitCode.DONE)


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _result_json(certificate: Certificate, out: Path) -> dict[str, Any]:
    """The object that `--json` promises."""
    return {
        "source": certificate.source,
        "output": str(out),
        "operators": certificate.operators,
        "parameters_before": certificate.parameters_before,
        "parameters_after": certificate.parameters_after,
        "exact": certificate.exact,
        "proof": _proof_json(certificate),
        "seconds": round(certificate.seconds, 3),
        "peak_rss_bytes": certificate.peak_rss_bytes,
        "bytes_written": certificate.bytes_written,
    }


def _proof_json(certificate: Certificate) -> dict[str, Any] | None:
    proof = certificate.proof
    if proof is None:
        return None
    drift = proof.float32
    document: dict[str, Any] = {
        "max_abs_logit_diff": drift.max_abs_logit_diff if drift else None,
        "max_rel_logit_diff": drift.max_rel_logit_diff if drift else None,
        "mean_kl": drift.mean_kl if drift else None,
        "top1_agreement": drift.top1_agreement if drift else None,
        "generation_identical": proof.generation_identical,
        "reloaded": proof.reloaded,
        "liveness": proof.liveness,
    }
    if not certificate.exact:  # what an operator that changes the function is judged by
        document |= {"perplexity_before": proof.perplexity_before, "perplexity_after": proof.perplexity_after}
    return document


def print_result(certificate: Certificate, out: Path) -> None:
    """The proof for people: the verdict, every figure with its meaning, where things are."""
    from engine.models.resolve import folder_word

    word = folder_word(out)
    found = proof_text.verdict(certificate)
    output.say(f"{found.name}: {found.figure}; {found.meaning}.")
    rows = proof_text.findings(certificate)
    if rows:
        names, figures = (
            max(len(text) for text in texts) for texts in zip(*((r.name, r.figure) for r in rows), strict=True)
        )
        for row in rows:
            sign = {"good": "+", "warn": "!", "bad": "x"}.get(row.tone, " ")
            output.say(f"  {sign} {row.name:<{names}}  {row.figure:>{figures}}  {row.meaning}")
    if certificate.proof is not None:
        output.say(f"  {proof_text.measured_on(certificate.proof)}")
    output.say(f"Written  {word}: {proof_text.work_line(certificate)}")
    output.say(f"Proof    {out / 'expansion.json'}")
    if certificate.undo:
        output.say(f"Undo     {shlex.join(['scaler-wizard', 'expand', word, 'PARENT', '--undo'])}")
