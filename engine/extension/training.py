"""Training at the new length as a part of an extension: the data, the run's spec, and what is taken from the run.

Owns the translation from an order and a plan to a spec, and the merged model's way into the folder. Must not know how a
run is started or watched, nor torch.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from engine.advise.answers import answers_of
from engine.advise.context import ContextChoice
from engine.advise.plan import JobWish, build_spec
from engine.context.certificate import CERTIFICATE_NAME
from engine.context.plan import ContextPlan
from engine.data.long_catalogue import Progress
from engine.data.long_documents import parse_source
from engine.data.long_mix import MixRequest, build_mix
from engine.data.long_report import MixReport
from engine.errors import EngineError, ExitCode
from engine.extension.staging import Order
from engine.hardware.detect import detect
from engine.jobs.layout import write_atomic
from engine.jobs.spec import JobSpec
from engine.jobs.spec_context import SEARCHED
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model

APPROACH = "context"
FACTORS, MIX, MIX_REPORT = "factors.json", "train.jsonl", "mix.json"
SHIPPED = ("demo", "demo-long")
_ROWS = (".jsonl", ".json", ".csv", ".parquet")


def training_spec(order: Order, plan: ContextPlan, folder: Path, counting: Progress | None = None) -> JobSpec:
    """The run's spec: the planned method on the source, settings that fit this machine, the result merged.

    Several files, folders and plain text are mixed into one file in `folder` first, with its report beside it
    (`mix_report`). Raises EngineError `mix.*`, `plan.*`.
    """
    data = training_data(order, folder, plan.original, counting)
    ref = resolve_model(order.name)
    answers = answers_of({"model": order.name, "data": data})
    wish = JobWish(train=data, name=f"{order.name} to {plan.target}", context=ContextChoice(plan.target))
    spec = build_spec(analyze_model(ref), detect(), answers, approach=APPROACH, wish=wish)
    change = msgspec.structs.replace
    factors = _factors_file(plan, folder) if plan.method in SEARCHED else ""
    return change(
        spec,
        model=change(spec.model, source=order.name),
        context=change(spec.context, method=plan.method, theta=plan.options.theta or 0.0, factors=factors),
        training=change(spec.training, max_steps=order.steps, seed=order.seed),
        # The folder is measured in full afterwards, as it will be served.
        evaluation=change(spec.evaluation, lengths=(plan.original, plan.target), needle_prompts=0),
        output=change(spec.output, merge=True),
    )


def check_data(names: tuple[str, ...]) -> tuple[str, ...]:
    """The files by their absolute names. Raises EngineError `data.missing`."""
    for name in names:
        if name not in SHIPPED and not Path(name).expanduser().exists():
            raise EngineError(
                "data.missing",
                f"There is no file {name} to train on.",
                next_step="Name files or folders of text, a .jsonl file of rows, or demo-long.",
            )
    return tuple(name if name in SHIPPED else str(Path(name).expanduser().absolute()) for name in names)


def training_data(order: Order, folder: Path, window: int, counting: Progress | None = None) -> str:
    """The one file to train on. Raises EngineError `mix.*`, `data.*`."""
    only = order.train[0]
    if len(order.train) == 1 and (only in SHIPPED or Path(only).suffix.lower() in _ROWS):
        return only
    mixed, told = folder / MIX, folder / MIX_REPORT
    if not (mixed.exists() and told.exists()):
        mixed.unlink(missing_ok=True)
        sources = tuple(parse_source(name) for name in order.train)
        request = MixRequest(
            sources, mixed, order.target, Path(order.source), model=order.name, window=window, seed=order.seed
        )
        write_atomic(told, msgspec.json.encode(build_mix(request, counting)))
    return str(mixed)


def mix_report(folder: Path) -> MixReport | None:
    """What became of every document of a mix in `folder`; None where nothing was mixed."""
    told = folder / MIX_REPORT
    return msgspec.json.decode(told.read_bytes(), type=MixReport) if told.is_file() else None


def take_merged(merged: Path, out: Path) -> None:
    """`merged` as the new folder `out`, its weights linked where that is possible. Appears whole or not at all.

    Raises EngineError `extension.no_merged`.
    """
    if not (merged / CERTIFICATE_NAME).is_file():
        raise EngineError(
            "extension.no_merged",
            f"The run left no merged model in {merged}.",
            next_step="Look into its log: scaler-wizard logs.",
            exit_code=ExitCode.RUN_FAILED,
        )
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(merged, partial, copy_function=_linked)
    partial.rename(out)


def _linked(source: str, target: str) -> None:
    if Path(source).suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _factors_file(plan: ContextPlan, folder: Path) -> str:
    """The plan's divisors where the spec can name them; kept in the folder until the run has read them."""
    scaling = plan.scaled.scaling
    tree = {
        "long_factor": scaling.divisors,
        "short_factor": scaling.short_divisors or scaling.divisors,
        "attention_factor": scaling.attention_factor,
    }
    write_atomic(folder / FACTORS, msgspec.json.encode(tree))
    return str(folder / FACTORS)
