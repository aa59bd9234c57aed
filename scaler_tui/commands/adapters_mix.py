"""`adapters mix`: several adapters become one adapter, or one model.

Owns the words and the JSON. Must not compute (`engine.adapters.mix`, `engine.adapters.merge`), nor import torch.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.jobs.named_adapter import adapter_folder, adapter_name
from engine.units import format_bytes, format_duration
from scaler_tui import output
from scaler_tui.commands.adapters import base_folder, layer_of

if TYPE_CHECKING:
    from engine.adapters.recipe import Recipe, Share
    from engine.jobs.mix_report import MixReport


def mix(arguments: argparse.Namespace) -> int:
    """Mix, say what came out. Raises EngineError."""
    from engine.adapters.mix import MixRequest, mix_adapters
    from scaler_tui.growth_progress import growth_view

    shares, recipe = shares_of(arguments.adapters), _recipe(arguments)
    if arguments.merged:
        return _merged(arguments, shares, recipe)
    request = MixRequest(
        shares=shares,
        out=arguments.out.expanduser().absolute(),
        recipe=recipe,
        base=base_folder(arguments.base),
        force=arguments.force,
        test=not arguments.no_test,
    )
    with growth_view(quiet=arguments.json) as view:
        view.show("testing" if request.test else "reading")
        report = mix_adapters(request, lambda done, of, name: view.show("mixing", done, of, counts_bytes=False))
    if arguments.json:
        output.emit_json(report)
    else:
        _say(report, every=arguments.matrices)
    return int(ExitCode.DONE)


def shares_of(words: list[str]) -> tuple[Share, ...]:
    """Raises EngineError `adapter.*`, `run.*`, `usage`."""
    from engine.adapters.folder import read_adapter
    from engine.adapters.recipe import Share

    found: list[Share] = []
    for text in words:
        word, weight = split_weight(text)
        folder = adapter_folder(word)
        found.append(Share(read_adapter(folder), weight, adapter_name(folder)))
    return tuple(found)


def split_weight(text: str) -> tuple[str, float]:
    """ "style=0.5" -> ("style", 0.5); weight 1 without one. A folder whose name ends so is itself."""
    word, found, number = text.rpartition("=")
    if not found or not word or Path(text).expanduser().exists():
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        raise _no_weight(number) from None
    if not -100 <= weight <= 100:
        raise _no_weight(number)
    return word, weight


def _no_weight(number: str) -> EngineError:
    return EngineError(
        "usage", f"'{number}' is no weight from -100 to 100.", next_step="Write ADAPTER=0.5; negative takes away."
    )


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from engine.adapters.recipe import Recipe
    from engine.jobs.spec_mix import MixMethod, Signs

    return Recipe(
        method=MixMethod(arguments.method),
        density=arguments.density,
        signs=Signs(arguments.signs),
        rank=arguments.rank,
        seed=arguments.seed,
    )


def _say(report: MixReport, *, every: bool) -> None:
    from engine.jobs.result_words import cut_words

    shares = zip(report.adapters, report.weights, strict=True)
    output.say(f"Mixed     {report.out}")
    output.say(f"          {report.method}: {', '.join(f'{weight:g} x {name}' for name, weight in shares)}")
    output.say(
        f"          rank {report.rank}, {format_bytes(report.size_bytes)}; {format_duration(report.seconds)}, at most "
        f"{format_bytes(report.peak_rss_bytes)} of memory"
    )
    output.say(_distance(report))
    if report.cut_error is not None:
        output.say(f"Cut       {cut_words(report)}; --merged keeps all")
    if report.identity_error is not None:
        output.say(f"Self-test {report.identity_error:.1e}: every adapter alone at weight 1 against itself, the worst")
    if every:
        rows = [
            (one.module, f"{one.rank}", f"{one.update_norm:.4g}", f"{one.relative_error:.1e}") for one in report.layers
        ]
        output.table(("matrix", "rank", "update", "error"), rows, right=(1, 2, 3))
    elif report.relative_error > 1e-5:
        worst: dict[str, float] = {}
        for one in report.layers:
            worst[layer_of(one.module)] = max(worst.get(layer_of(one.module), 0.0), one.relative_error)
        output.table(("layer", "largest error"), [(name, f"{error:.1e}") for name, error in worst.items()], right=(1,))
    output.say(f"Next      scaler-wizard chat {shlex.quote(report.out)}")


def _distance(report: MixReport) -> str:
    over = f"over {len(report.layers)} tensors"
    if report.method in ("exact", "linear", "svd"):
        return f"Error     {report.relative_error:.1e} of the true weighted sum, {over}"
    return f"Differs   {report.relative_error:.0%} from the true weighted sum, which {report.method} is not, {over}"


# ── a whole model ────────────────────────────────────────────────────────────────────────────────────────────────
def _merged(arguments: argparse.Namespace, shares: tuple[Share, ...], recipe: Recipe) -> int:
    """The base with the mix folded in. Raises EngineError."""
    from dataclasses import replace

    from engine.adapters.merge import MergeRequest, merge
    from engine.adapters.merge_plan import Weighed
    from engine.adapters.mix import find_base
    from engine.adapters.recipe import weights_of
    from scaler_tui.commands.adapters_merge import drawn_by
    from scaler_tui.commands.merged_comparison import NOT_ASKED, compare_merged, say_compared
    from scaler_tui.growth_progress import growth_view

    if recipe.rank:
        raise EngineError(
            "usage",
            "A merged model has no rank.",
            next_step="Leave --rank out, or mix to an adapter of that rank and merge it: adapters merge.",
        )
    weights = weights_of(shares, recipe)
    base = find_base(shares, base_folder(arguments.base))
    if base is None:
        from engine.adapters.merge_refusals import plain_name

        raise EngineError(
            "adapter.no_base",
            "The base of these adapters is not here in 16 or 32 bits.",
            cause=f"They name '{shares[0].adapter.config.base}'.",
            next_step=f"Give {plain_name(shares[0].adapter.config.base) or 'its folder'} with --base, unquantised.",
        )
    request = MergeRequest(
        base=base.folder,
        mix=tuple(Weighed(share.adapter, weight) for share, weight in zip(shares, weights, strict=True)),
        out=arguments.out.expanduser().absolute(),
        mixing=replace(recipe, rank=0),
        dtype=arguments.dtype,
        force=arguments.force,
    )
    with growth_view(quiet=arguments.json) as view:
        record = merge(request, drawn_by(view))
    checks, why = ({}, NOT_ASKED) if arguments.no_test else compare_merged(request, quiet=arguments.json)
    if arguments.json:
        told = {"out": str(request.out), "size_bytes": record.size_bytes, "merge": record}
        output.emit_json(told | {"checks": checks, "not_compared": why})
        return int(ExitCode.DONE)
    named = ", ".join(f"{share.weight:g} x {share.label}" for share in shares)
    output.say(f"Merged    {request.out}")
    output.say(f"          {recipe.method.value}: {named}")
    output.say(
        f"          {format_bytes(record.size_bytes)}; {record.changed} of {record.tensors} tensors changed; "
        f"{format_duration(record.seconds)}, at most {format_bytes(record.peak_rss_bytes)} of memory"
    )
    say_compared(request, checks, why)
    for note in record.notes:
        output.say(f"! {note}")
    output.say(f"Next      scaler-wizard chat {shlex.quote(str(request.out))}")
    return int(ExitCode.DONE)
